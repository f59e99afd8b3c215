"""Any call of Mailjet's API, passed through with the connection's credentials."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
import base64
import json
import re
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote

import orjson
from fastapi import APIRouter, Depends, Response
from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticCustomError

from app.connector.doors import Doors
from app.connector.manners import Name, mailjet_problems, new_router
from app.errors import Forbidden
from app.http import ApiKeys
from app.mailjet.answers import Answer
from app.mailjet.door import READING
from app.mailjet.fields import Given

# Ours to set, or the connection's business.
OUR_HEADERS = frozenset(
    {"authorization", "proxy-authorization", "cookie", "host", "content-length", "transfer-encoding", "connection",
     "upgrade", "te", "trailer", "keep-alive", "expect", "accept-encoding", "user-agent"}
)  # fmt: skip
NOT_PASSED_BACK = frozenset(
    {"connection", "transfer-encoding", "keep-alive", "content-length", "set-cookie", "upgrade"}
)
# What Mailjet shows of these holds keys, or the passwords of our own callbacks.
SECRET_RESOURCES = re.compile(r"/v\d+(\.\d+)?/rest/(api|eventcallbackurl|parseroute)", re.IGNORECASE)
# All that a key may set which only reads: others, like X-HTTP-Method-Override, can make a GET into something else.
READING_HEADERS = frozenset(
    {"accept", "accept-language", "content-type", "if-modified-since", "if-none-match", "x-request-id", "traceparent",
     "tracestate"}
)  # fmt: skip
# A slash or backslash that is escaped, however often, or a path's parameter: servers differ in where a part ends then.
HIDDEN_PARTS = re.compile(r"%(25)*(2f|5c|3b)|;", re.IGNORECASE)


def _check_path(path: str) -> str:
    """Relative to the base URL, and unable to leave it. Escapes are kept, since keys may need them."""
    if not re.fullmatch(r"/[^\s?#\\\x00-\x1f\x7f]*", path) or path.startswith("//"):
        raise PydanticCustomError("path", "must be a path like /v3/REST/contact; the query has a field of its own")
    plain = _plain(path)
    if "\\" in plain or any(part in (".", "..") for part in plain.split("/")) or "//" in plain:
        raise PydanticCustomError("path", "must not hold empty parts, `.` or `..`")
    return path


def _plain(path: str) -> str:
    for _ in range(3):  # escaped once, twice …
        path = unquote(path)
    return path


def _check_headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not re.fullmatch(r"[\t\x20-\x7e]*", value):
            raise PydanticCustomError("header", "holds something that is no header")
        if name.lower() in OUR_HEADERS:
            raise PydanticCustomError("header_not_allowed", "{name} is not yours to set here", {"name": name})
    return headers


class CallRequest(Given):
    """One call."""

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    path: Annotated[str, AfterValidator(_check_path)] = Field(
        max_length=2000, description="relative to the connection's base URL", examples=["/v3/REST/campaigndraft"]
    )
    headers: Annotated[dict[str, str], AfterValidator(_check_headers)] = Field(
        {}, max_length=50, description="further ones; those for authentication are the connection's"
    )
    query: dict[str, str | int | bool | list[str]] = Field({}, max_length=100, examples=[{"Limit": 5}])
    body: Any = Field(None, description="sent as JSON; a text goes as it is under another `content-type`")


class CallAnswer(BaseModel):
    """What Mailjet answered."""

    status: int
    headers: dict[str, str]
    body: Any = Field(description="the JSON value, digit by digit; else the text, or base64; null if there is none")


def build_router(doors: Doors, keys: ApiKeys) -> APIRouter:
    router = new_router("any call")

    @router.post(
        "/call",
        summary="Call Mailjet's API",
        description="Passes one call through with the connection's credentials (for `/v4/sms…` its SMS token) and hands"
        " back whatever Mailjet answers, as 200. It is made once and never repeated. Keys that may only read can `GET`,"
        " but not what holds secrets at Mailjet, with no `body`, no escaped slash, and of `headers` only "
        + ", ".join(f"`{name}`" for name in sorted(READING_HEADERS))
        + ".",
        response_model=CallAnswer,
    )
    async def call_mailjet(
        name: Name, body: CallRequest, may_send: Annotated[bool, Depends(keys.may_send)]
    ) -> Response:
        if not may_send:
            _refuse_more_than_reading(body)
        is_sms = _plain(body.path).lower().startswith("/v4/sms")
        door = doors.get_for_sms(name) if is_sms else doors.get(name)
        content, headers = _content(body)
        # What no URL can hold as it stands is escaped; escapes that are there stay.
        path = quote(body.path, safe="/%:@!$&'()*+,;=~-._|")
        with mailjet_problems():
            answer = await door.pass_through(
                "call", body.method, path, query=_query(body), content=content, headers=headers
            )
        return Response(_answer(answer), media_type="application/json")

    return router


def _refuse_more_than_reading(call: CallRequest) -> None:
    """Raises Forbidden. What Mailjet's servers make of it must be as plain as it is here."""
    why = ""
    if call.method not in READING or call.body is not None:
        why = ": no other method than GET or HEAD, and no body"
    elif SECRET_RESOURCES.match(_plain(call.path)):
        why = ", and not this resource, which holds secrets"
    elif HIDDEN_PARTS.search(call.path):
        why = ": no escaped slash in the path, and no `;`"
    elif more := sorted(name for name in call.headers if name.lower() not in READING_HEADERS):
        why = f": not with the header {more[0]}"
    if why:
        raise Forbidden(f"this key may only read{why}")


def _content(call: CallRequest) -> tuple[bytes | None, dict[str, str]]:
    given = next((value for name, value in call.headers.items() if name.lower() == "content-type"), None)
    if call.body is None:
        return None, call.headers
    if isinstance(call.body, str) and given is not None and "json" not in given.lower():
        return call.body.encode("utf-8", "replace"), call.headers
    headers = call.headers if given is not None else {**call.headers, "content-type": "application/json"}
    # The standard library's: whole numbers of any length stay what they are.
    return json.dumps(call.body, ensure_ascii=True).encode(), headers


def _query(call: CallRequest) -> list[tuple[str, str]]:
    pairs = (
        (name, part) for name, value in call.query.items() for part in (value if isinstance(value, list) else [value])
    )
    return [(name, str(part).lower() if isinstance(part, bool) else str(part)) for name, part in pairs]


def _answer(answer: Answer) -> bytes:
    headers = {name: value for name, value in answer.headers.items() if name.lower() not in NOT_PASSED_BACK}
    return orjson.dumps({"status": answer.status, "headers": headers, "body": _body(answer.body)})


def _body(body: bytes) -> Any:
    if not body:
        return None
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    else:
        return orjson.Fragment(body)
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        return base64.b64encode(body).decode()
