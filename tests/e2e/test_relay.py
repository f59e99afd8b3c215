"""From a post to a sink's answer, over real HTTP: retries, outcomes, what REST tells of them.

One service for the module. Each scenario has its own connection, webhook and sink of one name, so none sees another's
events.
"""

from __future__ import annotations

import base64
import itertools
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from email.utils import formatdate
from typing import Any

import pytest
import standardwebhooks

from app import __version__
from app.simulator.server import LocalServer
from app.simulator.sink import Answer, SampleSink
from app.simulator.traffic import make_events
from tests.e2e.service import PASSWORD, ServiceProcess, SinkFarm, id_of, until

SECRETS = ["whsec_" + base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2)]
QUICK = {"RETRY_SCHEDULE_SECONDS": "0.1,0.1,0.1", "MIN_BACKOFF_SECONDS": "0.1"}
SHORT = {"RETRY_SCHEDULE_SECONDS": "0.05,0.05", "MIN_BACKOFF_SECONDS": "0"}
LATER = {"RETRY_SCHEDULE_SECONDS": "1800", "MIN_BACKOFF_SECONDS": "0"}
SOON_CUT = {**LATER, "TIMEOUT_SECONDS": "0.3"}
SINKS: dict[str, dict[str, str]] = {
    "flaky": {**QUICK, "TIMEOUT_SECONDS": "0.5"},
    "signed": {"SECRETS": ",".join(SECRETS), "HEADERS": '{"x-own": "1"}'},
    "doomed": SHORT,
    "waiting": LATER,
    "moved": LATER,
    "endless": {},
    "dripping": SOON_CUT,
    "hanging": SOON_CUT,
    "dropping": LATER,
    "gone": LATER,
    "busy": SHORT | {"RETRY_SCHEDULE_SECONDS": "0.01"},
    "busydate": SHORT | {"RETRY_SCHEDULE_SECONDS": "0.01"},
    "patient": LATER,
    "greedy": SHORT | {"RETRY_SCHEDULE_SECONDS": "0.01"},
    "refusing": {**LATER, "URL": "closed"},
    "nameless": {**LATER, "URL": "http://nothing.invalid/x"},
    "untrusted": {**LATER, "URL": "https"},
    "wrapped": {"ENVELOPE": "jethook"},
    "clouded": {"ENVELOPE": "cloudevents"},
    "brisk": {},
    "stuck": {"WEBHOOKS": "brisk", "CONCURRENCY": "2", "TIMEOUT_SECONDS": "60"},
}
_numbers = itertools.count(1)


class Relay:
    def __init__(self, service: ServiceProcess, farm: SinkFarm) -> None:
        self.service = service
        self.farm = farm

    def sink(self, name: str) -> SampleSink:
        return self.farm[name]

    def post(self, webhook: str, **fields: Any) -> str:
        """Post one new event to a scenario's webhook; its id."""
        event = {"event": "bounce", "time": 1_777_802_400 + next(_numbers), "MessageID": 19421777835146490} | fields
        response = self.service.post(event, webhook)
        assert response.json() == {"received": 1, "stored": 1, "duplicates": 0, "quarantined": 0}, response.text
        return id_of(event, webhook)

    def delivery(self, event: str, sink: str) -> Any:
        return self.service.get(f"/v1/deliveries/{event}.{sink}")

    def after(self, attempts: int, event: str, sink: str, state: str | None = None) -> Any:
        """The delivery once so many attempts are recorded (and it is in that state)."""

        def look() -> Any:
            found = self.delivery(event, sink)
            made = min(found["attempt_count"], len(found["attempts"]))  # on PostgreSQL they are two looks
            return found if made >= attempts and state in (None, found["state"]) else None

        return until(look, f"{attempts} attempts at {sink}", detail=lambda: self.delivery(event, sink))

    def act(self, path: str) -> Any:
        return self.service.http.post(path)


