"""The HTTP manners of the whole service: one shape for errors, one id for a request, keys that open the REST.

Every error leaves as problem+json (RFC 9457), 404, 405, 422 and 500 included, and carries the request's id. A 500 tells
the caller nothing else; the log has the rest under the same id. A database that is gone is a 503 with `Retry-After`.
"""

import hashlib
import hmac
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import quote

import structlog
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.convertors import Convertor, register_url_convertor
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.db import is_outage
from app.errors import (
    PROBLEM_CONTENT_TYPE,
    AppError,
    BadRequest,
    BodyTooLarge,
    DatabaseFault,
    FieldError,
    Forbidden,
    Invalid,
    MethodNotAllowed,
    NotFound,
    Unauthorized,
    Unavailable,
    problem_body,
)

log = structlog.get_logger(__name__)

REQUEST_ANSWERED = "request.answered"
REQUEST_FAILED = "request.failed"
DATABASE_UNAVAILABLE = "request.database_unavailable"


class AddressConvertor(Convertor[str]):
    """`{email:address}` in a path: whatever Mailjet told as an address, also with slashes or line breaks."""

    regex = "(?s:.+)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("address", AddressConvertor())

PROBES = frozenset({"/livez", "/readyz", "/healthz", "/metrics"})
_SANE_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_NAMED_ERRORS: dict[int, type[AppError]] = {
    error.status_code: error
    for error in (BadRequest, Unauthorized, Forbidden, NotFound, MethodNotAllowed, BodyTooLarge, Invalid, Unavailable)
}


