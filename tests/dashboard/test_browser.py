"""The dashboard in a real browser: what a person does, and what a screen reader, a phone and a strict policy ask."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.dashboard.browser import CHROMIUM, MISSING, chromium
from tests.dashboard.stage import FULL, Stage, event, staged, traffic
from tests.e2e.service import until

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason=MISSING), pytest.mark.timeout(120)]

from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Browser, BrowserContext, Page, expect  # noqa: E402

LISTS = (
    "/", "/dashboard/events", "/dashboard/recipients", "/dashboard/recipients?email=a@example.com",
    "/dashboard/statistics?span=day", "/dashboard/sinks", "/dashboard/sinks/crm", "/dashboard/replays",
    "/dashboard/webhooks", "/dashboard/webhooks/orders", "/dashboard/quarantine",
)  # fmt: skip
BROKEN = b'{"event":"open","time":1777802400,"MessageID":7,"email":"later@example.com"'


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("stage")) as made:
        made.wait_for_registration()
        made.post(traffic(150))
        made.post(b"\xffnot JSON")
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def cookies(stage: Stage, browser: Browser) -> list[dict[str, object]]:
    """Of one sign-in, by hand as a person does it."""
    context = browser.new_context(base_url=stage.url)
    page = context.new_page()
    page.goto("/dashboard/events?type=open")
    page.get_by_label("API key").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("none of this installation")
    page.get_by_label("API key").fill(FULL)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Events")).to_be_visible()
    assert page.url.endswith("/dashboard/events?type=open")  # back to where it began
    kept = context.cookies()
    context.close()
    return kept  # type: ignore[return-value]


class Watch:
    """What a page must never do: write to the console, fail, or break its own policy."""

    def __init__(self, page: Page) -> None:
        self.faults: list[str] = []
        page.on("console", lambda message: message.type in ("error", "warning") and self.faults.append(message.text))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("requestfailed", lambda request: self._failed(request.url, request.failure))

    def _failed(self, url: str, failure: str | None) -> None:
        if failure != "net::ERR_ABORTED":  # a stream or a poll of the page that was left
            self.faults.append(f"{url}: {failure}")


@pytest.fixture
def context(stage: Stage, browser: Browser, cookies: list[dict[str, object]]) -> Iterator[BrowserContext]:
    made = browser.new_context(base_url=stage.url, viewport={"width": 1280, "height": 800}, color_scheme="light")
    made.set_default_timeout(10_000)
    made.add_cookies(cookies)  # type: ignore[arg-type]
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page that is signed in, and at its end has broken nothing."""
    opened = context.new_page()
    watch = Watch(opened)
    yield opened
    assert watch.faults == []


def test_new_events_appear_without_a_reload(stage: Stage, page: Page):
    for path in ("/", "/dashboard/events"):
        page.goto(path)
        expect(page.locator("[data-live=on]")).to_be_attached()
        address = f"live{time.time_ns()}@example.com"
        stage.post(event("click", email=address))
        expect(page.get_by_role("cell", name=address)).to_be_visible()


def test_rows_do_not_run_away_from_under_a_pointer(stage: Stage, page: Page):
    page.goto("/")
    expect(page.locator("[data-live=on]")).to_be_attached()
    page.locator("table.events tbody tr").first.hover()
    address = f"held{time.time_ns()}@example.com"
    with page.expect_event("console", lambda message: message.text == "frame"):
        page.evaluate("document.addEventListener('events', () => console.log('frame'))")
        stage.post(event("click", email=address))
    expect(page.get_by_role("cell", name=address)).to_have_count(0)
    page.get_by_role("heading", name="Sinks").hover()
    expect(page.get_by_role("cell", name=address)).to_be_visible()


def test_a_search_narrows_the_list_and_what_comes_live_as_well(stage: Stage, page: Page):
    stage.post([event("bounce", email="search@example.com"), event("open", email="search@example.com")])
    page.goto("/dashboard/events")
    page.get_by_label("Address").fill("search@example.com")
    page.get_by_role("combobox", name="Type").select_option("bounce")
    page.keyboard.press("Enter")
    page.wait_for_url("**/dashboard/events?*type=bounce*")
    expect(page.locator("[data-live=on]")).to_be_attached()
    assert page.locator("table.events tbody tr").count() == 1
    stage.post([event("open", email="search@example.com"), event("bounce", email="search@example.com", n=2)])
    expect(page.locator("table.events tbody tr")).to_have_count(2)