@pytest.fixture(scope="module")
def closed_port() -> Iterator[int]:
    server = LocalServer(SampleSink())  # holds the port and does not listen
    yield server.port
    server.stop()


@pytest.fixture(scope="module")
def relay(module_database_url: str, tmp_path_factory: pytest.TempPathFactory, closed_port: int) -> Iterator[Relay]:
    environment: dict[str, str] = {}
    with SinkFarm([*SINKS, "elsewhere"]) as farm:
        urls = {"closed": f"http://127.0.0.1:{closed_port}/", "https": farm.url("untrusted").replace("http", "https")}
        for name, options in SINKS.items():
            upper = name.upper()
            url = options.get("URL", farm.url(name))
            sink = {"WEBHOOKS": name, **options, "URL": urls.get(url, url)}
            environment |= {f"JETHOOK_SINKS__{upper}__{key}": value for key, value in sink.items()}
            environment[f"JETHOOK_CONNECTIONS__{upper}__API_KEY"] = name
            environment[f"JETHOOK_WEBHOOKS__{upper}__CONNECTION"] = name
            environment[f"JETHOOK_WEBHOOKS__{upper}__PASSWORDS"] = PASSWORD
        with ServiceProcess(tmp_path_factory.mktemp("relay"), module_database_url, environment) as service:
            yield Relay(service, farm)


# --- retries ---------------------------------------------------------------------------------------------------------


def test_a_sink_that_fails_twice_gets_the_event_the_third_time_with_the_same_id(relay: Relay) -> None:
    sink = relay.sink("flaky")
    sink.answer_next(Answer(500, b"out of order"), Answer.hanging(), 204)

    event = relay.post("flaky")
    delivery = relay.after(3, event, "flaky", "delivered")

    requests = sink.wait_for(3)
    assert [r.webhook_id for r in requests] == [event] * 3
    assert [r.headers["x-jethook-attempt"] for r in requests] == ["1", "2", "3"]
    assert len({r.body for r in requests}) == 1
    tries = [(a["number"], a["status"], a["outcome"], a["error"]) for a in delivery["attempts"]]
    assert tries == [
        (1, 500, "http_5xx", "the sink answered 500"),
        (2, None, "timeout", "no whole answer within the time limit"),
        (3, 204, "success", None),
    ]
    assert [a["response_excerpt"] for a in delivery["attempts"]] == ["out of order", None, None]
    assert all(a["duration_ms"] > 0 and a["replay"] is False for a in delivery["attempts"])
    assert delivery["attempts"][1]["duration_ms"] >= 490  # its own time limit
    assert (delivery["attempt_count"], delivery["last_status"], delivery["last_error"]) == (3, 204, None)
    assert delivery["next_attempt_at"] is None
    assert delivery["settled_at"] is not None


def test_attempts_wait_at_least_what_the_schedule_says(relay: Relay) -> None:
    sink = relay.sink("flaky")
    sink.clear()
    sink.answer_next(500, 503, 200)

    event = relay.post("flaky")
    delivery = relay.after(3, event, "flaky", "delivered")

    times = [moment(a["at"]) for a in delivery["attempts"]]
    assert all(second - first >= 0.1 for first, second in itertools.pairwise(times))


def test_the_deliveries_of_an_event_show_the_same_as_the_delivery_itself(relay: Relay) -> None:
    event = relay.post("flaky")
    delivery = relay.after(1, event, "flaky", "delivered")

    assert relay.service.get(f"/v1/events/{event}/deliveries")["data"] == [delivery]
    listed = relay.service.get(f"/v1/deliveries?event_id={event}")["data"]
    assert listed == [{key: value for key, value in delivery.items() if key != "attempts"}]


