"""The names that people give to connections, webhooks and sinks: what they may be, and that those used exist."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from app import operator_events
from app.settings.values import HEARD, split_list

PREFIX = "JETHOOK_"
NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*\Z")
LONGEST_NAME = 63

_Lists = dict[str, list[str]]


def names_in(tree: Mapping[str, Any]) -> tuple[Collection[str], dict[str, str], _Lists, _Lists]:
    """Which names an unchecked tree gives and uses, so that a fault elsewhere does not hide a name that is wrong."""
    webhooks = {name: group.get("connection", "default") for name, group in tree.get("webhooks", {}).items()}
    sinks = tree.get("sinks", {})
    used = {name: _words(group.get("webhooks", "")) for name, group in sinks.items()}
    heard = {name: _words(group.get("events", "")) for name, group in sinks.items()}
    return tree.get("connections", {}), webhooks, used, heard


def _words(value: object) -> list[str]:
    try:
        found = split_list(value)
    except ValueError:
        return []
    return [word for word in found if isinstance(word, str)] if isinstance(found, list) else []


def name_faults(
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
                near = closest(word, HEARD)
                yield f"{PREFIX}SINKS__{name.upper()}__EVENTS: no event type {word!r}" + (
                    f"; did you mean {near}?" if near else f" (known: {', '.join(HEARD)})"
                )


def closest(word: str, known: Sequence[str]) -> str | None:
    """A name that goes on where the word ends is nearer than one of the same length: units are what people forget."""
    longer = [candidate for candidate in known if candidate.startswith(f"{word}_")]
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return min(longer, key=len) if longer else next(iter(near), None)
