"""Should this sink hear of this event? Pure."""

from __future__ import annotations

from collections.abc import Mapping

from app.settings import SinkSettings


def matches(sink: SinkSettings, *, webhook: str, event_type: str) -> bool:
    """An unset list means all; an unknown event type reaches only sinks that ask for all types or name it."""
    return (not sink.webhooks or webhook in sink.webhooks) and (not sink.events or event_type in sink.events)


class Matcher:
    """`matches` over all sinks, remembered for each (webhook, type): the answer does not change while we run."""

    MOST_REMEMBERED = 1000  # unknown types are the sender's own words; they must not fill the memory

    def __init__(self, sinks: Mapping[str, SinkSettings]) -> None:
        self._sinks = dict(sinks)
        self._known: dict[tuple[str, str], tuple[str, ...]] = {}

    def sinks_for(self, webhook: str, event_type: str) -> tuple[str, ...]:
        key = (webhook, event_type)
        found = self._known.get(key)
        if found is None:
            found = tuple(n for n, s in self._sinks.items() if matches(s, webhook=webhook, event_type=event_type))
            if len(self._known) < self.MOST_REMEMBERED:
                self._known[key] = found
        return found
