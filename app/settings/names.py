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


def names_in(tree: Mapping[str, Any]) -> tuple[Collection[str], dict[str, str], _Lists, _Lists, dict[str, str]]:
    """Which names an unchecked tree gives and uses, so that a fault elsewhere does not hide a name that is wrong."""
    webhooks = {name: group.get("connection", "default") for name, group in tree.get("webhooks", {}).items()}
    sinks = tree.get("sinks", {})
    used = {name: _words(group.get("webhooks", "")) for name, group in sinks.items()}
    heard = {name: _words(group.get("events", "")) for name, group in sinks.items()}
    watches = {name: group.get("connection", "default") for name, group in tree.get("watches", {}).items()}
    return tree.get("connections", {}), webhooks, used, heard, watches


def _words(value: object) -> list[str]:
    try:
        found = split_list(value)
    except ValueError:
        return []
    return [word for word in found if isinstance(word, str)] if isinstance(found, list) else []


def name_faults(
    connections: Collection[str], webhooks: Mapping[str, str], sinks: Mapping[str, Collection[str]],
    heard: Mapping[str, Collection[str]], watches: Mapping[str, str],
) -> Iterator[str]:  # fmt: skip
    """Names that are none, and names used that are not configured. `webhooks` and `watches` give each one's
    connection, `sinks` the webhooks each one names, `heard` the event types."""
    groups = (("CONNECTIONS", connections), ("WEBHOOKS", webhooks), ("SINKS", sinks), ("WATCHES", watches))
    for group, names in groups:
        for name in names:
            if not NAME.match(name) or len(name) > LONGEST_NAME:
                yield (
                    f"{PREFIX}{group}__{name.upper()}: a name holds letters, digits and single underscores,"
                    f" {LONGEST_NAME} at most"
                )
    for group, names in (("WEBHOOKS", webhooks), ("WATCHES", watches)):
        if operator_events.WEBHOOK not in names:
            continue
        told = f"{PREFIX}{group}__{operator_events.WEBHOOK.upper()}"
        yield f"{told}: this name is kept for what Jethook tells about itself; choose another"
    uses = [("WEBHOOKS", *pair) for pair in webhooks.items()] + [("WATCHES", *pair) for pair in watches.items()]
    for group, name, connection in uses:
        if connection not in connections and connection != "default":
            yield (
                f"{PREFIX}{group}__{name.upper()}__CONNECTION: no connection {connection!r} is configured"
                f" (configured: {', '.join(sorted(connections)) or 'default'})"
            )
    yield from _sink_faults(sinks, heard, {*(webhooks or ("default",)), *watches})


def _sink_faults(
    sinks: Mapping[str, Collection[str]], heard: Mapping[str, Collection[str]], known: Collection[str]
) -> Iterator[str]:
    """`known` are the webhook names that events can have."""
    for name, used in sinks.items():
        for webhook in used:
            if webhook not in known:
                yield (
                    f"{PREFIX}SINKS__{name.upper()}__WEBHOOKS: no webhook {webhook!r} is configured"
                    f" (configured: {', '.join(sorted(known))})"
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
