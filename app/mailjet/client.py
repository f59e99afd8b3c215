"""Mailjet's REST resource `eventcallbackurl`: list, create, update, delete, and a tree of errors that say what to do.

Mailjet returns callback URLs whole, passwords included, and echoes what it refuses. So no error, repr or log line of
this module holds a URL, or Mailjet's own words before they went through `_Scrubber`.

Sources: mailjet/api-documentation:guides/_event-api.md and guides/_overview.md; mailjet/mailjet-gem, its recorded
answers, for the empty HTML 401 and the 304.
"""

from __future__ import annotations

import asyncio
import email.utils
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, TypeVar
from urllib.parse import quote, unquote, urlsplit

import httpx2
import orjson
import stamina

from app.clock import utc_now
from app.errors import JethookError

PAGE = 1000  # Mailjet's maximum; without a Limit it shows ten
MOST_PAGES = 20  # an API key has 14 callbacks at most: more pages than this is a server that ignores Offset
MAX_ANSWER_BYTES = 4 * 1024 * 1024
MAX_TEXT = 300  # characters of Mailjet's own words kept in an error

Operation = Literal["list", "create", "update", "delete"]
Observe = Callable[[Operation, str], None]
"""Called once for each HTTP call: operation, and the status (`"200"`) or `unreachable`."""

T = TypeVar("T")

# Nothing reached Mailjet, so nothing can have happened there.
_NOT_SENT = (httpx2.ConnectError, httpx2.ProxyError, httpx2.UnsupportedProtocol, httpx2.InvalidURL, UnicodeError)


