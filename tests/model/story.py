"""What happens, in the order in which it happens, to the service and to its model alike.

Steps are small, for a test that chooses among them; `tell` strings them together for the whole stream.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime
from typing import Any

from app.clock import now_micros, to_micros
from app.mailjet.vocabulary import normal_email
from tests.model.comparing import Comparison
from tests.model.service import Running
from tests.model.standing import Act
from tests.model.stream import Stream
from tests.model.world import World

MOST_UNCOUNTED = 4000  # beyond 5000 an answer of statistics says that it is not complete
PAST, FUTURE = 1_767_225_600, 1_900_000_000  # 2026 and 2030: a lift clears all until now, or until the newest event


class Story:
    """One service, its model and what is compared. `rng` chooses everything."""

    def __init__(self, service: Running, rng: random.Random, *, start: int = FUTURE, sample: int = 500, **how: Any):
        self.service = service
        self.world = World()
        self.rng = rng
        self.stream = Stream(rng, start, **how)
        self.compared = Comparison(service, self.world, rng, sample)

    # --- steps ---

    def post(self, size: int) -> None:
        for post in self.stream.post(size):
            wanted = self.world.post(post.webhook, post.texts, post.received)
            self.compared.note("posts", post, self.service.post(post), wanted)
        if self.world.uncounted > MOST_UNCOUNTED:
            self.fold()

    def fold(self) -> None:
        self.service.fold(most=self.rng.choice((3, 100, 500)))
        self.world.fold()

    def suppress(self) -> None:
        email, list_id = self._address(), self.rng.choice((None, "17", "18"))
        body = {"email": email, "comment": f"by hand {self.rng.randrange(100)}"}
        told = self.service.send("/v1/suppressions", **body, **({} if list_id is None else {"list_id": list_id}))
        since = _micros_of(told["since"])
        self.world.standing.add(email, list_id, body["comment"], since)

    def lift(self) -> None:
        narrowed = self.rng.choice(
            ({}, {}, {"list_id": "17"}, {"scope": "address"}, {"reason": "hard_bounce"}, {"reason": "unsubscribe"})
        )
        email = self._address()
        told = self.service.send("/v1/suppressions/lift", email=email, comment="lifted", **narrowed)
        scope = narrowed.get("scope") or ("list" if "list_id" in narrowed else None)
        act = Act("lift", email, "lifted", scope, narrowed.get("list_id"), narrowed.get("reason"))
        newest = max((fact.at for fact in self.world.facts_of(email)), default=0)
        ended = self.world.standing.lift(act, now_micros(), newest)
        lifted = {(row["email"], row["reason"], row["list_id"]) for row in told["lifted"]}
        self.compared.note("lifts", (email, narrowed), lifted, ended)

    def erase(self) -> None:
        email, folded, keep = self._address(), self.rng.random() < 0.4, self.rng.random() < 0.5
        receipt = self.service.erase(email, folded=folded, keep_suppression=keep)
        erased = self.world.erase(email, folded=folded, keep_suppression=keep)
        told = receipt["state"], receipt["counts"].get("events", 0)
        self.compared.note("erasures", (email, folded, keep), told, ("done", erased))

    def retain(self, days: float | None, payload_days: float | None = None, *, though_owed: bool = False) -> None:
        now = int(self.stream.now * 1_000_000)
        for side in (self.service, self.world):
            side.retain(now, days=days, payload_days=payload_days, though_owed=though_owed)

    def rebuild(self) -> None:
        """Which changes nearly nothing."""
        self.fold()
        self.service.rebuild()
        self.world.standing.rebuild(self.world.facts_of)

    def _address(self) -> str:
        """One that may be suppressed, or any."""
        known = sorted({place[0] for place in (*self.world.standing.entries, *self.world.standing.hidden)})
        if known and self.rng.random() < 0.5:
            return self.rng.choice(known)
        return normal_email(self.rng.choice([email for email in self.stream.emails if "@" in email]))

    # --- all of it ---

    def tell(self, events: int, say: Callable[[str], None] = lambda text: None) -> None:
        """Half of the stream, the other half, an erasure, retention, and what comes late and again after it."""
        self._come_in(events // 2)
        self._compare("half of it", say, whole=False)
        self._come_in(events * 4 // 10)
        self._compare("nearly all of it", say)
        self.rebuild()
        self._compare("counted and rebuilt", say, whole=False)
        for _ in range(max(events // 1000, 5)):
            self.erase()
        self._compare("some erased", say)
        self.retain(40, 20)
        self._compare("after retention", say)
        self._come_in(events - events // 2 - events * 4 // 10)
        self._compare("late and again", say, whole=False)
        self.rebuild()
        self.retain(30, 10, though_owed=True)
        self.erase()
        self._compare("at the end", say)

    def _come_in(self, arrivals: int) -> None:
        while arrivals > 0:
            size = min(self.rng.choice((1, 1, 2, 7, 40)), arrivals)
            self.post(size)
            arrivals -= size
            if self.rng.random() < 0.03:
                self.rng.choice((self.suppress, self.lift, self.lift, self.fold))()

    def _compare(self, name: str, say: Callable[[str], None], *, whole: bool = True) -> None:
        before = self.compared.counts.total()
        (self.compared.all if whole else self.compared.some)()
        made, differ = self.compared.counts.total() - before, len(self.compared.differences)
        say(f"{name}: {len(self.world.events)} events, {made} comparisons, {differ} differences so far")


def _micros_of(text: str) -> int:
    return to_micros(datetime.fromisoformat(text))
