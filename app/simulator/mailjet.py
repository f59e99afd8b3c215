"""A stand-in for Mailjet's API: callbacks, contacts, lists, drafts, campaigns, messages and SMS with the behaviours of
the real one, and faults at will.

Sources: mailjet/api-documentation:guides/_overview.md and guides/_event-api.md; mailjet/mailjet-gem, its recorded
answers, for the empty HTML 401, the default limit, `Total` and the ignored parameters.
"""

import asyncio
import base64
import binascii
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import orjson
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from app.simulator import counters, mails, newsletters, people, texts
from app.simulator.account import Account
from app.simulator.callbacks import TYPE_NUMBERS, Callback, CallbackError, CallbackTable
from app.simulator.replies import FlatError, Object, error_content, number, to_json
from app.simulator.replies import envelope as to_envelope
from app.simulator.replies import error as to_error
from app.simulator.server import DROP_EXTENSION

DEFAULT_KEYS = {"stand-in-api-key": "stand-in-secret-key"}
"""One API key and its secret, when the caller has no wish of its own."""

MAX_LIMIT = 1000
KEPT_REQUESTS = 10_000
PREFIX = "/v3/rest/"
RESOURCE = "eventcallbackurl"
SMS_TOKEN = "stand-in-sms-token"  # noqa: S105
RESOURCES = {
    "contact": people.contact,
    "contactdata": people.contact_data,
    "contactslist": people.contacts_list,
    "message": mails.message,
    "messagehistory": mails.history,
    "statcounters": counters.counters,
    "campaigndraft": newsletters.draft,
    "campaign": newsletters.campaign,
}


