"""Every knob of the service: read from the environment once, frozen, passed in.

Names carry their unit. Nested names use two underscores (`JETHOOK_SINKS__CRM__URL`), lists are comma separated or JSON,
each secret has a `…_FILE` twin. `load_settings` reports all faults together, each by the variable's name, because a
person who mends a container's environment at night should have to start it once.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_origin
from urllib.parse import unquote, urlsplit

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from app import addresses, operator_events, tls
from app.addresses import AddressRules
from app.conditions import parse_condition
from app.errors import SettingsFault
from app.signing_keys import parse_signing_key

PREFIX = "JETHOOK_"
EventType = Literal["sent", "open", "click", "bounce", "spam", "blocked", "unsub"]
EVENT_TYPES: tuple[EventType, ...] = ("sent", "open", "click", "bounce", "spam", "blocked", "unsub")
# What a sink may ask for: Mailjet's types, and those that Jethook tells about itself.
HEARD: tuple[str, ...] = (*EVENT_TYPES, operator_events.ALL, *operator_events.MEANINGS)
NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*\Z")
LONGEST_NAME = 63
MIN_SECRET_KEY_CHARS = 16
# Mailjet's own SDKs use these two names; they are the connection `default`.
ALIASES = {
    "MJ_APIKEY_PUBLIC": ("connections", "default", "api_key"),
    "MJ_APIKEY_PRIVATE": ("connections", "default", "secret_key"),
}


def _split_list(value: object) -> object:
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


def _json_object(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"must be a JSON object: {error}") from None


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


def _base_url(value: str) -> str:
    parts = urlsplit(_http_url(value))
    if parts.query or parts.fragment:
        raise ValueError("must have no query and no fragment")
    return value.rstrip("/")


def _public_url(value: str) -> str:
    if "@" in urlsplit(_base_url(value)).netloc:
        raise ValueError("must have no user and password: the callback password is added by the service")
    return value.rstrip("/")


def _instance(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", value):
        raise ValueError("may hold letters, digits, '.', '_' and '-' (63 at most)")
    return value


def _database_url(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    if not url.startswith(("sqlite:///", "postgresql://", "postgres://", "postgresql+psycopg://")):
        raise ValueError("must start with sqlite:/// or postgresql://")
    return value


def _header_names(headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
    for name, value in headers.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise ValueError("one of the keys is no header name")  # not repeated: it may be a value gone astray
        if any(c in value.get_secret_value() for c in "\r\n\0"):
            raise ValueError(f"the value of {name!r} holds a line break")
    return headers


def _standard_webhooks_secret(value: SecretStr) -> SecretStr:
    parse_signing_key(value.get_secret_value())
    return value


def _proxy_url(value: str) -> str:
    parts = urlsplit(_http_url(value))
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("must have no path, query and fragment")
    try:
        unquote(parts.netloc, errors="strict").encode("latin-1")  # what HTTP Basic towards a proxy can carry
    except UnicodeError:
        raise ValueError("may hold Latin-1 characters only in its user and password") from None
    return value


def _token_url(value: str) -> str:
    parts = urlsplit(_http_url(value))
    if "@" in parts.netloc or parts.fragment:
        raise ValueError(
            "must have no user, password and fragment; OAUTH_CLIENT_ID and OAUTH_CLIENT_SECRET are for that"
        )
    return value


def _long_enough(value: SecretStr | None) -> SecretStr | None:
    if value is not None and len(value.get_secret_value()) < MIN_SECRET_KEY_CHARS:
        raise ValueError(f"must have at least {MIN_SECRET_KEY_CHARS} characters")
    return value


def _networks(values: tuple[str, ...]) -> tuple[str, ...]:
    faults: list[str] = []
    for number, value in enumerate(values, 1):
        try:
            addresses.parse_network(value)
        except ValueError as error:
            faults.append(f"entry {number} {error}")
    if faults:
        raise ValueError("; ".join(faults))
    return values


def _allowable(values: tuple[str, ...]) -> tuple[str, ...]:
    for number, value in enumerate(values, 1):
        if addresses.is_always_refused(addresses.parse_network(value)):
            raise ValueError(f"entry {number} is link-local or the like, which no setting opens")
    return values


def _condition(value: str | None) -> str | None:
    if value is not None:
        parse_condition(value)
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


def _some(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("must name at least one")
    return tuple(dict.fromkeys(values))


def _not_empty(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().strip():
        raise ValueError("must not be empty")  # an empty key would open the door to everybody
    return value


Seconds = Annotated[float, AfterValidator(_finite), Field(gt=0)]
SecondsOrNone = Annotated[float, AfterValidator(_finite), Field(ge=0)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
Networks = Annotated[tuple[str, ...], BeforeValidator(_split_list), AfterValidator(_networks)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split_list)]
Secrets = Annotated[tuple[Annotated[SecretStr, AfterValidator(_not_empty)], ...], BeforeValidator(_split_list)]
SigningSecret = Annotated[SecretStr, AfterValidator(_standard_webhooks_secret)]
FROM_FILE: dict[str, Any] = {"from_file": True}  # no secret by its type, but often kept with one: has a `_FILE` twin


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ConnectionSettings(_Group):
    """One Mailjet API key."""

    api_key: str | None = Field(None, description="Mailjet API key (public part)", json_schema_extra=FROM_FILE)
    secret_key: SecretStr | None = Field(None, description="Mailjet secret key")
    base_url: Annotated[str, AfterValidator(_base_url)] = Field(
        "https://api.mailjet.com", description="`https://api.us.mailjet.com` for US accounts"
    )

    @property
    def has_keys(self) -> bool:
        return bool(self.api_key and self.secret_key and self.secret_key.get_secret_value())


class WebhookSettings(_Group):
    """A name that watches event types on one connection."""

    connection: str = Field("default", description="the connection whose events it watches")
    events: Annotated[tuple[EventType, ...], BeforeValidator(_split_list), AfterValidator(_some)] = Field(
        EVENT_TYPES, description="event types to register"
    )
    on_conflict: Literal["keep", "replace"] = Field(
        "keep",
        description="a foreign callback holds the slot: `keep` it and report, or `replace` it and remember it",
    )
    backup_url: Annotated[str | None, AfterValidator(lambda v: v and _public_url(v))] = Field(
        None, description="base URL of a standby; registered in Mailjet's backup slot"
    )
    passwords: Secrets = Field(
        (), description="callback passwords; the first is registered, all are accepted; unset: derived"
    )


class SinkSettings(_Group):
    """A downstream HTTP receiver."""

    url: HttpUrl = Field(description="where events are posted", json_schema_extra=FROM_FILE)
    webhooks: Names = Field((), description="webhooks it hears of; unset: all")
    events: Names = Field(
        (),
        description="event types it hears of, also `jethook.*` or single operator types; unset: all of Mailjet's",
    )
    filter: Annotated[str | None, AfterValidator(_condition)] = Field(
        None, description="further condition on the event's fields (JSON, see Filters)"
    )
    ordered_by: Literal["message", "recipient"] | None = Field(
        None,
        description="`message` or `recipient`: the events of one arrive one after the other, by time",
    )
    envelope: Literal["mailjet", "jethook", "cloudevents"] = Field(
        "mailjet", description="shape of the body: `mailjet`, `jethook` or `cloudevents`"
    )
    secrets: Annotated[tuple[SigningSecret, ...], BeforeValidator(_split_list)] = Field(
        (),
        description="Standard Webhooks secrets (`whsec_…`, `whsk_…` for Ed25519); every one signs, so they can rotate",
    )
    headers: Annotated[dict[str, SecretStr], BeforeValidator(_json_object), AfterValidator(_header_names)] = Field(
        {}, description="JSON object of extra request headers"
    )
    ca_file: str | None = Field(
        None, description="PEM file of the authorities to trust in place of the system's, also for an https:// proxy"
    )
    client_cert_file: str | None = Field(None, description="PEM file of the client certificate and its chain")
    client_key_file: str | None = Field(None, description="PEM file of its key, without a passphrase")
    proxy: Annotated[str | None, AfterValidator(lambda v: v and _proxy_url(v))] = Field(
        None, description="http:// or https:// proxy, also towards the token endpoint", json_schema_extra=FROM_FILE
    )
    oauth_token_url: Annotated[str | None, AfterValidator(lambda v: v and _token_url(v))] = Field(
        None, description="token endpoint; set: a bearer token by OAuth2 client credentials goes with each request"
    )
    oauth_client_id: str | None = Field(None, description="client at the token endpoint", json_schema_extra=FROM_FILE)
    oauth_client_secret: Annotated[SecretStr, AfterValidator(_not_empty)] | None = Field(None, description="its secret")
    oauth_scope: str | None = Field(None, description="scopes to ask for, separated by spaces")
    oauth_audience: str | None = Field(None, description="`audience` to ask for, where the endpoint wants one")
    oauth_auth_method: Literal["basic", "post"] = Field(
        "basic", description="how the client authenticates: HTTP `basic`, or `post` in the form"
    )
    batch_size: int = Field(1, ge=1, le=1000, description="above 1: arrays of up to that many events")
    batch_linger_seconds: SecondsOrNone = Field(0.5, description="longest wait for a batch to fill")
    concurrency: int = Field(16, ge=1, le=1000, description="requests under way at once")
    rate_per_second: Seconds | None = Field(None, description="requests a second of one replica; unset: no limit")
    connect_timeout_seconds: Seconds = Field(5.0, description="wait for a connection")
    timeout_seconds: Seconds = Field(15.0, description="wait for the whole answer, body included")
    retry_schedule_seconds: Annotated[tuple[SecondsOrNone, ...], BeforeValidator(_split_list)] = Field(
        (5, 30, 120, 600, 1800, 3600, 10800, 21600, 43200, 86400, 86400),
        description="wait before retry 1, 2, …; up to a fifth is added as jitter; then the delivery is dead",
    )
    min_backoff_seconds: SecondsOrNone = Field(
        60.0, description="least wait after a timeout or a 429; a shorter schedule is lengthened to it"
    )
    client_error_tries: int = Field(
        3, ge=1, description="tries of a delivery that the sink answers with a 4xx other than 408, 425 and 429"
    )
    breaker_failures: int = Field(10, ge=1, description="failures in a row that open the breaker")
    breaker_cooldown_seconds: Seconds = Field(
        30.0, description="wait before an open breaker probes with one delivery; doubles up to 10 times itself"
    )


class Settings(BaseModel):
    """The whole configuration; `load_settings` builds it from an environment."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    public_url: Annotated[str | None, AfterValidator(lambda v: v and _public_url(v))] = Field(
        None, description="where Mailjet reaches us; unset: registration is off"
    )
    database_url: Annotated[SecretStr, AfterValidator(_database_url)] = Field(
        SecretStr("sqlite:///jethook.db"), description="`sqlite:///PATH` or `postgresql://…`"
    )
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; the image sets `0.0.0.0`")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    secret_key: Annotated[SecretStr | None, AfterValidator(_long_enough)] = Field(
        None,
        description="callback passwords are derived from it; unset: made at first start, kept in the database",
    )
    api_keys: Secrets = Field((), description="bearer keys for REST; none at all: one is made and printed at start")
    read_api_keys: Secrets = Field((), description="bearer keys that may only read")
    instance: Annotated[str, AfterValidator(_instance)] = Field(
        "jethook", description="marks our callbacks; two installations on one Mailjet key need two names"
    )
    role: Literal["all", "receive", "deliver"] = Field(
        "all", description="`all`, `receive` (HTTP in and REST only), `deliver` (what runs in the background)"
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`json`, `console`, or `auto`: console on a terminal, JSON elsewhere"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe line shown: `debug`, `info`, `warning` or `error`"
    )
    max_body_bytes: int = Field(10_485_760, ge=1024, description="larger callback bodies get 413")
    register_every_seconds: SecondsOrNone = Field(
        300.0, description="how often callbacks are checked; 0: at start only"
    )
    sink_deny_cidrs: Networks = Field(
        (),
        description="networks that no sink, token endpoint or proxy may be in, e.g. `10.0.0.0/8,fd00::/8`; link-local,"
        " multicast and cloud metadata addresses are always refused",
    )
    sink_allow_cidrs: Annotated[Networks, AfterValidator(_allowable)] = Field(
        (), description="exceptions to these; with `0.0.0.0/0,::/0` denied, the only networks that are allowed"
    )
    connections: dict[str, ConnectionSettings] = Field({}, description="Mailjet API keys by name")
    webhooks: dict[str, WebhookSettings] = Field({}, description="webhooks by name; none: one named `default`")
    sinks: dict[str, SinkSettings] = Field({}, description="sinks by name")

    @model_validator(mode="after")
    def _names_fit(self) -> Settings:
        faults = _name_faults(
            self.connections,
            {name: webhook.connection for name, webhook in self.webhooks.items()},
            {name: sink.webhooks for name, sink in self.sinks.items()},
            {name: sink.events for name, sink in self.sinks.items()},
        )
        if told := "\n".join(faults):
            raise ValueError(told)
        return self

    @property
    def address_rules(self) -> AddressRules:
        return _rules(self.sink_deny_cidrs, self.sink_allow_cidrs)

    @property
    def effective_webhooks(self) -> dict[str, WebhookSettings]:
        """The configured webhooks in alphabetical order; none configured: one named `default`."""
        return dict(sorted(self.webhooks.items())) or {"default": WebhookSettings()}

    @property
    def effective_connections(self) -> dict[str, ConnectionSettings]:
        """The configured connections, and `default` without keys where a webhook needs it."""
        connections = dict(self.connections)
        if any(w.connection == "default" for w in self.effective_webhooks.values()):
            connections.setdefault("default", ConnectionSettings())
        return dict(sorted(connections.items()))


