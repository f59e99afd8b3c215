"""Feed and stream of the real service: two replicas under load, one of which dies; a stop while clients wait."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.simulator.shaping import Shape, shape_events
from app.simulator.traffic import make_events
from tests.e2e.service import API_KEY, ServiceProcess, closing_all, id_of, until
from tests.e2e.test_replicas import post_spread

EVENTS = 600
KEY = {"authorization": f"Bearer {API_KEY}"}


def frames(response: httpx2.Response) -> Iterator[dict[str, str]]:
    """The events of a stream, as the fields of each frame."""
    found: dict[str, str] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            found[name] = value
        else:
            if "data" in found:
                yield found
            found = {}


def poll_all(replicas: list[ServiceProcess], total: int, wait_seconds: int) -> list[str]:
    """The ids of the feed, asked of the replicas in turn; one that is gone is left out."""
    found: list[str] = []
    cursor: dict[str, str] = {}
    turn = 0
    while len(found) < total:
        turn += 1
        url = f"{replicas[turn % len(replicas)].url}/v1/feed"
        with contextlib.suppress(httpx2.TransportError):
            response = httpx2.get(
                url, headers=KEY, params={**cursor, "limit": 40, "wait_seconds": wait_seconds}, timeout=60
            )
            if response.status_code == 503:
                continue
            page = response.json()
            found += [event["id"] for event in page["data"]]
            cursor = {"cursor": page["next_cursor"]}
    return found


def stream_all(replicas: list[ServiceProcess], total: int) -> list[str]:
    """The ids of the stream of the first replica that answers, resumed at the next one whenever it breaks."""
    found: list[str] = []
    last: dict[str, str] = {}
    turn = 0
    while len(found) < total:
        url = f"{replicas[turn % len(replicas)].url}/v1/stream"
        turn += 1
        with (
            contextlib.suppress(httpx2.TransportError),
            httpx2.stream("GET", url, headers=KEY | last, timeout=60) as answer,
        ):
            for frame in frames(answer):
                if frame["event"] == "error":
                    break
                found.append(json.loads(frame["data"])["id"])
                last = {"last-event-id": frame["id"]}
                if len(found) == total:
                    break
    return found


@pytest.mark.timeout(180)
def test_every_reader_gets_every_event_once_in_one_order_from_two_replicas_one_of_which_dies(
    make_database: Callable[[str], str], folder: Path
) -> None:
    database_url = make_database("postgresql")
    events = list(make_events(9, EVENTS, 1_777_000_000))
    bodies = list(shape_events(events, Shape(3, mixed=True), 9))
    with (
        closing_all([ServiceProcess(folder, database_url) for _ in range(2)]) as started,
        ThreadPoolExecutor() as readers,
    ):
        replicas = list(started)
        for replica in replicas:
            replica.launch()
        for replica in replicas:
            replica.wait_until_ready()
        read = [
            readers.submit(poll_all, replicas, EVENTS, 0),
            readers.submit(poll_all, replicas, EVENTS, 10),
            readers.submit(stream_all, replicas, EVENTS),
            readers.submit(stream_all, replicas[::-1], EVENTS),
        ]
        asyncio.run(post_spread(bodies[: len(bodies) // 2], replicas))
        replicas[0].kill()
        asyncio.run(post_spread(bodies[len(bodies) // 2 :], replicas[1:]))
        orders = [reader.result(120) for reader in read]

    assert set(orders[0]) == {id_of(event) for event in events}
    assert len(orders[0]) == EVENTS
    assert orders[1:] == [orders[0]] * 3


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_waiting_client_hears_of_a_post_and_a_stop_ends_all_who_wait(
    kind: str, make_database: Callable[[str], str], folder: Path
) -> None:
    with ServiceProcess(folder, make_database(kind)) as service, ThreadPoolExecutor() as clients:
        begin = service.get("/v1/feed?cursor=latest")["next_cursor"]
        reading = threading.Event()
        woken = clients.submit(ask, service, begin)
        streamed = clients.submit(read_to_the_end, service, reading)
        assert reading.wait(20)
        (event,) = make_events(4, 1, 1_777_000_000)
        service.post(event)
        page = woken.result(20)
        assert [found["id"] for found in page["data"]] == [id_of(event)]
        waiting = clients.submit(ask, service, page["next_cursor"])
        here = {"poll": 1, "stream": 1}
        until(lambda: service.get("/healthz")["components"]["feed"]["clients"] == here, "both to wait")
        began = time.monotonic()

        assert service.terminate() == 0

        assert time.monotonic() - began < 12  # both would have gone on for half a minute and for ever
        assert waiting.result(1) == {"data": [], "next_cursor": page["next_cursor"], "has_more": False}
        seen = streamed.result(1)
        assert [frame["event"] for frame in seen] == [event["event"], "error"]
        assert json.loads(seen[-1]["data"])["code"] == "stopping"
        assert [line["reason"] for line in service.log_lines("stream.ended")] == ["stopping"]


def ask(service: ServiceProcess, cursor: str) -> dict[str, Any]:
    url, params = f"{service.url}/v1/feed", {"cursor": cursor, "wait_seconds": 30}
    return httpx2.get(url, headers=KEY, params=params, timeout=60).json()


def read_to_the_end(service: ServiceProcess, reading: threading.Event) -> list[dict[str, str]]:
    with httpx2.stream("GET", f"{service.url}/v1/stream", headers=KEY, timeout=60) as response:
        reading.set()
        return list(frames(response))