@dataclass(slots=True)
class ApiRequest:
    """One call as it came. `json` is None without a body and for one that is not JSON; `status` is 0 until answered."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes = field(repr=False)
    json: Any
    api_key: str | None
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    segments: list[str] = field(default_factory=list, repr=False)


@dataclass(slots=True)
class _Fault:
    left: int
    status: int
    body: bytes
    headers: dict[str, str]
    method: str | None
    loses_answer: bool = False


class StandInMailjet:
    """An ASGI app; what it holds may be read and changed from another thread while it serves.

    `keys` maps each API key to its secret; each has its own callbacks and its own `accounts`, which may be changed
    while nothing is asked. Where a method takes `api_key`, None means the
    first of them. `on_request` is called with each call before it is handled, in the server's thread: a test can use
    it to change things between two calls of a client.
    """

    def __init__(
        self,
        keys: Mapping[str, str] | None = None,
        *,
        status_alone_revives: bool = False,
        on_request: Callable[[ApiRequest], None] | None = None,
    ) -> None:
        self.keys = dict(DEFAULT_KEYS if keys is None else keys)
        self.on_request = on_request
        self._lock = threading.RLock()
        self._tables = {
            key: CallbackTable(5_000 + n, 90_000 + 1_000 * n, status_alone_revives=status_alone_revives)
            for n, key in enumerate(self.keys, start=1)
        }
        self.accounts = {key: Account(first_id=100 * n) for n, key in enumerate(self.keys, start=1)}
        self.sms_tokens = {SMS_TOKEN: next(iter(self.keys), "")}
        self._requests: deque[ApiRequest] = deque(maxlen=KEPT_REQUESTS)
        self._faults: deque[_Fault] = deque()
        self._down = False
        self._delay_seconds = 0.0
        self._app = Starlette(routes=[Route("/{path:path}", self._serve, methods=_ALL_METHODS)])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    # State

    def callbacks(self, api_key: str | None = None) -> list[Callback]:
        """By ID, ascending."""
        with self._lock:
            return self._table(api_key).all()

    def find_callback(self, api_key: str | None, event_type: str, *, is_backup: bool = False) -> Callback | None:
        with self._lock:
            return self._table(api_key).find(event_type, is_backup)

    def put_callback(
        self,
        api_key: str | None,
        event_type: str,
        url: str,
        *,
        version: int = 1,
        status: str = "alive",
        is_backup: bool = False,
    ) -> Callback:
        """Set a callback as if somebody else had registered it; one that holds the slot is overwritten."""
        with self._lock:
            return self._table(api_key).put(event_type, url, version=version, status=status, is_backup=is_backup)

    def mark_dead(self, api_key: str | None, event_type: str, *, is_backup: bool = False) -> Callback:
        """Suspend a callback as Mailjet does after a day of failures. Raises NotFoundError."""
        with self._lock:
            table = self._table(api_key)
            row = table.get(_key(event_type, is_backup))
            return table.put(event_type, row.url, version=row.version, status="dead", is_backup=is_backup)

    def remove_callback(self, api_key: str | None, event_type: str, *, is_backup: bool = False) -> None:
        """Raises NotFoundError."""
        with self._lock:
            self._table(api_key).delete(_key(event_type, is_backup))

    @property
    def account(self) -> Account:
        """What the first API key holds."""
        return self.accounts[next(iter(self.keys))]

    def take_events(self) -> list[Object]:
        """What happened to the messages that were sent through the first API key since the last time, to be posted."""
        with self._lock:
            taken = list(self.account.happened)
            self.account.happened.clear()
        return taken

    @property
    def requests(self) -> list[ApiRequest]:
        """The calls that came, oldest first, whatever they were answered."""
        with self._lock:
            return list(self._requests)

    def clear_requests(self) -> None:
        with self._lock:
            self._requests.clear()

    # Faults

    def fail_next(
        self,
        count: int,
        status: int,
        body: bytes | str | Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        method: str | None = None,
    ) -> None:
        """Answer the next `count` calls (of `method`, if given) with `status`, and do nothing else for them.

        Without a body the answer is Mailjet's error envelope, for 401 an empty page of HTML.
        """
        content, kind = _fault_body(status, body)
        with self._lock:
            self._faults.append(_Fault(count, status, content, {"content-type": kind, **(headers or {})}, method))

    def lose_answers(self, count: int, *, method: str | None = None) -> None:
        """Do what the next `count` calls (of `method`, if given) ask for, and hang up without an answer."""
        with self._lock:
            self._faults.append(_Fault(count, 0, b"", {}, method, loses_answer=True))

    def set_down(self, down: bool) -> None:
        """503 for every call until it is set back."""
        with self._lock:
            self._down = down

    def set_slow(self, seconds: float) -> None:
        """Let every call wait that long before it is handled; 0: no more."""
        with self._lock:
            self._delay_seconds = seconds

    # The app

    async def _serve(self, request: Request) -> Response:
        try:
            body = await request.body()
        except ClientDisconnect:
            return Response(status_code=400)
        record = _record(request, body)
        with self._lock:
            self._requests.append(record)
            delay_seconds = self._delay_seconds
        if delay_seconds and await _gone_within(delay_seconds, request.receive):
            return Response(status_code=400)
        if self.on_request is not None:
            self.on_request(record)
        with self._lock:
            fault = self._take_fault(record.method)
            if fault is not None and not fault.loses_answer:
                response = Response(fault.body, fault.status, fault.headers)
            else:
                response = self._answer(record)
        record.status = response.status_code
        if fault is not None and fault.loses_answer:
            request.scope["extensions"][DROP_EXTENSION]()
        return response

    def _answer(self, record: ApiRequest) -> Response:
        if self._down:
            return to_error(503, "Service temporarily unavailable")
        try:
            return self._route(record)
        except CallbackError as refusal:
            return to_error(refusal.status, refusal.message, refusal.info)
        except FlatError as refusal:
            return to_json(refusal.content, refusal.status)

    def _route(self, record: ApiRequest) -> Response:
        if record.path.startswith("/v4/sms"):
            token = record.headers.get("authorization", "").removeprefix("Bearer ")
            if token not in self.sms_tokens:
                raise FlatError(401, "mj-0015", "Credentials are missing or wrong")
            account = self.accounts[self.sms_tokens[token]]
            return texts.sms(account, record.method, record.path, record.query, record.json)
        if not self._knows(record.headers.get("authorization", "")):
            if record.path.startswith("/v3.1/"):
                raise FlatError(401, "mj-0015", "API key authentication/authorization failure")
            return Response(b"", 401, {"content-type": "text/html"})
        return self._route_known(record)

    def _route_known(self, record: ApiRequest) -> Response:
        account = self.accounts[record.api_key or ""]
        if record.path == "/v3.1/send" and record.method == "POST":
            return mails.send(account, record.json)
        if record.path.startswith("/v4/contacts/") and record.method == "DELETE":
            return people.delete_contact(account, record.path.removeprefix("/v4/contacts/"))
        if not record.path.lower().startswith(PREFIX):
            raise CallbackError(404, "Not found")
        resource, _, key = record.path[len(PREFIX) :].partition("/")
        if resource.lower() == RESOURCE:
            table = self._tables[record.api_key or ""]
            return _handle_one(table, record, key) if key else _handle_all(table, record)
        handle = RESOURCES.get(resource.lower())
        if handle is None:
            raise CallbackError(500, f'Could not determine HTTP module for request "{resource}"', info="EFPWebError")
        return handle(account, record.method, record.segments[2:], record.query, record.json)

    def _take_fault(self, method: str) -> _Fault | None:
        for fault in self._faults:
            if fault.method in (None, method):
                fault.left -= 1
                if fault.left <= 0:
                    self._faults.remove(fault)
                return fault
        return None

    def _knows(self, authorization: str) -> bool:
        pair = _basic(authorization)
        return pair is not None and self.keys.get(pair[0]) == pair[1]

    def _table(self, api_key: str | None) -> CallbackTable:
        return self._tables[next(iter(self.keys)) if api_key is None else api_key]


_ALL_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


async def _gone_within(seconds: float, receive: Receive) -> bool:
    """Pause, but no longer than the client stays; True when it left. The body must have been read."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while (await receive())["type"] != "http.disconnect":
                pass
        return True
    return False


