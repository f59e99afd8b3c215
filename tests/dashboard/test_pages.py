"""What the pages say and do, without a browser."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from html import unescape
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from app.clock import utc_now
from app.dashboard.history import Asked
from app.dashboard.pages import environment
from app.dashboard.routes import warm
from app.dashboard.stats_pages import Rows, read_table
from app.dispatch.sink_states import remember_sinks
from app.errors import Invalid
from app.main import Service, make_desk
from app.settings import SinkSettings
from app.stats.memory import Memory
from tests.dashboard.conftest import press
from tests.factories import make_attempt, make_delivery, make_event, make_quarantined

HOSTILE = "<script>alert(1)</script>'\"><img src=x onerror=alert(2)>{{7*7}}</textarea><!--"
PAGE_HEADERS = {
    "x-content-type-options": "nosniff", "x-frame-options": "DENY", "referrer-policy": "same-origin",
    "cache-control": "no-store",
}  # fmt: skip


class Found(HTMLParser):
    """Elements that run or style something, and attributes that do."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "style" or (tag == "script" and not (given.get("src") or "").startswith("/dashboard/static/")):
            self.bad.append(tag)
        if tag in ("iframe", "object", "embed", "base") or (tag == "img"):
            self.bad.append(tag)
        self.bad += [name for name, value in attrs if name.startswith("on") or name == "style"
                     or (value or "").strip().lower().startswith("javascript:")]  # fmt: skip


def assert_nothing_runs(html: str) -> None:
    found = Found()
    found.feed(html)
    assert found.bad == []


