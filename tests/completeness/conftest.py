from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.db import Database
from app.simulator.mailjet import StandInMailjet
from app.simulator.server import LocalServer
from tests.completeness.stage import KEY, SECRET, Stage


@pytest.fixture
def stage(database: Database) -> Iterator[Stage]:
    mailjet = StandInMailjet({KEY: SECRET})
    with LocalServer(mailjet) as server:
        yield Stage(database, server, mailjet)
