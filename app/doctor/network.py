"""The public URL from the outside, as far as this machine is outside, and the clocks of those who answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx2

from app.clock import utc_now
from app.doctor.findings import Finding, failure, ok, skipped, warning
from app.settings import Settings

URL = "JETHOOK_PUBLIC_URL"
TIMEOUT_SECONDS = 10.0
CLOCK_WARNING_SECONDS = 5.0  # a Date header has whole seconds, and the way takes its time
CLOCK_FAILURE_SECONDS = 60.0  # signatures are refused by receivers that allow five minutes; OAuth allows less


async def public_url(settings: Settings, passwords: dict[str, str]) -> list[Finding]:
    """Ask it as a probe would, as a stranger and as Mailjet would with an empty array, which stores nothing.

    `passwords` by webhook; empty when the database that holds them cannot be read."""
    url = settings.public_url
    if url is None:
        return [warning("public_url", "is not set: registration is off", URL)]
    found = list(_scheme(url))
    try:
        async with httpx2.AsyncClient(timeout=TIMEOUT_SECONDS) as client:
            alive = await client.get(f"{url}/livez")
            if fault := _not_ours(alive):
                return [*found, failure("public_url", f"{url}/livez {fault}", URL)]
            found += [ok("public_url", f"{url}/livez answers"), *clock("public_url", alive)]
            posts = [_post(client, settings, webhook, passwords) for webhook in settings.effective_webhooks]
            return found + await asyncio.gather(*posts)
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        return [*found, failure("public_url", f"{url} cannot be reached from here: {_why(error)}", URL)]


def _scheme(url: str) -> Iterator[Finding]:
    parts = urlsplit(url)
    if parts.scheme != "https":
        yield warning("public_url", "is not https: the callback password travels for all to read", URL)
    if parts.hostname in ("localhost", "127.0.0.1", "::1"):
        yield warning("public_url", "is this machine's own name for itself: Mailjet cannot reach it", URL)


def _not_ours(answer: httpx2.Response) -> str | None:
    if answer.status_code != 200:
        return f"answers {answer.status_code}: is the proxy's upstream our port?"
    try:
        ours = answer.json() == {"status": "ok"}
    except ValueError:
        ours = False
    return None if ours else "is answered by something else"


async def _post(
    client: httpx2.AsyncClient, settings: Settings, webhook: str, passwords: dict[str, str]
) -> Finding:  # fmt: skip
    url = f"{settings.public_url}/webhooks/{webhook}"
    stranger = await client.post(url, content=b"[]")
    if stranger.status_code != 401:
        said = f"{url} answers {stranger.status_code} to a post without credentials, instead of 401"
        return failure("public_url", said, URL, subject=webhook)
    if webhook not in passwords:
        return skipped("public_url", f"{url} answers; not asked with its password", subject=webhook)
    auth = httpx2.BasicAuth(settings.instance, passwords[webhook])
    answer = await client.post(url, content=b"[]", auth=auth)
    if answer.status_code == 401:
        said = f"{url} refuses our password: another database or secret key, or a proxy that drops Authorization"
        return failure("public_url", said, f"JETHOOK_WEBHOOKS__{webhook.upper()}__PASSWORDS", subject=webhook)
    if answer.status_code != 200:
        return failure("public_url", f"{url} answers {answer.status_code} to an empty array", URL, subject=webhook)
    return ok("public_url", f"{url} takes posts", subject=webhook)


def _why(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


async def mailjet_clock(base_url: str, setting: str) -> list[Finding]:
    """Any answer of Mailjet's has the time in it, also a refusal."""
    try:
        async with httpx2.AsyncClient(timeout=TIMEOUT_SECONDS) as client:
            return list(clock("mailjet", await client.get(f"{base_url}/v3/REST/eventcallbackurl")))
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        return [failure("mailjet", f"{base_url} cannot be reached: {_why(error)}", setting)]


def clock(whose: str, answer: httpx2.Response) -> Iterator[Finding]:
    """This machine's clock against the answer's."""
    try:
        there = parsedate_to_datetime(answer.headers.get("date", ""))
    except ValueError:
        return
    there = there if there.tzinfo else there.replace(tzinfo=UTC)
    yield judge_clock(whose, there, utc_now())


def judge_clock(whose: str, there: datetime, here: datetime) -> Finding:
    """A Date header is cut to whole seconds: half a second is nobody's fault."""
    apart = (here - there).total_seconds() - 0.5
    told = f"this clock is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} that of {whose}"
    if abs(apart) >= CLOCK_FAILURE_SECONDS:
        return failure("clock", told + ": synchronize it (NTP); no setting changes it", "the machine's clock")
    if abs(apart) >= CLOCK_WARNING_SECONDS:
        return warning("clock", told + ": synchronize it (NTP); no setting changes it", "the machine's clock")
    return ok("clock", f"fits that of {whose}")
