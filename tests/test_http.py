"""The one shape of errors, the request's id, and the keys: over a small app of its own."""

import logging
import re
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Annotated

import httpx2
import pytest
import structlog
import uvicorn
from fastapi import Body, Depends, FastAPI, Path, Query
from fastapi.testclient import TestClient
from pydantic import BaseModel
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from app.errors import Conflict, EventNotFound, FieldError, Invalid, Unavailable
from app.http import PROBLEM_RESPONSES, ApiKeys, install_problem_handlers, problem_responses

KEYS = ApiKeys(full=["full-key", "second-key"], read=["read-key", "ключ"])


class Address(BaseModel):
    to: str


class Letter(BaseModel):
    messages: list[Address]


def build_app() -> FastAPI:
    app = FastAPI()

    @app.get("/things/{number}", responses=PROBLEM_RESPONSES)
    def thing(number: Annotated[int, Path()], limit: Annotated[int, Query(ge=1)] = 1) -> dict[str, int]:
        return {"number": number, "limit": limit}

    @app.delete("/things/{number}")
    def remove(number: int) -> None: ...

    @app.post("/letters")
    def letters(letter: Annotated[Letter, Body()]) -> Letter:
        return letter

    @app.get("/fails/{how}", responses=problem_responses(409))
    def fails(how: str) -> None:
        if how == "stream":
            raise AssertionError
        raise FAILURES[how]

    @app.get("/half")
    def half() -> StreamingResponse:
        def parts() -> Iterator[bytes]:
            yield b"one"
            raise ValueError("secret of the stream")

        return StreamingResponse(parts())

    @app.get("/context")
    def context() -> dict[str, object]:
        return structlog.contextvars.get_contextvars()

    @app.get("/read", dependencies=[Depends(KEYS.reader)])
    def read() -> Response:
        return Response(status_code=204)

    @app.get("/write", dependencies=[Depends(KEYS.writer)])
    def write() -> Response:
        return Response(status_code=204)

    install_problem_handlers(app)
    return app


FAILURES: dict[str, Exception] = {
    "unexpected": ValueError("secret of ours"),
    "outage": OperationalError("SELECT secret", {}, Exception("server closed the connection")),
    "pool": PoolTimeoutError("QueuePool limit reached"),
    "event": EventNotFound("no event 'x'"),
    "conflict": Conflict("the delivery is settled"),
    "unavailable": Unavailable("stopping", retry_after_seconds=7),
    "surrogate": Invalid("a \ud800 value", errors=[FieldError("/\ud800", "x\udfff", "odd")]),
    "teapot": HTTPException(418, "short and stout"),
    "odd": HTTPException(599),
    "forbidden": HTTPException(403, "no"),
    "moved": HTTPException(307, headers={"location": "/elsewhere"}),
}


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(build_app(), follow_redirects=False) as opened:
        yield opened


def problem(response: httpx2.Response, status: int, code: str) -> dict:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["code"] == code
    assert body["request_id"] == response.headers["x-request-id"]
    assert {"type", "title", "detail", "instance"} <= body.keys()
    return body


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        ("unexpected", 500, "internal_error"),
        ("outage", 503, "unavailable"),
        ("pool", 503, "unavailable"),
        ("event", 404, "event_not_found"),
        ("conflict", 409, "conflict"),
        ("unavailable", 503, "unavailable"),
        ("surrogate", 422, "validation_failed"),
        ("teapot", 418, "bad_request"),
        ("odd", 599, "internal_error"),
        ("forbidden", 403, "forbidden"),
    ],
)
def test_every_failure_has_the_one_shape(client, how, status, code):
    body = problem(client.get(f"/fails/{how}"), status, code)

    assert body["instance"] == f"/fails/{how}"


def test_a_fault_of_ours_tells_the_caller_nothing_and_the_log_everything(client):
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        response = client.get("/fails/unexpected", headers={"x-request-id": "abc"})

    assert "secret" not in response.text
    assert [(line["event"], line["request_id"], str(line["exc_info"])) for line in lines] == [
        ("request.failed", "abc", "secret of ours")
    ]


def test_a_database_that_is_gone_is_worth_another_try(client):
    response = client.get("/fails/outage")

    assert int(response.headers["retry-after"]) > 0
    assert "secret" not in response.text


def test_our_own_unavailable_says_how_long_to_wait(client):
    assert client.get("/fails/unavailable").headers["retry-after"] == "7"


def test_a_redirect_is_no_problem(client):
    response = client.get("/fails/moved")

    assert (response.status_code, response.headers["location"], response.content) == (307, "/elsewhere", b"")


def test_an_unknown_address_is_a_404(client):
    problem(client.get("/nowhere"), 404, "not_found")


