"""What we want Mailjet to hold + what it holds -> what to do. Pure, so a dry run costs nothing.

Mailjet keeps one primary and one backup callback for each event type of an API key: a **slot**. A callback is ours when
its URL bears our instance name as user, whatever its host; so a new public URL or a new password changes our callback
and never leaves one behind. All others are foreign, and nothing here ever deletes one.

Source: mailjet/api-documentation:guides/_event-api.md; a dead callback is revived only by a new URL, hence `revived`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from app.mailjet.client import ActualCallback
from app.settings import EVENT_TYPES, Settings, mask_url

VERSION = 2  # grouped: at most one post a second, where Version 1 would be one for each event
UNSAID_VERSION = 1  # Mailjet's default, for a foreign callback whose version the answer left out
DEAD = "dead"
ALIVE = "alive"
REVIVED = "revived"


class SlotKey(NamedTuple):
    """A slot within one connection."""

    type: str
    backup: bool


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot we want. The holder is the first webhook, by name, of those that watch the type: its name is in the URL.

    `base_url` is the public URL, or the holder's backup URL; None while there is no public URL. The holder's
    `on_conflict` decides for all that share the slot.
    """

    connection: str
    type: str
    backup: bool
    holder: str
    watchers: tuple[str, ...]
    base_url: str | None
    on_conflict: Literal["keep", "replace"]

    @property
    def key(self) -> SlotKey:
        return SlotKey(self.type, self.backup)


@dataclass(frozen=True, slots=True)
class WantedSlot:
    """A slot with the URL to register; the URL bears the password."""

    slot: Slot
    url: str = field(repr=False)


class Original(NamedTuple):
    """A foreign callback whose place we took."""

    url: str
    version: int

    def __repr__(self) -> str:
        return f"Original({shown_url(self.url)!r}, {self.version})"


class Kind(StrEnum):
    CREATE = "create"
    UPDATE = "update"
    REPLACE = "replace"
    KEEP = "keep"
    CONFLICT = "conflict"
    LEFTOVER = "leftover"
    DELETE = "delete"
    RESTORE = "restore"


CHANGING = frozenset({Kind.CREATE, Kind.UPDATE, Kind.REPLACE, Kind.DELETE, Kind.RESTORE})


@dataclass(frozen=True, slots=True)
class Action:
    """One step of a plan. `changes` are Mailjet's properties to send, `callback` is what was found in the slot.

    `original` is what to remember (replace) or to forget (restore). Neither repr nor `describe` shows a password.
    """

    kind: Kind
    connection: str
    type: str
    backup: bool
    webhook: str
    callback: ActualCallback | None = None
    changes: Mapping[str, Any] = field(default_factory=dict, repr=False)
    original: Original | None = None

    @property
    def key(self) -> SlotKey:
        return SlotKey(self.type, self.backup)

    @property
    def changes_mailjet(self) -> bool:
        return self.kind in CHANGING

    @property
    def found_url(self) -> str | None:
        """The URL found in the slot, fit to show."""
        return None if self.callback is None else shown_url(self.callback.url)

    def describe(self) -> str:
        """One line for a person."""
        slot = f"{self.type} (backup)" if self.backup else self.type
        return f"{self.kind.value:<8} {self.connection}: {slot}: {self.detail}"

    @property
    def detail(self) -> str:
        """`describe` without the place."""
        target = shown_url(str(self.changes["Url"])) if "Url" in self.changes else None
        unasked = "asks for this backup" if self.backup else "watches this type"
        details = {
            Kind.CREATE: f"register {target}",
            Kind.UPDATE: f"change {', '.join(self.changes)}" + (f" to {target}" if target else ""),
            Kind.REPLACE: f"replace {self.found_url} by {target} and remember it",
            Kind.KEEP: f"is registered for webhook {self.webhook!r}",
            Kind.CONFLICT: f"held by {self.found_url}, which is not ours, and kept",
            Kind.LEFTOVER: f"{self.found_url} is ours, but no webhook {unasked} any more",
            Kind.DELETE: f"remove {self.found_url}",
            Kind.RESTORE: f"put back {target}",
        }
        return details[self.kind]


# --- wanted ----------------------------------------------------------------------------------------------------------


