import asyncio
import socket
import threading
import time

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from app.simulator.server import LocalServer


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"hello {request.url.path}")


def make_app(**options):
    return Starlette(routes=[Route("/{path:path}", hello)], **options)


def test_the_address_is_known_before_the_start_and_refused_until_then():
    server = LocalServer(make_app())

    with pytest.raises(httpx2.ConnectError):
        httpx2.get(server.url)
    with server:
        assert httpx2.get(f"{server.url}/there").text == "hello /there"
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(server.url)


def test_a_stopped_server_starts_again_on_its_port():
    server = LocalServer(make_app())

    for _ in range(2):
        with server, httpx2.Client() as client:
            assert client.get(server.url).status_code == 200
            assert server.running
    assert not server.running


def test_a_server_that_never_started_leaves_nothing_open():
    LocalServer(make_app()).stop()


def test_a_taken_port_is_an_os_error():
    with LocalServer(make_app()) as server, pytest.raises(OSError, match="in use"):
        LocalServer(make_app(), port=server.port)


def test_it_starts_and_stops_without_polling():
    began = time.monotonic()
    for _ in range(5):
        with LocalServer(make_app()) as server:
            httpx2.get(server.url)

    assert time.monotonic() - began < 1.5


def test_a_failing_lifespan_is_reported():
    def lifespan(app):
        raise ValueError("no")

    with pytest.raises(RuntimeError, match="did not start"):
        LocalServer(make_app(lifespan=lifespan)).start()


def test_stopping_lets_a_running_request_end():
    inside = threading.Event()

    async def slow(scope, receive, send):
        if scope["type"] == "http":
            inside.set()
            await asyncio.sleep(0.05)
            await PlainTextResponse("done")(scope, receive, send)

    server = LocalServer(slow)
    server.start()
    answers = []
    client = threading.Thread(target=lambda: answers.append(httpx2.get(server.url).text))
    client.start()
    inside.wait(5)
    server.stop()
    client.join(5)

    assert answers == ["done"]


def test_stopping_cuts_off_what_does_not_end():
    inside = threading.Event()

    async def stuck(scope, receive, send):
        if scope["type"] == "http":
            inside.set()
            while (await receive())["type"] != "http.disconnect":
                pass

    with LocalServer(stuck, grace_seconds=0.01) as server:
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        inside.wait(5)
    assert client.recv(10) == b""
    client.close()


def test_ipv6_is_served_in_brackets():
    try:
        server = LocalServer(make_app(), host="::1")
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        assert httpx2.get(server.url).text == "hello /"


def test_the_credentials_go_into_the_url():
    server = LocalServer(make_app())
    server.stop()

    assert server.url_with("me", "secret", "/webhooks/orders") == (
        f"http://me:secret@127.0.0.1:{server.port}/webhooks/orders"
    )
