"""What an attacker or a bad night did to the service once, and cannot do again."""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import socket
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from app.completeness.routes import CompletenessQuery
from app.db import Database
from app.filters import QuarantineQuery
from app.ingest.auth import CallbackAuth
from app.main import create_app
from app.migrate import migrate
from app.query.cursor import encode_cursor, scope_of
from app.query.suppression_lists import SuppressionQuery
from app.settings import Settings, load_settings
from app.simulator.server import LocalServer
from app.simulator.sink import SampleSink
from tests.conftest import MakeDatabase
from tests.e2e.service import PASSWORD, ServiceProcess

KEY = {"authorization": "Bearer full"}
EVENT = b'{"event":"open","time":1433103519,"MessageID":19421777396190490,"email":"a@example.com"}'


def settings_on(database_url: str) -> Settings:
    environment = {"DATABASE_URL": database_url, "API_KEYS": "full", "WEBHOOKS__ORDERS__PASSWORDS": "pw"}
    return load_settings({f"JETHOOK_{name}": value for name, value in environment.items()}, env_file=None)


@pytest.fixture
def client(sqlite_url: str) -> Iterator[TestClient]:
    with TestClient(create_app(settings_on(sqlite_url))) as client:
        yield client


@pytest.fixture(scope="module")
def unchanged(make_database: MakeDatabase) -> Iterator[TestClient]:
    """One service for all that leaves no trace in it."""
    with TestClient(create_app(settings_on(make_database("sqlite")))) as client:
        yield client


def post(client: TestClient, body: bytes = EVENT, path: str = "/webhooks/orders"):
    return client.post(path, content=body, auth=("jethook", "pw"), follow_redirects=False)


def test_a_large_rest_body_is_refused_unread_and_without_a_key(client: TestClient):
    response = client.post("/v1/replays", content=b" " * 2_000_000)

    assert response.status_code == 413
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "body_too_large"


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "in chunks"])
@pytest.mark.parametrize("path", ["/v1/replays", "/v1/connections/default/messages", "/dashboard/sign-in"])
def test_little_is_gathered_for_who_has_no_key(unchanged: TestClient, path: str, chunked: bool):
    body = b" " * 100_000
    content = (part for part in [body]) if chunked else body

    # FastAPI calls a body that is cut off a bad request.
    assert unchanged.post(path, content=content).status_code == (400 if chunked and path.startswith("/v1/") else 413)
    if path.startswith("/v1/"):
        assert unchanged.post(path, content=body, headers=KEY).status_code in (400, 422)


@pytest.mark.parametrize("path", ["/webhooks/orders/", "/v1/events/"])
def test_a_trailing_slash_is_not_redirected_to_a_host_of_the_callers_choice(unchanged: TestClient, path: str):
    response = unchanged.post(path, headers={"host": "evil.example"}, follow_redirects=False)

    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


def test_two_authorization_headers_open_nothing(client: TestClient):
    right = "Basic amV0aG9vazpwdw=="

    response = client.post(
        "/webhooks/orders", content=EVENT, headers=[("authorization", right), ("authorization", right)]
    )

    assert response.status_code == 401


def test_a_new_sqlite_file_is_for_its_owner_alone(client: TestClient, tmp_path: Path):
    assert post(client).status_code == 200

    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("test.db*")} == {0o600}


def test_a_database_file_that_was_removed_is_never_written_to_with_a_200(client: TestClient, tmp_path: Path):
    (tmp_path / "test.db").rename(tmp_path / "gone.db")

    assert post(client).status_code == 503
    assert client.get("/readyz").status_code == 503


