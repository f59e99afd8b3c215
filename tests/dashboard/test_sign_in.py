"""Who gets in, what a key may do, and what other sites' pages cannot."""

from __future__ import annotations

import re
from datetime import timedelta
from http.cookies import SimpleCookie

import pytest
from fastapi.testclient import TestClient

from app.clock import utc_now
from app.dashboard.throttle import GUESSES
from app.main import Service, create_app
from app.settings import load_settings
from tests.dashboard.conftest import csrf_of, press, signed_in

PAGES = (
    "/", "/dashboard/events", "/dashboard/events/x", "/dashboard/messages?id=1", "/dashboard/recipients",
    "/dashboard/statistics", "/dashboard/statistics/domains.csv", "/dashboard/sinks", "/dashboard/sinks/crm",
    "/dashboard/replays", "/dashboard/replays/x", "/dashboard/webhooks", "/dashboard/webhooks/orders",
    "/dashboard/quarantine", "/dashboard/quarantine/x",
)  # fmt: skip
ACTIONS = (
    "/dashboard/log-out", "/dashboard/recipients/suppress", "/dashboard/recipients/lift", "/dashboard/sinks/crm/pause",
    "/dashboard/sinks/crm/resume", "/dashboard/sinks/crm/test", "/dashboard/sinks/crm/replay",
    "/dashboard/sinks/crm/retry-dead", "/dashboard/webhooks/orders/plan", "/dashboard/webhooks/orders/register",
    "/dashboard/quarantine/x/reprocess", "/dashboard/quarantine/x/delete", "/dashboard/replays/x/cancel",
    "/dashboard/deliveries/x/retry", "/dashboard/deliveries/x/cancel",
)  # fmt: skip


def test_the_lists_here_are_all_pages_and_actions(service: Service, anybody: TestClient):
    """A new route belongs into one of them, so that it is asked who may."""
    known = {re.sub(r"\?.*", "", path) for path in (*PAGES, *ACTIONS)}
    public = {"/dashboard/sign-in", "/dashboard/static/{name:path}", "/dashboard/stream", "/dashboard/{rest:path}"}
    routes = all_routes(anybody)
    assert {"/", "/dashboard/events/{id}"} <= set(routes)
    for route in routes:
        if route == "/" or route.startswith("/dashboard"):
            filled = re.sub(r"\{name\}", _name_in(route), route).replace("{id}", "x")
            assert route in public or filled in known, route


def _name_in(route: str) -> str:
    return "orders" if "webhooks" in route else "domains" if "statistics" in route else "crm"


def all_routes(client: TestClient) -> list[str]:
    from fastapi.routing import APIRoute

    def walk(routes: list[object]) -> list[str]:
        found = []
        for route in routes:
            inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None)
            found += walk(list(inner)) if inner else [route.path] if isinstance(route, APIRoute) else []
        return found

    return walk(list(client.app.router.routes))  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", PAGES)
def test_who_is_not_signed_in_is_sent_to_the_sign_in_and_back(anybody: TestClient, path: str):
    answer = anybody.get(path)

    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/dashboard/sign-in")
    asked = anybody.get(answer.headers["location"])
    assert (path == "/") or path.partition("?")[0] in asked.text


@pytest.mark.parametrize("path", ACTIONS)
def test_no_action_without_a_session_a_form_of_ours_and_a_full_key(anybody: TestClient, path: str):
    assert anybody.post(path, data={}).headers["location"].startswith("/dashboard/sign-in")
    signed_in(anybody, "read-key-1")
    if path != "/dashboard/log-out":
        assert press(anybody, path).status_code == 403
    signed_in(anybody, "full-key-1")
    assert anybody.post(path, data={}).status_code == 403
    assert anybody.post(path, data={"csrf": "x" * 43}).status_code == 403


def test_the_stream_answers_401_without_a_session_and_is_no_redirect(anybody: TestClient):
    assert anybody.get("/dashboard/stream", headers={"accept": "text/event-stream"}).status_code == 401


def test_a_fragment_that_is_asked_for_after_the_session_sends_the_whole_page_to_the_sign_in(anybody: TestClient):
    answer = anybody.get("/", headers={"hx-request": "true"})

    assert (answer.status_code, answer.headers["hx-redirect"]) == (204, "/dashboard/sign-in")