def test_a_wrong_method_is_a_405_that_names_every_right_one(client):
    response = client.post("/things/1")

    problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "GET, DELETE"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param("/things/1?limit=0", ["limit"], id="query"),
        pytest.param("/things/x", ["number"], id="path"),
        pytest.param("/things/x?limit=y", ["number", "limit"], id="both"),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(client, path, expected):
    body = problem(client.get(path), 422, "validation_failed")

    assert [error["pointer"] for error in body["errors"]] == expected
    assert all(error["message"] and error["code"] for error in body["errors"])


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"messages": [{"to": 1}]}, "/messages/0/to"),
        ({"messages": [{"to": "a"}, {}]}, "/messages/1/to"),
        ({}, "/messages"),
        (None, ""),
        ([], ""),
    ],
)
def test_a_field_that_does_not_fit_is_pointed_at(client, body, pointer):
    answer = problem(client.post("/letters", json=body), 422, "validation_failed")

    assert [error["pointer"] for error in answer["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"{", "application/json"),
        (b"\xff", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"to=a", "application/x-www-form-urlencoded"),
        (b"{}", "text/plain"),
    ],
)
def test_a_body_that_is_not_json_is_a_400(client, content, content_type):
    response = client.post("/letters", content=content, headers={"content-type": content_type})

    problem(response, 400, "bad_request")


@pytest.mark.parametrize("path", ["/things/%00", "/things/%ED%A0%80", "/%FF%FE", "/things/%22%3C%0A"])
def test_odd_bytes_in_the_path_still_get_a_problem(client, path):
    assert client.get(path).headers["content-type"] == "application/problem+json"


def test_a_sane_request_id_is_kept(client):
    response = client.get("/context", headers={"x-request-id": "trace/42"})

    assert response.headers["x-request-id"] == "trace/42"
    assert response.json()["request_id"] == "trace/42"


@pytest.mark.parametrize("given", [None, "", "two words", "x" * 129, "\xe9"])
def test_any_other_request_id_is_replaced(client, given):
    headers = {} if given is None else {"x-request-id": given.encode("latin-1")}
    response = client.get("/context", headers=headers)

    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])
    assert response.json()["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "authorization", "status"),
    [
        ("/read", None, 401),
        ("/read", "Bearer", 401),
        ("/read", "Bearer wrong", 401),
        ("/read", "Basic full-key", 401),
        ("/read", "Bearer full-ke", 401),
        ("/read", "Bearer full-key", 204),
        ("/read", "bearer second-key", 204),
        ("/read", "Bearer read-key", 204),
        ("/read", "Bearer ключ", 204),
        ("/write", None, 401),
        ("/write", "Bearer wrong", 401),
        ("/write", "Bearer \udcff", 401),
        ("/write", "Bearer full-key", 204),
        ("/write", "Bearer second-key", 204),
    ],
)
def test_keys(client, path, authorization, status):
    headers = {} if authorization is None else {"authorization": authorization.encode("utf-8", "surrogateescape")}
    response = client.get(path, headers=headers)

    assert response.status_code == status
    if status == 401:
        problem(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"


def test_a_read_key_may_not_write(client):
    problem(client.get("/write", headers={"authorization": "Bearer read-key"}), 403, "forbidden")


def test_without_keys_nobody_gets_in():
    app = FastAPI()
    app.add_api_route("/", lambda: None, dependencies=[Depends(ApiKeys([""], []).reader)])
    install_problem_handlers(app)

    assert TestClient(app).get("/", headers={"authorization": "Bearer "}).status_code == 401


def test_openapi_knows_one_error_shape_and_the_bearer_scheme(client):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        document = client.get("/openapi.json").json()

    assert "HTTPValidationError" not in str(document)
    assert "ValidationError" not in document["components"]["schemas"]
    for path, method, status in [("/things/{number}", "get", "422"), ("/letters", "post", "422")]:
        content = document["paths"][path][method]["responses"][status]["content"]
        assert content == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    codes = document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]
    assert {"bad_cursor", "validation_failed", "internal_error"} <= set(codes)
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert document["paths"]["/read"]["get"]["security"] == [{"bearer": []}]


# --- under the real server -------------------------------------------------------------------------------------------


@pytest.fixture
def served() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        config = uvicorn.Config(build_app(), log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def test_the_server_prints_a_failure_of_ours_only_once(served, caplog):
    with (
        caplog.at_level(logging.ERROR, "uvicorn.error"),
        structlog.testing.capture_logs() as lines,
        httpx2.Client() as client,
    ):
        response = client.get(f"{served}/fails/unexpected")

    problem(response, 500, "internal_error")
    assert len(lines) == 1
    assert caplog.records == []


def test_a_failure_in_the_middle_of_an_answer_cuts_the_connection(served, caplog):
    with caplog.at_level(logging.CRITICAL, "uvicorn.error"), httpx2.Client() as client:
        with pytest.raises(httpx2.RemoteProtocolError):
            client.get(f"{served}/half")

        assert client.get(f"{served}/context").status_code == 200
