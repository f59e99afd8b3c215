"""Every error a caller can meet, and the one shape they all have: problem+json (RFC 9457).

`code` is a closed list and part of the API; the sentences are not. A `Problem` is raised by a route or a service; the
handlers of `app.http` turn it, and whatever else goes wrong, into that shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import orjson

PROBLEM_CONTENT_TYPE = "application/problem+json"


class JethookError(Exception):
    """The root of our own errors; its text can be shown to a person and holds no secret."""


class SettingsFault(JethookError):
    """The settings do not fit: every fault found, each naming its variable. Exit code 2."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


class DatabaseFault(JethookError):
    """The database cannot be opened or is not ready; the text names `JETHOOK_DATABASE_URL`."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One field of a request that does not fit; `pointer` is a JSON pointer or a query parameter's name."""

    pointer: str
    message: str
    code: str


class AppError(JethookError):
    """An error with a place in the REST API."""

    status_code: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Something failed on our side"

    def __init__(
        self, detail: str, *, errors: Sequence[FieldError] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})


class Unauthorized(AppError):
    status_code, code, title = 401, "unauthorized", "Credentials are missing or wrong"


class Forbidden(AppError):
    status_code, code, title = 403, "forbidden", "This key may not do that"


class NotFound(AppError):
    status_code, code, title = 404, "not_found", "There is nothing here"


class EventNotFound(NotFound):
    code, title = "event_not_found", "No such event"


class MessageNotFound(NotFound):
    code, title = "message_not_found", "No such message"


class DeliveryNotFound(NotFound):
    code, title = "delivery_not_found", "No such delivery"


class SinkNotFound(NotFound):
    code, title = "sink_not_found", "No such sink"


class WebhookNotFound(NotFound):
    code, title = "webhook_not_found", "No such webhook"


class QuarantineNotFound(NotFound):
    code, title = "quarantine_not_found", "No such quarantine entry"


class ReplayNotFound(NotFound):
    code, title = "replay_not_found", "No such replay"


class BackfillNotFound(NotFound):
    code, title = "backfill_not_found", "No such backfill"


class ErasureNotFound(NotFound):
    code, title = "erasure_not_found", "No such erasure"


class MethodNotAllowed(AppError):
    status_code, code, title = 405, "method_not_allowed", "This address does not answer that method"


class Conflict(AppError):
    status_code, code, title = 409, "conflict", "The state does not allow that"


class BadRequest(AppError):
    status_code, code, title = 400, "bad_request", "The request cannot be read"


class BadCursor(BadRequest):
    code, title = "bad_cursor", "The cursor does not belong to this list"


class Invalid(AppError):
    status_code, code, title = 422, "validation_failed", "A field does not fit"


class BodyTooLarge(AppError):
    status_code, code, title = 413, "body_too_large", "The body is too large"


class Unavailable(AppError):
    """Our database or our own state does not let us answer now. Always with `Retry-After`."""

    status_code, code, title = 503, "unavailable", "Try again later"

    def __init__(self, detail: str, *, retry_after_seconds: int = 5, closes: bool = False) -> None:
        """`closes` the connection: what follows on it cannot be read."""
        headers = {"retry-after": str(retry_after_seconds)}
        super().__init__(detail, headers=headers | ({"connection": "close"} if closes else {}))


class MailjetUnavailable(AppError):
    status_code, code, title = 502, "mailjet_unavailable", "Mailjet did not answer as it should"


def problem_body(error: AppError, *, instance: str, request_id: str) -> bytes:
    body: dict[str, object] = {
        "type": f"about:blank#{error.code}",
        "title": error.title,
        "status": error.status_code,
        "detail": error.detail,
        "instance": instance,
        "code": error.code,
        "request_id": request_id,
    }
    if error.errors or error.status_code == 422:
        body["errors"] = [{"pointer": e.pointer, "message": e.message, "code": e.code} for e in error.errors]
    return orjson.dumps(body)
