"""`python -m tests.screenshots`: every page of the dashboard as a picture, light, dark and on a phone.

The pictures are for the README and for whoever changes the style: look at them. Each is made small with pngquant where
that is installed.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

from tests.dashboard.browser import chromium
from tests.dashboard.stage import FULL, Stage, staged, traffic
from tests.e2e.service import until

FOLDER = Path(__file__).parent.parent / "deploy" / "screenshots"
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 860}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 860}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 760}, "color_scheme": "light", "device_scale_factor": 2},
}
MIX = {"sent": 60, "open": 24, "click": 7, "bounce": 0.9, "blocked": 1.4, "spam": 0.03}
POSTED = 500  # events of a day in one body
MOST_HEIGHT = 1650  # pixels of a page; lists go on and on
NAMES = ("ada", "bo", "chloé", "dmitri", "elif", "fatima", "goran", "hana", "ines", "jo", "kofi", "lars")
DOMAINS = ("example.com", "example.com", "example.org", "example.net", "mail.example.com")
CAMPAIGNS = ("spring-sale", "welcome", "password-reset", "newsletter-17", "survey")
BROKEN = '{"event": "open", "time": "yesterday", "MessageID": 19421777396190490, "email": "zoë@example.com"}'.encode()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--to", type=Path, default=FOLDER)
    arguments.add_argument("--only", nargs="*", help="names of pages")
    asked = arguments.parse_args()
    asked.to.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        staged(Path(folder), breaker_failures=10) as stage,
        chromium() as browser,
    ):
        set_scene(stage)
        pages = {name: path for name, path in paths(stage) if not asked.only or name in asked.only}
        for look, options in LOOKS.items():
            take(browser, stage, look, options, pages, asked.to)


def set_scene(stage: Stage) -> None:
    """A good day with some trouble: a sink that fails, a foreign callback, and one that was dead and is healed."""
    stage.wait_for_registration()
    stage.sink("warehouse").answer_always(503)
    key = stage.service.settings.connections["default"].api_key
    stage.mailjet.mark_dead(key, "spam")
    stage.mailjet.put_callback(key, "unsub", "https://old-crm.example.com/mailjet?token=1", version=1, status="alive")
    day = list(_day(15_000))
    for first in range(0, len(day), POSTED):
        stage.post(day[first : first + POSTED])
    stage.post([event for event in traffic(200) if event["event"] != "unsub"])  # another holds that callback
    stage.post(message())
    stage.post(BROKEN)
    until(lambda: stage.get("/v1/sinks/warehouse")["breaker"] == "open", "the breaker")
    until(lambda: stage.get("/v1/sinks/crm")["backlog"] == 0, "what the CRM is owed")
    stage.remember(list(_history()))


def message() -> list[dict[str, Any]]:
    """One message's life."""
    start = int(time.time()) - 9 * 86_400
    common = {"MessageID": 1152921526816354817, "email": "zoe.martin@example.com",
              "customcampaign": "spring-sale", "mj_campaign_id": 7257, "CustomID": "order-17",
              "Message_GUID": "1ab23cd4-e567-8901-2345-6789f0ab1c2d"}  # fmt: skip
    agent = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_2 like Mac OS X) AppleWebKit/605.1.15"
    steps: list[tuple[str, int, dict[str, Any]]] = [
        ("bounce", 2, {"hard_bounce": False, "error_related_to": "domain", "error": "greylisted"}),
        ("sent", 340, {"smtp_reply": "250 2.0.0 OK"}), ("open", 412, {"ip": "192.0.2.7", "agent": agent}),
        ("click", 475, {"url": "https://shop.example.com/spring?utm_campaign=spring-sale", "agent": agent}),
        ("open", 93_000, {"agent": agent}), ("unsub", 690_000, {"mj_list_id": 12}),
    ]  # fmt: skip
    return [{"event": kind, "time": start + after, **common, **more} for kind, after, more in steps]


def _day(count: int) -> Iterator[dict[str, Any]]:
    """A day as most are: nearly everything arrives."""
    chance = random.Random(5)
    now = int(time.time())
    for number in range(count):
        (kind,) = chance.choices(list(MIX), list(MIX.values()))
        hour = 24 * number / count
        if chance.random() < 0.35 + 0.3 * math.sin((hour - 4) / 4):
            continue
        why = {"bounce": {"error": "user unknown", "error_related_to": "recipient", "hard_bounce": True},
               "blocked": {"error": "preblocked", "error_related_to": "mailjet"}}  # fmt: skip
        yield {
            "event": kind, "time": now - 86_000 + int(hour * 3580), "MessageID": 10**18 + number // 3,
            "email": f"{chance.choice(NAMES)}{number % 97}@{chance.choice(DOMAINS)}",
            "mj_campaign_id": 7000 + number % 5, "customcampaign": CAMPAIGNS[number % 5], **why.get(kind, {}),
        }  # fmt: skip


def _history() -> Iterator[tuple[int, Counter[str], int]]:
    chance = random.Random(3)
    for back in range(5, 3600, 5):
        busy = 14 + 6 * math.sin(back / 170) + (10 if 200 < back < 290 else 0)
        counts = Counter(chance.choices(list(MIX), list(MIX.values()), k=max(round(chance.gauss(busy, 3)), 0)))
        yield back, counts, sum(counts.values())


def paths(stage: Stage) -> Iterator[tuple[str, str]]:
    (click,) = stage.get("/v1/events?message_id=1152921526816354817&type=click")["data"]
    (entry, *_) = stage.get("/v1/quarantine")["data"]
    yield "overview", "/"
    yield "events", "/dashboard/events"
    yield "event", f"/dashboard/events/{click['id']}"
    yield "message", f"/dashboard/messages?id={click['message_id']}"
    yield "recipients", "/dashboard/recipients"
    yield "recipient", f"/dashboard/recipients?email={click['email']}"
    yield "statistics", "/dashboard/statistics?span=day"
    yield "sinks", "/dashboard/sinks"
    yield "sink", "/dashboard/sinks/warehouse"
    yield "replays", "/dashboard/replays"
    yield "webhooks", "/dashboard/webhooks"
    yield "webhook", "/dashboard/webhooks/orders"
    yield "quarantine", "/dashboard/quarantine"
    yield "quarantine-entry", f"/dashboard/quarantine/{entry['id']}"
    yield "sign-in", "/dashboard/sign-in"


def take(
    browser: Browser, stage: Stage, look: str, options: dict[str, Any], pages: dict[str, str], folder: Path
) -> None:
    context = browser.new_context(base_url=stage.url, reduced_motion="reduce", **options)
    page = context.new_page()
    if "sign-in" in pages:
        page.goto(pages["sign-in"])
        _picture(page, folder / f"sign-in-{look}.png")
    page.goto("/dashboard/sign-in")
    page.get_by_label("API key").fill(FULL)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("navigation", name="Pages").wait_for()
    for name in pages.keys() - {"sign-in"}:
        page.goto(pages[name])
        page.wait_for_load_state("load")
        page.wait_for_timeout(300)
        _picture(page, folder / f"{name}-{look}.png")
    context.close()


def _picture(page: Page, path: Path) -> None:
    size = page.viewport_size
    assert size is not None
    height = min(page.evaluate("document.documentElement.scrollHeight"), MOST_HEIGHT)
    clip = {"x": 0, "y": 0, "width": size["width"], "height": height}
    page.screenshot(path=path, full_page=True, clip=clip)  # type: ignore[arg-type]
    if shutil.which("pngquant"):
        subprocess.run(["pngquant", "--force", "--skip-if-larger", "--output", path, "256", path], check=False)


if __name__ == "__main__":
    main()
