"""The one door to Mailjet's API: credentials, timeouts, retries, bounds, and errors that say what to do.

Mailjet echoes what it refuses, callback URLs with their passwords among it. So no error, repr or log line of this
module holds a URL, or Mailjet's own words before they went through `Scrubber`.

Sources: mailjet/api-documentation:guides/_overview.md; mailjet/mailjet-gem, its recorded answers, for the empty HTML
401 and the 304.
"""

from __future__ import annotations

import asyncio
import email.utils
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx2
import orjson
import stamina

from app.clock import utc_now
from app.mailjet.answers import Answer, Scrubber
from app.mailjet.errors import (
    MailjetCredentialsRefused,
    MailjetDuplicate,
    MailjetError,
    MailjetNotFound,
    MailjetPropertyReadOnly,
    MailjetRateLimited,
    MailjetRefused,
    MailjetServerFault,
    MailjetUnreachable,
    MailjetUnreadable,
)
from app.mailjet.operations import Operation

MAX_ANSWER_BYTES = 4 * 1024 * 1024
READING = ("GET", "HEAD")

Observe = Callable[[Operation, str], None]
"""Called once for each HTTP call: operation, and the status (`"200"`) or `unreachable`."""

Query = Mapping[str, str | int]
T = TypeVar("T")

# Nothing reached Mailjet, so nothing can have happened there.
_NOT_SENT = (httpx2.ConnectError, httpx2.ProxyError, httpx2.UnsupportedProtocol, httpx2.InvalidURL, UnicodeError)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How a call is repeated while it is retryable; no try starts after `total_seconds`."""

    attempts: int = 3
    total_seconds: float = 30.0
    wait_initial_seconds: float = 0.5
    wait_max_seconds: float = 5.0
    jitter_seconds: float = 1.0


PATIENT = RetryPolicy()


class Closed:
    """An async context manager that calls `aclose()` at its end."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        raise NotImplementedError


