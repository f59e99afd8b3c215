from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import MakeDatabase


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def module_database_url(request: pytest.FixtureRequest, make_database: MakeDatabase) -> str:
    """One database of each kind for the module."""
    return make_database(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path
