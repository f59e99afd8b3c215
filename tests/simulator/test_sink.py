import base64
import time

import httpx2
import pytest

from app.simulator.server import LocalServer
from app.simulator.signatures import sign
from app.simulator.sink import Answer, SampleSink

SECRET = "whsec_" + base64.b64encode(b"k" * 24).decode()


@pytest.fixture
def sink():
    return SampleSink()


@pytest.fixture
def server(sink):
    with LocalServer(sink) as server:
        yield server


@pytest.fixture
def client(server):
    with httpx2.Client(base_url=server.url, timeout=5) as client:
        yield client


def test_a_request_is_remembered_whole(client, sink):
    answer = client.post("/hook?a=1", content=b'{"x": 1}', headers={"Webhook-Id": "e1", "X-Other": "o"})

    (request,) = sink.wait_for(1)
    assert answer.status_code == 200
    assert (request.method, request.path, request.query) == ("POST", "/hook", {"a": ["1"]})
    assert request.headers["x-other"] == "o"
    assert request.webhook_id == "e1"
    assert request.json() == {"x": 1}
    assert abs(request.at - time.time()) < 60


def test_answers_come_in_the_order_they_were_queued(client, sink):
    sink.answer_next(503, Answer.retry_after(7, 429))

    answers = [client.post("/", headers={"webhook-id": "e1"}) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [503, 429, 200]
    assert answers[1].headers["retry-after"] == "7"
    assert sink.counts == {"e1": 3}
    assert (sink.total, sink.distinct) == (3, 1)


def test_a_function_may_choose_the_answer(client, sink):
    sink.answer_with(lambda request: 410 if request.path == "/gone" else Answer(202, b"ok"))

    assert client.post("/gone").status_code == 410
    assert client.post("/here").content == b"ok"
    sink.answer_with(None)
    sink.answer_always(500)
    assert client.post("/gone").status_code == 500


def test_a_redirect_names_its_target(client, sink):
    sink.answer_next(Answer.redirect("http://192.0.2.1/"))

    answer = client.post("/")

    assert (answer.status_code, answer.headers["location"]) == (302, "http://192.0.2.1/")


def test_a_dropped_connection_gives_no_answer(client, sink):
    sink.answer_next(Answer.dropped())

    with pytest.raises(httpx2.RemoteProtocolError):
        client.post("/")
    assert sink.total == 1
    assert client.post("/").status_code == 200


def test_a_hanging_answer_ends_with_the_client(client, sink):
    sink.answer_next(Answer.hanging())

    with pytest.raises(httpx2.ReadTimeout):
        client.post("/", timeout=0.05)
    assert client.post("/").status_code == 200


def test_a_delayed_answer_comes_late(client, sink):
    sink.answer_next(Answer.delayed(0.1, 202))
    began = time.monotonic()

    assert client.post("/").status_code == 202
    assert time.monotonic() - began >= 0.09


def test_a_huge_body_has_the_length_asked_for(client, sink):
    sink.answer_next(Answer.huge(300_000))

    assert len(client.post("/").content) == 300_000


@pytest.mark.parametrize(
    "answer", [pytest.param(Answer.endless(), id="endless"), pytest.param(Answer.dripping(0.001), id="dripping")]
)
def test_a_body_without_end_goes_on_until_the_client_leaves(client, sink, answer):
    sink.answer_next(answer)

    with client.stream("POST", "/") as response:
        chunks = response.iter_raw()
        assert [next(chunks)[:1] for _ in range(3)] == [b"x"] * 3
    assert client.post("/").status_code == 200


def test_waiting_in_vain_says_what_came(client, sink):
    client.post("/somewhere")

    with pytest.raises(TimeoutError, match=r"2 requests: 1 requests, 0 webhook-ids, paths \{'/somewhere': 1\}"):
        sink.wait_for(2, timeout=0.01)


def test_waiting_may_count_different_ids(client, sink):
    for webhook_id in ("e1", "e1", "e2"):
        client.post("/", headers={"webhook-id": webhook_id})

    assert len(sink.wait_for_ids(2)) == 3


def test_only_the_last_requests_are_kept():
    sink = SampleSink(keep=2, keep_ids=1)
    with LocalServer(sink) as server:
        for number in range(3):
            httpx2.post(server.url, headers={"webhook-id": f"e{number}"})

    assert [request.webhook_id for request in sink.requests] == ["e1", "e2"]
    assert (sink.total, sink.counts) == (3, {"e2": 1})
    sink.clear()
    assert (sink.total, sink.requests) == (0, [])


def test_every_request_is_shown_to_the_listener():
    seen = []
    with LocalServer(SampleSink(on_request=seen.append)) as server:
        httpx2.post(f"{server.url}/a")

    assert [request.path for request in seen] == ["/a"]


def signed(body: bytes, *, at: float | None = None, secret: str = SECRET) -> dict[str, str]:
    timestamp = int(time.time() if at is None else at)
    return {
        "webhook-id": "e1",
        "webhook-timestamp": str(timestamp),
        "webhook-signature": "v1,AAAA " + sign(secret, "e1", timestamp, body),
    }


@pytest.mark.parametrize(
    ("headers", "status"),
    [  # made when the test runs: a signature is too old after five minutes, and the tests before may take longer
        pytest.param(lambda: signed(b"body"), 200, id="right"),
        pytest.param(lambda: signed(b"other"), 401, id="another body"),
        pytest.param(lambda: signed(b"body", at=1), 401, id="too old"),
        pytest.param(lambda: signed(b"body", secret="whsec_AAAA"), 401, id="another secret"),
        pytest.param(lambda: signed(b"body") | {"webhook-timestamp": "soon"}, 401, id="no number"),
        pytest.param(dict, 401, id="unsigned"),
    ],
)
def test_signatures_are_checked_when_there_are_secrets(headers, status):
    sink = SampleSink(secrets=["whsec_" + base64.b64encode(b"new").decode(), SECRET])
    with LocalServer(sink) as server:
        assert httpx2.post(server.url, content=b"body", headers=headers()).status_code == status

    (request,) = sink.requests
    assert (request.signature_fault is None) == (status == 200)


def test_a_secret_that_is_not_base64_is_refused():
    with pytest.raises(ValueError, match="base64"):
        sign("whsec_***", "e1", 1, b"")


def test_signatures_agree_with_the_published_vector():
    # The vector that the libraries of standard-webhooks/standard-webhooks test themselves with.
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'

    signature = sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)

    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