def test_a_delivery_is_dead_after_its_last_retry_and_a_retry_by_hand_revives_it(relay: Relay) -> None:
    sink = relay.sink("doomed")
    sink.answer_always(503)

    event = relay.post("doomed")
    dead = relay.after(3, event, "doomed", "dead")
    assert [a["outcome"] for a in dead["attempts"]] == ["http_5xx"] * 3
    assert "schedule is used up" in dead["last_error"]
    assert dead["settled_at"] is not None

    sink.answer_always(200)
    answer = relay.act(f"/v1/deliveries/{event}.doomed/retry")

    assert (answer.status_code, answer.json()["state"]) == (200, "pending")
    revived = relay.after(4, event, "doomed", "delivered")
    assert [a["number"] for a in revived["attempts"]] == [1, 2, 3, 4]
    assert sink.requests[-1].headers["x-jethook-attempt"] == "4"
    assert sink.counts[event] == 4


def test_a_retry_by_hand_starts_the_schedule_again(relay: Relay) -> None:
    relay.sink("doomed").answer_always(503)
    event = relay.post("doomed")
    relay.after(3, event, "doomed", "dead")

    relay.act(f"/v1/deliveries/{event}.doomed/retry")

    again = relay.after(6, event, "doomed", "dead")
    assert [a["number"] for a in again["attempts"]] == [1, 2, 3, 4, 5, 6]


def test_a_cancelled_delivery_is_never_sent(relay: Relay) -> None:
    sink = relay.sink("waiting")
    relay.act("/v1/sinks/waiting/pause")
    given_up, kept = relay.post("waiting"), relay.post("waiting")

    answer = relay.act(f"/v1/deliveries/{given_up}.waiting/cancel")
    assert (answer.status_code, answer.json()["state"], answer.json()["next_attempt_at"]) == (200, "cancelled", None)

    relay.act("/v1/sinks/waiting/resume")
    relay.after(1, kept, "waiting", "delivered")
    assert relay.delivery(given_up, "waiting")["attempts"] == []
    assert given_up not in sink.counts


def test_what_was_delivered_cannot_be_cancelled(relay: Relay) -> None:
    event = relay.post("waiting")
    relay.after(1, event, "waiting", "delivered")

    late = relay.act(f"/v1/deliveries/{event}.waiting/cancel")

    assert (late.status_code, late.json()["code"]) == (409, "conflict")


def test_a_retry_by_hand_does_not_wait_for_the_schedule(relay: Relay) -> None:
    sink = relay.sink("waiting")
    sink.answer_next(500)
    event = relay.post("waiting")
    relay.after(1, event, "waiting", "pending")

    relay.act(f"/v1/deliveries/{event}.waiting/retry")

    assert relay.after(2, event, "waiting")["state"] == "delivered"


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_a_request_bears_exactly_the_headers_of_the_contract_and_both_signatures(relay: Relay) -> None:
    event = relay.post("signed", event="spam", email="ü@example.com")
    request = relay.sink("signed").wait_for(1)[0]

    headers = dict(request.headers)
    # What HTTP itself needs.
    assert headers.pop("host") == relay.farm.server.url.removeprefix("http://")
    assert headers.pop("content-length") == str(len(request.body))
    signatures = headers.pop("webhook-signature")
    stamp = headers.pop("webhook-timestamp")
    assert headers == {
        "content-type": "application/json",
        "user-agent": f"jethook/{__version__}",
        "webhook-id": event,
        "idempotency-key": event,
        "x-jethook-webhook": "signed",
        "x-jethook-event": "spam",
        "x-jethook-attempt": "1",
        "x-own": "1",
    }
    signed = {"webhook-id": event, "webhook-timestamp": stamp, "webhook-signature": signatures}
    for secret in SECRETS:  # each alone verifies, so both sides can rotate
        assert standardwebhooks.Webhook(secret).verify(request.body, signed) == request.json()
    assert len(signatures.split(" ")) == 2


def test_a_sink_without_secrets_gets_no_signature(relay: Relay) -> None:
    relay.post("endless")
    assert "webhook-signature" not in relay.sink("endless").wait_for(1)[0].headers


