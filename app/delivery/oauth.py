"""Access tokens for a sink by OAuth2 client credentials. Source: RFC 6749, 2.3.1, 4.4, 5.1 and 5.2.

Own code, because a token has to travel the sink's way: its proxy, its authorities, its vetted addresses, its bounds.
Authlib fetches over httpx2 or requests, reads answers of any size, and fetches again for every waiter when a fetch
fails; aiohttp-oauth2-client needs `expires_in`, cannot do Basic, and asks twice at each refresh.
"""

from __future__ import annotations

import asyncio
import base64
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from urllib.parse import quote_plus

import aiohttp
import orjson
from yarl import URL

from app.delivery.connections import Progress
from app.delivery.transport import PROGRESS, Fault
from app.models import AttemptOutcome

PEER = "the token endpoint"
MAX_ANSWER_BYTES = 64 * 1024
DEFAULT_LIFETIME_SECONDS = 300.0  # without `expires_in`; too long a guess costs one 401, which brings a new token
REFRESH_BEFORE_SECONDS = 60.0  # at most this long before the end, and at most a fifth of the life
REFRESH_BEFORE_SHARE = 0.2
REFRESH_PAUSE_SECONDS = 5.0  # between refreshes that fail while the token in hand is still good
ERROR_WORDS = frozenset(
    {"invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type",
     "invalid_scope", "invalid_target", "access_denied", "server_error", "temporarily_unavailable"}
)  # fmt: skip

AuthMethod = Literal["basic", "post"]


class Classify(Protocol):
    """`Transport.classify`, or the sender's own, which may know more faults."""

    def __call__(self, error: BaseException, url: URL | str, progress: Progress, *, peer: str) -> Fault: ...


class TokenFailure(Exception):
    """No token, so no request to the sink. Text and fields hold no secret.

    `outcome` is the attempt's: what the network did (timeout, dns, connect, tls), `http_429`, else `blocked`, as the
    delivery was never sent. The attempt has no status: the endpoint's 401 or 410 must neither end a delivery nor pause
    the sink. `retry_after` is the header as it came.
    """

    def __init__(self, outcome: AttemptOutcome, text: str, retry_after: str | None = None) -> None:
        super().__init__(text)
        self.outcome = outcome
        self.text = text
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class _Held:
    value: str = field(repr=False)
    refresh_at: float
    expires_at: float


class TokenSource:
    """One sink's token, kept in memory; of one event loop. `clock` gives seconds and only goes forward.

    `open_session` makes a session for one request, such as `Transport.open_token_session`; its timeout is the fetch's.
    """

    def __init__(
        self,
        token_url: str,
        client_id: str,
        client_secret: str,
        *,
        open_session: Callable[[], aiohttp.ClientSession],
        classify: Classify,
        scope: str | None = None,
        audience: str | None = None,
        auth_method: AuthMethod = "basic",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = token_url
        self._open_session = open_session
        self._classify = classify
        self._clock = clock
        self._headers = {"accept": "application/json", "accept-encoding": "identity"}
        self._form = {"grant_type": "client_credentials"}
        self._form |= {name: value for name, value in (("scope", scope), ("audience", audience)) if value}
        if auth_method == "basic":
            self._headers["authorization"] = _basic(client_id, client_secret)
        else:
            self._form |= {"client_id": client_id, "client_secret": client_secret}
        self._held: _Held | None = None
        self._refresh_not_before = -math.inf
        self._fetching: asyncio.Task[str] | None = None

    async def token(self) -> str:
        """A token to send now. Raises TokenFailure.

        All who wait share one fetch, and its failure. Near its end a token is still used while the next is fetched, so
        nobody waits for a refresh, and a short outage of the endpoint is not felt.
        """
        held, now = self._held, self._clock()
        if held is not None and now < held.expires_at:
            if now >= max(held.refresh_at, self._refresh_not_before):
                self._refresh_not_before = now + REFRESH_PAUSE_SECONDS
                self._started_fetch()
            return held.value
        fetching = self._started_fetch()
        await asyncio.wait([fetching])  # not awaited itself: who is cancelled here must not cancel it for the others
        return fetching.result()

    def invalidate(self, token: str) -> None:
        """The sink refused this token: the next `token()` fetches. No effect when another one took its place."""
        if self._held is not None and self._held.value == token:
            self._held = None

    async def close(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])

    def _started_fetch(self) -> asyncio.Task[str]:
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch(), name="sink-token")
            self._fetching.add_done_callback(_retrieve)
        return self._fetching

    async def _fetch(self) -> str:
        asked_at = self._clock()  # a life counted from before the request ends too early rather than too late
        status, retry_after, body = await self._ask()
        if status != 200:
            raise _refused(status, retry_after, body)
        self._held = _parse_token(body, asked_at)
        return self._held.value

    async def _ask(self) -> tuple[int, str | None, bytes]:
        PROGRESS.set(progress := Progress())
        try:
            async with (
                self._open_session() as session,
                session.post(self._url, data=self._form, headers=self._headers, allow_redirects=False) as response,
            ):
                return response.status, response.headers.get("retry-after"), await _read(response)
        except TokenFailure:
            raise
        except Exception as error:
            outcome, text = self._classify(error, self._url, progress, peer=PEER)
            raise TokenFailure(outcome, f"no token: {text}") from error