def list_slots(settings: Settings) -> list[Slot]:
    """Every slot the settings ask for, also of connections without keys, by connection, type and backup."""
    return [slot for connection in settings.effective_connections for slot in _slots_of(settings, connection)]


def _slots_of(settings: Settings, connection: str) -> Iterator[Slot]:
    watching = {name: w for name, w in settings.effective_webhooks.items() if w.connection == connection}
    for event_type in EVENT_TYPES:
        watchers = tuple(sorted(name for name, w in watching.items() if event_type in w.events))
        if not watchers:
            continue
        holder = watching[watchers[0]]
        common = (watchers[0], watchers)
        yield Slot(connection, event_type, False, *common, settings.public_url, holder.on_conflict)
        if holder.backup_url:
            yield Slot(connection, event_type, True, *common, holder.backup_url, holder.on_conflict)


def wanted_slots(settings: Settings, passwords: Mapping[str, str]) -> list[WantedSlot]:
    """The slots that can be registered: of connections with keys, once there is a public URL.

    `passwords` holds, for each webhook, the one to register.
    """
    connections = settings.effective_connections
    return [
        WantedSlot(slot, callback_url(slot.base_url, settings.instance, passwords[slot.holder], slot.holder))
        for slot in list_slots(settings)
        if settings.public_url and slot.base_url and connections[slot.connection].has_keys
    ]


def callback_url(base_url: str, instance: str, password: str, webhook: str) -> str:
    """`{base_url with instance:password@}/webhooks/{webhook}`; the base may have a port and a path, but no user."""
    parts = urlsplit(base_url)
    # The environment may hold bytes that are not UTF-8; they reach us as lone surrogates.
    secret = quote(password.encode("utf-8", "surrogateescape"), safe="")
    netloc = f"{quote(instance, safe='')}:{secret}@{parts.netloc}"
    return parts._replace(netloc=netloc, path=f"{parts.path.rstrip('/')}/webhooks/{webhook}").geturl()


# --- whose is it, and is it right ------------------------------------------------------------------------------------


def is_ours(url: str, instance: str) -> bool:
    try:
        user = urlsplit(url).username
    except ValueError:
        return False
    return user is not None and unquote(user) == instance


def webhook_of(url: str) -> str | None:
    """The webhook's name in the path of one of our URLs."""
    try:
        path = urlsplit(url).path
    except ValueError:
        return None
    found = re.search(r"/webhooks/([^/]+)/?\Z", path)
    return unquote(found.group(1)) if found else None


def shown_url(url: str) -> str:
    """The URL without password, query values and fragment; for foreign URLs of any form, also broken ones."""
    masked, question, query = mask_url(url).partition("#")[0].partition("?")
    # A parameter without a value is a token as likely as not.
    masked += question + "&".join(part if "=" in part else "***" for part in query.split("&") if part)
    scheme, separator, rest = "".join(c if c.isprintable() else "?" for c in masked).partition("://")
    if not separator:
        return "(no URL)" if not url else "(not a URL)"
    user, at, place = rest.rpartition("@")
    # A password with an unescaped slash spills into the path; a user without a password is a token.
    if at and ("/" in user or urlsplit(url).password is None):
        user = "***"
    return f"{scheme}://{user}{at}{place}"


def revived_count(url: str) -> int:
    """How often the callback was revived: the number in its `revived` parameter, 0 without one."""
    values = [value for name, value in parse_qsl(urlsplit(url).query) if name == REVIVED]
    return max((int(value) for value in values if re.fullmatch(r"[0-9]{1,9}", value)), default=0)


def with_revived(url: str, count: int) -> str:
    return url if count == 0 else urlsplit(url)._replace(query=urlencode({REVIVED: count})).geturl()


def same_callback_url(actual: str, wanted: str) -> bool:
    """Do both name the same place with the same credentials? The `revived` parameter of `actual` is left out, and what
    a server may write in another way (case of the host, the scheme's own port, escapes) is no difference."""
    try:
        return _normal(actual) == _normal(wanted)
    except ValueError:
        return False


def _normal(url: str) -> tuple[object, ...]:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    query = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] != REVIVED]
    place = (parts.scheme, parts.hostname, port, unquote(parts.path), tuple(query), parts.fragment)
    return (unquote(parts.username or ""), unquote(parts.password or ""), *place)


# --- plans -----------------------------------------------------------------------------------------------------------