class Door(Closed):
    """Calls with one API key. Use it as an async context manager, or call `aclose()`; bound to one event loop.

    `timeout` is seconds for one HTTP call from start to end; `connection` is the name that error texts show. Every
    method raises a child of MailjetError and nothing else for what Mailjet or the network does. Paths are percent
    encoded by the caller and begin with a slash.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        secret_key: str,
        *,
        sms_token: str | None = None,
        timeout: float = 15.0,
        observe: Observe | None = None,
        connection: str = "default",
        retry: RetryPolicy = PATIENT,
        now: Callable[[], datetime] = utc_now,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.connection = connection
        self.timeout_seconds = timeout
        self._observe = observe or (lambda operation, code: None)
        self._retry = retry
        self._now = now
        self._secrets = [secret for secret in (secret_key, sms_token) if secret]
        self._sms_token = sms_token
        self._base = _without_credentials(base_url).rstrip("/")
        self._http = httpx2.AsyncClient(
            auth=httpx2.BasicAuth(_bytes(api_key), _bytes(secret_key)),
            headers={"accept": "application/json", "accept-encoding": "identity", "user-agent": "jethook"},
            timeout=httpx2.Timeout(timeout),
            verify=_tls(),
            follow_redirects=False,
            transport=transport,
        )

    def __repr__(self) -> str:
        return f"<Door {self.connection!r}>"

    async def aclose(self) -> None:
        await self._http.aclose()

    async def ask(self, operation: Operation, path: str, query: Query | None = None) -> Answer:
        """GET, repeated while that can help."""
        return await self.repeat(lambda: self.send(operation, "GET", path, query=query))

    async def change(
        self, operation: Operation, method: str, path: str, body: Any = None, *, again: bool = True
    ) -> Answer:
        """POST, PUT or DELETE. With `again` false it is repeated only where nothing can have happened at Mailjet."""
        return await self.repeat(lambda: self.send(operation, method, path, body=body), if_ambiguous=again)

    async def repeat(self, call: Callable[[], Awaitable[T]], *, if_ambiguous: bool = True) -> T:
        """`call` until it succeeds, by the retry policy. Raises its last error."""
        policy = self._retry

        def wait(error: Exception) -> bool | float:
            if isinstance(error, MailjetError) and error.ambiguous and not if_ambiguous:
                return False
            return self._wait_before_retry(error)

        async for attempt in stamina.retry_context(
            on=wait,
            attempts=policy.attempts,
            timeout=policy.total_seconds,
            wait_initial=policy.wait_initial_seconds,
            wait_max=policy.wait_max_seconds,
            wait_jitter=policy.jitter_seconds,
        ):
            with attempt:
                return await call()
        raise AssertionError("stamina raises after the last attempt")

    def _wait_before_retry(self, error: Exception) -> bool | float:
        """For stamina: False ends it, a number is the wait. A wait longer than the budget is the caller's to keep."""
        if not isinstance(error, MailjetError) or not error.retryable:
            return False
        if error.retry_after_seconds is None:
            return True
        return error.retry_after_seconds if error.retry_after_seconds < self._retry.total_seconds else False

    async def send(
        self,
        operation: Operation,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Any = None,
        secret_urls: tuple[str, ...] = (),
    ) -> Answer:
        """One HTTP call; `body` is sent as JSON unless None. Raises for anything but a success and 304."""
        headers = {"content-type": "application/json"} if body is not None else {}
        content = orjson.dumps(body) if body is not None else None
        answer = await self.pass_through(
            operation, method, path, query=query, content=content, headers=headers, secret_urls=secret_urls
        )
        if (fault := self.fault_of(answer)) is not None:
            raise fault
        return answer

    async def post_json(self, operation: Operation, path: str, body: Any) -> Answer:
        """One POST, whatever its status."""
        headers = {"content-type": "application/json"}
        return await self.pass_through(operation, "POST", path, content=orjson.dumps(body), headers=headers)

    async def pass_through(
        self,
        operation: Operation,
        method: str,
        path: str,
        *,
        query: Query | list[tuple[str, str]] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        secret_urls: tuple[str, ...] = (),
    ) -> Answer:
        """One HTTP call, whatever its status. Raises MailjetUnreachable and MailjetUnreadable."""
        scrub = Scrubber(self._secrets, secret_urls)
        parts = {"params": query or None, "content": content, "headers": headers or None}
        result = await self._exchange(operation, scrub, method, path, **parts)
        if isinstance(result, MailjetError):  # raised here, so that no traceback holds the library's error and request
            self._observe(operation, "unreachable" if result.status is None else str(result.status))
            raise result
        self._observe(operation, str(result.status))
        return result

    async def _exchange(
        self, operation: Operation, scrub: Scrubber, method: str, path: str, **parts: Any
    ) -> Answer | MailjetUnreachable | MailjetUnreadable:
        where = f"Mailjet (connection {self.connection!r}, {operation})"
        changes = method not in READING
        status: int | None = None
        try:
            # The library's timeouts are for each read: a server that drips bytes would hold us for ever.
            async with asyncio.timeout(self.timeout_seconds):
                response = await self._start(method, path, parts)
                status = response.status_code
                try:
                    body = await _read_bounded(response)
                finally:
                    await response.aclose()
        except (TimeoutError, httpx2.TimeoutException) as error:
            connecting = isinstance(error, httpx2.ConnectTimeout | httpx2.PoolTimeout)
            doubt = changes and not connecting
            return MailjetUnreachable(f"{where} did not answer in time", ambiguous=doubt, timed_out=True)
        except _NOT_SENT as error:
            hint = f"check {self.variable('BASE_URL')} and the network"
            return MailjetUnreachable(f"{where} cannot be reached: {scrub(str(error))} ({hint})", ambiguous=False)
        except httpx2.DecodingError:
            return MailjetUnreadable(f"{where}: the answer's encoding is broken", status=status, changes=changes)
        except httpx2.TransportError as error:
            return MailjetUnreachable(f"{where} broke off: {scrub(str(error))}", ambiguous=changes)
        if body is None and status < 300:
            text = f"{where}: the answer is longer than {MAX_ANSWER_BYTES} bytes"
            return MailjetUnreadable(text, status=status, changes=changes)
        return Answer(where, status, body or b"", response.headers, scrub, changes)

    async def _start(self, method: str, path: str, parts: dict[str, Any]) -> httpx2.Response:
        request = self._http.build_request(method, f"{self._base}{path}", **parts)
        if not path.lower().startswith("/v4/sms"):
            return await self._http.send(request, stream=True)
        request.headers["authorization"] = f"Bearer {self._sms_token or ''}"
        return await self._http.send(request, stream=True, auth=None)

    def fault_of(self, answer: Answer) -> MailjetError | None:
        """What to raise for an answer; None for a success and 304."""
        status = answer.status
        if 200 <= status < 300 or status == 304:
            return None
        said = answer.message()
        kind = next((kind for code, kind in _BY_CODE.items() if re.search(rf"\b{code}\b", said)), _kind_of(status))
        hint = ""
        if kind is MailjetCredentialsRefused:
            hint = f". Check {self._key_variables(answer)}, and {self.variable('BASE_URL')} for an account in the US"
        elif status < 400:
            hint = f". Check {self.variable('BASE_URL')}"
        text = f"{answer.where} answered {status}" + (f": {said}" if said else "") + hint
        wait = _retry_after(answer.headers.get("retry-after"), self._now())
        return kind(text, status=status, retry_after_seconds=wait, told=answer.told(), changes=answer.changes)

    def _key_variables(self, answer: Answer) -> str:
        if ", sms_" in answer.where:
            return self.variable("SMS_TOKEN")
        names = f"{self.variable('API_KEY')} and {self.variable('SECRET_KEY')}"
        if self.connection == "default":
            return f"MJ_APIKEY_PUBLIC and MJ_APIKEY_PRIVATE (or {names})"
        return names

    def variable(self, suffix: str) -> str:
        """The name of a setting of this connection."""
        return f"JETHOOK_CONNECTIONS__{self.connection.upper()}__{suffix}"


# Mailjet's codes stand in the text of an error and say more than its status.
_BY_CODE: dict[str, type[MailjetError]] = {"MJ18": MailjetDuplicate, "MJ19": MailjetPropertyReadOnly}
_BY_STATUS: dict[int, type[MailjetError]] = {
    401: MailjetCredentialsRefused,
    404: MailjetNotFound,
    408: MailjetServerFault,
    429: MailjetRateLimited,
}


def _kind_of(status: int) -> type[MailjetError]:
    return MailjetServerFault if status >= 500 else _BY_STATUS.get(status, MailjetRefused)


async def _read_bounded(response: httpx2.Response) -> bytes | None:
    """The body, or None when it is too long."""
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes():
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            return None
    return b"".join(parts)


def _retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds from a `Retry-After` of either form; None when there is none or it makes no sense."""
    if value is None:
        return None
    if re.fullmatch(r"\s*[0-9]{1,9}(\.[0-9]{1,6})?\s*", value):
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (aware - now).total_seconds())


def _without_credentials(url: str) -> str:
    """Credentials in the base URL would take the place of the key, and would show in the library's log lines."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    # Reading the system's certificates takes tens of milliseconds; a client is made for every look at Mailjet.
    return httpx2.create_ssl_context()
