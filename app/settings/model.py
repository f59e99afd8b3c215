"""The settings themselves: every knob with its type, default and description; frozen."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from app.addresses import AddressRules
from app.settings.names import name_faults
from app.settings.values import (
    EVENT_TYPES,
    EventType,
    HttpUrl,
    MailjetId,
    Names,
    Networks,
    Seconds,
    SecondsOrNone,
    Secrets,
    SigningSecret,
    by_event_type,
    check_allowable,
    check_base_url,
    check_condition,
    check_database_url,
    check_header_names,
    check_instance,
    check_long_enough,
    check_not_empty,
    check_proxy_url,
    check_public_url,
    check_some,
    check_token_url,
    json_object,
    split_list,
)
from app.settings.ways import address_rules

FROM_FILE: dict[str, Any] = {"from_file": True}  # no secret by its type, but often kept with one: has a `_FILE` twin


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ConnectionSettings(_Group):
    """One Mailjet API key."""

    api_key: str | None = Field(None, description="Mailjet API key (public part)", json_schema_extra=FROM_FILE)
    secret_key: SecretStr | None = Field(None, description="Mailjet secret key")
    base_url: Annotated[str, AfterValidator(check_base_url)] = Field(
        "https://api.mailjet.com", description="`https://api.us.mailjet.com` for US accounts"
    )
    sms_token: Annotated[SecretStr, AfterValidator(check_not_empty)] | None = Field(
        None, description="bearer token of Mailjet's SMS API"
    )

    @property
    def has_keys(self) -> bool:
        return bool(self.api_key and self.secret_key and self.secret_key.get_secret_value())


class WebhookSettings(_Group):
    """A name that watches event types on one connection."""

    connection: str = Field("default", description="the connection whose events it watches")
    events: Annotated[tuple[EventType, ...], BeforeValidator(split_list), AfterValidator(check_some)] = Field(
        EVENT_TYPES, description="event types to register"
    )
    on_conflict: Literal["keep", "replace"] = Field(
        "keep",
        description="a foreign callback holds the slot: `keep` it and report, or `replace` it and remember it",
    )
    backup_url: Annotated[str | None, AfterValidator(lambda v: v and check_public_url(v))] = Field(
        None, description="base URL of a standby; registered in Mailjet's backup slot"
    )
    silent_after_seconds: Annotated[dict[EventType, SecondsOrNone], BeforeValidator(by_event_type)] = Field(
        {},
        description="time without an event that is told as silence: for every type, or by type as"
        ' `{"sent": 3600, "spam": 0}`; 0: never; unset: learned from the past weeks',
    )
    passwords: Secrets = Field(
        (), description="callback passwords; the first is registered, all are accepted; unset: derived"
    )

    def silent_after(self, event_type: str) -> float | None:
        """Seconds; 0: never; None: to be learned."""
        return next((seconds for name, seconds in self.silent_after_seconds.items() if name == event_type), None)


class WatchSettings(_Group):
    """Contacts at Mailjet that become events of a webhook name of their own."""

    contacts: Literal["created", "updated", "both"] = Field(
        description="`created`, `updated` or `both`: contacts become events `contact_created`, `contact_updated`"
    )
    connection: str = Field("default", description="the connection whose contacts it watches")
    campaign_id: MailjetId | None = Field(None, description="only contacts of this campaign")
    contact_list_id: MailjetId | None = Field(None, description="only contacts on this list")
    is_excluded: bool | None = Field(None, description="only contacts that are, or are not, excluded from campaigns")
    every_seconds: Annotated[Seconds, Field(ge=1)] = Field(300.0, description="wait between two looks")
    limit: int = Field(1000, ge=1, le=100_000, description="events of one look at most; the rest comes with the next")
    begin: Literal["now", "beginning"] = Field(
        "now", alias="from", description="`now`, or `beginning`: contacts that are there already are told as created"
    )


class SinkSettings(_Group):
    """A downstream HTTP receiver."""

    url: HttpUrl = Field(description="where events are posted", json_schema_extra=FROM_FILE)
    webhooks: Names = Field((), description="webhooks it hears of; unset: all")
    events: Names = Field(
        (),
        description="event types it hears of, also `jethook.*`, `suppression.*` or some of these; unset: all of"
        " Mailjet's",
    )
    filter: Annotated[str | None, AfterValidator(check_condition)] = Field(
        None, description="further condition on the event's fields (JSON, see Filters)"
    )
    ordered_by: Literal["message", "recipient"] | None = Field(
        None,
        description="`message` or `recipient`: the events of one arrive one after the other, by time",
    )
    envelope: Literal["mailjet", "jethook", "cloudevents"] = Field(
        "mailjet", description="shape of the body: `mailjet`, `jethook` or `cloudevents`"
    )
    secrets: Annotated[tuple[SigningSecret, ...], BeforeValidator(split_list)] = Field(
        (),
        description="Standard Webhooks secrets (`whsec_…`, `whsk_…` for Ed25519); every one signs, so they can rotate",
    )
    headers: Annotated[dict[str, SecretStr], BeforeValidator(json_object), AfterValidator(check_header_names)] = Field(
        {}, description="JSON object of extra request headers"
    )
    ca_file: str | None = Field(
        None, description="PEM file of the authorities to trust in place of the system's, also for an https:// proxy"
    )
    client_cert_file: str | None = Field(None, description="PEM file of the client certificate and its chain")
    client_key_file: str | None = Field(None, description="PEM file of its key, without a passphrase")
    proxy: Annotated[str | None, AfterValidator(lambda v: v and check_proxy_url(v))] = Field(
        None, description="http:// or https:// proxy, also towards the token endpoint", json_schema_extra=FROM_FILE
    )
    oauth_token_url: Annotated[str | None, AfterValidator(lambda v: v and check_token_url(v))] = Field(
        None, description="token endpoint; set: a bearer token by OAuth2 client credentials goes with each request"
    )
    oauth_client_id: str | None = Field(None, description="client at the token endpoint", json_schema_extra=FROM_FILE)
    oauth_client_secret: Annotated[SecretStr, AfterValidator(check_not_empty)] | None = Field(
        None, description="its secret"
    )
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
    retry_schedule_seconds: Annotated[tuple[SecondsOrNone, ...], BeforeValidator(split_list)] = Field(
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
    breaker_failure_rate: float = Field(
        0.8,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="share of the last minute's requests, of 20 and of twice `BREAKER_FAILURES` at least, above which"
        " failures open it too; 1: never",
    )
    breaker_cooldown_seconds: Seconds = Field(
        30.0, description="wait before an open breaker probes with one delivery; doubles up to 10 times itself"
    )


class Settings(BaseModel):
    """The whole configuration; `load_settings` builds it from an environment."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    public_url: Annotated[str | None, AfterValidator(lambda v: v and check_public_url(v))] = Field(
        None, description="where Mailjet reaches us; unset: registration is off"
    )
    database_url: Annotated[SecretStr, AfterValidator(check_database_url)] = Field(
        SecretStr("sqlite:///jethook.db"), description="`sqlite:///PATH` or `postgresql://…`"
    )
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; the image sets `0.0.0.0`")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    secret_key: Annotated[SecretStr | None, AfterValidator(check_long_enough)] = Field(
        None,
        description="callback passwords are derived from it; unset: made at first start, kept in the database",
    )
    api_keys: Secrets = Field((), description="bearer keys for REST; none at all: one is made and printed at start")
    read_api_keys: Secrets = Field((), description="bearer keys that may only read")
    send_api_keys: Secrets = Field(
        (),
        description="bearer keys that may send and change at Mailjet; unset: those of `JETHOOK_API_KEYS` may",
    )
    instance: Annotated[str, AfterValidator(check_instance)] = Field(
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
    page_seconds: Seconds = Field(
        2.0, description="how long a page of a list is sought at most where a filter is rare; then its cursor goes on"
    )
    register_every_seconds: SecondsOrNone = Field(
        300.0, description="how often callbacks are checked; 0: at start only"
    )
    completeness_every_seconds: SecondsOrNone = Field(
        21_600.0, description="how often Mailjet is asked what it counted, to compare; 0: never"
    )
    retention_days: float = Field(
        90,
        ge=0,
        le=36_500,
        allow_inf_nan=False,
        description="finished events are deleted that long after they happened and came in; 0: never",
    )
    payload_retention_days: float | None = Field(
        None,
        gt=0,
        le=36_500,
        allow_inf_nan=False,
        description="payloads and what is personal are removed earlier, after that time; unset: with their event",
    )
    retention_deletes_owed: bool = Field(False, description="retention also takes what is still owed to a sink")
    stats_retention_days: int = Field(
        1825, ge=1, description="how long statistics are kept, whole days, also of events deleted before"
    )
    sink_deny_cidrs: Networks = Field(
        (),
        description="networks that no sink, token endpoint or proxy may be in, e.g. `10.0.0.0/8,fd00::/8`; link-local,"
        " multicast and cloud metadata addresses are always refused",
    )
    sink_allow_cidrs: Annotated[Networks, AfterValidator(check_allowable)] = Field(
        (), description="exceptions to these; with `0.0.0.0/0,::/0` denied, the only networks that are allowed"
    )
    suppress_hard_bounces: bool = Field(
        True, description="suppress an address after a lasting bounce, or a block that lasts and concerns the address"
    )
    suppress_complaints: bool = Field(True, description="suppress an address after a spam complaint")
    suppress_unsubscribes: bool = Field(
        True, description="suppress an address for the list it left; where no list is told, altogether"
    )
    suppress_soft_bounces: int = Field(
        0, ge=0, le=1000, description="suppress an address after that many passing bounces; 0: never"
    )
    suppress_soft_bounce_days: int = Field(30, ge=1, le=3650, description="within that many days")
    connections: dict[str, ConnectionSettings] = Field({}, description="Mailjet API keys by name")
    webhooks: dict[str, WebhookSettings] = Field({}, description="webhooks by name; none: one named `default`")
    watches: dict[str, WatchSettings] = Field({}, description="watches of contacts by name")
    sinks: dict[str, SinkSettings] = Field({}, description="sinks by name")

    @model_validator(mode="after")
    def _names_fit(self) -> Settings:
        faults = name_faults(
            self.connections,
            {name: webhook.connection for name, webhook in self.webhooks.items()},
            {name: sink.webhooks for name, sink in self.sinks.items()},
            {name: sink.events for name, sink in self.sinks.items()},
            {name: watch.connection for name, watch in self.watches.items()},
        )
        if told := "\n".join(faults):
            raise ValueError(told)
        return self

    @model_validator(mode="after")
    def _payloads_go_first(self) -> Settings:
        if self.retention_days and (self.payload_retention_days or 0) > self.retention_days:
            raise ValueError(
                f"JETHOOK_PAYLOAD_RETENTION_DAYS: must not exceed JETHOOK_RETENTION_DAYS ({self.retention_days:g})"
            )
        return self

    @property
    def address_rules(self) -> AddressRules:
        return address_rules(self.sink_deny_cidrs, self.sink_allow_cidrs)

    @property
    def effective_webhooks(self) -> dict[str, WebhookSettings]:
        """The configured webhooks in alphabetical order; none configured: one named `default`."""
        return dict(sorted(self.webhooks.items())) or {"default": WebhookSettings()}

    @property
    def effective_connections(self) -> dict[str, ConnectionSettings]:
        """The configured connections, and `default` without keys where a webhook needs it."""
        connections = dict(self.connections)
        used = {w.connection for w in self.effective_webhooks.values()} | {w.connection for w in self.watches.values()}
        if "default" in used:
            connections.setdefault("default", ConnectionSettings())
        return dict(sorted(connections.items()))
