"""What a value must look like: from the text of a variable to its type. Pure."""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from app import addresses, operator_events
from app.conditions import parse_condition
from app.signing_keys import parse_signing_key

EventType = Literal["sent", "open", "click", "bounce", "spam", "blocked", "unsub"]
EVENT_TYPES: tuple[EventType, ...] = ("sent", "open", "click", "bounce", "spam", "blocked", "unsub")
# What a sink may ask for: Mailjet's types, those of watched contacts, and those that Jethook tells about itself.
CONTACT_EVENTS = ("contact_created", "contact_updated")  # what a watch makes of contacts
HEARD: tuple[str, ...] = (*EVENT_TYPES, *CONTACT_EVENTS, *operator_events.SEVERAL, *operator_events.MEANINGS)
MIN_SECRET_KEY_CHARS = 16


def split_list(value: object) -> object:
    """`a,b` or `["a","b"]` -> a list. Empty parts are left out, so a trailing comma does no harm."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        try:
            return json.loads(text)
        except ValueError as error:
            raise ValueError(f"starts like a JSON list but is none: {error}") from None
    return [part.strip() for part in text.split(",") if part.strip()]


def json_object(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"must be a JSON object: {error}") from None


def by_event_type(value: object) -> object:
    """One number for every type, or a JSON object with one for each."""
    try:
        return dict.fromkeys(EVENT_TYPES, float(value)) if isinstance(value, str | int | float) else value
    except ValueError:
        return json_object(value)


def _http_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:  # its text repeats a part of the URL, which can be a piece of a password
        raise ValueError("is not a URL; special characters in a user or password are written as %XX") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL that starts with http:// or https:// and names a host")
    if any(c.isspace() or ord(c) < 32 for c in value):
        raise ValueError("must not hold white space")
    return value


def check_base_url(value: str) -> str:
    parts = urlsplit(_http_url(value))
    if parts.query or parts.fragment:
        raise ValueError("must have no query and no fragment")
    return value.rstrip("/")


def check_public_url(value: str) -> str:
    if "@" in urlsplit(check_base_url(value)).netloc:
        raise ValueError("must have no user and password: the callback password is added by the service")
    return value.rstrip("/")


def check_instance(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", value):
        raise ValueError("may hold letters, digits, '.', '_' and '-' (63 at most)")
    return value


def check_database_url(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    if not url.startswith(("sqlite:///", "postgresql://", "postgres://", "postgresql+psycopg://")):
        raise ValueError("must start with sqlite:/// or postgresql://")
    return value


# What a sink's own headers may not say: our words, and how the request is framed.
OUR_HEADERS = frozenset({"content-type", "user-agent", "idempotency-key", "content-length", "transfer-encoding"})
OUR_PREFIXES = ("webhook-", "x-jethook-")


def check_header_names(headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
    for name, value in headers.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise ValueError("one of the keys is no header name")  # not repeated: it may be a value gone astray
        if any(c in value.get_secret_value() for c in "\r\n\0"):
            raise ValueError(f"the value of {name!r} holds a line break")
        if name.lower() in OUR_HEADERS or name.lower().startswith(OUR_PREFIXES):
            raise ValueError(f"{name.lower()!r} is set by Jethook itself")
    return headers


def _standard_webhooks_secret(value: SecretStr) -> SecretStr:
    parse_signing_key(value.get_secret_value())
    return value


def check_proxy_url(value: str) -> str:
    parts = urlsplit(_http_url(value))
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("must have no path, query and fragment")
    try:
        unquote(parts.netloc, errors="strict").encode("latin-1")  # what HTTP Basic towards a proxy can carry
    except UnicodeError:
        raise ValueError("may hold Latin-1 characters only in its user and password") from None
    return value


def check_token_url(value: str) -> str:
    parts = urlsplit(_http_url(value))
    if "@" in parts.netloc or parts.fragment:
        raise ValueError(
            "must have no user, password and fragment; OAUTH_CLIENT_ID and OAUTH_CLIENT_SECRET are for that"
        )
    return value


def check_long_enough(value: SecretStr | None) -> SecretStr | None:
    if value is not None and len(value.get_secret_value()) < MIN_SECRET_KEY_CHARS:
        raise ValueError(f"must have at least {MIN_SECRET_KEY_CHARS} characters")
    return value


def check_networks(values: tuple[str, ...]) -> tuple[str, ...]:
    faults: list[str] = []
    for number, value in enumerate(values, 1):
        try:
            addresses.parse_network(value)
        except ValueError as error:
            faults.append(f"entry {number} {error}")
    if faults:
        raise ValueError("; ".join(faults))
    return values


def check_allowable(values: tuple[str, ...]) -> tuple[str, ...]:
    for number, value in enumerate(values, 1):
        if addresses.is_always_refused(addresses.parse_network(value)):
            raise ValueError(f"entry {number} is link-local or the like, which no setting opens")
    return values


def check_condition(value: str | None) -> str | None:
    if value is not None:
        parse_condition(value)
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


def check_some(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("must name at least one")
    return tuple(dict.fromkeys(values))


def check_not_empty(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().strip():
        raise ValueError("must not be empty")  # an empty key would open the door to everybody
    return value


# Ten years: more is a slip of the keyboard, and the sum of now and it would not fit into a date.
TEN_YEARS_SECONDS = 315_360_000
Seconds = Annotated[float, AfterValidator(_finite), Field(gt=0, le=TEN_YEARS_SECONDS)]
SecondsOrNone = Annotated[float, AfterValidator(_finite), Field(ge=0, le=TEN_YEARS_SECONDS)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
Networks = Annotated[tuple[str, ...], BeforeValidator(split_list), AfterValidator(check_networks)]
MailjetId = Annotated[str, Field(pattern=r"^[0-9]{1,19}$")]
Names = Annotated[tuple[str, ...], BeforeValidator(split_list)]
Secrets = Annotated[tuple[Annotated[SecretStr, AfterValidator(check_not_empty)], ...], BeforeValidator(split_list)]
SigningSecret = Annotated[SecretStr, AfterValidator(_standard_webhooks_secret)]
