"""Random mail as it might come: many events of few people, repeated, regrouped, late and out of order.

Every choice is made by the `random.Random` that is given, so a seed tells the whole stream, and hypothesis can choose
instead of it. Times are Unix seconds.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

DAY = 86_400
DOMAINS = ("example.com", "Example.com", "example.org", "mail.example.net", "bürgeramt.example")
AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)",
    "Mozilla/5.0", "", "python-requests/2.32", None,
)  # fmt: skip
ERRORS = ("user unknown", "mailbox inactive", "quota exceeded", "invalid domain", "no mail host", "greylisted",
          "spam reporter", "preblocked", "sender blocked", "content blocked", "new word", "")  # fmt: skip
KINDS = {"sent": 30, "open": 24, "click": 12, "bounce": 12, "blocked": 7, "spam": 3, "unsub": 7, "typofix": 2,
         "test": 1}  # fmt: skip
CAMPAIGNS = (0, "", None, 7_653_742_001, 7_653_742_002, "7653742003", 7_653_742_004)
NAMES = ("", None, "spring sale", "mj.nl=10203001", "été", "for ann@example.com")
LISTS = (0, "", None, 17, 4_294_967_301)
ODDITIES = ("", None, "=1+1", "order-17", '{"a": [1, 2]}', "<b>\u2028</b>", 'line\nbreak, "quoted"')


class Post(NamedTuple):
    """One callback POST: the elements' own texts, and when it came, in microseconds."""

    webhook: str
    texts: tuple[str, ...]
    received: int

    @property
    def body(self) -> bytes:
        lone = len(self.texts) == 1 and self.received % 2
        return (self.texts[0] if lone else f"[ {', '.join(self.texts)}]").encode()


class Arrival(NamedTuple):
    webhook: str
    payload: dict[str, Any]
    text: str


@dataclass(slots=True)
class _Message:
    webhook: str
    common: dict[str, Any]
    sent_at: int


