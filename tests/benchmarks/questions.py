"""`python -m tests.benchmarks.questions [--events N] [--database sqlite|postgresql|both]`: what asking costs.

The real service answers each question again and again over N/10 and over N events, while 500 events a second come in.
Prints p50 and p95 of each, their ratio, and the bytes stored for an event with its delivery; `--readme` keeps them.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import random
import statistics
import tempfile
import threading
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson
import psycopg
import sqlalchemy as sa
from rich.console import Console

from app.db import Database
from app.logs import configure_logs
from app.models import Event
from app.simulator.traffic import make_events
from tests.benchmarks import report
from tests.benchmarks.filling import SINK, WEBHOOK, fill, stored_bytes
from tests.benchmarks.processes import free_port, serving
from tests.benchmarks.subjects import sink

BEGIN, END = "<!-- questions: begin -->", "<!-- questions: end -->"
KEY, PASSWORD = "benchmark-key", "benchmark-password"
RATE, GROUP = 500, 25  # events a second beside the questions, in posts of so many
REPEATS = 60
WANTED_MS, WANTED_RATIO, WANTED_BYTES = 50.0, 3.0, 1_500

events: sa.Table = Event.__table__  # type: ignore[attr-defined]


class Question(NamedTuple):
    """A request; `{email}` and the like are taken from a stored event, another each time. `body` makes it a POST."""

    name: str
    path: str
    body: str | None = None
    first_byte: bool = False


QUESTIONS = (
    Question("events", "/v1/events"),
    Question("events, 1000", "/v1/events?limit=1000"),
    Question("events of a day", "/v1/events?after={day}T00:00:00Z&before={day}T23:59:59Z"),
    Question("events, webhook and type", "/v1/events?webhook=default&type=click"),
    Question("events, rare type", "/v1/events?type=spam"),
    Question("events, outcome", "/v1/events?outcome=bounced"),
    Question("events, email", "/v1/events?email={email}"),
    Question("events, email domain", "/v1/events?email_domain={email_domain}"),
    Question("events, message", "/v1/events?message_id={message_id}"),
    Question("events, campaign", "/v1/events?campaign_id={campaign_id}"),
    Question("events, campaign and type", "/v1/events?campaign_id={campaign_id}&type=bounce"),
    Question("one event", "/v1/events/{id}"),
    Question("an event's deliveries", "/v1/events/{id}/deliveries"),
    Question("timeline", "/v1/messages/{message_id}?include=deliveries"),
    Question("deliveries", "/v1/deliveries"),
    Question("deliveries, sink", "/v1/deliveries?sink=crm"),
    Question("deliveries, dead", "/v1/deliveries?state=dead"),
    Question("deliveries, pending", "/v1/deliveries?state=pending&sink=crm"),
    Question("quarantine", "/v1/quarantine"),
    Question("replays", "/v1/replays"),
    Question("feed, from the start", "/v1/feed"),
    Question("feed, one type", "/v1/feed?type=unsub"),
    Question("recipient", "/v1/recipients/{email}"),
    Question("recipient, folded", "/v1/recipients/{email}?folded=true"),
    Question("suppressions", "/v1/suppressions"),
    Question("suppressions, reason", "/v1/suppressions?reason=hard_bounce"),
    Question("suppressions, domain", "/v1/suppressions?email_domain={email_domain}"),
    Question("check of an address", "/v1/suppressions/check", '{{"emails": ["{email}"]}}'),
    Question("stats, all by day", "/v1/stats"),
    Question("stats, a day by hour", "/v1/stats?interval=hour&after={day}T00:00:00Z&before={day}T23:59:59Z"),
    Question("stats, type", "/v1/stats?group_by=type"),
    Question("stats, domain and type", "/v1/stats?group_by=email_domain&group_by=type&interval=day"),
    Question("stats, campaign", "/v1/stats?campaign_id={campaign_id}"),
    Question(
        "stats, custom campaign by hour",
        "/v1/stats?group_by=custom_campaign&interval=hour&after={day}T00:00:00Z&before={day}T23:59:59Z",
    ),
    Question("stats, bounce reasons", "/v1/stats?group_by=reason&type=bounce"),
    Question("stats of domains", "/v1/stats/domains"),
    Question("stats of campaigns", "/v1/stats/campaigns"),
    Question("export, first byte", "/v1/exports/events?type=sent", first_byte=True),
)


@dataclass(frozen=True, slots=True)
class Timing:
    p50: float
    p95: float


Timings = dict[str, Timing]


# --- asking ----------------------------------------------------------------------------------------------------------


def ask(port: int, question: Question, values: Mapping[str, str]) -> float:
    """Milliseconds until the whole answer is there, or its first byte. Raises RuntimeError where it is no 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    try:
        began = time.perf_counter()
        path = question.path.format_map({name: quote(value, safe="") for name, value in values.items()})
        body = question.body.format_map(values).encode() if question.body else None
        connection.request("POST" if body else "GET", path, body, headers)
        answer = connection.getresponse()
        content = answer.read(1) if question.first_byte else answer.read()
        took = (time.perf_counter() - began) * 1000
    finally:
        connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{path} answered {answer.status}: {content[:300]!r}")
    return took


def ask_all(port: int, samples: Sequence[Mapping[str, str]], repeats: int) -> Timings:
    """In turns, so that what else happens on the machine meets all alike."""
    taken: dict[str, list[float]] = {question.name: [] for question in QUESTIONS}
    for number in range(-3, repeats):  # three to warm up
        for question in QUESTIONS:
            took = ask(port, question, samples[number % len(samples)])
            if number >= 0:
                taken[question.name].append(took)
    return {name: timing_of(times) for name, times in taken.items()}


