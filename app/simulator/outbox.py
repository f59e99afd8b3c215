"""What Mailjet still has to post, and when: a pure state machine that is told the time.

Events of a Version 1 callback are posted one by one. Those of Version 2 callbacks with one URL are put together,
whatever their types, about once a second. What is not answered with 200 is posted again, byte for byte. A callback
that has only failed for the length of the failure window is dead; its backup, if there is one, takes over.

Source: mailjet/api-documentation:guides/_event-api.md, state since June 2019: every 30 seconds, for 24 hours.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from app.simulator.callbacks import Callback
from app.simulator.shaping import encode
from app.simulator.traffic import Event

Slot = tuple[str, bool]


@dataclass(slots=True)
class Parcel:
    """One body on its way to one URL; `slots` are the callbacks it is owed to, `failures` the tries so far."""

    url: str
    body: bytes
    events: int
    slots: frozenset[Slot]
    failures: int = 0


@dataclass(frozen=True, slots=True)
class SenderCounts:
    """Posts: made, answered with 200, made again. Events: owed still, without a live callback, given up."""

    posted: int = 0
    acknowledged: int = 0
    repeated: int = 0
    pending: int = 0
    unwanted: int = 0
    given_up: int = 0


class Outbox:
    """`find` tells the callback that now holds a slot, `kill` is called with a slot that has failed for too long."""

    def __init__(
        self,
        find: Callable[[Slot], Callback | None],
        kill: Callable[[Slot], None],
        *,
        retry_seconds: float,
        group_seconds: float,
        failure_window_seconds: float,
    ) -> None:
        self._find = find
        self._kill = kill
        self._retry_seconds = retry_seconds
        self._group_seconds = group_seconds
        self._failure_window_seconds = failure_window_seconds
        self._order = itertools.count()
        self._due: list[tuple[float, int, Parcel]] = []
        self._groups: dict[str, list[tuple[Event, Slot]]] = {}
        self._group_at: dict[str, float] = {}
        self._failing_since: dict[Slot, float] = {}
        self._totals: Counter[str] = Counter()

    def add(self, event: Event, now: float) -> None:
        """Take an event up; one whose type has no live callback is not wanted and forgotten."""
        callback = self._live(str(event["event"]))
        if callback is None:
            self._totals["unwanted"] += 1
            return
        self._totals["pending"] += 1
        if callback.version == 1:
            self._push(Parcel(callback.url, encode([event], "object"), 1, frozenset({callback.slot})), now)
            return
        self._groups.setdefault(callback.url, []).append((event, callback.slot))
        self._group_at.setdefault(callback.url, now)

    def take_due(self, now: float) -> list[Parcel]:
        """The parcels to post now; each is to be handed back by `record`."""
        for url in [url for url, at in self._group_at.items() if at <= now]:
            self._close_group(url, now)
        taken = []
        while self._due and self._due[0][0] <= now:
            parcel = heapq.heappop(self._due)[2]
            if parcel.failures and not self._route_again(parcel):
                continue
            self._totals["posted"] += 1
            self._totals["repeated"] += parcel.failures > 0
            taken.append(parcel)
        return taken

    def next_at(self) -> float | None:
        """When `take_due` has something to give, as far as is known now."""
        times = [at for url, at in self._group_at.items() if url in self._groups]
        times += [self._due[0][0]] if self._due else []
        return min(times, default=None)

    def record(self, parcel: Parcel, *, is_acknowledged: bool, now: float) -> None:
        """What became of a parcel."""
        if is_acknowledged:
            self._totals["acknowledged"] += 1
            self._totals["pending"] -= parcel.events
            for slot in parcel.slots:
                self._failing_since.pop(slot, None)
            return
        parcel.failures += 1
        for slot in sorted(parcel.slots):
            self._note_failure(slot, parcel.url, now)
        self._push(parcel, now + self._retry_seconds)

    def counts(self) -> SenderCounts:
        return SenderCounts(**self._totals)

    def _live(self, event_type: str) -> Callback | None:
        """The primary while it is alive, else the backup while that is."""
        for is_backup in (False, True):
            callback = self._find((event_type, is_backup))
            if callback is not None and callback.status == "alive":
                return callback
        return None

    def _push(self, parcel: Parcel, at: float) -> None:
        heapq.heappush(self._due, (at, next(self._order), parcel))

    def _close_group(self, url: str, now: float) -> None:
        group = self._groups.pop(url, None)
        if group is None:
            del self._group_at[url]  # nothing came for a while: the next event may go at once
            return
        self._group_at[url] = now + self._group_seconds
        events = [event for event, _ in group]
        self._push(Parcel(url, encode(events, "array"), len(events), frozenset(slot for _, slot in group)), now)

    def _note_failure(self, slot: Slot, url: str, now: float) -> None:
        callback = self._find(slot)
        if callback is None or callback.url != url or callback.status == "dead":
            return  # a late failure of a URL that was replaced says nothing about the new one
        since = self._failing_since.setdefault(slot, now)
        if now - since >= self._failure_window_seconds:
            del self._failing_since[slot]
            self._kill(slot)

    def _route_again(self, parcel: Parcel) -> bool:
        """To the same URL while any of its callbacks lives, else to their new URL or backup, else nowhere.

        What becomes of the events of a dead callback is not documented; here they are given up at their next turn.
        """
        live = [callback for slot in sorted(parcel.slots) if (callback := self._live(slot[0])) is not None]
        if not live:
            self._totals["given_up"] += parcel.events
            self._totals["pending"] -= parcel.events
            return False
        if parcel.url not in {callback.url for callback in live}:
            parcel.url = live[0].url
            parcel.slots = frozenset(callback.slot for callback in live if callback.url == parcel.url)
        return True