class MailjetError(JethookError):
    """A call to Mailjet failed; `retryable` says whether the same call later can help.

    `status` is the HTTP status, None when no answer came. `ambiguous` means that Mailjet may have done what was asked.
    """

    retryable: ClassVar[bool] = False
    ambiguous: bool = False

    def __init__(self, text: str, *, status: int | None = None, retry_after_seconds: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after_seconds = retry_after_seconds


class MailjetCredentialsRefused(MailjetError):
    """401: the API key or its secret is wrong, suspended, or belongs to another host (US accounts)."""


class MailjetPropertyReadOnly(MailjetError):
    """401 with MJ19: the body named a property that Mailjet sets itself. A fault of ours, never of the credentials."""


class MailjetDuplicate(MailjetError):
    """400 with MJ18: another callback holds this event type's slot. Somebody was faster; list again."""


class MailjetCallbackNotFound(MailjetError):
    """404: the callback is gone."""


class MailjetRefused(MailjetError):
    """Mailjet understood and said no (another 4xx), or sent us elsewhere (3xx)."""


class MailjetRateLimited(MailjetError):
    """429. `retry_after_seconds` is set when Mailjet says how long; its documents promise no such header."""

    retryable = True


class MailjetServerFault(MailjetError):
    """5xx, or 408."""

    retryable = True
    ambiguous = True


class MailjetUnreachable(MailjetError):
    """No answer: DNS, connection, TLS, a broken answer or a timeout."""

    retryable = True

    def __init__(self, text: str, *, ambiguous: bool) -> None:
        super().__init__(text)
        self.ambiguous = ambiguous


class MailjetUnreadable(MailjetError):
    """A success whose body is not what Mailjet promises: no JSON, no envelope, too long, another callback's data."""

    retryable = True
    ambiguous = True


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How a call is repeated while it is retryable; no try starts after `total_seconds`."""

    attempts: int = 3
    total_seconds: float = 30.0
    wait_initial_seconds: float = 0.5
    wait_max_seconds: float = 5.0
    jitter_seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class ActualCallback:
    """What Mailjet holds in one slot. `url` bears a password, so it is left out of the repr.

    `id` is None when the answer had none that can be used; `version` and `status` are None when it did not say.
    `url` is empty for the callbacks of cloud queues, which have a queue instead.
    """

    id: str | None
    event_type: str
    is_backup: bool
    url: str = field(repr=False)
    version: int | None = None
    status: str | None = None

    @property
    def key(self) -> str:
        """How to name it in a path: its id, or else its unique key `open|false`."""
        return self.id or slot_key(self.event_type, self.is_backup)


def slot_key(event_type: str, is_backup: bool) -> str:
    return f"{event_type}|{str(is_backup).lower()}"


class MailjetClient:
    """The callbacks of one API key. Use it as an async context manager, or call `aclose()`.

    `timeout` is seconds for one HTTP call from start to end; `connection` is the name that error texts show. Every
    method raises a child of MailjetError and nothing else for what Mailjet or the network does.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        secret_key: str,
        *,
        timeout: float = 15.0,
        observe: Observe | None = None,
        connection: str = "default",
        retry: RetryPolicy = RetryPolicy(),
        now: Callable[[], datetime] = utc_now,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._connection = connection
        self._timeout_seconds = timeout
        self._observe = observe or (lambda operation, code: None)
        self._retry = retry
        self._now = now
        self._secret_key = secret_key
        self._resource = f"{_without_credentials(base_url).rstrip('/')}/v3/REST/eventcallbackurl"
        self._http = httpx2.AsyncClient(
            auth=httpx2.BasicAuth(_bytes(api_key), _bytes(secret_key)),
            headers={"accept": "application/json", "accept-encoding": "identity", "user-agent": "jethook"},
            timeout=httpx2.Timeout(timeout),
            verify=_tls(),
            follow_redirects=False,
            transport=transport,
        )

    def __repr__(self) -> str:
        return f"<MailjetClient {self._connection!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def list_callbacks(self) -> list[ActualCallback]:
        """All callbacks of this API key. `Total` is not read: in a plain listing it counts the page."""
        return await self._repeat(self._list_once)

    async def create_callback(
        self, *, event_type: str, url: str, is_backup: bool = False, version: int = 2
    ) -> ActualCallback:
        """Register `url` for one event type. Raises MailjetDuplicate if the slot is held by another URL.

        A POST that may have worked (timeout, 5xx, a broken answer) is not simply sent again: the callbacks are listed
        first, and one with this very URL is the answer.
        """
        body = {"EventType": event_type, "IsBackup": is_backup, "Url": url, "Version": version}
        in_doubt = False

        async def create() -> ActualCallback:
            nonlocal in_doubt
            if in_doubt:
                held = _in_slot(await self._list_once(), event_type, is_backup)
                if held is not None and held.url == url:
                    return held
                in_doubt = False
            try:
                return await self._create_once(body)
            except MailjetError as error:
                in_doubt = error.ambiguous
                raise

        return await self._repeat(create)

    async def update_callback(self, key: str, changes: Mapping[str, Any]) -> ActualCallback | None:
        """PUT only `changes` (Mailjet's property names) on a callback by id or `open|false`.

        None when Mailjet says that nothing changed (304, empty) or does not show the result. Sending more than what
        changes is refused: the whole object back is a 401 with MJ19.
        """
        return await self._repeat(lambda: self._update_once(key, changes))

    async def delete_callback(self, key: str) -> None:
        """One that is gone already counts as deleted."""

        async def delete() -> None:
            try:
                await self._send("delete", "DELETE", key)
            except MailjetCallbackNotFound:
                return

        await self._repeat(delete)

    # One try each

    async def _list_once(self) -> list[ActualCallback]:
        found: dict[str, ActualCallback] = {}
        for page in range(MOST_PAGES):
            query = {"Limit": PAGE} | ({"Offset": page * PAGE} if page else {})
            answer = await self._send("list", "GET", query=query)
            items = answer.data()
            known = len(found)
            for callback in map(_parse_callback, items):
                if callback is not None:
                    found[callback.key] = callback
            if len(items) < PAGE or len(found) == known:
                break
        return list(found.values())

    async def _create_once(self, body: dict[str, Any]) -> ActualCallback:
        answer = await self._send("create", "POST", body=body)
        created = answer.callback()
        if (created.event_type, created.is_backup) != (body["EventType"], body["IsBackup"]):
            raise answer.unreadable("it shows another callback than the one asked for")
        return created

    async def _update_once(self, key: str, changes: Mapping[str, Any]) -> ActualCallback | None:
        answer = await self._send("update", "PUT", key, body=dict(changes))
        if answer.status == 304 or not answer.body:
            return None
        return answer.callback()

    async def _repeat(self, call: Callable[[], Awaitable[T]]) -> T:
        policy = self._retry
        async for attempt in stamina.retry_context(
            on=self._wait_before_retry,
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

    async def _send(
        self,
        operation: Operation,
        method: str,
        key: str = "",
        *,
        query: Mapping[str, int] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> _Answer:
        """One HTTP call. Raises for anything but a success and 304."""
        scrub = _Scrubber([self._secret_key], [str(body["Url"])] if body and "Url" in body else [])
        url = f"{self._resource}/{quote(key, safe='')}" if key else self._resource
        headers = {"content-type": "application/json"} if body is not None else None
        content = orjson.dumps(body) if body is not None else None
        result = await self._exchange(operation, scrub, method, url, params=query, content=content, headers=headers)
        if isinstance(result, MailjetError):  # raised here, so that no traceback holds the library's error and request
            self._observe(operation, "unreachable" if result.status is None else str(result.status))
            raise result
        self._observe(operation, str(result.status))
        if (fault := self._fault_of(result)) is not None:
            raise fault
        return result

    async def _exchange(
        self, operation: Operation, scrub: _Scrubber, method: str, url: str, **parts: Any
    ) -> _Answer | MailjetUnreachable | MailjetUnreadable:
        where = f"Mailjet (connection {self._connection!r}, {operation})"
        status: int | None = None
        try:
            # The library's timeouts are for each read: a server that drips bytes would hold us for ever.
            async with asyncio.timeout(self._timeout_seconds):
                response = await self._http.send(self._http.build_request(method, url, **parts), stream=True)
                status = response.status_code
                try:
                    body = await _read_bounded(response)
                finally:
                    await response.aclose()
        except (TimeoutError, httpx2.TimeoutException) as error:
            connecting = isinstance(error, httpx2.ConnectTimeout | httpx2.PoolTimeout)
            return MailjetUnreachable(f"{where} did not answer in time", ambiguous=not connecting)
        except _NOT_SENT as error:
            hint = f"check {self._variable('BASE_URL')} and the network"
            return MailjetUnreachable(f"{where} cannot be reached: {scrub(str(error))} ({hint})", ambiguous=False)
        except httpx2.DecodingError:
            return MailjetUnreadable(f"{where}: the answer's encoding is broken", status=status)
        except httpx2.TransportError as error:
            return MailjetUnreachable(f"{where} broke off: {scrub(str(error))}", ambiguous=True)
        if body is None and status < 300:
            return MailjetUnreadable(f"{where}: the answer is longer than {MAX_ANSWER_BYTES} bytes", status=status)
        return _Answer(where, status, body or b"", response.headers.get("retry-after"), scrub)

    def _fault_of(self, answer: _Answer) -> MailjetError | None:
        status = answer.status
        if 200 <= status < 300 or status == 304:
            return None
        said = answer.message()
        kind = next((kind for code, kind in _BY_CODE.items() if re.search(rf"\b{code}\b", said)), _kind_of(status))
        hint = ""
        if kind is MailjetCredentialsRefused:
            hint = f". Check {self._key_variables()}, and {self._variable('BASE_URL')} for an account in the US"
        elif status < 400:
            hint = f". Check {self._variable('BASE_URL')}"
        text = f"{answer.where} answered {status}" + (f": {said}" if said else "") + hint
        return kind(text, status=status, retry_after_seconds=_retry_after(answer.retry_after, self._now()))

    def _key_variables(self) -> str:
        names = f"{self._variable('API_KEY')} and {self._variable('SECRET_KEY')}"
        if self._connection == "default":
            return f"MJ_APIKEY_PUBLIC and MJ_APIKEY_PRIVATE (or {names})"
        return names

    def _variable(self, suffix: str) -> str:
        return f"JETHOOK_CONNECTIONS__{self._connection.upper()}__{suffix}"


# Mailjet's codes stand in the text of an error and say more than its status.
_BY_CODE: dict[str, type[MailjetError]] = {"MJ18": MailjetDuplicate, "MJ19": MailjetPropertyReadOnly}
_BY_STATUS: dict[int, type[MailjetError]] = {
    401: MailjetCredentialsRefused,
    404: MailjetCallbackNotFound,
    408: MailjetServerFault,
    429: MailjetRateLimited,
}


def _kind_of(status: int) -> type[MailjetError]:
    return MailjetServerFault if status >= 500 else _BY_STATUS.get(status, MailjetRefused)


@dataclass(frozen=True, slots=True)
class _Answer:
    where: str
    status: int
    body: bytes = field(repr=False)
    retry_after: str | None
    scrub: _Scrubber = field(repr=False)

    def data(self) -> list[Any]:
        """The envelope's `Data`. Raises MailjetUnreadable; a `Count` above what is there means that some is missing."""
        envelope = _json_object(self.body)
        if envelope is None or not isinstance(envelope.get("Data"), list):
            raise self.unreadable(self.message() or "it is no JSON object with a list `Data`")
        items: list[Any] = envelope["Data"]
        count = _whole_number(envelope.get("Count"))
        if count is not None and count > len(items):
            raise self.unreadable(f"it says Count {count} and holds {len(items)}")
        if not all(isinstance(item, dict) for item in items):
            raise self.unreadable("`Data` holds something else than objects")
        return items

    def callback(self) -> ActualCallback:
        """The one callback in `Data[0]`: the answers to POST and PUT are envelopes too."""
        items = self.data()
        callback = _parse_callback(items[0]) if items else None
        if callback is None:
            raise self.unreadable("`Data` shows no callback")
        return callback

    def unreadable(self, why: str) -> MailjetUnreadable:
        return MailjetUnreadable(f"{self.where}: the answer cannot be used: {why}", status=self.status)

    def message(self) -> str:
        """Mailjet's own words, scrubbed; empty when the body is no error envelope (a wrong key gets empty HTML)."""
        envelope = _json_object(self.body) or {}
        words = [envelope.get("ErrorMessage"), envelope.get("ErrorInfo"), envelope.get("ErrorIdentifier")]
        return self.scrub("; ".join(_words(word) for word in words if word))


class _Scrubber:
    """Makes text fit to show: known secrets and the credentials of any URL masked, one line, bounded."""

    def __init__(self, secrets: list[str], urls: list[str]) -> None:
        known = {*secrets, *(password for url in urls for password in _passwords(url))}
        # The longest first: a secret may be part of another.
        self._secrets = sorted(known - {""}, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = re.sub(r"(://|%3A%2F%2F)[^\s\"'<>]*(@|%40)", r"\1***@", text, flags=re.IGNORECASE)
        # Whoever puts a token into a callback's URL puts it into the query or the path.
        text = re.sub(r"(://[^\s\"'<>/?]+)[/?][^\s\"'<>]*", r"\1/…", text)
        text = re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in text)).strip()
        return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _passwords(url: str) -> list[str]:
    try:
        password = urlsplit(url).password or ""
    except ValueError:
        return [url]
    decoded = unquote(password)
    return [url, password, decoded, quote(decoded, safe="")]


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


def _parse_callback(item: Mapping[str, Any]) -> ActualCallback | None:
    """One object of `Data`; None for one without an event type, which names no slot.

    Mailjet's samples show numbers and booleans as text, its answers mostly do not: both are read.
    """
    event_type = item.get("EventType")
    if not isinstance(event_type, str) or not event_type:
        return None
    url, status, number = item.get("Url"), item.get("Status"), _whole_number(item.get("ID"))
    return ActualCallback(
        id=None if number is None else str(number),
        event_type=event_type.lower(),
        is_backup=item.get("IsBackup") in (True, 1, "1", "true", "True", "TRUE"),
        url=url if isinstance(url, str) else "",
        version=_whole_number(item.get("Version")),
        status=status.lower() if isinstance(status, str) and status else None,
    )


def _in_slot(callbacks: list[ActualCallback], event_type: str, is_backup: bool) -> ActualCallback | None:
    return next((c for c in callbacks if (c.event_type, c.is_backup) == (event_type, is_backup)), None)


def _whole_number(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value if value >= 0 else None
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,20}", value):
        return int(value)
    return None


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _words(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds from a `Retry-After` of either form; None when there is none or it makes no sense."""
    if value is None:
        return None
    if re.fullmatch(r"\s*[0-9]{1,9}(\.[0-9]{1,6})?\s*", value):
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
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