@dataclass(slots=True)
class Stream:
    """`start` is when it begins. `now` goes on with every post; a message is told of while `recent` has it."""

    rng: random.Random
    start: int
    people: int = 1500
    step_seconds: float = 100.0
    window: int = 300
    now: float = 0.0
    emails: list[str] = field(default_factory=list)
    recent: list[_Message] = field(default_factory=list)
    told: list[Arrival] = field(default_factory=list)
    born: int = 0

    def __post_init__(self) -> None:
        self.now = self.start
        self.emails = [self._email(number) for number in range(self.people)]

    # --- posts ---

    def post(self, size: int) -> Iterator[Post]:
        """Each element is new, or one told before: as it was, or the same written otherwise. Some posts come twice."""
        group = [self._arrival() for _ in range(size)]
        for webhook in sorted({arrival.webhook for arrival in group}):
            texts = tuple(arrival.text for arrival in group if arrival.webhook == webhook)
            for _ in range(self.rng.choice((1, 1, 1, 1, 1, 1, 1, 2))):
                self.now += self.rng.random() * self.step_seconds * len(texts)
                yield Post(webhook, texts, int(self.now * 1_000_000) + self.rng.randrange(1000))

    def _arrival(self) -> Arrival:
        """Copies at the other webhook of a connection come by themselves; sometimes both get a post of it."""
        chance = self.rng.random()
        if self.told and chance < 0.12:
            old = self.rng.choice(self.told)
            if chance < 0.01:
                return old._replace(webhook="partner")
            return old if chance < 0.08 else old._replace(text=self._written(old.payload))
        message = self._message()
        payload = self._event(message)
        webhook = message.webhook
        if webhook == "orders" and payload["event"] != "typofix" and self.rng.random() < 0.2:
            webhook = "archive"
        if self.rng.random() < 0.02:  # another account's message under the same id: nothing of the one's is its copy
            webhook = "partner"
        arrival = Arrival(webhook, payload, self._written(payload))
        self.told.append(arrival)
        if len(self.told) > self.window * 20:
            self.told.pop(self.rng.randrange(len(self.told)))
        return arrival

    def _written(self, payload: dict[str, Any]) -> str:
        items = list(payload.items())
        self.rng.shuffle(items)
        tight = self.rng.random() < 0.5
        return json.dumps(
            dict(items), ensure_ascii=self.rng.random() < 0.5, separators=(",", ":") if tight else (", ", ": ")
        )

    # --- people and messages ---

    def _email(self, number: int) -> str:
        """Some differ from another's in capitals only, some are malformed."""
        local = self.rng.choice((f"p{number}", f"p{number}", f"P{number}", f"p{max(number - 1, 0)}", f"P{number}.x+y"))
        return local if self.rng.random() < 0.01 else f"{local}@{self.rng.choice(DOMAINS)}"

    def _message(self) -> _Message:
        if self.recent and self.rng.random() < 0.75:
            return self.rng.choice(self.recent)
        webhook = self.rng.choice(("orders", "orders", "partner"))
        message = _Message(webhook, self._common(), int(self.now) - self._lag())
        self.recent.append(message)
        if len(self.recent) > self.window:
            self.recent.pop(self.rng.randrange(len(self.recent)))
        return message

    def _lag(self) -> int:
        """How long ago what is told now happened, in seconds; sometimes long, and sometimes their clock is ahead."""
        chance = self.rng.random()
        if chance < 0.9:
            return self.rng.randrange(3)
        return self.rng.randrange(45 * DAY) if chance < 0.97 else -self.rng.randrange(2 * DAY)

    def _common(self) -> dict[str, Any]:
        rng = self.rng
        self.born += 1  # and not by chance, since hypothesis makes the same choices again
        number = 2**54 + self.born * 7919
        common: dict[str, Any] = {
            "MessageID": number if rng.random() < 0.9 else str(number),
            "email": rng.choice(self.emails) if rng.random() < 0.98 else rng.choice(("", None)),
            "mj_campaign_id": rng.choice(CAMPAIGNS), "mj_contact_id": rng.choice((0, None, 4, "2847931267")),
            "customcampaign": rng.choice(NAMES), "CustomID": rng.choice(ODDITIES), "Payload": rng.choice(ODDITIES),
        }  # fmt: skip
        if rng.random() < 0.9:
            common["Message_GUID"] = str(uuid.UUID(int=number))
        if rng.random() < 0.05:  # as in old groups
            common["mj_message_id"] = str(common.pop("MessageID"))
        elif rng.random() < 0.03:
            del common["MessageID"]
            common.pop("Message_GUID", None)
        for name in ("mj_campaign_id", "mj_contact_id", "customcampaign", "CustomID", "Payload"):
            if rng.random() < 0.1:
                del common[name]
        return common

    # --- events ---

    def _event(self, message: _Message) -> dict[str, Any]:
        """`test` is what the button of the web interface sends. One in a hundred has no time and is no event."""
        kind = self.rng.choices(list(KINDS), list(KINDS.values()))[0]
        if kind == "test":
            return {"event": "open", "time": int(self.now), "MessageID": 0, "email": ""}
        told = message.common | {"event": kind, "time": self._time(message, kind)} | self._particulars(kind)
        if self.rng.random() < 0.01:
            del told["time"]
        return told

    def _time(self, message: _Message, kind: str) -> int | str:
        at = message.sent_at
        if kind == "sent":
            at += self.rng.choice((0, 0, 0, 1))
        elif self.rng.random() < 0.5:
            at += self.rng.choice((-61, -60, -1, 0, 1, 2, 3, 4, 300))
        else:
            at = max(at, int(self.now)) + self.rng.randrange(2)
        return str(at) if self.rng.random() < 0.02 else at

    def _particulars(self, kind: str) -> dict[str, Any]:
        rng = self.rng
        match kind:
            case "sent":
                return {"smtp_reply": "sent (250 2.0.0 OK été)"}
            case "open" | "click":
                return {"agent": rng.choice(AGENTS), "ip": rng.choice(("192.0.2.7", "40.92.1.1", "17.1.2.3", ""))}
            case "bounce":
                hard = rng.choice((True, False, False, False, "", None))
                return self._error() | {"hard_bounce": hard, "blocked": bool(hard)}
            case "blocked":
                return self._error()
            case "spam":
                return {"source": "JMRPP"}
            case "unsub":
                return {"mj_list_id": rng.choice(LISTS), "agent": "List-Unsubscribe"}
        return {"new_address": {"is": ["nested", None, True, 2**70]}}

    def _error(self) -> dict[str, Any]:
        error = self.rng.choice(ERRORS)
        if self.rng.random() < 0.1:  # the value slid
            return {"error": "", "error_related_to": error}
        return {"error": error, "error_related_to": self.rng.choice(("recipient", "domain", "", None))}
