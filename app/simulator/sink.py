"""A sink that remembers what it got and answers as it is told: for the demo and for tests of delivery."""

import asyncio
import contextlib
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self
from urllib.parse import parse_qs

import orjson
from starlette.types import Receive, Scope, Send

from app.simulator.server import DROP_EXTENSION
from app.simulator.signatures import verify

CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True)
class ReceivedRequest:
    """One request as it came: `at` is Unix seconds, `signature_fault` None when right or not looked at."""

    at: float
    method: str
    path: str
    query_string: str
    raw_headers: Sequence[tuple[bytes, bytes]] = field(repr=False)
    body: bytes
    signature_fault: str | None = None

    @cached_property
    def headers(self) -> dict[str, str]:
        """Names in lower case; of a repeated name the last value."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self.raw_headers}

    @cached_property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(self.query_string, keep_blank_values=True)

    @property
    def webhook_id(self) -> str | None:
        # Looked at for every request, so without decoding the other headers.
        return next((value.decode("latin-1") for name, value in self.raw_headers if name == b"webhook-id"), None)

    def json(self) -> Any:
        """The parsed body. Raises orjson.JSONDecodeError (a ValueError)."""
        return orjson.loads(self.body)


@dataclass(frozen=True, slots=True)
class Answer:
    """What to say to one request; made by hand or by one of the constructors below.

    `extra_bytes` of filler follow the body, without end when it is None; `drip_seconds` is the pause before each
    chunk of filler, and a drip is one byte a chunk. `hang` never answers, `drop` closes the connection instead.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    hang: bool = False
    drop: bool = False
    extra_bytes: int | None = 0
    drip_seconds: float = 0.0

    @classmethod
    def hanging(cls) -> Self:
        """Reads the request and says nothing until the other side gives up."""
        return cls(hang=True)

    @classmethod
    def dropped(cls) -> Self:
        """Closes the connection without an answer."""
        return cls(drop=True)

    @classmethod
    def delayed(cls, seconds: float, status: int = 200) -> Self:
        return cls(status, delay_seconds=seconds)

    @classmethod
    def redirect(cls, location: str, status: int = 302) -> Self:
        return cls(status, headers={"location": location})

    @classmethod
    def retry_after(cls, value: int | str, status: int = 503) -> Self:
        """`value` is a number of seconds or an HTTP date."""
        return cls(status, headers={"retry-after": str(value)})

    @classmethod
    def huge(cls, size_bytes: int, status: int = 200) -> Self:
        return cls(status, extra_bytes=size_bytes)

    @classmethod
    def endless(cls, status: int = 200) -> Self:
        return cls(status, extra_bytes=None)

    @classmethod
    def dripping(cls, every_seconds: float, status: int = 200) -> Self:
        """The status at once, then a body of one byte now and then that never ends."""
        return cls(status, extra_bytes=None, drip_seconds=every_seconds)


Answerer = Callable[[ReceivedRequest], Answer | int]


