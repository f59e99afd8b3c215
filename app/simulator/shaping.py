"""Events -> the bodies of callback POSTs: alone or grouped, late, doubled, repeated. Seeded and pure.

Mailjet posts a bare object to a Version 1 URL and an array to a Version 2 one, promises no order, and repeats a whole
request that was not answered with 200. Source: mailjet/api-documentation:guides/_event-api.md, "Grouping events".
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, Self, TypeVar

import orjson

from app.simulator.traffic import Event

T = TypeVar("T")

FURTHEST = 50
"""What is late or repeated comes at most that many events (or posts) after its turn."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How traffic is posted. The shares are from 0 to 1.

    group: events in a POST; 1 is a bare object, more an array.
    mixed: sizes from 1 to `group` instead, so objects and arrays alternate.
    retries: share of the bodies that come once more, byte for byte.
    duplicates: share of the events that come once more, in another body.
    disorder: share of the events that come late.

    Raises ValueError for numbers that make no sense.
    """

    group: int = 1
    mixed: bool = False
    retries: float = 0.0
    duplicates: float = 0.0
    disorder: float = 0.0

    def __post_init__(self) -> None:
        if self.group < 1:
            raise ValueError("group must be at least 1")
        for name in ("retries", "duplicates", "disorder"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a share from 0 to 1")


@dataclass(frozen=True, slots=True)
class Body:
    """One POST: `events` elements in `content`; `is_retry` when the same bytes came before."""

    content: bytes
    events: int
    is_retry: bool = False

    def again(self) -> Self:
        return replace(self, is_retry=True)


def shape_events(events: Iterable[Event], shape: Shape, seed: int = 0) -> Iterator[Body]:
    """Yield the bodies in the order to post them. Equal arguments give equal bodies; no event is left out."""
    rng = random.Random(seed)  # noqa: S311 - no secrets here
    disordered = _late(_split(events, shape.disorder, rng), rng)
    doubled = _late(((event, event if rng.random() < shape.duplicates else None) for event in disordered), rng)
    bodies = _grouped(doubled, shape, rng)
    return _late(((body, body.again() if rng.random() < shape.retries else None) for body in bodies), rng)


def encode(group: list[Event], form: Literal["object", "array"]) -> bytes:
    """The bytes of one body: the object itself, or an array."""
    return orjson.dumps(group if form == "array" else group[0])


def _late(items: Iterable[tuple[T | None, T | None]], rng: random.Random) -> Iterator[T]:
    """Yield the first of each pair in its turn, and its second, if any, some turns later."""
    held: list[tuple[int, T]] = []
    for turn, (now, later) in enumerate(items):
        if now is not None:
            yield now
        if later is not None:
            held.append((turn + rng.randint(1, FURTHEST), later))
        if held:
            yield from (item for due, item in held if due <= turn)
            held = [(due, item) for due, item in held if due > turn]
    yield from (item for _, item in held)


def _split(events: Iterable[Event], share: float, rng: random.Random) -> Iterator[tuple[Event | None, Event | None]]:
    for event in events:
        yield (None, event) if rng.random() < share else (event, None)


def _grouped(events: Iterable[Event], shape: Shape, rng: random.Random) -> Iterator[Body]:
    group: list[Event] = []
    size = _size(shape, rng)
    for event in events:
        group.append(event)
        if len(group) >= size:
            yield _body(group, shape, size)
            group, size = [], _size(shape, rng)
    if group:
        yield _body(group, shape, size)


def _size(shape: Shape, rng: random.Random) -> int:
    return rng.randint(1, shape.group) if shape.mixed else shape.group


def _body(group: list[Event], shape: Shape, size: int) -> Body:
    # With `mixed` a single one is an object; otherwise the last, short group of a run stays an array, like the rest.
    return Body(encode(group, "object" if size == 1 and len(group) == 1 else "array"), len(group))