def timing_of(times: Sequence[float]) -> Timing:
    return Timing(statistics.median(times), sorted(times)[min(len(times) - 1, int(len(times) * 0.95))])


def sample_events(database: Database, most: int) -> list[dict[str, str]]:
    """Values of events at random places."""
    names = ("id", "email", "email_domain", "message_id", "campaign_id")
    randomly = random.Random(1)
    with database.reading() as connection:
        last = int(connection.execute(sa.select(sa.func.max(events.c.seq))).scalar_one())
        picked = sorted({randomly.randint(1, last) for _ in range(most * 4)})
        statement = sa.select(*(events.c[name] for name in names), events.c.occurred_at).where(
            events.c.seq.in_(picked), *(events.c[name].is_not(None) for name in names)
        )
        rows = connection.execute(statement).mappings().all()
    found = [{name: row[name] for name in names} | {"day": f"{row['occurred_at']:%Y-%m-%d}"} for row in rows]
    randomly.shuffle(found)
    return found[:most]


# --- beside it -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def posting(port: int) -> Iterator[list[int]]:
    """Posts `RATE` events a second, as far as the service keeps up; the list counts the posts."""
    stop, counted = threading.Event(), [0]
    thread = threading.Thread(target=_post_until, args=(port, stop, counted))
    thread.start()
    try:
        yield counted
    finally:
        stop.set()
        thread.join()


def _post_until(port: int, stop: threading.Event, counted: list[int]) -> None:
    traffic = make_events(2, None, int(time.time()), step_seconds=1 / RATE)
    login = b64encode(f"jethook:{PASSWORD}".encode()).decode()
    headers = {"authorization": f"Basic {login}", "content-type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    due = time.monotonic()
    while not stop.wait(max(0.0, due - time.monotonic())):
        due = max(due + GROUP / RATE, time.monotonic() - 1)
        body = orjson.dumps([next(traffic) for _ in range(GROUP)])
        connection.request("POST", f"/webhooks/{WEBHOOK}", body, headers)
        connection.getresponse().read()
        counted[0] += 1
    connection.close()


# --- one measurement -------------------------------------------------------------------------------------------------


def measure(url: str, count: int, folder: Path, repeats: int) -> tuple[Timings, float]:
    """(how long each question takes, bytes stored for an event)."""
    database = Database(url)
    fill(database, count)
    size = stored_bytes(database) / count
    samples = sample_events(database, repeats)
    database.close()
    port = free_port()
    with sink(folder) as receiver:
        settings = {
            "JETHOOK_DATABASE_URL": url, "JETHOOK_PORT": str(port), "JETHOOK_API_KEYS": KEY,
            f"JETHOOK_WEBHOOKS__{WEBHOOK.upper()}__PASSWORDS": PASSWORD, "JETHOOK_LOG_LEVEL": "warning",
            "JETHOOK_RETENTION_DAYS": "3650",  # what is asked for stays
            f"JETHOOK_SINKS__{SINK.upper()}__URL": receiver.url,
        }  # fmt: skip
        with serving(["-m", "app", "serve"], port=port, folder=folder, env=settings), posting(port):
            return ask_all(port, samples, repeats), size


@contextlib.contextmanager
def databases(kind: str, folder: Path) -> Iterator[tuple[str, str]]:
    """The URLs of two empty ones."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/small.db", f"sqlite:///{folder}/large.db"
        return
    from tests.postgres import running_postgres

    with running_postgres() as server:
        for name in ("small", "large"):
            with psycopg.connect(f"{server.url}/postgres", autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
        yield f"{server.url}/small", f"{server.url}/large"


def rows_of(few: Timings, many: Timings) -> list[tuple[str, ...]]:
    rows = []
    for question in QUESTIONS:
        small, large = few[question.name], many[question.name]
        ratio = large.p95 / small.p95
        holds = large.p95 <= WANTED_MS and ratio <= WANTED_RATIO
        cells = (f"{small.p50:.1f} / {small.p95:.1f}", f"{large.p50:.1f} / {large.p95:.1f}", f"{ratio:.1f}")
        rows.append((question.name, *cells, "pass" if holds else "FAIL"))
    return rows


def main() -> None:
    arguments = _arguments()
    configure_logs(log_level="warning")
    console = Console(highlight=False, soft_wrap=True, width=140)
    kinds = ("sqlite", "postgresql") if arguments.database == "both" else (arguments.database,)
    parts: list[Any] = []
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="jethook-questions-") as place:
            folder = Path(place)
            with databases(kind, folder) as (small, large):
                few, _ = measure(small, arguments.events // 10, folder, arguments.repeats)
                many, size = measure(large, arguments.events, folder, arguments.repeats)
        head = (kind, f"{arguments.events // 10:,}: p50 / p95 ms", f"{arguments.events:,}: p50 / p95 ms", "ratio", "")
        rows = rows_of(few, many)
        rows.append(
            ("bytes stored an event", "", f"{size:,.0f}", "", "pass" if size <= WANTED_BYTES else "FAIL"),
        )
        report.show(console, head, rows)
        parts.append((head, rows))
    if arguments.readme:
        report.write_between(BEGIN, END, [report.markdown(head, rows) for head, rows in parts])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.questions", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--database", choices=("sqlite", "postgresql", "both"), default="both")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="how often each question is asked")
    parser.add_argument("--readme", action="store_true", help="keep the tables in README.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
