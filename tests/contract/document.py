"""The app's OpenAPI document, and the snapshot of it that is the contract."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from app.main import create_app
from app.settings import load_settings

SNAPSHOT = Path(__file__).parent / "openapi.json"
COMMAND = "python -m tests.contract"

Document = dict[str, Any]


def current_document() -> Document:
    """What the app answers at `/openapi.json`, whatever its settings."""
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(load_settings({"JETHOOK_DATABASE_URL": f"sqlite:///{folder}/empty.db"}, env_file=None))
        app.state.service.database.close()
        document: Document = json.loads(json.dumps(app.openapi()))
    return document


def kept_document() -> Document:
    document: Document = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    return document


def render(document: Document) -> str:
    """Readable and stable: sorted keys, one thing a line, so that a change of one thing is a change of one line."""
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