def _basic(client_id: str, client_secret: str) -> str:
    """Both parts are form-encoded before they are joined (RFC 6749, 2.3.1), so a colon in the id does no harm."""
    return "Basic " + base64.b64encode(f"{quote_plus(client_id)}:{quote_plus(client_secret)}".encode()).decode()


async def _read(response: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            response.close()
            raise TokenFailure(AttemptOutcome.BLOCKED, f"no token: {PEER} answered with more than 64 KiB")
    return b"".join(parts)


def _refused(status: int, retry_after: str | None, body: bytes) -> TokenFailure:
    outcome = AttemptOutcome.HTTP_429 if status == 429 else AttemptOutcome.BLOCKED
    word = _object(body).get("error")
    # Only words we know: a free text might repeat what we sent.
    told = f" ({word})" if isinstance(word, str) and word in ERROR_WORDS else ""
    return TokenFailure(outcome, f"no token: {PEER} answered {status}{told}", retry_after)


def _parse_token(body: bytes, asked_at: float) -> _Held:
    """A successful answer (RFC 6749, 5.1). A missing `token_type` counts as Bearer, `expires_in` may be text."""
    answer = _object(body)
    value = answer.get("access_token")
    if not isinstance(value, str) or not value or not all("!" <= c <= "~" for c in value):
        raise TokenFailure(AttemptOutcome.BLOCKED, f"no token: the answer of {PEER} holds no usable access_token")
    if str(answer.get("token_type", "bearer")).lower() != "bearer":
        raise TokenFailure(AttemptOutcome.BLOCKED, f"no token: {PEER} gives tokens of another type than Bearer")
    life = _lifetime(answer.get("expires_in"))
    before = min(REFRESH_BEFORE_SECONDS, life * REFRESH_BEFORE_SHARE)
    return _Held(value, refresh_at=asked_at + life - before, expires_at=asked_at + life)


def _lifetime(given: object) -> float:
    """Seconds."""
    if isinstance(given, bool) or not isinstance(given, (int, float, str)):
        return DEFAULT_LIFETIME_SECONDS
    try:
        seconds = float(given)
    except ValueError:
        return DEFAULT_LIFETIME_SECONDS
    return max(0.0, seconds) if math.isfinite(seconds) else DEFAULT_LIFETIME_SECONDS


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        answer = orjson.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _retrieve(task: asyncio.Task[str]) -> None:
    """A fetch in the background may fail with nobody waiting; asyncio would complain."""
    if not task.cancelled():
        task.exception()
