"""`jethook rebuild stats`."""

import random

import sqlalchemy as sa
from typer.testing import CliRunner

from app.cli import cli
from app.db import Database
from app.models import Event, StatCount
from tests.factories import insert
from tests.rollups.test_fold import counted, fold
from tests.stats.model import random_event


def test_the_command_counts_again_and_says_what(database: Database, migrated_url: str, monkeypatch, tmp_path):
    insert(database, Event, [random_event(random.Random(9)) for _ in range(20)])
    fold(database)
    right = counted(database)
    table = StatCount.__table__
    database.write(lambda c: c.execute(sa.update(table).values(count=table.c.count - 1)))
    database.write(lambda c: c.execute(sa.delete(table).where(table.c.count == 0)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JETHOOK_DATABASE_URL", migrated_url)

    result = CliRunner().invoke(cli, ["rebuild", "stats"])

    assert result.exit_code == 0, result.output
    assert "20 events of" in result.output
    assert counted(database) == right