def install_problem_handlers(app: FastAPI) -> None:
    """Give `app` the request's id, the one shape of errors, and an OpenAPI document that tells of it.

    Call it after other middleware is added: what wraps `RequestIdMiddleware` is outside its care, and errors there
    meet only the last handler, whose answer has the right shape but which the server logs once more.
    """
    app.add_exception_handler(AppError, _answer_app_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(Exception, _answer_unexpected)
    app.add_middleware(RequestIdMiddleware, tells=True)
    _document_problems(app)


# --- the request's id and the last resort ----------------------------------------------------------------------------


class RequestIdMiddleware:
    """Names each request, in its answer, its log lines and its errors; answers what nobody else caught.

    An incoming `X-Request-ID` of up to 128 visible ASCII characters is kept, so that one id can follow a request
    through several services. Errors are answered here and not raised on, since Starlette's outermost layer raises them
    again after answering and the server would print each a second time. With `tells` each request has its line.
    """

    def __init__(self, app: ASGIApp, *, tells: bool = False) -> None:
        self.app = app
        self._tells = tells

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = _given_id(scope)
        request_id = given if given is not None else new_request_id().encode()
        name = request_id.decode("ascii")
        scope.setdefault("state", {})["request_id"] = name
        # Bound for this request's task alone; the next one on the connection binds its own.
        structlog.contextvars.bind_contextvars(request_id=name)
        began, status, tells = time.perf_counter(), 0, self._tells

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        try:
            await self.app(scope, receive, send_named)
        except ClientDisconnect:
            return  # nobody is left to answer
        except Exception as error:
            tells = False  # with its error, here or by the server
            if status:
                raise  # the answer is half out: the server logs the error and cuts the connection
            await _unexpected(scope, error)(scope, receive, send_named)
        finally:
            if tells:
                _tell(scope, status, time.perf_counter() - began)


class BodyLimit:
    """Refuses larger bodies before anything reads them, whoever sends them; paths that start with `but` go through.

    A body that tells its length is refused unread; one that does not is cut off at the limit. `larger`, asked only
    where a body is beyond `most`, may allow a request more: None means that it does not.
    """

    def __init__(
        self, app: ASGIApp, most: int, but: str, larger: Callable[[Scope], int | None] = lambda scope: None
    ) -> None:
        self.app = app
        self._most = most
        self._but = but
        self._larger = larger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(self._but):
            await self.app(scope, receive, send)
            return
        told = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        most = self._most
        if told.isdigit():
            size = int(told[:18])
            if size > most and size > (most := self._larger(scope) or most):
                await problem_response(Request(scope), _too_large(most))(scope, receive, send)
                return
        size = 0

        async def receive_bounded() -> Message:
            nonlocal size, most
            message = await receive()
            size += len(message.get("body", b""))
            if size > most and size > (most := self._larger(scope) or most):
                raise _too_large(most)
            return message

        await self.app(scope, receive_bounded, send)


def _too_large(most: int) -> BodyTooLarge:
    return BodyTooLarge(f"a request body like this one, and from this caller, holds at most {most} bytes")


def request_id_of(request: Request) -> str:
    """The id that `RequestIdMiddleware` gave; a new one where it is not installed."""
    state = request.scope.setdefault("state", {})
    name: str = state.setdefault("request_id", new_request_id())
    return name


def new_request_id() -> str:
    """A name and no secret: asking the kernel for each costs as much as reading a small body."""
    return f"{random.getrandbits(128):032x}"


def _given_id(scope: Scope) -> bytes | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return value if _SANE_ID.fullmatch(value) else None
    return None


def _unexpected(scope: Scope, error: Exception) -> Response:
    if isinstance(error, PoolTimeoutError | DatabaseFault) or is_outage(error):
        log.warning(DATABASE_UNAVAILABLE, **_place(scope), error=type(error).__name__)
        return problem_response(Request(scope), Unavailable("the database does not answer"))
    log.error(REQUEST_FAILED, **_place(scope), exc_info=error)
    return problem_response(Request(scope), AppError("the log has more under this request's id"))


def _tell(scope: Scope, status: int, seconds: float) -> None:
    """What machines ask every few seconds is told at `debug` only. A status of 0: nobody was left to answer."""
    place = _place(scope)
    asked_often = place["route"] in PROBES or scope["path"].startswith("/dashboard/")
    tell = log.debug if asked_often and status < 400 else log.info
    tell(REQUEST_ANSWERED, **place, status=status, duration_ms=round(seconds * 1000, 1))


def _place(scope: Scope) -> dict[str, object]:
    """Where it happened: the route's template and not the path, which may hold an address."""
    return {"method": scope["method"], "route": getattr(scope.get("route"), "path", None)}


# --- errors ----------------------------------------------------------------------------------------------------------


def problem_response(request: Request, error: AppError) -> Response:
    """`error` as problem+json, with its status and headers."""
    printable = _printable(error)
    body = problem_body(printable, instance=_instance(request), request_id=request_id_of(request))
    return Response(body, printable.status_code, headers=printable.headers, media_type=PROBLEM_CONTENT_TYPE)


async def _answer_app_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AppError)
    return problem_response(request, error)


async def _answer_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem_response(request, _problem_of_validation(error.errors()))


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code < 400:
        return Response(status_code=error.status_code, headers=error.headers)
    headers = MutableHeaders(dict(error.headers or {}))
    detail = str(error.detail)
    if error.status_code == 405:
        headers["allow"] = ", ".join(_allowed_methods(request)) or headers.get("allow", "")
        detail = f"this address answers {headers['allow'] or 'other methods'}"
    elif error.status_code == 404:
        detail = "there is nothing at this address"
    return problem_response(request, _kind_of(error.status_code)(detail, headers=headers))


async def _answer_unexpected(request: Request, error: Exception) -> Response:
    # Reached only from outside RequestIdMiddleware. The error is raised on and logged by the server.
    response = problem_response(request, AppError("the log has more under this request's id"))
    response.headers["x-request-id"] = request_id_of(request)
    return response


def _problem_of_validation(faults: Sequence[Mapping[str, Any]]) -> AppError:
    if any(_is_unreadable_body(fault) for fault in faults):
        return BadRequest("the body is not JSON; send it with content-type: application/json")
    errors = [_field_error(fault) for fault in faults]
    named = ", ".join(dict.fromkeys(e.pointer or "the body" for e in errors[:5]))
    return Invalid(f"{named}: {errors[0].message}" if len(errors) == 1 else f"see errors: {named}", errors=errors)