class SettingRow(BaseModel):
    """One row of the settings reference."""

    variable: str
    default: str
    description: str
    secret: bool
    """Has a `…_FILE` twin."""


def load_settings(environ: Mapping[str, str] | None = None, *, env_file: Path | None = Path(".env")) -> Settings:
    """Settings from the environment over the `.env` file.

    Raises SettingsFault with every fault: unknown variables (and the nearest known name), values that do not fit,
    unreadable `…_FILE` twins. No fault repeats a value, since a value may be a secret.
    """
    faults: list[str] = []
    tree: dict[str, Any] = {}
    variables: dict[tuple[str, ...], str] = {}  # place in the tree -> the variable that filled it
    merged = _merged(_dotenv(env_file, faults), os.environ if environ is None else environ)
    for path, value, variable in _assignments(merged, faults):
        if path in variables and variable.startswith("MJ_"):
            continue  # JETHOOK_CONNECTIONS__DEFAULT__… wins, whichever came first
        variables[path] = variable
        _put(tree, path, value)
    faults += _way_faults(tree.get("sinks", {}))
    faults += _address_faults(tree)
    try:
        settings = Settings(**tree)
    except ValidationError as error:
        found = [*faults, *_faults_of(error, variables), *_name_faults(*_names_in(tree))]
        raise SettingsFault(list(dict.fromkeys(found))) from None
    if faults:
        raise SettingsFault(faults)
    return settings