def get(client: TestClient, path: str, status: int = 200) -> str:
    answer = client.get(path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert_nothing_runs(answer.text)
    return answer.text


@pytest.fixture
def hostile(service: Service) -> dict[str, Any]:
    """An event whose every text is an attack, delivered in vain with an answer that is one."""
    raw = {"event": HOSTILE, "time": 1, "email": HOSTILE, "url": "javascript:alert(1)", "agent": HOSTILE,
           "Payload": HOSTILE, HOSTILE: HOSTILE}  # fmt: skip
    names = ("type", "email", "message_id", "message_guid", "campaign_id", "custom_campaign", "custom_id", "contact_id",
             "list_id", "reason")  # fmt: skip
    event = make_event(service.database, raw=json.dumps(raw), **dict.fromkeys(names, HOSTILE))
    delivery = make_delivery(service.database, event, state="dead", last_error=HOSTILE, settled_at=event["received_at"])
    make_attempt(service.database, delivery, status=500, outcome="http_5xx", response_excerpt=HOSTILE, error=HOSTILE)
    return event


def test_every_page_has_headers_that_let_nothing_else_run(person: TestClient):
    for path in ("/", "/dashboard/events", "/dashboard/sign-in", "/dashboard/nothing", "/dashboard/events/nothing"):
        headers = person.get(path, follow_redirects=True).headers
        policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == policy["form-action"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert {name: headers[name] for name in PAGE_HEADERS} == PAGE_HEADERS


def test_hostile_events_are_text_on_every_page(person: TestClient, hostile: dict[str, Any], service: Service):
    entry = make_quarantined(service.database, body=HOSTILE.encode(), reason=HOSTILE, webhook="orders")
    email = quote(HOSTILE)
    paths = (
        f"/dashboard/recipients?email={email}", "/dashboard/statistics", "/", "/dashboard/events",
        "/dashboard/sinks/crm", f"/dashboard/events/{hostile['id']}", "/dashboard/quarantine",
        f"/dashboard/quarantine/{entry['id']}",
    )  # fmt: skip
    pages = [get(person, path) for path in paths]
    message = person.get("/dashboard/messages", params={"id": HOSTILE})
    assert message.status_code == 200
    assert_nothing_runs(message.text)
    assert all(
        "<script>alert" not in page and "<img" not in page and ">49<" not in page for page in [*pages, message.text]
    )
    assert HOSTILE in unescape(pages[3])


def test_hostile_filters_come_back_as_text(person: TestClient):
    answer = person.get("/dashboard/events", params={"email": HOSTILE, "after": HOSTILE, HOSTILE: HOSTILE})

    assert answer.status_code == 422
    assert_nothing_runs(answer.text)
    assert HOSTILE in unescape(answer.text)


def test_the_filters_of_rest_are_those_of_the_address(person: TestClient, service: Service):
    for number in range(3):
        make_event(service.database, email=f"a{number}@example.com", type="bounce" if number else "open")

    for query in ("type=bounce", "type=bounce&type=open&email=a1@example.com", "email=A@example.com",
                  "order=asc&limit=2", "webhook=orders&after=2020-01-01T00:00:00Z&outcome=opened"):  # fmt: skip
        page = get(person, f"/dashboard/events?{query}")
        rest = person.get(f"/v1/events?{query}", headers={"authorization": "Bearer read-key-1"}).json()
        assert re.findall(r'href="/dashboard/events/([0-9a-f-]{36})"', page) == [event["id"] for event in rest["data"]]
        following = re.search(r'rel="next" href="([^"]+)"', page)
        assert (following is not None) == rest["has_more"]
        if following:
            assert f"cursor={rest['next_cursor']}" in unescape(following[1])
            get(person, unescape(following[1]))


def test_a_day_in_the_form_becomes_a_time_of_rest_in_the_address(person: TestClient):
    answer = person.get("/dashboard/events?after=2026-05-03&type=open&type=click")

    assert answer.status_code == 303
    assert answer.headers["location"] == "/dashboard/events?after=2026-05-03T00%3A00%3A00Z&type=open&type=click"
    get(person, answer.headers["location"])


def test_blank_fields_of_the_form_are_no_filters(person: TestClient, service: Service):
    event = make_event(service.database)

    page = get(person, "/dashboard/events?email=&type=&message_id=%20&after=&before=&order=")

    assert event["id"] in page


def test_a_search_keeps_what_its_form_has_no_field_for_and_every_filter_can_be_taken_away(
    person: TestClient, service: Service
):
    make_event(service.database)

    page = get(person, "/dashboard/events?type=open&type=click&received_after=2020-01-01T00:00:00Z&email=A%2Bb@c.de")

    hidden = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page)
    assert hidden[1:] == [("type", "open"), ("received_after", "2020-01-01T00:00:00Z")]  # after the token of log out
    assert re.findall("<option selected>([^<]*)", page) == ["click"]
    chips = [unescape(url) for url in re.findall(r'<li><a href="([^"]+)" aria-label="Without', page)]
    assert len(chips) == 4
    assert chips[0] == "/dashboard/events?type=click&received_after=2020-01-01T00%3A00%3A00Z&email=A%2Bb%40c.de"


@pytest.mark.parametrize(
    "query", ["after=yesterday", "nonsense=1", "limit=0", "outcome=fine", "cursor=broken", "permanent=perhaps"]
)
def test_filters_that_do_not_fit_are_told_on_the_page(person: TestClient, query: str):
    answer = person.get(f"/dashboard/events?{query}")

    assert answer.status_code in (400, 422)
    assert_nothing_runs(answer.text)
    assert "<h1>" in answer.text


def test_an_event_shows_every_digit_and_every_attempt(person: TestClient, service: Service):
    raw = '{"event":"open","time":1777802400,"MessageID":1152921526816354817,"score":1.100,"big":12345678901234567890}'
    event = make_event(service.database, raw=raw)
    delivery = make_delivery(service.database, event, state="dead", attempt_count=2)
    make_attempt(
        service.database, delivery, status=503, outcome="http_5xx", response_excerpt="try later", duration_ms=41.7
    )
    make_attempt(service.database, delivery, number=2, status=None, outcome="timeout", error="no answer in 15 s")

    page = get(person, f"/dashboard/events/{event['id']}")

    for told in ("1152921526816354817", "1.100", "12345678901234567890", "try later", "42 ms",
                 "no answer in 15 s", "http://127.0.0.1:9/crm", f"webhook-id: {event['id']}"):  # fmt: skip
        assert told in page


@pytest.mark.parametrize("path", [
    "/dashboard/nothing", "/dashboard/events/nothing", "/dashboard/messages?id=nothing", "/dashboard/messages?id=%00",
    "/dashboard/sinks/none", "/dashboard/webhooks/none", "/dashboard/quarantine/none", "/dashboard/replays/none",
])  # fmt: skip
def test_what_is_not_there_is_a_page_that_says_so(person: TestClient, path: str):
    assert "To the overview" in get(person, path, 404)


def test_a_read_key_sees_no_buttons(reader: TestClient, hostile: dict[str, Any]):
    for path in (
        "/",
        "/dashboard/sinks",
        "/dashboard/sinks/crm",
        "/dashboard/webhooks/orders",
        f"/dashboard/events/{hostile['id']}",
    ):
        page = get(reader, path)
        assert re.findall(r'method="post" action="([^"]+)"', page) == ["/dashboard/log-out"]


def test_pause_and_resume_say_what_they_did_once(person: TestClient):
    answer = press(person, "/dashboard/sinks/crm/pause")
    shown, again = get(person, answer.headers["location"]), get(person, answer.headers["location"])

    assert "crm is paused: its deliveries wait." in shown
    assert "crm is paused: its deliveries wait." not in again
    assert "Sink crm is paused" in get(person, "/")
    press(person, "/dashboard/sinks/crm/resume")
    assert "Sink crm is paused" not in get(person, "/")


def test_what_needs_a_person_comes_first_with_its_button(person: TestClient, service: Service):
    make_delivery(service.database, state="dead")
    make_quarantined(service.database)

    page = get(person, "/")

    assert (
        page.index("Sink crm: 1 dead delivery") < page.index("Something could not be read") < page.index('id="chart"')
    )
    assert 'action="/dashboard/sinks/crm/retry-dead"' in page
    assert "Next step: Mailjet&#39;s keys" in page
    assert "MJ_APIKEY_PUBLIC=" in page


def test_many_notices_leave_room_for_what_flows(person: TestClient, service: Service):
    gone = {f"gone{number}": SinkSettings(url="http://127.0.0.1:9") for number in range(7)}
    service.database.write(lambda connection: remember_sinks(connection, gone))
    for name in gone:
        make_delivery(service.database, sink=name)

    page = get(person, "/")

    places = [page.index(told) for told in ("Sink gone0 is no", 'id="other-notices"', "Sink gone6 is no", 'id="chart"')]
    assert places == sorted(places)


def test_the_overview_tells_first_whether_events_flow(person: TestClient, service: Service):
    assert "No event yet" in get(person, "/")
    make_event(service.database, received_at=utc_now())
    assert "Events flow" in get(person, "/")


def test_a_replay_is_counted_before_it_is_started(person: TestClient, service: Service):
    for _ in range(3):
        make_event(service.database, type="bounce")
    make_event(service.database, type="open")
    press(person, "/dashboard/sinks/crm/pause")

    counted = press(
        person, "/dashboard/sinks/crm/replay", **{"filter.type": "bounce", "filter.email": "", "step": "count"}
    )
    assert "<b>3</b> deliveries would be sent to crm" in counted.text
    assert get(person, "/dashboard/replays").count("/dashboard/replays/") == 0
    started = press(person, "/dashboard/sinks/crm/replay", **{"filter.type": "bounce", "rate": "5", "step": "start"})
    page = get(person, started.headers["location"])

    assert "of 3</p>" in page
    assert "type: bounce" in page
    press(person, started.headers["location"] + "/cancel")
    assert "cancelled" in get(person, started.headers["location"])


def test_every_list_has_its_pages_and_a_way_back(person: TestClient, service: Service):
    make_event(service.database)
    press(person, "/dashboard/sinks/crm/pause")
    for _ in range(21):
        press(person, "/dashboard/sinks/crm/replay", step="start")
    for number in range(3):
        make_quarantined(service.database, body=b"%d" % number)
    for _ in range(26):
        make_delivery(service.database, state="dead")

    for path, most in (("/dashboard/replays", 20), ("/dashboard/quarantine?webhook=orders&limit=2", 2),
                       ("/dashboard/sinks/crm", 25)):  # fmt: skip
        first = get(person, path)
        following = re.search(r'rel="next" href="([^"]+)"', first)
        assert following is not None, path
        second = get(person, unescape(following[1]))
        rows = [page.partition("<tbody")[2].partition("</tbody>")[0].count("<tr") for page in (first, second)]
        assert rows == [most, 1], path
        assert "To the first page" in second
        assert "To the first page" not in first


@pytest.mark.parametrize(
    "fields", [{"filter.after": "soon"}, {"rate": "fast"}, {"rate": "-1"}, {"filter.nonsense": "1"}]
)
def test_a_replay_that_does_not_fit_is_told_in_its_form(person: TestClient, fields: dict[str, str]):
    answer = press(person, "/dashboard/sinks/crm/replay", step="start", **fields)

    assert answer.status_code == 422
    assert 'role="alert"' in answer.text


def test_an_entry_is_read_again_stays_where_it_cannot_be_and_is_deleted(person: TestClient, service: Service):
    readable = make_quarantined(
        service.database, body=b'{"event":"open","time":1777802400,"MessageID":7,"email":"a@example.com"}'
    )
    broken = make_quarantined(service.database, body=b"\xff\x00broken")
    assert "ff 00 62 72" in get(person, f"/dashboard/quarantine/{broken['id']}")

    press(person, f"/dashboard/quarantine/{readable['id']}/reprocess")
    assert "1 stored, 0 known before" in get(person, "/dashboard/quarantine")
    stays = press(person, f"/dashboard/quarantine/{broken['id']}/reprocess")
    assert "It stays: still not an event" in get(person, stays.headers["location"])
    press(person, f"/dashboard/quarantine/{broken['id']}/delete")
    assert "It is empty" in get(person, "/dashboard/quarantine")


def test_a_person_suppresses_an_address_and_lifts_it_again_with_a_reason(person: TestClient):
    path = "/dashboard/recipients?email=a%40example.com"
    assert "never seen" in get(person, path)

    press(person, "/dashboard/recipients/suppress", email="a@EXAMPLE.com", comment="asked by telephone")
    page = get(person, path)
    assert "do not mail" in page
    assert "asked by telephone" in page
    assert ">a@example.com</a>" in get(person, "/dashboard/recipients?reason=manual")
    assert ">a@example.com</a>" not in get(person, "/dashboard/recipients?reason=complaint")
    assert press(person, "/dashboard/recipients/lift", email="a@example.com").status_code == 422
    press(person, "/dashboard/recipients/lift", email="a@example.com", comment="asked again")
    page = get(person, path)
    assert "1 lifted" in page
    assert "Nothing is in force" in page


def test_statistics_tell_campaigns_domains_and_reasons_and_give_them_as_csv(person: TestClient, service: Service):
    recent = utc_now().replace(microsecond=0) - timedelta(minutes=5)
    for number in range(4):
        make_event(service.database, type="sent", outcome="delivered", occurred_at=recent, custom_campaign="=spring",
                   campaign_id="7", email=f"a{number}@example.org")  # fmt: skip
    make_event(service.database, type="bounce", outcome="bounced", occurred_at=recent, reason="user unknown",
               reason_group="recipient", email="b@example.net")  # fmt: skip

    page = get(person, "/dashboard/statistics?span=day")
    table = person.get("/dashboard/statistics/campaigns.csv?span=day")

    for told in ("80.0 %", "=spring", "example.org", "user unknown", "5 recipients"):
        assert told in page
    assert table.headers["content-disposition"] == 'attachment; filename="jethook-campaigns-day.csv"'
    assert table.text.splitlines()[1].startswith("7,'=spring,4,0,0,")
    assert get(person, "/dashboard/statistics?span=nonsense&webhook=none")
    assert person.get("/dashboard/statistics/nothing.csv").status_code == 404
    for span in ('x";filename="setup.exe', "a\r\nset-cookie: b=c", "\u20ac"):
        named = person.get("/dashboard/statistics/campaigns.csv", params={"span": span}).headers["content-disposition"]
        assert named == 'attachment; filename="jethook-campaigns-week.csv"'
    for span in ("hour", "day", "week"):
        assert 'aria-current="true"' in get(person, f"/?span={span}")


@pytest.mark.parametrize("span", ["day", "week", "month", "quarter"])
def test_a_bar_holds_what_happened_in_its_time(person: TestClient, service: Service, span: str):
    for days in (0, 89) if span == "quarter" else (0,):
        make_event(service.database, type="sent", occurred_at=utc_now().replace(microsecond=0) - timedelta(days=days))

    page = get(person, f"/dashboard/statistics?span={span}")

    points = json.loads(unescape(page.partition('data-points="')[2].partition('"')[0]))
    assert (points["series"]["sent"][-1], sum(points["series"]["sent"])) == (1, 2 if span == "quarter" else 1)


def test_a_table_that_costs_too_much_is_told_in_its_place(service: Service):
    def refuses(connection: object, asked: object, memory: object) -> Rows:
        raise Invalid("more than 10000 rows")

    with service.database.reading() as connection:
        assert read_table(connection, Asked("day", (), utc_now()), Memory(), refuses) == ([], "more than 10000 rows")


def test_a_delivery_is_tried_again_or_given_up(person: TestClient, service: Service):
    press(person, "/dashboard/sinks/crm/pause")
    delivery = make_delivery(service.database, state="dead")
    path = f"/dashboard/deliveries/{delivery['event_id']}.crm"

    press(person, f"{path}/retry")
    assert "pending" in get(person, f"/dashboard/events/{delivery['event_id']}")
    press(person, f"{path}/cancel")
    assert "cancelled" in get(person, f"/dashboard/events/{delivery['event_id']}")


def test_registration_that_is_off_says_which_setting_is_missing(person: TestClient):
    planned = press(person, "/dashboard/webhooks/orders/plan")

    assert planned.status_code == 200
    assert "MJ_APIKEY_PUBLIC" in planned.text


def test_static_files_are_kept_by_browsers_and_nothing_else_is_served(anybody: TestClient):
    page = anybody.get("/dashboard/sign-in").text
    addresses = set(re.findall(r'(?:src|href)="(/dashboard/static/[^"]+)"', page))

    assert len(addresses) >= 4
    for address in addresses:
        answer = anybody.get(address)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
    for path in ("../routes.py", "%2e%2e/routes.py", "vendor/htmx-2.0.11.LICENSE", "nothing.js"):
        assert anybody.get(f"/dashboard/static/{path}").status_code == 404


def test_the_theme_that_was_chosen_is_in_the_first_byte(anybody: TestClient):
    anybody.cookies.set("jethook_theme", "dark")
    assert 'data-theme="dark"' in anybody.get("/dashboard/sign-in").text
    anybody.cookies.set("jethook_theme", '"><script>')
    assert "data-theme=" not in anybody.get("/dashboard/sign-in").text


def test_the_whole_overview_is_small(person: TestClient, service: Service):
    for _ in range(20):
        make_event(service.database)
    page = person.get("/")
    addresses = re.findall(r'(?:src|href)="(/dashboard/static/[^"]+)"', page.text)

    plain = len(page.content) + sum(
        len(person.get(address, headers={"accept-encoding": "identity"}).content) for address in addresses
    )
    assert plain < 200_000


def test_a_form_in_another_shape_is_refused(person: TestClient):
    assert person.post("/dashboard/sinks/crm/pause", json={"csrf": "x"}).status_code == 400
    assert person.post("/dashboard/sign-in", content="&".join(f"a{n}=1" for n in range(600)),
                       headers={"content-type": "application/x-www-form-urlencoded"}).status_code == 400  # fmt: skip


def test_the_first_look_finds_everything_ready(service: Service):
    warm(make_desk(service))

    compiled = {name for _, name in environment().cache or ()}
    assert compiled >= set(environment().list_templates())
