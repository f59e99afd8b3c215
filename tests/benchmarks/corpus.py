"""The events of a run: one file, one JSON object a line, made once before any clock starts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import orjson

from app.simulator.traffic import Event, make_events


def write_corpus(path: Path, events: int) -> None:
    """`events` different events of 390 bytes on average, two a second up to now.

    A `Payload` of null, which real calls have, becomes an empty text: django-anymail 15.2 answers it with 500.
    """
    start = int(time.time()) - events // 2
    with path.open("wb") as file:
        file.writelines(orjson.dumps(_tame(event)) + b"\n" for event in make_events(1, events, start))


def _tame(event: Event) -> Event:
    return {**event, "Payload": ""} if "Payload" in event and event["Payload"] is None else event


def read_bodies(path: Path, *, skip: int, events: int, group: int) -> Iterator[tuple[bytes, int]]:
    """(body, events in it): bare objects for a group of 1, arrays otherwise."""
    with path.open("rb") as file:
        lines = (line.rstrip(b"\n") for line in islice(file, skip, skip + events))
        if group == 1:
            yield from ((line, 1) for line in lines)
            return
        while part := list(islice(lines, group)):
            yield b"[" + b",".join(part) + b"]", len(part)