def effective_rows(settings: Settings) -> list[tuple[str, str]]:
    """(variable, value) of every setting in force, secrets masked, URLs without their passwords."""
    rows: list[tuple[str, str]] = []
    values: Settings = settings.model_copy(
        update={"connections": settings.effective_connections, "webhooks": settings.effective_webhooks}
    )
    for name in Settings.model_fields:
        value = getattr(values, name)
        if isinstance(value, dict):
            for key, group in sorted(value.items()):
                prefix = f"{PREFIX}{name.upper()}__{key.upper()}__"
                rows += [(prefix + sub.upper(), _shown(getattr(group, sub))) for sub in type(group).model_fields]
        else:
            shown = mask_url(value.get_secret_value()) if name == "database_url" else _shown(value)
            rows.append((PREFIX + name.upper(), shown))
    return rows


def reference_rows() -> list[SettingRow]:
    """The table of all settings, made from the code; the README repeats it and a test holds the two together."""
    rows = list(_reference_of(Settings, PREFIX))
    for alias, path in ALIASES.items():
        target = PREFIX + "__".join(part.upper() for part in path)
        rows.append(
            SettingRow(variable=alias, default="unset", description=f"the same as `{target}`, which wins", secret=True)
        )
    return rows


def mask_url(url: str) -> str:
    """The URL without its password and without the values of its query, which may hold tokens.

    A user without a password is masked as well: that is how a token is often given.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(not a URL)"
    if "://" not in url:
        return "(not a URL)" if "@" in url or "?" in url else url
    credentials, at, host = parts.netloc.rpartition("@")
    user, colon, _ = credentials.partition(":")
    shown = (f"{user}:***" if colon else "***") + at if at else ""
    query = "&".join(re.sub(r"(=|^[^=]*$).*", lambda m: "=***" if m[1] == "=" else "***", part)
                     for part in parts.query.split("&"))  # fmt: skip
    # Put together by hand: `geturl` drops slashes of `sqlite:////data/x.db`.
    return (
        f"{parts.scheme}://{shown}{host}{parts.path}"
        + (f"?{query}" if parts.query else "")
        + ("#***" if parts.fragment else "")
    )


# --- reading ---------------------------------------------------------------------------------------------------------


def _dotenv(env_file: Path | None, faults: list[str]) -> dict[str, str]:
    if env_file is None or not env_file.is_file():
        return {}
    try:
        return {key: value for key, value in dotenv_values(env_file).items() if value is not None}
    except (OSError, UnicodeDecodeError) as error:
        faults.append(f"{env_file}: cannot be read: {_reason(error)}")
        return {}


def _merged(from_file: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """What is ours of both, by names in capitals. The environment wins, also as a `_FILE` twin over the plain name."""
    above, below = _ours(environ), _ours(from_file)
    return {name: value for name, value in below.items() if _twin(name) not in above} | above


def _ours(environ: Mapping[str, str]) -> dict[str, str]:
    named = {name.upper(): value for name, value in environ.items()}
    return {
        name: value for name, value in named.items() if name.startswith(PREFIX) or name.removesuffix("_FILE") in ALIASES
    }


def _twin(name: str) -> str:
    return name.removesuffix("_FILE") if name.endswith("_FILE") else f"{name}_FILE"


def _assignments(environ: Mapping[str, str], faults: list[str]) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """(path in the settings tree, value, variable) of each variable; `_FILE` twins are read. Blank means not set."""
    for name, value in environ.items():
        path = _path_of(name)
        if path is not None:
            if value.strip():
                yield path, value, name
            continue
        path = _path_of(_twin(name)) if name.endswith("_FILE") else None
        if path is None or not _has_file_twin(path):
            faults.append(_unknown(name))
        elif not value.strip():
            continue
        elif environ.get(_twin(name), "").strip():
            faults.append(f"{name}: {_twin(name)} is set too; set one of them")
        elif (text := _read_secret(name, value, faults)) is not None:
            yield path, text, name


def _path_of(name: str) -> tuple[str, ...] | None:
    """The place of a variable in the tree, None for a name that is no setting."""
    if name in ALIASES:
        return ALIASES[name]
    if not name.startswith(PREFIX):
        return None
    path = tuple(name.removeprefix(PREFIX).lower().split("__"))
    field = Settings.model_fields.get(path[0])
    if field is None:
        return None
    group = _group_of(field)
    if group is None:
        return path if len(path) == 1 else None
    return path if len(path) == 3 and path[1] and path[2] in group.model_fields else None


def _put(tree: dict[str, Any], path: tuple[str, ...], value: str) -> None:
    node = tree
    for part in path[:-1]:
        node = node.setdefault(part, {})
    node[path[-1]] = value


def _read_secret(variable: str, file: str, faults: list[str]) -> str | None:
    """The text of the file without the line break at its end. The file's name is never told: where somebody put the
    secret itself there, it is the secret."""
    try:
        text = Path(file).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        faults.append(f"{variable}: cannot read the file it names: {_reason(error)}")
        return None
    if not text.strip():
        faults.append(f"{variable}: the file it names is empty")
        return None
    return text


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    return getattr(error, "strerror", None) or type(error).__name__


def _unknown(name: str) -> str:
    near = _nearest(name)
    return f"{name}: no such setting" + (f"; did you mean {near}?" if near else "")


def _nearest(name: str) -> str | None:
    """The known name most like this one."""
    parts = name.removeprefix(PREFIX).split("__")
    if len(parts) == 3:  # the name in the middle is the user's own: compare what is around it
        groups = {field: group for field, info in Settings.model_fields.items() if (group := _group_of(info))}
        if found := _closest(parts[0].lower(), list(groups)):
            last = _closest(parts[2].lower(), list(groups[found].model_fields))
            return f"{PREFIX}{found.upper()}__{parts[1]}__{last.upper()}" if last else None
    # Without the prefix, which would make everything look alike.
    known = [row.variable.removeprefix(PREFIX) for row in reference_rows() if row.variable.startswith(PREFIX)]
    found = _closest(name.removeprefix(PREFIX), known)
    return found and PREFIX + found


def _closest(word: str, known: Sequence[str]) -> str | None:
    """A name that goes on where the word ends is nearer than one of the same length: units are what people forget."""
    longer = [candidate for candidate in known if candidate.startswith(f"{word}_")]
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return min(longer, key=len) if longer else next(iter(near), None)


def _faults_of(error: ValidationError, variables: Mapping[tuple[str, ...], str]) -> Iterator[str]:
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        message = fault["msg"].removeprefix("Value error, ")
        names = [str(part) for part in fault["loc"] if not isinstance(part, int)]
        if not names:
            yield from message.split("\n")
            continue
        # A fault inside a union or a tuple ends with pydantic's own words: keep what is a variable.
        path = tuple(names[: 3 if _group_of(Settings.model_fields[names[0]]) else 1])
        variable = variables.get(path, PREFIX + "__".join(name.upper() for name in path))
        told = "is required" if fault["type"] == "missing" else f"{message[:1].lower()}{message[1:]}"
        yield f"{variable}: {told}"


_Lists = dict[str, list[str]]


def _names_in(tree: Mapping[str, Any]) -> tuple[Collection[str], dict[str, str], _Lists, _Lists]:
    """Which names an unchecked tree gives and uses, so that a fault elsewhere does not hide a name that is wrong."""
    webhooks = {name: group.get("connection", "default") for name, group in tree.get("webhooks", {}).items()}
    sinks = tree.get("sinks", {})
    used = {name: _words(group.get("webhooks", "")) for name, group in sinks.items()}
    heard = {name: _words(group.get("events", "")) for name, group in sinks.items()}
    return tree.get("connections", {}), webhooks, used, heard


def _words(value: object) -> list[str]:
    try:
        found = _split_list(value)
    except ValueError:
        return []
    return [word for word in found if isinstance(word, str)] if isinstance(found, list) else []


def _name_faults(
    connections: Collection[str], webhooks: Mapping[str, str], sinks: Mapping[str, Collection[str]],
    heard: Mapping[str, Collection[str]],
) -> Iterator[str]:  # fmt: skip
    """Names that are none, and names used that are not configured. `webhooks` gives each one's connection, `sinks` the
    webhooks each one names, `heard` the event types."""
    for group, names in (("CONNECTIONS", connections), ("WEBHOOKS", webhooks), ("SINKS", sinks)):
        for name in names:
            if not NAME.match(name) or len(name) > LONGEST_NAME:
                yield (
                    f"{PREFIX}{group}__{name.upper()}: a name holds letters, digits and single underscores,"
                    f" {LONGEST_NAME} at most"
                )
    if operator_events.WEBHOOK in webhooks:
        told = f"{PREFIX}WEBHOOKS__{operator_events.WEBHOOK.upper()}"
        yield f"{told}: this name is kept for what Jethook tells about itself; choose another"
    for name, connection in webhooks.items():
        if connection not in connections and connection != "default":
            yield (
                f"{PREFIX}WEBHOOKS__{name.upper()}__CONNECTION: no connection {connection!r} is configured"
                f" (configured: {', '.join(sorted(connections)) or 'default'})"
            )
    for name, used in sinks.items():
        for webhook in used:
            if webhook not in (webhooks or ("default",)):
                yield (
                    f"{PREFIX}SINKS__{name.upper()}__WEBHOOKS: no webhook {webhook!r} is configured"
                    f" (configured: {', '.join(sorted(webhooks)) or 'default'})"
                )
    for name, words in heard.items():
        for word in words:
            if word not in HEARD:
                near = _closest(word, HEARD)
                yield f"{PREFIX}SINKS__{name.upper()}__EVENTS: no event type {word!r}" + (
                    f"; did you mean {near}?" if near else f" (known: {', '.join(HEARD)})"
                )


# --- how a sink is reached -------------------------------------------------------------------------------------------

_OAUTH_NEEDED = ("oauth_token_url", "oauth_client_id", "oauth_client_secret")


def _way_faults(sinks: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Files and combinations that do not fit, from the unchecked tree, so that a fault elsewhere does not hide them."""
    for name, sink in sinks.items():
        for setting, text in (*_tls_faults(sink), *_oauth_faults(sink)):
            yield f"{PREFIX}SINKS__{name.upper()}__{setting}: {text}"


