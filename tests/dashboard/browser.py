"""Debian's chromium, driven by Playwright; one browser for many pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

CHROMIUM = shutil.which("chromium")
MISSING = "no chromium on this machine: apt-get install chromium"


@contextmanager
def chromium() -> Iterator[Browser]:
    assert CHROMIUM is not None, MISSING
    with sync_playwright() as playwright:
        # As root, and in containers, chromium has no sandbox to offer.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