def plan_registration(
    wanted: Sequence[WantedSlot], actual: Iterable[ActualCallback], *, connection: str, instance: str
) -> list[Action]:
    """What to do at one connection for `wanted`: exactly one action for each."""
    found = by_slot(actual, instance)
    return [
        _plan_slot(item, found.get(item.slot.key), instance) for item in wanted if item.slot.connection == connection
    ]


def plan_leftovers(
    slots: Iterable[Slot], actual: Iterable[ActualCallback], *, connection: str, instance: str
) -> list[Action]:
    """Callbacks of ours in slots that no webhook wants now: told, and left alone (`jethook unregister` removes)."""
    known = {slot.key for slot in slots if slot.connection == connection}
    return [
        Action(Kind.LEFTOVER, connection, *key, webhook_of(callback.url) or "", callback)
        for key, callback in sorted(by_slot(actual, instance).items())
        if key not in known and is_ours(callback.url, instance)
    ]


def plan_removal(
    actual: Iterable[ActualCallback],
    originals: Mapping[SlotKey, Original],
    *,
    connection: str,
    instance: str,
    webhook: str | None = None,
) -> list[Action]:
    """Delete what is ours at one connection (only of `webhook`, by the name in the URL), or put back what was there."""
    return [
        _plan_removal(connection, key, callback, originals.get(key))
        for key, callback in sorted(by_slot(actual, instance).items())
        if is_ours(callback.url, instance) and webhook in (None, webhook_of(callback.url))
    ]


def by_slot(actual: Iterable[ActualCallback], instance: str) -> dict[SlotKey, ActualCallback]:
    """Mailjet promises one callback for a slot; should it show two, ours counts."""
    found: dict[SlotKey, ActualCallback] = {}
    for callback in actual:
        key = SlotKey(callback.event_type, callback.is_backup)
        if key not in found or (is_ours(callback.url, instance) and not is_ours(found[key].url, instance)):
            found[key] = callback
    return found


def _plan_slot(wanted: WantedSlot, found: ActualCallback | None, instance: str) -> Action:
    slot = wanted.slot
    place = (slot.connection, slot.type, slot.backup, slot.holder)
    if found is None:
        properties = {"EventType": slot.type, "IsBackup": slot.backup, "Url": wanted.url, "Version": VERSION}
        return Action(Kind.CREATE, *place, changes=properties)
    if is_ours(found.url, instance):
        changes = _differences(wanted.url, found)
        return Action(Kind.UPDATE if changes else Kind.KEEP, *place, found, changes)
    if slot.on_conflict == "keep" or not _can_be_put_back(found.url):
        return Action(Kind.CONFLICT, *place, found)
    original = Original(found.url, found.version or UNSAID_VERSION)
    return Action(Kind.REPLACE, *place, found, _takeover(wanted.url, VERSION, found), original)


def _differences(url: str, found: ActualCallback) -> dict[str, Any]:
    """The properties of our own callback that must change. A version that Mailjet did not tell is no difference."""
    changes: dict[str, Any] = {}
    count = revived_count(found.url)
    if found.status == DEAD:
        changes |= {"Url": with_revived(url, count + 1), "Status": ALIVE}
    elif not same_callback_url(found.url, url):
        # The count goes on, so that a URL that died once is never used again.
        changes["Url"] = with_revived(url, count)
    if found.version not in (None, VERSION):
        changes["Version"] = VERSION
    return changes


def _takeover(url: str, version: int, found: ActualCallback) -> dict[str, Any]:
    """The properties that turn `found` into another's callback."""
    changes: dict[str, Any] = {"Url": url}
    if found.version != version:
        changes["Version"] = version
    if found.status == DEAD:
        changes["Status"] = ALIVE
    return changes


def _can_be_put_back(url: str) -> bool:
    # A cloud queue has no URL, and we remember nothing else: replacing it could not be undone.
    return bool(url) and url.isprintable()


def _plan_removal(connection: str, key: SlotKey, found: ActualCallback, original: Original | None) -> Action:
    place = (connection, key.type, key.backup, webhook_of(found.url) or "")
    if original is None:
        return Action(Kind.DELETE, *place, found)
    return Action(Kind.RESTORE, *place, found, _takeover(original.url, original.version, found), original)
