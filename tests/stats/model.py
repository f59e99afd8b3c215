"""The statistics by a full count in plain Python, to hold the service's against; and random events to count."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from app.clock import rfc3339
from tests.factories import event_values

START = datetime(2026, 5, 1, 21, 0, tzinfo=UTC)
OUTCOMES = {"sent": "delivered", "open": "opened", "click": "clicked", "bounce": "bounced", "blocked": "rejected",
            "spam": "complained", "unsub": "unsubscribed"}  # fmt: skip


def random_event(rng: random.Random, *, hours: int = 60) -> dict[str, Any]:
    kind = rng.choice([*OUTCOMES, "sent", "sent", "open", "surprise"])
    domain = rng.choice(["example.com", "example.org", "mail.example", None])
    return event_values(
        type=kind,
        webhook=rng.choice(["orders", "news"]),
        outcome="deferred" if kind == "bounce" and rng.random() < 0.3 else OUTCOMES.get(kind, "unknown"),
        occurred_at=START + timedelta(seconds=rng.randrange(hours * 3600)),
        email=f"{rng.choice('abcdefgh')}@{domain}" if domain else None,
        email_domain=domain,
        message_id=rng.choice([*map(str, range(1, 40)), None]),
        campaign_id=rng.choice(["7", "8", None]),
        custom_campaign=rng.choice(["spring", None]),
        permanent=rng.choice([True, False, None]) if kind == "bounce" else None,
        reason=rng.choice(["user unknown", "no mail host", None]) if kind == "bounce" else None,
        reason_group="recipient" if kind == "bounce" else None,
        test=rng.random() < 0.05,
        automated=rng.random() < 0.3 if kind in ("open", "click") else None,
        automated_rule=None,
        contact_id=rng.choice(["1", "2"]),
    )


def full_count(
    events: Iterable[Mapping[str, Any]], *, interval: str | None = "day", group_by: tuple[str, ...] = (),
    after: datetime | None = None, before: datetime | None = None, **filters: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """start, group, counts, automated and unique of every row, in the order of the answer."""
    asked = {"test": False} | filters
    rows: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for event in events:
        moment = event["occurred_at"]
        fits = (after is None or moment >= after) and (before is None or moment < before)
        if fits and all(event[name] == value for name, value in asked.items()):
            start = None if interval is None else moment.replace(minute=0, second=0)
            start = start.replace(hour=0) if start is not None and interval == "day" else start
            rows.setdefault((start, *(event[name] for name in group_by)), []).append(event)
    keys = sorted(rows, key=lambda key: (key[0], [(part is not None, part or "") for part in key[1:]]))
    return [_row(key, rows[key], group_by) for key in keys]


def _row(key: tuple[Any, ...], events: list[Mapping[str, Any]], group_by: tuple[str, ...]) -> dict[str, Any]:
    counts = Counter(event["type"] for event in events)
    by_machine = Counter(event["type"] for event in events if event["automated"])
    deferred = Counter(event["type"] for event in events if event["outcome"] == "deferred")
    return {
        "start": rfc3339(key[0]),
        "group": dict(zip(group_by, key[1:], strict=True)),
        "counts": dict(counts),
        "automated": {"open": by_machine["open"], "click": by_machine["click"]},
        "deferred": {"bounce": deferred["bounce"], "blocked": deferred["blocked"]},
        "unique": {
            "recipients": len({event["email"] for event in events} - {None}),
            "messages": len({event["message_id"] for event in events} - {None}),
        },
    }