def _is_unreadable_body(fault: Mapping[str, Any]) -> bool:
    # A body that came under another content type reaches validation as bytes.
    return fault["type"] == "json_invalid" or (fault["loc"] == ("body",) and isinstance(fault.get("input"), bytes))


def _field_error(fault: Mapping[str, Any]) -> FieldError:
    place, *path = fault["loc"]
    pointer = "".join(f"/{_escaped(part)}" for part in path) if place == "body" else str(path[0] if path else place)
    if fault["type"] == "extra_forbidden" and place == "query":
        return FieldError(pointer, "this call has no such parameter", "unknown_parameter")
    return FieldError(pointer, str(fault["msg"]), str(fault["type"]))


def _escaped(part: object) -> str:
    return str(part).replace("~", "~0").replace("/", "~1")  # RFC 6901


def _kind_of(status: int) -> type[AppError]:
    """The error class of a status; one without a class of its own borrows the code of its kind."""
    if status in _NAMED_ERRORS:
        return _NAMED_ERRORS[status]
    base = BadRequest if status < 500 else AppError
    return type(f"Http{status}", (base,), {"status_code": status, "title": _phrase(status)})


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "The request failed"


def _allowed_methods(request: Request) -> list[str]:
    """Every method the address answers. Starlette tells those of the first route only, and one address has several."""
    scopes = ((method, {**request.scope, "method": method}) for method in _METHODS)
    routes = request.app.router.routes
    return [method for method, scope in scopes if any(route.matches(scope)[0] is Match.FULL for route in routes)]


def _instance(request: Request) -> str:
    return quote(request.scope["path"].encode("utf-8", "replace"), safe="/:@!$&'()*+,;=~-._")


def _printable(error: AppError) -> AppError:
    """The same error without lone surrogates, which a caller's JSON can bring in and no JSON writer accepts."""
    error.detail = _clean(error.detail)
    error.errors = tuple(FieldError(_clean(e.pointer), _clean(e.message), e.code) for e in error.errors)
    return error


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


# --- keys ------------------------------------------------------------------------------------------------------------

_bearer = HTTPBearer(
    scheme_name="bearer",
    auto_error=False,
    description="One of `JETHOOK_API_KEYS`; one of `JETHOOK_READ_API_KEYS` where nothing is changed; for what sends or"
    " changes at Mailjet one of `JETHOOK_SEND_API_KEYS`, where any are set.",
)
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


class ApiKeys:
    """The bearer keys of REST as dependencies: `Depends(keys.reader)`, `Depends(keys.writer)`.

    Digests are compared, always against every key, so neither a key's length nor its place can be timed.
    """

    def __init__(self, full: Sequence[str], read: Sequence[str], send: Sequence[str] = ()) -> None:
        self._full = _digests(full)
        self._read = _digests(read)
        self._send = _digests(send)

    async def reader(self, credentials: Bearer) -> None:
        """Any key. Raises Unauthorized."""
        if not any(self._check(credentials)):
            raise _unauthorized()

    async def writer(self, credentials: Bearer) -> None:
        """A full key. Raises Unauthorized, or Forbidden for a key that may not change things here."""
        full, *others = self._check(credentials)
        if full:
            return
        if any(others):
            raise Forbidden("this key may only read")
        raise _unauthorized()

    async def sender(self, credentials: Bearer) -> None:
        """A key that may send and change at Mailjet: a full one where there are none for that. Raises as `writer`."""
        full, read, send = self._check(credentials)
        if send or (full and not self._send):
            return
        if full or read:
            told = "one of JETHOOK_SEND_API_KEYS is needed for that" if full else "this key may only read"
            raise Forbidden(told)
        raise _unauthorized()

    async def may_send(self, credentials: Bearer) -> bool:
        """For calls that any key may make, and some only to read. Raises Unauthorized."""
        full, read, send = self._check(credentials)
        if not (full or read or send):
            raise _unauthorized()
        return send or (full and not self._send)

    def knows(self, authorization: str) -> bool:
        """Is this header's value a key of ours, whatever it may do?"""
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return False
        return any(self._check(HTTPAuthorizationCredentials(scheme=scheme, credentials=key)))

    def _check(self, credentials: HTTPAuthorizationCredentials | None) -> tuple[bool, bool, bool]:
        """Is it a full key, one that reads, one that sends?"""
        if credentials is None:
            return False, False, False
        # Header bytes reach us as Latin-1 text; a key may hold any UTF-8.
        presented = _digest(credentials.credentials.encode("latin-1", "replace"))
        return _holds(self._full, presented), _holds(self._read, presented), _holds(self._send, presented)


