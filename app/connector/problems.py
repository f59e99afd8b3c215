"""What a caller of the connector can meet: Mailjet's errors as problems of ours. Pure.

Mailjet's 401 is about our key and not the caller's, so it is a 502 that names the setting. What Mailjet cannot read of
a request is a 422 with pointers in our names, where they can be told.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from app.errors import AppError, Conflict, FieldError, Invalid, MailjetUnavailable, NotFound
from app.mailjet.errors import (
    MailjetCredentialsRefused,
    MailjetDuplicate,
    MailjetError,
    MailjetNotFound,
    MailjetPropertyReadOnly,
    MailjetRateLimited,
    MailjetRefused,
    MailjetUnreachable,
)

RETRY_SECONDS = 30  # Mailjet's documents promise no Retry-After, and its limits are by the minute
UNKNOWN_OUTCOME = "; if it was to change something, Mailjet may have done so: look before you repeat it"


class ConnectionNotFound(NotFound):
    code, title = "connection_not_found", "No such connection"


class ContactNotFound(NotFound):
    code, title = "contact_not_found", "No such contact"


class ListNotFound(NotFound):
    code, title = "list_not_found", "No such contact list"


class JobNotFound(NotFound):
    code, title = "job_not_found", "No such job"


class CampaignNotFound(NotFound):
    code, title = "campaign_not_found", "No such campaign"


class DraftNotFound(NotFound):
    code, title = "draft_not_found", "No such draft campaign"


class ConnectionIncomplete(Conflict):
    """The connection has no keys, or no token for SMS; the text names the setting."""

    code, title = "connection_incomplete", "The connection lacks credentials"


class AlreadyExists(Conflict):
    code, title = "already_exists", "It exists already"


class InFlight(Conflict):
    code, title = "request_in_flight", "A request with this Idempotency-Key is being handled"


class KeyReused(Invalid):
    code, title = "idempotency_key_reused", "This Idempotency-Key came with another request"


class MailjetUnauthorized(MailjetUnavailable):
    code, title = "mailjet_unauthorized", "Mailjet refuses the credentials of the connection"


class MailjetForbids(MailjetUnavailable):
    code, title = "mailjet_forbidden", "Mailjet does not let the connection do that"


class MailjetTimeout(AppError):
    status_code, code, title = 504, "mailjet_timeout", "Mailjet did not answer in time"


class MailjetBusy(AppError):
    """Mailjet's rate limit. Always with `Retry-After`."""

    status_code, code, title = 503, "mailjet_rate_limited", "Mailjet asks for a pause"


def problem_of(
    error: MailjetError,
    *,
    missing: type[NotFound] = NotFound,
    names: Mapping[str, str] | None = None,
    unique: str = "",
) -> AppError:
    """The problem to answer with.

    `missing` is what a 404 of Mailjet's means here, `names` our pointer for each property of Mailjet's, `unique` the
    pointer of the field that Mailjet wants to be the only one of its value.
    """
    doubt = UNKNOWN_OUTCOME if error.ambiguous else ""
    match error:
        case MailjetNotFound():
            return missing(f"{error.told.message or 'Object not found'} ({missing.title.lower()} at Mailjet)")
        case MailjetDuplicate():
            fault = FieldError(unique, error.told.message or "it exists already", "already_exists")
            return AlreadyExists(str(error), errors=[fault] if unique else [])
        case MailjetCredentialsRefused():
            return MailjetUnauthorized(str(error))
        case MailjetRateLimited():
            wait = math.ceil(error.retry_after_seconds or RETRY_SECONDS)
            return MailjetBusy(str(error), headers={"retry-after": str(max(1, wait))})
        case MailjetUnreachable(timed_out=True):
            return MailjetTimeout(str(error) + doubt)
        case MailjetPropertyReadOnly():
            return Invalid(str(error), errors=field_errors(error, names or {}))
        case MailjetRefused(status=400 | 409 | 413 | 422):
            return Invalid(str(error), errors=field_errors(error, names or {}))
        case MailjetRefused(status=403):
            return MailjetForbids(str(error))
        case _:
            return MailjetUnavailable(str(error) + doubt)


def field_errors(error: MailjetError, names: Mapping[str, str]) -> Sequence[FieldError]:
    """The fields that Mailjet means, by our pointers; one without a pointer where it cannot be told."""
    told = error.told
    message = told.message or "Mailjet refuses it"
    code = told.code or "mailjet_refused"
    pointers = [pointer_of(name, names) for name in (*told.related, *_named_in(message))]
    if properties := told.info.get("Properties"):
        pairs = properties if isinstance(properties, list) else [properties]
        found = [(str(name), str(why)) for pair in pairs if isinstance(pair, dict) for name, why in pair.items()]
        return [FieldError(f"/properties/{_escaped(name)}", why, "property_not_defined") for name, why in found]
    if match := re.search(r'[Ii]nvalid key name: "([^"]*)"', message):
        return [FieldError(f"/properties/{_escaped(match[1])}", message, "property_not_defined")]
    known = list(dict.fromkeys(pointer for pointer in pointers if pointer))
    return [FieldError(pointer, message, code) for pointer in known] or [FieldError("", message, code)]


def pointer_of(name: str, names: Mapping[str, str]) -> str:
    """`To[0].Email` -> `/to/0/email`; empty for a property that none of ours stands for."""
    parts = re.findall(r"[A-Za-z-]+|\d+", name)
    if not parts:
        return ""
    words = [part if part.isdigit() else names.get(part, "") for part in parts]
    return "/" + "/".join(words) if all(words) else ""


def _named_in(message: str) -> list[str]:
    words = r'(?:property|filter|field|value for(?! property)|parameter)\s+"?([A-Za-z-]+)"?'
    return re.findall(words, message, re.IGNORECASE)


def _escaped(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")
