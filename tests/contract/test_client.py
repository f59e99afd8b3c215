"""A client made by openapi-python-client from the contract, against a running service."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from app.main import create_app
from app.settings import load_settings
from app.simulator.server import LocalServer
from tests.contract.document import SNAPSHOT

pytestmark = pytest.mark.timeout(180)  # the generator and mypy, on a busy machine

PACKAGE = "generated_jethook_client"
PASSWORD = "client-password"
EVENT = {"event": "open", "time": 1_777_802_400, "email": "a@example.com", "MessageID": 19421777835146490}


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("client")
    config = folder / "config.json"
    config.write_text(json.dumps({"post_hooks": []}))  # nobody reads it, so it need not be pretty
    run("openapi_python_client", "generate", "--path", str(SNAPSHOT), "--config", str(config), "--meta", "none",
        "--output-path", str(folder / PACKAGE), "--fail-on-warning")  # fmt: skip
    return folder / PACKAGE


def run(module: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def client(generated: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(generated.parent)
    yield importlib.import_module(PACKAGE)
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


@pytest.fixture
def url(migrated_sqlite: Path, tmp_path: Path) -> Iterator[str]:
    database = tmp_path / "test.db"
    database.write_bytes(migrated_sqlite.read_bytes())
    settings = {
        "JETHOOK_DATABASE_URL": f"sqlite:///{database}",
        "JETHOOK_API_KEYS": "full",
        "JETHOOK_WEBHOOKS__ORDERS__PASSWORDS": PASSWORD,
    }
    with LocalServer(create_app(load_settings(settings, env_file=None))) as server:
        yield server.url


def part(name: str) -> Any:
    return importlib.import_module(f"{PACKAGE}.{name}")


def test_a_generated_client_fits_its_types(generated: Path, tmp_path: Path) -> None:
    run("mypy", "--config-file", "/dev/null", "--cache-dir", str(tmp_path), str(generated))


def test_a_generated_client_lists_posts_and_reads_problems(client: ModuleType, url: str) -> None:
    basic = {"auth": ("jethook", PASSWORD)}
    with (
        client.AuthenticatedClient(base_url=url, token="full") as rest,
        client.Client(base_url=url, httpx_args=basic) as sender,
    ):
        events = part("api.events.list_events")
        assert events.sync(client=rest).data == []

        posted = part("api.receiving.receive_events").sync("orders", client=sender, body=[EVENT])
        assert (posted.received, posted.stored, posted.duplicates, posted.quarantined) == (1, 1, 0, 0)

        (event,) = events.sync(client=rest, email=["a@example.com"]).data
        assert (event.type_, event.outcome, event.message_id) == ("open", "opened", str(EVENT["MessageID"]))
        assert part("api.events.get_event").sync(event.id, client=rest).raw.additional_properties == EVENT

        missing = part("api.deliveries.get_delivery").sync("x.crm", client=rest)
        assert (type(missing).__name__, missing.code, missing.status) == ("Problem", "delivery_not_found", 404)
        refused = events.sync(client=rest, cursor="x")
        assert (refused.code, refused.status) == ("bad_cursor", 400)
    with client.AuthenticatedClient(base_url=url, token="wrong") as rest:
        assert events.sync(client=rest).code == "unauthorized"
