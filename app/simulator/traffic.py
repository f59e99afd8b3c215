"""Mailjet events as they come in life: a seeded, endless mail traffic. Pure: no clock, no network.

Every message has a life (accepted, opened, clicked; or bounced; or never sent), people get many messages, and whoever
bounced for good or complained is blocked from then on. Fields, spellings and oddities (keys that are missing, null,
empty, or hold a neighbour's value) are those of real calls.

Sources: mailjet/api-documentation:guides/_event-api.md for the fields; symfony/mailjet-mailer, its webhook fixtures,
and anymail/django-anymail:tests/test_mailjet_webhooks.py for what real calls leave out.
"""

import heapq
import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.simulator.trials import make_test_event
from app.simulator.vocabulary import (
    AGENTS,
    BLOCK_ERRORS,
    BOUNCE_ERRORS,
    CAMPAIGN_NAMES,
    COUNTRIES,
    DOMAINS,
    FAMILY_NAMES,
    FEEDBACK_LOOPS,
    GIVEN_NAMES,
    LINKS,
    NETWORKS,
    SMTP_REPLIES,
    BounceError,
)

__all__ = ["EVENT_TYPES", "Event", "make_events", "make_test_event"]

Event = dict[str, Any]

EVENT_TYPES = ("sent", "open", "click", "bounce", "blocked", "spam", "unsub")

# What happens to a message, and to how many in a thousand. A bounce in front of `sent` is greylisting.
LIVES: tuple[tuple[tuple[str, ...], int], ...] = (
    (("sent",), 330),
    (("sent", "open"), 190),
    (("sent", "open", "open"), 60),
    (("sent", "open", "click"), 110),
    (("sent", "open", "click", "click", "open"), 50),
    (("sent", "open", "unsub"), 40),
    (("sent", "open", "click", "unsub"), 10),
    (("sent", "unsub"), 20),
    (("sent", "spam"), 30),
    (("sent", "open", "spam"), 10),
    (("bounce",), 60),
    (("bounce", "sent", "open"), 20),
    (("sent", "bounce"), 10),
    (("blocked",), 60),
)

SHORTEST_GAP_SECONDS = 1.0
"""Two events of one message are at least that far apart, so that no two events of a run are ever equal."""


@dataclass(slots=True)
class _Person:
    email: str
    contact_id: int
    is_undeliverable: bool = False


@dataclass(slots=True)
class _Message:
    """What all events of one message share, and which types are still to come."""

    common: Event
    person: _Person
    to_come: list[str]
    has_old_fields: bool
    device: Event = field(default_factory=dict)


def make_events(
    seed: int,
    count: int | None,
    start: int,
    *,
    types: Sequence[str] = EVENT_TYPES,
    people: int = 200,
    step_seconds: float = 0.5,
) -> Iterator[Event]:
    """Yield `count` events (None: without end) in the order of their `time`; equal arguments give equal events.

    `start` is the time of the first in Unix seconds, `step_seconds` the mean time between two. No two are equal.
    Raises ValueError for a type that Mailjet does not have.
    """
    unknown = set(types) - set(EVENT_TYPES)
    if unknown or not types:
        raise ValueError(f"event types are {', '.join(EVENT_TYPES)}, not {', '.join(sorted(unknown)) or 'none'}")
    rng = random.Random(seed)  # noqa: S311 - no secrets here
    traffic = _Traffic(rng, frozenset(types), people, step_seconds)
    return traffic.run(count, float(start))