def test_an_event_opens_with_its_raw_form_and_its_attempts(stage: Stage, page: Page):
    stage.post(event("open", email="one@example.com", MessageID=1152921526816354817))
    until(lambda: all(s["backlog"] == 0 for s in stage.get("/v1/sinks")["data"]), "the deliveries")
    page.goto("/dashboard/events?email=one@example.com")
    page.locator("table.events tbody a").first.click()
    expect(page.locator("pre.code")).to_contain_text('"MessageID": 1152921526816354817')
    expect(page.get_by_role("group", name="Attempts to crm")).to_contain_text("success")
    page.get_by_role("link", name="1152921526816354817").click()
    expect(page.get_by_role("img", name="open after")).to_be_visible()


def test_a_sink_is_paused_and_resumed_from_where_it_is_shown(stage: Stage, page: Page):
    page.goto("/dashboard/sinks/pager")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status")).to_contain_text("paused")
    page.goto("/")
    notice = page.get_by_role("listitem").filter(has_text="Sink pager is paused")
    notice.get_by_role("button", name="Resume").press("Enter")
    expect(page.get_by_role("status")).to_contain_text("resumed")
    assert stage.get("/v1/sinks/pager")["state"] == "active"


def test_a_replay_is_counted_started_and_watched_to_its_end(stage: Stage, page: Page):
    page.goto("/dashboard/sinks/crm")
    replay = page.locator("#replay")
    replay.get_by_label("Type").select_option("open")
    replay.get_by_role("button", name="Count").click()
    expect(page.get_by_role("status")).to_contain_text("would be sent to crm")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#progress .badge")).to_have_text("done", timeout=20_000)


def test_an_entry_of_quarantine_is_read_again(stage: Stage, page: Page):
    stage.post(BROKEN)
    page.goto("/dashboard/quarantine")
    page.get_by_role("link").filter(has=page.locator("time")).first.click()
    page.get_by_role("button", name="Read it again").click()
    expect(page.get_by_role("status")).to_contain_text("It stays")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("status")).to_contain_text("deleted")


def test_a_registration_is_planned_and_made(stage: Stage, page: Page):
    page.goto("/dashboard/webhooks/orders")
    page.get_by_role("button", name="Plan").click()
    expect(page.get_by_role("heading", name="Plan")).to_be_visible()
    expect(page.get_by_text("Nothing would be changed.")).to_be_visible()
    page.get_by_role("button", name="Register now").click()
    expect(page.get_by_role("status")).to_contain_text("all callbacks are as they should be")


def test_dark_is_what_the_browser_asks_for_until_a_person_switches(stage: Stage, page: Page):
    ground = "getComputedStyle(document.body).backgroundColor"
    page.goto("/dashboard/sinks")
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(ground)
    assert light != dark
    page.get_by_role("button", name="Switch between").click()
    assert page.evaluate(ground) == light
    page.reload()
    assert page.evaluate(ground) == light


def test_no_page_scrolls_sideways_on_a_phone(stage: Stage, page: Page):
    page.set_viewport_size({"width": 360, "height": 700})
    stage.post(event("a_type_that_nobody_has_heard_of_until_now", email="a@example.com"))
    for path in (*LISTS, *_details(stage)):
        page.goto(path)
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 360, path


@pytest.mark.parametrize(
    ("scheme", "rules"),
    [("light", {}), ("dark", {"runOnly": ["color-contrast", "link-in-text-block"]})],
    ids=["light", "dark"],
)  # of what axe looks for, only the colours are others
def test_axe_finds_nothing_serious_on_any_page(stage: Stage, page: Page, scheme: str, rules: dict[str, object]):
    unwatched = page.context.new_page()  # its answer is a 422, of which the browser tells in its console
    for opened in (page, unwatched):
        opened.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    faulty = "/dashboard/events?after=never&nonsense=1"
    for opened, path in [(unwatched, faulty), *((page, path) for path in (*LISTS, *_details(stage)))]:
        opened.goto(path)
        found = Axe().run(opened, options=rules).response["violations"]
        serious = [violation for violation in found if violation["impact"] in ("serious", "critical")]
        told = [(violation["id"], [node["html"][:200] for node in violation["nodes"]]) for violation in serious]
        assert told == [], path


def test_the_policy_stops_what_is_not_ours(context: BrowserContext):
    page = context.new_page()
    page.goto("/")
    ran = page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
        " document.body.append(s); return window.ran ?? null; }"
    )
    assert ran is None


def test_everything_is_reached_by_the_keyboard(stage: Stage, page: Page):
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.goto("/dashboard/sinks")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Log out":
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def _details(stage: Stage) -> list[str]:
    (newest,) = stage.get("/v1/events?limit=1")["data"]
    (entry, *_) = stage.get("/v1/quarantine?limit=1")["data"]
    return [
        f"/dashboard/events/{newest['id']}", f"/dashboard/messages?id={newest['message_id'] or newest['message_guid']}",
        f"/dashboard/quarantine/{entry['id']}",
    ]  # fmt: skip
