"""A stream of events with duplicates, disorder and two webhooks, received by the whole service, against a plain model.

Timelines and exports must tell the same as a dictionary does.
"""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.clock import from_micros, rfc3339
from app.ingest.identity import event_id
from app.main import create_app
from app.settings import load_settings
from app.simulator.traffic import make_events

AUTH = ("jethook", "a-password")
WATCHED_TWICE = ("open", "click", "bounce", "blocked")
MESSAGES = 40


@pytest.fixture
def service(migrated_url: str) -> Iterator[TestClient]:
    environment = {
        "JETHOOK_DATABASE_URL": migrated_url,
        "JETHOOK_API_KEYS": "full",
        "JETHOOK_WEBHOOKS__ARCHIVE__EVENTS": ",".join(WATCHED_TWICE),
        "JETHOOK_WEBHOOKS__ARCHIVE__PASSWORDS": AUTH[1],
        "JETHOOK_WEBHOOKS__ORDERS__PASSWORDS": AUTH[1],
    }
    app = create_app(load_settings(environment, env_file=None))
    with TestClient(app, headers={"authorization": "Bearer full"}) as client:
        yield client


def some_arrivals(randomly: random.Random) -> list[dict[str, Any]]:
    """Different events of few messages, in whatever order."""
    found = {}
    for payload in make_events(5, 800, 1_777_000_000):
        number = randomly.randrange(MESSAGES)
        told = {**payload, "MessageID": 19421777835146490 + number, "Message_GUID": f"guid-{number}"}
        told["time"] = 1_777_000_000 + randomly.randrange(900)
        found[event_id("orders", told["time"], told)] = told
    arrivals = list(found.values())
    randomly.shuffle(arrivals)
    return arrivals


def post_in_any_way(service: TestClient, arrivals: list[dict[str, Any]], randomly: random.Random) -> None:
    """Each once or several times, alone or in groups of any size."""
    waiting = arrivals + randomly.sample(arrivals, 200)
    randomly.shuffle(waiting)
    while waiting:
        size = randomly.choice([1, 1, 3, 40])
        group, waiting = waiting[:size], waiting[size:]
        body: Any = group[0] if size == 1 else group
        for _ in range(randomly.choice([1, 1, 2])):
            assert service.post("/webhooks/orders", content=json.dumps(body), auth=AUTH).status_code == 200


def naive_state(arrivals: list[dict[str, Any]]) -> str:
    def has(kind: str, **told: Any) -> bool:
        return any(a["event"] == kind and all(a.get(k) == v for k, v in told.items()) for a in arrivals)

    lasting = ("user unknown", "mailbox inactive", "blacklisted", "spam reporter", "invalid domain", "typofix")
    greylisted = [a for a in arrivals if a.get("error") == "greylisted" and a.get("hard_bounce") is not True]
    passing = [a for a in arrivals if a not in greylisted]
    order = [
        ("complained", has("spam")),
        ("unsubscribed", has("unsub")),
        ("bounced", has("bounce", hard_bounce=True)),
        ("rejected", any(has("blocked", error=error) for error in lasting)),
        ("clicked", has("click")),
        ("opened", has("open")),
        ("delivered", has("sent")),
        ("bounced", any(a["event"] == "bounce" for a in passing)),
        ("rejected", any(a["event"] == "blocked" for a in passing)),
        ("deferred", bool(greylisted)),
    ]
    return next((state for state, holds in order if holds), "unknown")


def at(seconds: int) -> str:
    return rfc3339(from_micros(seconds * 10**6))


def expected(arrivals: list[dict[str, Any]]) -> dict[str, Any]:
    times: dict[str, list[int]] = defaultdict(list)
    for arrival in arrivals:
        times[arrival["event"]].append(arrival["time"])

    def delay(kind: str) -> int | None:
        return max(min(times[kind]) - min(times["sent"]), 0) if times["sent"] and times[kind] else None

    return {
        "state": naive_state(arrivals),
        "counts": dict(Counter(arrival["event"] for arrival in arrivals)),
        "seconds_to_open": delay("open"),
        "seconds_to_click": delay("click"),
        "first": {kind: at(min(found)) for kind, found in times.items() if found},
        "last": {kind: at(max(found)) for kind, found in times.items() if found},
        "events_truncated": False,
    }


def unjudged(told: dict[str, Any]) -> dict[str, Any]:
    """Without what is judged a moment after the event came in."""
    later = ("automated", "automated_rule")
    events = [{name: value for name, value in event.items() if name not in later} for event in told["events"]]
    return told | {"events": events}


@pytest.mark.parametrize("seed", [1, 2])
def test_timelines_and_exports_tell_what_a_plain_model_tells(service, seed):
    randomly = random.Random(seed)
    arrivals = some_arrivals(randomly)
    post_in_any_way(service, arrivals, randomly)
    of_message: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for arrival in arrivals:
        of_message[arrival["MessageID"]].append(arrival)

    for message_id, mine in of_message.items():
        told = service.get(f"/v1/messages/{message_id}?include=raw").json()
        wanted = expected(mine)
        assert {name: told[name] for name in wanted} == wanted
        assert sorted(json.dumps(event["raw"]) for event in told["events"]) == sorted(map(json.dumps, mine))
        assert [(e["occurred_at"], e["id"]) for e in told["events"]] == sorted(
            (e["occurred_at"], e["id"]) for e in told["events"]
        )
        for event in told["events"]:
            assert bool(event["copies"]) == (event["type"] in WATCHED_TWICE)
        guid = mine[0]["Message_GUID"]
        assert unjudged(service.get(f"/v1/messages/{guid}?include=raw").json()) == unjudged(told)

    exported = [json.loads(line) for line in service.get("/v1/exports/events").content.splitlines()]
    stored = {event_id("orders", a["time"], a): a for a in arrivals}
    stored |= {event_id("archive", a["time"], a): a for a in arrivals if a["event"] in WATCHED_TWICE}
    assert [(line["id"], line["raw"]) for line in exported] == sorted(stored.items(), key=lambda item: item[0])
