"""What Jethook tells by itself: the closed list of operator events, and the hand that parts of the service raise.

Operator events go through the same relay as Mailjet's, under a webhook name of their own that no setting can give away,
so that what Mailjet (or whoever knows a callback password) posts is never taken for one of them. A part that notices a
change speaks to a `Herald`; who stores it, and whether anybody wants to hear it, is none of its business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # the settings stand on this module, and small commands need no database
    from sqlalchemy.engine import Connection

WEBHOOK = "jethook"
PREFIX = "jethook."
ALL = "jethook.*"
SUPPRESSION_PREFIX = "suppression."
ALL_SUPPRESSIONS = "suppression.*"

SINK_OPENED = "jethook.sink.opened"
SINK_RECOVERED = "jethook.sink.recovered"
SINK_PAUSED = "jethook.sink.paused"
SINK_RESUMED = "jethook.sink.resumed"
DELIVERY_DEAD = "jethook.delivery.dead"
REGISTRATION_FAILED = "jethook.registration.failed"
REGISTRATION_RECOVERED = "jethook.registration.recovered"
EVENT_QUARANTINED = "jethook.event.quarantined"
WEBHOOK_SILENT = "jethook.webhook.silent"
WEBHOOK_HEARD = "jethook.webhook.heard"
SUPPRESSION_ADDED = "suppression.added"
SUPPRESSION_REMOVED = "suppression.removed"

MEANINGS: Mapping[str, str] = {
    SINK_OPENED: "a sink's breaker opened: deliveries to it wait",
    SINK_RECOVERED: "it closed again",
    SINK_PAUSED: "a sink was paused, by a person or by its own answer",
    SINK_RESUMED: "a person resumed it, which also closes its breaker",
    DELIVERY_DEAD: "deliveries of Mailjet's events were given up",
    REGISTRATION_FAILED: "a callback at Mailjet is dead, held by somebody else, or could not be looked at or changed",
    REGISTRATION_RECOVERED: "it is ours and alive again",
    EVENT_QUARANTINED: "something posted with good credentials could not be read",
    WEBHOOK_SILENT: "nothing came for a webhook when, by its rhythm, something should have",
    WEBHOOK_HEARD: "something came again",
    SUPPRESSION_ADDED: "an address is not to be mailed any more, or not for a list",
    SUPPRESSION_REMOVED: "a suppression was lifted",
}
"""Every type and what it means. A new one needs a line here, one in the README's table, and somebody who tells it."""

# A word that asks for several -> how their names begin. News of suppressions are of recipients and hold addresses: who
# asks for what concerns the service does not get them by that.
SEVERAL: Mapping[str, str] = {ALL: PREFIX, ALL_SUPPRESSIONS: SUPPRESSION_PREFIX}

# Two types that undo each other are about one state; of such a state only what it is in the end matters.
TURNS: Mapping[str, str] = {SINK_OPENED: "breaker", SINK_RECOVERED: "breaker"}


@dataclass(frozen=True, slots=True)
class Change:
    """Something that happened to the service at `at`.

    `sink` is the sink it is about, which never hears of it. `error` is why, in words that hold no secret, no address
    and nothing of a recipient; only news of suppressions name one, in `details`. `count` says how many of the same it
    stands for, since `since`. `details` are further fields, all plain values, for the object that goes out.
    """

    type: str
    at: datetime
    sink: str | None = None
    webhook: str | None = None
    connection: str | None = None
    error: str | None = None
    count: int | None = None
    since: datetime | None = None
    details: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)

    @property
    def subject(self) -> tuple[str | None, str | None, str | None]:
        return self.sink, self.webhook, self.connection


class Herald(Protocol):
    """Takes changes and makes operator events of them. Neither call ever raises because of the event."""

    def tell(self, change: Change) -> None:
        """From the event loop; stored soon, at most so many of a kind in a minute."""

    def store(self, connection: Connection, change: Change) -> None:
        """Now, in the caller's transaction: with the change or not at all."""

    def store_all(self, connection: Connection, changes: Sequence[Change]) -> None:
        """`store` for many by a few statements."""


class Nobody:
    """Stands where no sink asks for operator events."""

    def tell(self, change: Change) -> None: ...

    def store(self, connection: Connection, change: Change) -> None: ...

    def store_all(self, connection: Connection, changes: Sequence[Change]) -> None: ...


NOBODY = Nobody()


def is_operator_word(word: str) -> bool:
    """Can this stand for operator events, in a setting or as a type?"""
    return word.startswith((PREFIX, SUPPRESSION_PREFIX))


def family_of(word: str) -> str:
    """What Jethook tells of itself, or of suppressions: where nobody asks for any of a family, none is made."""
    return word.partition(".")[0]


def asked_for(words: Iterable[str]) -> tuple[str, ...]:
    """The operator types that a sink's list of types asks for. An empty list asks for all of Mailjet's and for none
    of these."""
    wanted = set(words)
    prefixes = tuple(prefix for word, prefix in SEVERAL.items() if word in wanted)
    return tuple(name for name in MEANINGS if name in wanted or name.startswith(prefixes))


def payload_of(change: Change, *, time: int, at: str, since: str | None, told_by: Mapping[str, str]) -> dict[str, Any]:
    """The flat object that goes out, in the form of Mailjet's own; what is not known is left out.

    `time` is `at` in Unix seconds, as in Mailjet's events. `at` is exact, so that two changes within one second are
    two events.
    """
    fields = {
        "event": change.type, "time": time, "at": at, **told_by,
        "sink": change.sink, "webhook": change.webhook, "connection": change.connection,
        "error": change.error, "count": change.count, "since": since, **change.details,
    }  # fmt: skip
    return {name: value for name, value in fields.items() if value is not None}
