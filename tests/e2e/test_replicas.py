"""Two replicas on one PostgreSQL share the work: nothing is lost, nothing done twice."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from app.simulator.mailjet import DEFAULT_KEYS, StandInMailjet
from app.simulator.posting import Target, make_session
from app.simulator.server import LocalServer
from app.simulator.shaping import Body, Shape, shape_events
from app.simulator.sink import SampleSink
from app.simulator.traffic import make_events
from tests.conftest import MakeDatabase
from tests.e2e.service import ServiceProcess, closing_all, id_of, until

EVENTS = 900


def test_two_replicas_lose_nothing_and_deliver_nothing_twice(make_database: MakeDatabase, folder: Path) -> None:
    mailjet, sink = StandInMailjet(), SampleSink()
    database_url = make_database("postgresql")
    with LocalServer(mailjet) as mailjet_server, LocalServer(sink) as sink_server:
        ((api_key, secret_key),) = DEFAULT_KEYS.items()
        environment = {
            "JETHOOK_PUBLIC_URL": "https://hooks.example.com",
            "MJ_APIKEY_PUBLIC": api_key,
            "MJ_APIKEY_PRIVATE": secret_key,
            "JETHOOK_CONNECTIONS__DEFAULT__BASE_URL": mailjet_server.url,
            "JETHOOK_SINKS__CRM__URL": sink_server.url,
        }
        with closing_all([ServiceProcess(folder, database_url, environment) for _ in range(2)]) as replicas:
            for replica in replicas:
                replica.launch()  # together: both migrate, both want to register
            for replica in replicas:
                replica.wait_until_ready()

            events = list(make_events(3, EVENTS, 1_777_000_000))
            answers = asyncio.run(post_spread(list(shape_events(events, Shape(6, mixed=True), 3)), replicas))

            ids = {id_of(event) for event in events}
            sink.wait_for_ids(len(ids), timeout=40)
            until(lambda: replicas[0].get("/v1/sinks/crm")["backlog"] == 0, "nothing to be left")
            assert sum(answer["stored"] for answer in answers) == len(ids) == EVENTS
            assert sum(answer["duplicates"] for answer in answers) > 0
            assert sink.counts == dict.fromkeys(ids, 1)
            for replica in replicas:  # both worked
                assert replica.metric('jethook_delivery_attempts_total{outcome="success",sink="crm"}') > 0
                assert replica.metric('jethook_ingest_requests_total{code="200",webhook="orders"}') > 0

            until(lambda: len(mailjet.callbacks()) == 7, "the callbacks")
            assert [replica.terminate() for replica in replicas] == [0, 0]

    writes = [request.json["EventType"] for request in mailjet.requests if request.method != "GET"]
    assert len(writes) == len(set(writes)) == 7
    assert sink.counts == dict.fromkeys(ids, 1)


async def post_spread(bodies: list[Body], replicas: list[ServiceProcess]) -> list[dict[str, int]]:
    """Each body to one of the replicas, a third of them to both at the same moment; the answers."""
    rng = random.Random(3)
    targets = [Target.parse(replica.callback_url()) for replica in replicas]
    slots = asyncio.Semaphore(16)
    async with make_session(32, 20) as session:

        async def post(target: Target, body: Body) -> dict[str, int]:
            async with slots, session.post(target.url, data=body.content, headers=target.headers) as response:
                assert response.status == 200, await response.text()
                return await response.json()

        posts = []
        for body in bodies:
            chosen = targets if rng.random() < 0.33 else [rng.choice(targets)]
            posts += [post(target, body) for target in chosen]
        return await asyncio.gather(*posts)
