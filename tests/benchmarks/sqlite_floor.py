"""The floor of storing: the same rows into the same tables and indexes with plain `sqlite3` and `executemany`.

The schema is made by Jethook's own migration, the rows by its own functions before the clock starts, the connection
has Jethook's pragmas (WAL, synchronous=FULL). One transaction for each post. Prints `{"events": …, "seconds": …}`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.db import Database
from app.dispatch.matching import Target
from app.dispatch.service import DELIVERY_COLUMNS, NoWorker, fan_out
from app.ingest.identity import event_id
from app.ingest.rows import event_row
from app.logs import configure_logs
from app.mailjet.payloads import MailjetEvent, parse_events
from app.migrate import migrate
from app.views import EVENT_COLUMNS
from tests.benchmarks.corpus import read_bodies

TARGETS = [Target(name) for name in ("crm", "warehouse")]
Rows = list[tuple[Any, ...]]


def make_transactions(corpus: Path, events: int, group: int) -> Iterator[tuple[Rows, Rows]]:
    """(event rows, delivery rows) of each post."""
    now = int(time.time() * 1_000_000)
    for body, _ in read_bodies(corpus, skip=0, events=events, group=group):
        event_rows: Rows = []
        deliveries: Rows = []
        for event in parse_events(body):
            assert isinstance(event, MailjetEvent)
            identity = event_id("default", event.time, event.payload)
            row = event_row(identity, event, webhook="default", connection="default", received_micros=now)
            owed, _ = fan_out(
                event_id=identity, webhook="default", event_type=event.type, event=row, targets=TARGETS,
                worker=NoWorker(), now_micros=now,
            )  # fmt: skip
            event_rows.append(row)
            deliveries.extend(owed)
        yield event_rows, deliveries


def insert_all(folder: Path, transactions: list[tuple[Rows, Rows]], seconds: float) -> tuple[int, float]:
    """(events stored, seconds it took); stops early after `seconds`."""
    database = Database(f"sqlite:///{folder / 'floor.db'}")
    migrate(database)
    pooled = database.writer.raw_connection()
    connection = pooled.driver_connection
    assert connection is not None
    add_events, add_deliveries = _insert("events", EVENT_COLUMNS), _insert("deliveries", DELIVERY_COLUMNS)
    stored = 0
    began = time.perf_counter()
    for event_rows, deliveries in transactions:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(add_events, event_rows)
        connection.executemany(add_deliveries, deliveries)
        connection.execute("COMMIT")
        stored += len(event_rows)
        if time.perf_counter() - began > seconds:
            break
    return stored, time.perf_counter() - began


def _insert(table: str, columns: tuple[str, ...]) -> str:
    names = ", ".join(f'"{column}"' for column in columns)
    return f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(columns))})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--group", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    configure_logs(log_level="warning")
    transactions = list(make_transactions(arguments.corpus, arguments.events, arguments.group))
    with tempfile.TemporaryDirectory(dir=arguments.corpus.parent) as folder:
        stored, seconds = insert_all(Path(folder), transactions, arguments.seconds)
    print(json.dumps({"events": stored, "seconds": seconds}))


if __name__ == "__main__":
    main()