def test_a_database_file_that_was_replaced_is_not_written_to(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    migrate(database)
    (tmp_path / "test.db").rename(tmp_path / "old.db")
    (tmp_path / "test.db").touch()

    with pytest.raises(sqlite3.OperationalError, match="replaced"):
        database.write(lambda c: c.execute(sa.text("DELETE FROM leases")))
    database.close()


def test_after_a_failed_commit_readiness_is_proved_by_a_write(client: TestClient):
    database: Database = client.app.state.service.database  # type: ignore[attr-defined]

    def proved() -> int:
        database.write_failed = True
        assert client.get("/readyz").status_code == 200
        assert database.write_failed is False
        with database.reading() as connection:
            return connection.execute(sa.text("SELECT count(*) FROM leases WHERE name = 'readiness'")).scalar_one()

    # A write of the service's own, just then, proves it as well; there are few of them.
    assert any(proved() == 1 for _ in range(20))


def test_a_body_of_countless_rejects_is_kept_as_one_entry(client: TestClient):
    body = b"[" + b"1," * 5000 + EVENT + b"]"

    answer = post(client, body).json()

    assert answer == {"received": 2, "stored": 1, "duplicates": 0, "quarantined": 1}
    (entry,) = client.get("/v1/quarantine", headers=KEY).json()["data"]
    assert entry["bytes"] == len(body)
    assert "5000 elements" in entry["reason"]


def test_more_elements_than_we_read_are_kept_as_one_entry(client: TestClient):
    answer = post(client, b"[" + b"1," * 200_000 + b"1]").json()

    assert answer == {"received": 1, "stored": 0, "duplicates": 0, "quarantined": 1}


@pytest.mark.parametrize(
    ("path", "rest"), [("quarantine", ["x"]), ("suppressions", ["x"]), ("completeness", ["x", "y"])]
)
@pytest.mark.parametrize("number", [2**63 - 1, -(2**63), 253_402_300_799_999_999, -62_135_596_800_000_000, -1])
def test_a_made_up_cursor_is_refused_or_a_place_but_no_fault(
    unchanged: TestClient, path: str, rest: list[str], number: int
):
    names = {"quarantine": QuarantineQuery, "suppressions": SuppressionQuery, "completeness": CompletenessQuery}
    cursor = encode_cursor(scope_of(path, names[path]().normalised(), "desc"), (number, *rest))

    response = unchanged.get(f"/v1/{path}", params={"cursor": cursor}, headers=KEY)

    assert response.status_code == 200 or response.json()["code"] == "bad_cursor"


@pytest.mark.parametrize("name", ["after", "before"])
@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "1969-12-31T23:59:59Z"])
@pytest.mark.parametrize(
    "path", ["events", "feed", "deliveries", "quarantine", "suppressions", "completeness", "stats", "exports/events"]
)
def test_no_time_of_the_calendar_is_a_fault(unchanged: TestClient, path: str, name: str, moment: str):
    assert unchanged.get(f"/v1/{path}", params={name: moment}, headers=KEY).status_code in (200, 422)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of one service for all attackers: what one of them does must not be felt by the next."""
    folder = tmp_path_factory.mktemp("attacked")
    environment = {"JETHOOK_WEBHOOKS__ORDERS__PASSWORDS": "pw", "JETHOOK_API_KEYS": "full"}
    with ServiceProcess(folder, f"sqlite:///{folder / 'test.db'}", environment) as service:
        yield service.port


@pytest.mark.parametrize("said", [b"", b"POST /v1/replays HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"])
def test_strangers_who_hold_connections_keep_no_event_and_no_delivery_away(tmp_path: Path, said: bytes):
    sink = SampleSink()
    with LocalServer(sink) as server, contextlib.ExitStack() as held:
        environment = {"JETHOOK_SINKS__CRM__URL": server.url}
        service = ServiceProcess(tmp_path, f"sqlite:///{tmp_path / 'test.db'}", environment, files=200)
        held.enter_context(service)
        for _ in range(250):  # more than it may have files open
            stranger = held.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=20))
            with contextlib.suppress(ConnectionError):
                stranger.sendall(said)

        with httpx2.Client(base_url=service.url, timeout=20) as newcomer:
            answer = newcomer.post("/webhooks/orders", content=EVENT, auth=("jethook", PASSWORD))

        assert answer.status_code == 200
        assert sink.wait_for(1)[0].json()["email"] == "a@example.com"
        assert service.log_lines("connections.made_room")


def test_a_request_head_without_end_is_cut_off_and_long_bodies_are_not(port: int):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
        answer = _until_answered(connection, b"x-padding: " + b"a" * 8000 + b"\r\n")
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        body = b"[" + b",".join([EVENT] * 3000) + b"]"
        head = (
            b"POST /webhooks/orders HTTP/1.1\r\nHost: x\r\nAuthorization: Basic amV0aG9vazpwdw==\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )
        statuses = []
        for _ in range(3):  # one connection: what belongs to a body never counts as a head
            connection.sendall(head + body)
            answered = b""
            while b"quarantined" not in answered:
                answered += connection.recv(4096)
            statuses.append(answered.split(b"\r\n", 1)[0])

    assert answer.startswith(b"HTTP/1.1 431 ")
    assert statuses == [b"HTTP/1.1 200 OK"] * 3


def _until_answered(connection: socket.socket, more: bytes) -> bytes:
    connection.setblocking(False)
    for _ in range(10_000):
        try:
            return connection.recv(4096)
        except BlockingIOError:
            connection.setblocking(True)
            connection.sendall(more)
            connection.setblocking(False)
    raise AssertionError("never answered")


POST = b"POST /webhooks/orders HTTP/1.1\r\nHost: x\r\nAuthorization: Basic amV0aG9vazpwdw==\r\n"


def test_a_body_behind_a_request_for_an_upgrade_is_not_taken_for_an_empty_one(port: int):
    head = POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n" % len(EVENT)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(head + EVENT)
        answer = _all_of(connection)

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"connection: close" in answer
    assert answer.count(b"HTTP/1.1 ") == 1  # the body was not read as a request


def test_a_proxy_that_names_an_upgrade_and_asks_for_none_does_no_harm(port: int):
    event = EVENT.replace(b"open", b"click")  # which nobody else posts there
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(
            POST + b"Connection: close\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n" % len(event) + event
        )
        answer = _all_of(connection, 20)

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"stored":1' in answer


def test_requests_without_end_on_one_connection_are_cut_off(port: int):
    request = b"POST /webhooks/x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(request * 5000)
        answer = _all_of(connection)

    assert answer.count(b"HTTP/1.1 ") < 500


def test_trailers_without_end_are_cut_off(port: int):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n")
        assert _is_cut_off(connection, b"x-more: " + b"a" * 8000 + b"\r\n")


def test_what_is_no_http_gets_the_one_shape_of_errors(port: int):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"GARBAGE\r\n\r\n")
        head, _, body = _all_of(connection).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/problem+json" in head
    assert json.loads(body)["code"] == "bad_request"


def _is_cut_off(connection: socket.socket, more: bytes) -> bool:
    """Sends the same for as long as it is taken, ten seconds at the most."""
    give_up = time.monotonic() + 10
    try:
        while time.monotonic() < give_up:
            connection.sendall(more)
    except ConnectionError:
        return True
    return False


def _all_of(connection: socket.socket, silent_seconds: float = 1) -> bytes:
    """What comes until the other side closes, or is silent for that long."""
    connection.settimeout(silent_seconds)
    answer = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        while more := connection.recv(65536):
            answer += more
    return answer


# --- names, guesses --------------------------------------------------------------------------------------------------


TRICKS = (
    "../admin", "..%2f..%2fetc%2fpasswd", "%2e%2e", "orders%00", "orders%0aforged", "orders%20", "orders;x=1", "ORDERS",
    "orders/", "./orders", "a" * 5000, "%D0%BE", "orders%2F", "orders%3Fx",
)  # fmt: skip


def test_no_trick_with_the_name_reaches_a_webhook(port: int):
    """On the wire, since a client would put the path in order first."""
    for name in TRICKS:
        head = POST.replace(b"/orders ", b"/" + name.encode() + b" ") + b"Connection: close\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(EVENT) + EVENT)
            answer = _all_of(connection)

        assert answer.startswith(b"HTTP/1.1 404 "), (name, answer[:200])
        assert b"application/problem+json" in answer


def test_wrong_passwords_never_slow_down_who_has_the_right_one(client: TestClient):
    """Mailjet repeats what is refused, so a limit on refusals would be a limit on events."""
    wrong = {
        client.post("/webhooks/orders", content=EVENT, auth=("jethook", f"no-{n}")).status_code for n in range(100)
    }
    guesses = {
        client.post("/dashboard/sign-in", data={"key": f"no-{n}"}, follow_redirects=False).status_code
        for n in range(15)
    }

    assert wrong == {401}
    assert 429 in guesses
    assert post(client).json()["stored"] == 1
    assert client.get("/v1/events", headers=KEY).status_code == 200


@pytest.mark.parametrize("given", ["first", "second", "third", "none of them", ""])
def test_a_password_is_compared_with_all_that_are_accepted_whichever_fits(
    given: str, monkeypatch: pytest.MonkeyPatch
):  # fmt: skip
    compared: list[bytes] = []
    real = hmac.compare_digest

    def noted(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    door = CallbackAuth("jethook", {"orders": ["first", "second", "third"]})

    # Not as Mailjet spells it, so that it is decoded as well.
    door.judge("orders", b"basic  " + base64.b64encode(f"jethook:{given}".encode()))

    assert compared[-3:] == [b"first", b"second", b"third"]
    assert len(compared) == 3 + 1 + 3