def _address_faults(tree: Mapping[str, Any]) -> Iterator[str]:
    """Literal addresses that may not be connected to, from the unchecked tree; and an exception to nothing, whose
    author expects it to close the door."""
    deny, allow = tree.get("sink_deny_cidrs"), tree.get("sink_allow_cidrs")
    if allow and not deny:
        yield f"{addresses.ALLOW}: has no effect without {addresses.DENY}; 0.0.0.0/0,::/0 there denies all others"
    try:
        rules = _rules(*(_networks(tuple(cast("list[str]", _split_list(value or "")))) for value in (deny, allow)))
    except (ValueError, TypeError, AttributeError):  # told by the validator
        rules = AddressRules()
    for name, sink in tree.get("sinks", {}).items():
        for setting in ("url", "oauth_token_url", "proxy"):
            if reason := rules.refusal_of_url(str(sink.get(setting, ""))):
                yield f"{PREFIX}SINKS__{name.upper()}__{setting.upper()}: its address {reason}"


def _rules(deny: Iterable[str], allow: Iterable[str]) -> AddressRules:
    return AddressRules(*(tuple(addresses.parse_network(text) for text in texts) for texts in (deny, allow)))


def _tls_faults(sink: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(last part of the variable, sentence). Reads the files."""
    cert, key = sink.get("client_cert_file"), sink.get("client_key_file")
    for ca, cert_or_none, key_or_none in ((sink.get("ca_file"), None, None), (None, cert, key)):
        if ca or cert_or_none or key_or_none:
            try:
                tls.client_context(ca_file=ca, cert_file=cert_or_none, key_file=key_or_none)
            except tls.BadTlsFile as fault:
                yield fault.setting, str(fault)
    if cert and str(sink.get("url", "")).lower().startswith("http://"):
        yield tls.CERT_FILE, "needs a URL that starts with https://"


def _oauth_faults(sink: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    given = [name for name in sink if name.startswith("oauth_")]
    if not given:
        return
    for name in _OAUTH_NEEDED:
        if name not in sink:
            yield name.upper(), f"is required with {given[0].upper()}"
    if '"authorization"' in str(sink.get("headers", "")).lower() or "@" in _netloc(str(sink.get("url", ""))):
        yield "OAUTH_TOKEN_URL", "HEADERS or URL give credentials too; a request can carry one kind"


def _netloc(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


# --- the reference ---------------------------------------------------------------------------------------------------


def _group_of(field: FieldInfo) -> type[BaseModel] | None:
    if get_origin(field.annotation) is not dict:
        return None
    value = get_args(field.annotation)[1]
    return cast("type[BaseModel]", value) if issubclass(value, BaseModel) else None


def _reference_of(model: type[BaseModel], prefix: str) -> Iterable[SettingRow]:
    for name, field in model.model_fields.items():
        group = _group_of(field)
        if group is not None:
            yield from _reference_of(group, f"{prefix}{name.upper()}__{{N}}__")
            continue
        default = "required" if field.is_required() else _shown(field.default, plain=True)
        yield SettingRow(
            variable=prefix + name.upper(),
            default=default,
            description=field.description or "",
            secret=_holds_secret(field),
        )


def _has_file_twin(path: tuple[str, ...]) -> bool:
    field = Settings.model_fields[path[0]]
    group = _group_of(field)
    return _holds_secret(group.model_fields[path[2]] if group else field)


def _holds_secret(field: FieldInfo) -> bool:
    return "SecretStr" in repr(field.annotation) or field.json_schema_extra is FROM_FILE


def _shown(value: object, *, plain: bool = False) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value() if plain else "***"
    if value is None or value in ((), {}):
        return "unset"
    if isinstance(value, tuple):
        return ",".join(_shown(part, plain=plain) for part in value)
    if isinstance(value, dict):
        return ",".join(f"{key}=***" for key in value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str) and "://" in value:
        return mask_url(value)
    return str(value)
