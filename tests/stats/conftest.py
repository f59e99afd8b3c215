from collections.abc import Callable, Iterator

import pytest
from fastapi.testclient import TestClient

from app.db import Database
from app.query.horizon import Horizon
from app.rollups.fold import fold_slice
from app.rollups.store import KnownCells
from app.stats import uniques
from app.stats.routes import build_router
from tests.rest import KEYS, asking

Fold = Callable[..., int]


@pytest.fixture(autouse=True)
def _two_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for what is read in a moment."""
    monkeypatch.setattr(uniques, "WORTH_TWO", 1)


@pytest.fixture
def client(database: Database) -> Iterator[TestClient]:
    with asking(build_router(database, KEYS)) as opened:
        yield opened


@pytest.fixture
def fold(database: Database) -> Fold:
    """Counts up to `most` of the stored events that are not counted yet."""
    known, horizon = KnownCells(), Horizon()

    def count(most: int = 10_000) -> int:
        with database.reading() as connection:
            settled = horizon.look(connection).settled
        assert settled is not None
        counted = database.write(lambda connection: fold_slice(connection, settled, known, most=most))
        known.confirm()
        return counted

    return count