class _Traffic:
    def __init__(self, rng: random.Random, types: frozenset[str], people: int, step_seconds: float) -> None:
        self._rng = rng
        self._types = types
        self._step_seconds = step_seconds
        self._born = 0
        self._people = [self._make_person() for _ in range(people)]
        lives = [([kind for kind in life if kind in types], weight) for life, weight in LIVES]
        self._lives = [life for life, _ in lives if life]
        self._weights = [weight for life, weight in lives if life]
        # The first messages have one life of each kind, so that a short run shows every type too.
        self._first_lives = rng.sample(self._lives, len(self._lives))
        self._builders: dict[str, Callable[[_Message], Event]] = {
            "sent": self._sent,
            "open": self._open,
            "click": self._click,
            "bounce": self._bounce,
            "blocked": self._blocked,
            "spam": self._spam,
            "unsub": self._unsub,
        }

    def run(self, count: int | None, now: float) -> Iterator[Event]:
        waiting: list[tuple[float, int, _Message]] = []
        made = 0
        while count is None or made < count:
            made += 1
            is_due = bool(waiting) and waiting[0][0] <= now
            goes_on = is_due and self._rng.random() < 0.85
            message = heapq.heappop(waiting)[2] if goes_on else self._make_message()
            yield self._next_event(message, now)
            if message.to_come:
                heapq.heappush(waiting, (self._after(now), made, message))
            now += self._rng.uniform(0, 2 * self._step_seconds)

    def _after(self, now: float) -> float:
        # Some tens of steps: soon enough for short runs to hold whole lives, late enough to interleave them.
        return now + SHORTEST_GAP_SECONDS + self._rng.expovariate(1 / (12 * self._step_seconds or 1))

    def _next_event(self, message: _Message, now: float) -> Event:
        kind = message.to_come.pop(0)
        return {"event": kind, "time": int(now), **message.common, **self._builders[kind](message)}

    # People and messages

    def _make_person(self) -> _Person:
        rng = self._rng
        self._born += 1
        name = f"{rng.choice(GIVEN_NAMES)}.{rng.choice(FAMILY_NAMES)}{self._born}"
        domain = rng.choices(list(DOMAINS), list(DOMAINS.values()))[0]
        # Ids of contacts pass 2**31 in real traffic; here they pass 2**32 too.
        return _Person(f"{name}@{domain}", rng.randrange(1_000, 9_000_000_000))

    def _make_message(self) -> _Message:
        rng = self._rng
        index = rng.randrange(len(self._people))
        person = self._people[index]
        life = list(self._first_lives.pop() if self._first_lives else rng.choices(self._lives, self._weights)[0])
        if person.is_undeliverable and "blocked" in self._types:
            life = ["blocked"]
            # The sender cleans up: somebody new takes the place, or everybody would be blocked in the end.
            self._people[index] = self._make_person()
        return _Message(self._common(person), person, life, has_old_fields=rng.random() < 0.7)

    def _common(self, person: _Person) -> Event:
        rng = self._rng
        common: Event = {"MessageID": rng.randrange(2**54, 2**60)}
        if rng.random() < 0.97:
            common["Message_GUID"] = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        common["email"] = person.email
        is_marketing = rng.random() < 0.4
        campaign = rng.randrange(len(CAMPAIGN_NAMES))
        common["mj_campaign_id"] = 7_653_742_000 + campaign if is_marketing or rng.random() < 0.6 else 0
        common["mj_contact_id"] = person.contact_id if rng.random() < 0.98 else 0
        common["customcampaign"] = f"mj.nl={10_203_000 + campaign}" if is_marketing else self._custom_campaign(campaign)
        if rng.random() < 0.96:
            common.update(self._sender_fields())
        return common

    def _custom_campaign(self, campaign: int) -> str | None:
        chance = self._rng.random()
        if chance < 0.5:
            return ""
        return None if chance < 0.55 else CAMPAIGN_NAMES[campaign]

    def _sender_fields(self) -> Event:
        """`CustomID` and `Payload`: text in whatever form the sender chose."""
        rng = self._rng
        number = rng.randrange(1, 1_000_000)
        payload = rng.choice(
            (
                "",
                "",
                None,
                f'{{"order": {number}, "tags": ["a", "b"]}}',
                f"<order id='{number}'/>",
                f"commande n° {number}, préparée",
            )
        )
        return {"CustomID": "" if rng.random() < 0.35 else f"order-{number}", "Payload": payload}

    # Fields of each type

    def _sent(self, message: _Message) -> Event:
        reply = self._rng.choice(SMTP_REPLIES).format(id=f"{self._rng.getrandbits(40):010X}")
        if not message.has_old_fields:
            return {"smtp_reply": reply}
        return {"mj_message_id": str(message.common["MessageID"]), "smtp_reply": f"sent ({reply})"}

    def _open(self, message: _Message) -> Event:
        return dict(self._device(message))

    def _click(self, message: _Message) -> Event:
        link = self._rng.choice(LINKS).format(id=self._rng.randrange(1000))
        return {"url": link, **self._device(message)}

    def _device(self, message: _Message) -> Event:
        """Who opens and clicks a message mostly does so from one place."""
        if not message.device or self._rng.random() < 0.2:
            rng = self._rng
            host = rng.choice(NETWORKS).format(n=rng.randrange(1, 255))
            message.device = {"ip": host, "geo": rng.choice(COUNTRIES), "agent": rng.choice(AGENTS)}
        return message.device

    def _bounce(self, message: _Message) -> Event:
        rng = self._rng
        error = self._bounce_error(message)
        message.person.is_undeliverable |= error.is_hard
        fields: Event = {
            "blocked": error.is_hard,
            "hard_bounce": error.is_hard,
            "error_related_to": error.related_to,
            "error": error.error,
        }
        if rng.random() < 0.03:
            # Seen in 2023: the value had slid into the field of the group.
            fields |= {"error_related_to": error.error, "error": ""}
        if rng.random() < 0.6:
            fields["comment"] = error.comment.format(email=message.person.email)
        return fields

    def _bounce_error(self, message: _Message) -> BounceError:
        """A message that goes on after its bounce was only deferred."""
        if "sent" in message.to_come:
            return next(error for error in BOUNCE_ERRORS if error.error == "greylisted")
        return self._rng.choice(BOUNCE_ERRORS)

    def _blocked(self, message: _Message) -> Event:
        if message.person.is_undeliverable:
            related_to, error = "mailjet", "preblocked"
        else:
            related_to, error = self._rng.choice(BLOCK_ERRORS)
        return {"error_related_to": related_to, "error": error}

    def _spam(self, message: _Message) -> Event:
        message.person.is_undeliverable = True
        return {"source": self._rng.choice(FEEDBACK_LOOPS)}

    def _unsub(self, message: _Message) -> Event:
        rng = self._rng
        fields: Event = {"mj_list_id": rng.choice((0, 10_371_052, 4_294_967_301))}
        if rng.random() < 0.4:
            # The header, used by the mail program: nobody visited a page.
            return {**fields, "ip": "192.0.2.25", "geo": "", "agent": rng.choice(("List-Unsubscribe", ""))}
        return {**fields, **self._device(message)}
