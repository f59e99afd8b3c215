"""The stand-in Mailjet with other spellings: what its documents, its samples and its real answers disagree in.

Numbers and booleans as text, what is empty left out or null, keys in another order, errors in `ErrorInfo`, a partial
failure of Send v3.1 as 200, the other names of SMS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

KEPT_EMPTY = ("Html-part", "Text-part", "MJMLContent")
RENAMED = {"MessageId": "MessageID", "MessageID": "MessageId", "SmsCount": "SMSCount", "SMSCount": "SmsCount"}


class OtherSpellings:
    """`app` with the JSON of its answers spelled anew."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kept: list[Message] = []

        async def hold(message: Message) -> None:
            kept.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                for held in respelled(kept, scope["path"]):
                    await send(held)

        await self._app(scope, receive, send if scope["type"] != "http" else hold)


def respelled(messages: list[Message], path: str) -> list[Message]:
    start, body = dict(messages[0]), b"".join(message.get("body", b"") for message in messages[1:])
    if not body:
        return messages
    content = spelling_of(path, start["status"])(orjson.loads(body))
    if path == "/v3.1/send" and "Messages" in content:
        start["status"] = 200
    packed = orjson.dumps(content)
    start["headers"] = [(b"content-type", b"application/json"), (b"content-length", str(len(packed)).encode())]
    return [start, {"type": "http.response.body", "body": packed}]


def spelling_of(path: str, status: int) -> Callable[[Any], Any]:
    if status >= 400 and path.startswith("/v3/"):
        return error_in_info
    return (lambda value: as_text(value, RENAMED)) if path.startswith("/v4/sms") else as_text


def error_in_info(error: dict[str, Any]) -> dict[str, Any]:
    """The words, or the object that tells the properties, as a text in `ErrorInfo`."""
    info = error["ErrorInfo"]
    told = orjson.dumps(info).decode() if isinstance(info, dict) else error["ErrorMessage"]
    return {"StatusCode": str(error["StatusCode"]), "ErrorInfo": told, "ErrorMessage": ""}


def as_text(value: Any, names: dict[str, str] | None = None) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):
        return [as_text(part, names) for part in value] or None  # as a nil slice is written
    if isinstance(value, dict):
        pairs = [(name, part) for name, part in reversed(value.items()) if part != "" or name in KEPT_EMPTY]
        return {(names or {}).get(name, name): as_text(part, names) for name, part in pairs}
    return value
