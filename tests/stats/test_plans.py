"""Every statement of the statistics goes by an index, on both databases."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from app.db import Database
from app.models import Event, StatCell, StatCount, StatMember
from app.rollups.cells import Unit, View
from app.rollups.fold import RELATED, SLICE, fold_slice
from app.rollups.store import KnownCells
from app.stats.asking import StatsQuery, question_of
from app.stats.counting import counted_statement, whole_statement
from app.stats.loose import edge_part, loose_statement, people_statement, tail_end_statement, tail_part
from app.stats.queries import direct_statement
from app.stats.scale import ends_statement
from app.stats.statements import from_to
from app.stats.uniques import counted_statement as counted_uniques
from app.stats.uniques import unique_statement
from tests.conftest import MakeDatabase
from tests.factories import insert
from tests.stats.model import START, random_event

TABLES = "events|stat_counts|stat_members"
HOURS, DAYS = from_to(493_800, 493_830), from_to(20_575, 20_580)
EDGE = (int(START.timestamp()) * 10**6 + 5, int(START.timestamp()) * 10**6 + 10**9)


def of_part(make, question, part):
    return make(question.shape, part.is_tail).params(part.values)


STATEMENTS = {
    "counts of hours": lambda q, d: counted_statement(q.shape, View.TOTAL, Unit.HOUR).params(HOURS),
    "counts of days": lambda q, d: counted_statement(q.shape, View.DOMAIN, Unit.DAY).params(DAYS),
    "the first and last of days": lambda q, d: ends_statement(q.shape, View.CAMPAIGN, Unit.DAY).params(DAYS),
    "single events": lambda q, d: whole_statement(q.shape).params(HOURS),
    "uniques": lambda q, d: unique_statement(d, q.shape, 0).params({**HOURS, "loose": "[]"}),
    "uniques of a sample": lambda q, d: unique_statement(d, q.shape, 4).params({**HOURS, "loose": "[]"}),
    "a sample": lambda q, d: counted_uniques(q.shape, 4).params(HOURS),
    "the end of the tail": lambda q, d: tail_end_statement.params(after=2900, skipped=50),
    "the tail": lambda q, d: of_part(loose_statement, q, tail_part(q.filters, 2900, 2950)),
    "people of the tail": lambda q, d: of_part(people_statement, q, tail_part(q.filters, 2900, None)),
    "an edge": lambda q, d: of_part(loose_statement, q, edge_part(EDGE, 3000)),
    "people of an edge": lambda q, d: of_part(people_statement, q, edge_part(EDGE, 3000)),
    "a slice": lambda q, d: SLICE.params(after=2000, upto=2500, skipped=500),
    "a message": lambda q, d: RELATED.params(message_ids=["7", "8"]),
}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def counted(request: pytest.FixtureRequest, make_migrated: MakeDatabase) -> Iterator[Database]:
    """Filled once on each kind of database: who asks for plans changes nothing."""
    database = Database(make_migrated(request.param))
    rng = random.Random(1)
    insert(database, Event, [random_event(rng) | {"message_id": str(n)} for n in range(3000)])
    database.write(lambda c: fold_slice(c, 3000, KnownCells(), most=10_000))
    if not database.is_sqlite:
        for table in (Event, StatCell, StatCount, StatMember):
            name = table.__tablename__
            database.write(lambda c, name=name: c.execute(sa.text(f"ANALYZE {name}")))
    yield database
    database.close()


def plan(database: Database, statement: sa.Select[Any]) -> str:
    text = statement.compile(dialect=database.reader.dialect, compile_kwargs={"literal_binds": True})
    explain = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"
    with database.reading() as connection:
        if not database.is_sqlite:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")  # 3000 rows are read sooner than an index
        return "\n".join(str(row) for row in connection.exec_driver_sql(f"{explain} {text}"))


@pytest.mark.parametrize("filters", [{"group_by": ["webhook"]}, {"type": ["open"], "campaign_id": ["7"]}])
def test_no_table_of_events_or_counts_is_read_from_end_to_end(counted, filters):
    question = question_of(StatsQuery(**filters))
    for name, make in STATEMENTS.items():
        told = plan(counted, make(question, counted.reader.dialect.name))

        assert not re.search(rf"(SCAN|Seq Scan on) ({TABLES})", told), (name, told)


@pytest.mark.parametrize("name", ["email", "message_id", "message_guid", "custom_id", "campaign_id"])
def test_filters_that_only_an_index_serves_go_by_it(counted, name):
    question = question_of(StatsQuery(**{name: ["7"], "contact_id": ["1"]}))

    assert f"ix_events_{name}" in plan(counted, direct_statement(question))