def _digests(keys: Iterable[str]) -> tuple[bytes, ...]:
    return tuple(_digest(key.encode()) for key in keys if key)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _holds(digests: Sequence[bytes], presented: bytes) -> bool:
    found = False
    for digest in digests:
        found |= hmac.compare_digest(digest, presented)
    return found


def _unauthorized() -> Unauthorized:
    return Unauthorized("send Authorization: Bearer KEY", headers={"www-authenticate": "Bearer"})


# --- OpenAPI ---------------------------------------------------------------------------------------------------------


class FieldProblem(BaseModel):
    """One field of the request that does not fit."""

    pointer: str = Field(description="JSON pointer into the body, or the name of a query, path or header parameter")
    message: str
    code: str = Field(description="what is wrong with it, for programs")


class Problem(BaseModel):
    """Every error of this service (RFC 9457)."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "about:blank#validation_failed",
                "title": "A field does not fit",
                "status": 422,
                "detail": "limit: Input should be less than or equal to 1000",
                "instance": "/v1/events",
                "code": "validation_failed",
                "request_id": "5f0e2b6c8f5d4f0c9d5a3f1e7b2c4d6e",
                "errors": [
                    {
                        "pointer": "limit",
                        "message": "Input should be less than or equal to 1000",
                        "code": "less_than_equal",
                    }
                ],
            }
        }
    )

    type: str
    title: str = Field(description="what kind of error it is, for people")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what happened this time, for people")
    instance: str = Field(description="the path that was asked for")
    code: str = Field(description="what kind of error it is, for programs")
    request_id: str = Field(description="names this request in the service's log")
    errors: list[FieldProblem] | None = Field(None, description="with every 422")


_PROBLEM_CONTENT = {PROBLEM_CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_DESCRIPTIONS = {
    400: "The request cannot be read: the body is not JSON, or the cursor does not belong to this list",
    401: "No key, or none of ours",
    403: "This key may only read",
    404: "There is no such thing",
    409: "The state of the thing does not allow that",
    413: "The body is too large",
    422: "A parameter or field does not fit; `errors` tells which",
    500: "A fault of ours; the log has more under `request_id`",
    502: "Mailjet did not answer as it should, or refuses our key",
    503: "Try again later, see `Retry-After`",
    504: "Mailjet did not answer in time",
}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI `responses=` for these error statuses, each a Problem."""
    return {
        status: {"description": _DESCRIPTIONS.get(status, _phrase(status)), "content": _PROBLEM_CONTENT}
        for status in statuses
    }


# What any route behind a key can answer. FastAPI then leaves its own 422 out.
PROBLEM_RESPONSES = problem_responses(400, 401, 403, 422, 500, 503)


def _document_problems(app: FastAPI) -> None:
    """Put the Problem schema in `/openapi.json`, under every error, and FastAPI's own error schemas out of it."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _with_problems(plain())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _with_problems(schema: dict[str, Any]) -> dict[str, Any]:
    for response in _error_responses(schema):
        content = response.get("content")
        if not content or "HTTPValidationError" in str(content):
            response["content"] = _PROBLEM_CONTENT
            response["description"] = response["description"].replace("Validation Error", _DESCRIPTIONS[422])
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs"))
    problem["properties"]["code"]["enum"] = sorted(_codes(AppError))
    schemas["Problem"] = problem
    return schema


def _error_responses(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in schema.get("paths", {}).values():
        for operation in path.values():
            for status, response in operation.get("responses", {}).items():
                if status == "default" or status[0] in "45":
                    yield response


def _codes(error: type[AppError]) -> set[str]:
    return {error.code}.union(*(_codes(child) for child in error.__subclasses__()))