def test_the_cookie_is_out_of_reach_for_scripts_and_other_sites(anybody: TestClient):
    def cookie(**headers: str):
        given = anybody.post("/dashboard/sign-in", data={"key": "full-key-1"}, headers=headers).headers["set-cookie"]
        return SimpleCookie(given)["jethook_session"]

    plain, behind_tls = cookie(), cookie(**{"x-forwarded-proto": "https"})
    public = cookie(host="hooks.example.com")
    assert plain["httponly"]
    assert plain["samesite"].lower() == "lax"
    assert plain["path"] == "/"
    assert [bool(one["secure"]) for one in (plain, behind_tls, public)] == [False, True, True]


def test_a_wrong_key_opens_nothing_and_guesses_are_throttled(anybody: TestClient):
    anybody = TestClient(anybody.app, client=("192.0.2.9", 4711), follow_redirects=False)
    answers = [anybody.post("/dashboard/sign-in", data={"key": f"guess {n}"}) for n in range(GUESSES + 1)]

    assert [answer.status_code for answer in answers] == [401] * GUESSES + [429]
    assert "none of this installation" in answers[0].text
    assert "set-cookie" not in answers[0].headers
    assert int(answers[-1].headers["retry-after"]) > 0
    assert anybody.post("/dashboard/sign-in", data={"key": "full-key-1"}).status_code == 429


def test_a_cookie_works_on_another_replica_and_not_after_log_out(person: TestClient, environment: dict[str, str]):
    cookie = {"cookie": f"jethook_session={person.cookies['jethook_session']}"}
    with TestClient(create_app(load_settings(environment, env_file=None)), follow_redirects=False) as other:
        assert other.get("/", headers=cookie).status_code == 200
        assert press(person, "/dashboard/log-out").headers["location"] == "/dashboard/sign-in"
        assert other.get("/", headers=cookie).status_code == 303
    assert person.get("/").status_code == 303


def test_a_link_signs_in_once(anybody: TestClient, service: Service):
    path = f"/dashboard/sign-in?link={service.sessions.link(utc_now())}"

    assert anybody.get(path).headers["location"] == "/"
    assert anybody.get("/").status_code == 200
    anybody.cookies.clear()
    assert anybody.get(path).status_code == 401
    old = service.sessions.link(utc_now() - timedelta(days=2))
    assert anybody.get(f"/dashboard/sign-in?link={old}").status_code == 401


@pytest.mark.parametrize("headers", [
    {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"origin": "https://evil.example"},
    {"origin": "null"},
])  # fmt: skip
def test_forms_of_other_sites_are_refused_with_a_right_token_too(person: TestClient, headers: dict[str, str]):
    data = {"csrf": csrf_of(person), "key": "full-key-1"}

    assert person.post("/dashboard/sinks/crm/pause", data=data, headers=headers).status_code == 403
    assert person.post("/dashboard/sign-in", data=data, headers=headers).status_code == 403


def test_a_form_of_our_own_page_passes_also_behind_a_proxy(person: TestClient):
    for headers in ({"sec-fetch-site": "same-origin"}, {"origin": "http://testserver"}, {"origin": "https://hooks.example.com"},
                    {"origin": "https://out.example", "x-forwarded-host": "out.example"}):  # fmt: skip
        answer = person.post("/dashboard/sinks/crm/pause", data={"csrf": csrf_of(person)}, headers=headers)
        assert answer.status_code == 303


@pytest.mark.parametrize("evil", [
    "https://evil.example/", "//evil.example", "/\\evil.example", "/docs", "javascript:alert(1)", "/dashboard/sign-in",
    "/dashboard/x\r\nset-cookie: a=b",
])  # fmt: skip
def test_nobody_is_sent_elsewhere_after_the_sign_in(anybody: TestClient, evil: str):
    answer = anybody.post("/dashboard/sign-in", data={"key": "full-key-1", "next": evil})

    assert answer.headers["location"] == "/"


def test_a_bearer_key_opens_no_page(anybody: TestClient):
    assert anybody.get("/", headers={"authorization": "Bearer full-key-1"}).status_code == 303


def test_the_dashboard_is_no_part_of_the_api_document(anybody: TestClient):
    paths = anybody.get("/openapi.json").json()["paths"]

    assert not [path for path in paths if path == "/" or path.startswith("/dashboard")]