def test_the_body_is_the_object_exactly_as_mailjet_sent_it(relay: Relay) -> None:
    text = '{ "time":1433103519,"event" :"open","MessageID":1152921509597813712,"x":1.10,"y":[-0.0],"z":"\\u00e9é" }'
    assert relay.service.post(text.encode(), "signed").json()["stored"] == 1

    sink = relay.sink("signed")
    sink.wait_until(lambda: any(r.body == text.encode() for r in sink._requests), wanted="the very bytes")


def test_the_envelope_jethook_is_the_event_as_rest_shows_it(relay: Relay) -> None:
    event = relay.post("wrapped", email="a@example.com")

    assert relay.sink("wrapped").wait_for(1)[0].json() == relay.service.get(f"/v1/events/{event}")


def test_the_envelope_cloudevents_is_structured_cloudevents(relay: Relay) -> None:
    event = relay.post("clouded", event="click", email="a@example.com")
    request = relay.sink("clouded").wait_for(1)[0]

    assert request.headers["content-type"] == "application/cloudevents+json"
    sent = request.json()
    data = sent.pop("data")
    assert data == relay.service.get(f"/v1/events/{event}")
    assert sent == {
        "specversion": "1.0",
        "id": event,
        "source": "/webhooks/clouded",
        "type": "com.mailjet.email.click",
        "time": data["occurred_at"],
        "datacontenttype": "application/json",
        "subject": "19421777835146490",
    }


# --- sinks that misbehave --------------------------------------------------------------------------------------------


def test_a_redirect_is_not_followed(relay: Relay) -> None:
    relay.sink("moved").answer_always(Answer.redirect(relay.farm.url("elsewhere"), 307))

    event = relay.post("moved")

    assert told(relay.after(1, event, "moved")) == ("pending", "http_3xx", 307)
    assert relay.sink("elsewhere").total == 0


def test_an_endless_answer_is_cut_off_and_its_status_counts(relay: Relay) -> None:
    relay.sink("endless").answer_always(Answer.endless())

    event = relay.post("endless")

    delivery = relay.after(1, event, "endless")
    assert told(delivery) == ("delivered", "success", 200)
    assert delivery["attempts"][0]["response_excerpt"] == "x" * 4096


@pytest.mark.parametrize(
    ("sink", "answer"), [("hanging", Answer.hanging()), ("dripping", Answer.dripping(0.05))], ids=["silence", "drops"]
)
def test_a_sink_that_does_not_finish_in_time_is_a_timeout(relay: Relay, sink: str, answer: Answer) -> None:
    relay.sink(sink).answer_always(answer)

    event = relay.post(sink)

    assert told(relay.after(1, event, sink)) == ("pending", "timeout", None)


@pytest.mark.parametrize(
    ("sink", "outcome"),
    [
        pytest.param("refusing", "connect", id="nobody listens"),
        pytest.param("dropping", "connect", id="the connection is dropped"),
        pytest.param("nameless", "dns", id="the name does not resolve"),
        pytest.param("untrusted", "tls", id="the other side speaks no TLS"),
    ],
)
def test_a_sink_that_cannot_be_reached_leaves_an_attempt_that_says_why(relay: Relay, sink: str, outcome: str) -> None:
    relay.sink(sink).answer_always(Answer.dropped())

    event = relay.post(sink)

    delivery = relay.after(1, event, sink)
    assert told(delivery) == ("pending", outcome, None)
    assert delivery["last_error"] == delivery["attempts"][0]["error"] is not None