def _handle_all(table: CallbackTable, record: ApiRequest) -> Response:
    match record.method:
        case "GET":
            return _list(table, record.query)
        case "POST":
            return _envelope([table.create(_properties(record))], status=201)
        case _:
            raise CallbackError(405, "Method not allowed")


def _handle_one(table: CallbackTable, record: ApiRequest, key: str) -> Response:
    match record.method:
        case "GET":
            return _envelope([table.get(key)])
        case "PUT":
            table.get(key)  # 404 comes before a look at the body
            changed = table.update(key, _properties(record))
            return Response(status_code=304) if changed is None else _envelope([changed])
        case "DELETE":
            table.delete(key)
            return Response(status_code=204)
        case _:
            raise CallbackError(405, "Method not allowed")


def _list(table: CallbackTable, query: Mapping[str, str]) -> Response:
    """Limit is 10 when not given, 1000 at most, and 0 means 1000; `Total` counts this page unless `countrecords`."""
    if query.get("Sort", "ID") not in ("ID", "ID ASC"):
        raise CallbackError(400, "Unexpected error during GET: Invalid sort specification: Cannot sort on field")
    rows = [row for row in table.all() if _matches(row, query)]
    if query.get("countOnly") == "1":
        return to_json({"Count": len(rows), "Data": [], "Total": len(rows)})
    limit = min(number(query, "Limit", 10), MAX_LIMIT) or MAX_LIMIT
    offset = number(query, "Offset", 0)
    page = rows[offset : offset + limit]
    return _envelope(page, total=len(rows) if query.get("countrecords") == "1" else len(page))


def _matches(row: Callback, query: Mapping[str, str]) -> bool:
    facts = {
        "APIKey": {str(row.api_key_id)},
        "Backup": {"true", "1"} if row.is_backup else {"false", "0"},
        "EventType": {row.event_type, str(TYPE_NUMBERS[row.event_type])},
        "Status": {row.status},
        "Version": {str(row.version)},
    }
    return all(query[name].lower() in values for name, values in facts.items() if name in query)


def _properties(record: ApiRequest) -> dict[str, Any]:
    if not isinstance(record.json, dict):
        raise CallbackError(400, "Invalid json input: expected an object")
    return record.json


def _envelope(rows: list[Callback], status: int = 200, total: int | None = None) -> Response:
    return to_envelope([row.to_json() for row in rows], status, total)


def _fault_body(status: int, body: bytes | str | Mapping[str, Any] | None) -> tuple[bytes, str]:
    match body:
        case None if status == 401:
            return b"", "text/html"
        case None:
            return orjson.dumps(error_content(status, f"Simulated fault {status}")), "application/json; charset=UTF-8"
        case bytes():
            return body, "text/html"
        case str():
            return body.encode(), "text/html"
        case _:
            return orjson.dumps(dict(body)), "application/json; charset=UTF-8"


def _record(request: Request, body: bytes) -> ApiRequest:
    query: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        query.setdefault(name, value)  # of a filter given twice, Mailjet heeds the first
    pair = _basic(request.headers.get("authorization", ""))
    headers = dict(request.headers)
    path = request.url.path
    # An address may hold a slash: the path is taken apart before it is decoded.
    segments = [unquote(part) for part in request.scope["raw_path"].decode("ascii").strip("/").split("/")][1:]
    return ApiRequest(
        request.method, path, query, body, _parse(body), pair[0] if pair else None, headers=headers, segments=segments
    )


def _parse(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _basic(authorization: str) -> tuple[str, str] | None:
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (user, password) if colon else None


def _key(event_type: str, is_backup: bool) -> str:
    return f"{event_type}|{str(is_backup).lower()}"