class SampleSink:
    """A raw ASGI app for any path; what it is told and asked may come from another thread.

    An answer is chosen in this order: the next of `answer_next`, the function of `answer_with`, `answer_always`
    (200 at first). With `secrets`, a request whose Standard Webhooks signature does not fit gets 401 first of all.
    The last `keep` requests and the counts of the last `keep_ids` webhook-ids are held.
    """

    def __init__(
        self,
        *,
        secrets: Sequence[str] = (),
        keep: int = 100_000,
        keep_ids: int = 1_000_000,
        on_request: Callable[[ReceivedRequest], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._secrets = tuple(secrets)
        self._keep_ids = keep_ids
        self._on_request = on_request
        self._clock = clock
        self._changed = threading.Condition()
        self._requests: deque[ReceivedRequest] = deque(maxlen=keep)
        self._counts: OrderedDict[str, int] = OrderedDict()
        self._total = 0
        self._next: deque[Answer] = deque()
        self._answerer: Answerer | None = None
        self._always = Answer()

    # What it answers

    def answer_next(self, *answers: Answer | int) -> None:
        """Queue answers, one for each of the next requests."""
        with self._changed:
            self._next.extend(map(_as_answer, answers))

    def answer_with(self, answerer: Answerer | None) -> None:
        """Ask `answerer` for every answer; None: back to `answer_always`.

        It runs in the server's thread while the sink is locked, so it must not wait for another thread.
        """
        with self._changed:
            self._answerer = answerer

    def answer_always(self, answer: Answer | int) -> None:
        with self._changed:
            self._always = _as_answer(answer)

    def clear(self) -> None:
        """Forget the requests and counts and the queued answers."""
        with self._changed:
            self._requests.clear()
            self._counts.clear()
            self._next.clear()
            self._total = 0

    # What it got

    @property
    def requests(self) -> list[ReceivedRequest]:
        """Oldest first; refused ones (401) included."""
        with self._changed:
            return list(self._requests)

    @property
    def total(self) -> int:
        """How many requests came, also those no longer kept."""
        with self._changed:
            return self._total

    @property
    def counts(self) -> Counter[str]:
        """How often each webhook-id came."""
        with self._changed:
            return Counter(self._counts)

    @property
    def distinct(self) -> int:
        """How many different webhook-ids came: cheaper than `len(counts)`."""
        with self._changed:
            return len(self._counts)

    def wait_for(self, count: int, timeout: float = 10.0) -> list[ReceivedRequest]:
        """Block until `count` requests have come in all, then return those kept.

        Raises TimeoutError, which says how many came and of which paths.
        """
        return self.wait_until(lambda: self._total >= count, timeout, f"{count} requests")

    def wait_for_ids(self, count: int, timeout: float = 10.0) -> list[ReceivedRequest]:
        """Like `wait_for`, for `count` different webhook-ids."""
        return self.wait_until(lambda: len(self._counts) >= count, timeout, f"{count} webhook-ids")

    def wait_until(
        self, condition: Callable[[], bool], timeout: float = 10.0, wanted: str = "the condition"
    ) -> list[ReceivedRequest]:
        """Block until `condition()`, looked at after each request."""
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                paths = Counter(request.path for request in self._requests)
                raise TimeoutError(
                    f"waited {timeout} s for {wanted}: {self._total} requests, "
                    f"{len(self._counts)} webhook-ids, paths {dict(paths)}"
                )
            return list(self._requests)

    # The app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        body = await _read_body(receive)
        if body is None:
            return
        request = self._make_request(scope, body)
        answer = self._take_answer(request)
        if answer.delay_seconds and await _gone_within(answer.delay_seconds, receive):
            return
        if answer.drop:
            await _drop(scope, receive, send)
        elif answer.hang:
            await _disconnected(receive)
        else:
            await _send_answer(answer, receive, send)

    def _make_request(self, scope: Scope, body: bytes) -> ReceivedRequest:
        request = ReceivedRequest(
            at=self._clock(),
            method=scope["method"],
            path=scope["path"],
            query_string=scope["query_string"].decode("latin-1"),
            raw_headers=scope["headers"],
            body=body,
        )
        if not self._secrets:
            return request
        fault = verify(request.headers, body, self._secrets, now=request.at)
        return ReceivedRequest(
            request.at, request.method, request.path, request.query_string, request.raw_headers, body, fault
        )

    def _take_answer(self, request: ReceivedRequest) -> Answer:
        """Record the request and choose its answer in one step, so that the two never disagree."""
        with self._changed:
            self._total += 1
            self._requests.append(request)
            self._count_id(request.webhook_id)
            if request.signature_fault is not None:
                answer = Answer(401, request.signature_fault.encode())
            elif self._next:
                answer = self._next.popleft()
            else:
                answer = self._always
                if self._answerer is not None:
                    answer = _as_answer(self._answerer(request))
            self._changed.notify_all()
        if self._on_request is not None:
            self._on_request(request)
        return answer

    def _count_id(self, webhook_id: str | None) -> None:
        if webhook_id is None:
            return
        self._counts[webhook_id] = self._counts.get(webhook_id, 0) + 1
        if len(self._counts) > self._keep_ids:
            self._counts.popitem(last=False)


def _as_answer(answer: Answer | int) -> Answer:
    return Answer(answer) if isinstance(answer, int) else answer


async def _lifespan(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def _read_body(receive: Receive) -> bytes | None:
    """The whole body, or None when the client went away before its end."""
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _gone_within(seconds: float, receive: Receive) -> bool:
    """Pause, but no longer than the client stays; True when it left."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(_disconnected(receive), seconds)
        return True
    return False


async def _drop(scope: Scope, receive: Receive, send: Send) -> None:
    drop = scope.get("extensions", {}).get(DROP_EXTENSION)
    if drop is not None:
        drop()
        await _disconnected(receive)
        return
    # Under another server a broken answer is the nearest thing: a length that is promised and not kept.
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})


async def _send_answer(answer: Answer, receive: Receive, send: Send) -> None:
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers.items()]
    if answer.extra_bytes is not None and answer.status not in (204, 304):
        headers.append((b"content-length", str(len(answer.body) + answer.extra_bytes).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    if answer.extra_bytes != 0:
        await _send_filler(answer, receive, send)
    else:
        await send({"type": "http.response.body", "body": answer.body})


async def _send_filler(answer: Answer, receive: Receive, send: Send) -> None:
    """Stream until the length is reached or the client has gone, whichever comes first."""
    gone = asyncio.ensure_future(_disconnected(receive))
    chunk = b"x" * (1 if answer.drip_seconds else CHUNK_BYTES)
    left = answer.extra_bytes
    try:
        await send({"type": "http.response.body", "body": answer.body, "more_body": True})
        while not gone.done() and left != 0:
            # Even a pause of 0 lets the loop see that the client has gone.
            await asyncio.wait({gone}, timeout=answer.drip_seconds)
            piece = chunk if left is None else chunk[:left]
            left = None if left is None else left - len(piece)
            if not gone.done():
                await send({"type": "http.response.body", "body": piece, "more_body": left != 0})
    finally:
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