def test_a_410_pauses_the_sink_and_a_resume_sends_what_waited(relay: Relay) -> None:
    sink = relay.sink("gone")
    sink.answer_always(410)

    first = relay.post("gone")
    relay.after(1, first, "gone", "pending")
    shown = until(lambda: paused(relay, "gone"), "the sink to be paused")
    assert (shown["paused_reason"], shown["backlog"]) == ("the sink answered 410", 1)
    others = [relay.post("gone") for _ in range(3)]
    assert relay.service.get("/v1/sinks/gone")["backlog"] == 4
    assert sink.total == 1

    sink.answer_always(200)
    resumed = relay.act("/v1/sinks/gone/resume").json()

    assert (resumed["state"], resumed["breaker"]) == ("active", "closed")
    for event in (first, *others):
        relay.after(1, event, "gone", "delivered")
    assert sink.counts == {first: 2, **dict.fromkeys(others, 1)}
    assert relay.service.get("/v1/sinks/gone")["backlog"] == 0


def test_a_pause_by_hand_holds_deliveries_without_using_up_attempts(relay: Relay) -> None:
    sink = relay.sink("wrapped")
    assert relay.act("/v1/sinks/wrapped/pause").json()["state"] == "paused"
    before = sink.total

    event = relay.post("wrapped")
    assert relay.delivery(event, "wrapped")["attempts"] == []
    assert sink.total == before

    relay.act("/v1/sinks/wrapped/resume")
    assert relay.after(1, event, "wrapped", "delivered")["attempt_count"] == 1


@pytest.mark.parametrize(
    ("sink", "header", "least", "most"),
    [
        pytest.param("busy", lambda: "90", 90, 91, id="seconds lengthen a wait"),
        pytest.param("busydate", lambda: formatdate(time.time() + 90, usegmt=True), 85, 91, id="so does a date"),
        pytest.param("patient", lambda: "1", 1800, 1800 * 1.2 + 1, id="a short one never shortens a wait"),
        pytest.param("greedy", lambda: "999999", 3600, 3601, id="an hour is the most"),
    ],
)
def test_retry_after(relay: Relay, sink: str, header: Callable[[], str], least: float, most: float) -> None:
    relay.sink(sink).answer_always(Answer.retry_after(header()))

    event = relay.post(sink)

    delivery = relay.after(1, event, sink, "pending")
    attempt = delivery["attempts"][0]
    wait = moment(delivery["next_attempt_at"]) - moment(attempt["at"]) - attempt["duration_ms"] / 1000
    assert least - 0.01 <= wait < most + 5  # between the answer and its record a busy machine may take a moment


def test_a_sink_that_hangs_does_not_hold_up_a_healthy_one(relay: Relay) -> None:
    relay.sink("stuck").answer_always(Answer.hanging())
    events = list(make_events(5, 300, 1_777_000_000))

    for start in range(0, 300, 50):
        relay.service.post(events[start : start + 50], "brisk")

    relay.sink("brisk").wait_for_ids(300)
    assert relay.sink("stuck").total <= 2  # its own two slots, taken for a minute
    assert set(relay.sink("brisk").counts.values()) == {1}


def test_what_arrives_once_is_delivered_once(relay: Relay) -> None:
    """Whatever order, grouping and repeats it came in."""
    event = {"event": "sent", "time": 1_777_900_000, "MessageID": 7, "email": "once@example.com"}
    other = dict(event, MessageID=8)
    for body in (event, [event], [other, event], [event, event, other]):
        assert relay.service.post(body, "brisk").status_code == 200

    ids = [id_of(event, "brisk"), id_of(other, "brisk")]
    for id in ids:
        relay.after(1, id, "brisk", "delivered")
    assert {relay.sink("brisk").counts[id] for id in ids} == {1}


# --- helpers ---------------------------------------------------------------------------------------------------------


def told(delivery: Any) -> tuple[str, str, int | None]:
    """(state, outcome and status of the only attempt)."""
    (attempt,) = delivery["attempts"]
    return delivery["state"], attempt["outcome"], attempt["status"]


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def paused(relay: Relay, sink: str) -> Any:
    shown = relay.service.get(f"/v1/sinks/{sink}")
    return shown if shown["state"] == "paused" else None
