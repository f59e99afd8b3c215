"""Every question of the REST, its answer held against the model's. A difference is noted and never raised here."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from app.clock import from_micros, rfc3339
from tests.model import answers
from tests.model.counting import GROUPS, HOUR, LENGTHS
from tests.model.service import Running
from tests.model.standing import DAY, REASONS
from tests.model.world import Event, World, view

EXACT = 60_000  # events of a range up to which uniques are exact
FILTERS = ("webhook", "type", "outcome", "email_domain", "campaign_id", "custom_campaign", "automated", "permanent")


@dataclass(slots=True)
class Comparison:
    """`sample`: of messages, addresses and questions no more than that many each are asked about."""

    service: Running
    world: World
    rng: random.Random
    sample: int = 500
    counts: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)

    def all(self) -> None:
        self.exports()
        self.lists()
        self.feed()
        self.some()

    def some(self) -> None:
        """All but what reads every event."""
        self.messages()
        self.recipients()
        self.suppressions()
        self.stats()

    def note(self, what: str, asked: Any, got: Any, wanted: Any) -> None:
        self.counts[what] += 1
        if got != wanted:
            self.differences.append(f"{what} {asked}: {_difference(got, wanted)}")

    def _some(self, values: Iterable[Any], most: int) -> list[Any]:
        found = sorted(set(values), key=str)
        return self.rng.sample(found, min(most, len(found)))

    # --- events ---

    def exports(self) -> None:
        wanted = [answers.exported(event) for event in self._sorted()]
        self._same_rows("NDJSON lines", "all", self.service.export(), wanted)
        rows = self.service.export(format="csv", order="desc")
        self._same_rows("CSV rows", "all", rows, [answers.csv_row(event) for event in reversed(self._sorted())])

    def _sorted(self) -> list[Event]:
        return sorted(self.world.events.values(), key=lambda event: event.id)

    def _same_rows(self, what: str, asked: Any, got: Sequence[Any], wanted: Sequence[Any]) -> None:
        self.note(f"{what}, how many", asked, len(got), len(wanted))
        for mine, theirs in zip(wanted, got, strict=False):
            self.note(what, (asked, mine["id"]), theirs, mine)

    def lists(self) -> None:
        walked = self.service.walk("/v1/events", limit=1000)
        self._same_rows("listed events", "all", walked, [view(event) for event in reversed(self._sorted())])
        for _ in range(min(self.sample, 40)):
            asked, span = self._wider(self._filters(*FILTERS, "email", "message_id", "list_id", "custom_id"))
            params = _params(asked) | {name: rfc3339(from_micros(moment)) for name, moment in span.items()}
            told = [event["id"] for event in self.service.walk("/v1/events", **params, limit=200, order="asc")]
            within = range(span.get("after", 0), span.get("before", 2**62))
            wanted = [event.id for event in self._sorted() if _fits(event, asked) and event.occurred in within]
            self.note("filtered lists", (asked, span), told, wanted)

    def _wider(self, asked: dict[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
        """Now and then another value beside the first, which means either; and a time from which, or up to which."""
        found = dict(asked)
        span: dict[str, int] = {}
        for name, value in asked.items():
            other = self._some((getattr(event, name) for event in self.world.events.values()), 1)
            if other and other[0] not in (None, value) and self.rng.random() < 0.4:
                found[name] = [value, other[0]]
        for bound in ("after", "before"):
            if self.world.events and self.rng.random() < 0.3:
                span[bound] = self.rng.choice(list(self.world.events.values())).occurred
        return found, span

    def _filters(self, *names: str) -> dict[str, Any]:
        """One or two of them, as some event has them; null cannot be asked for."""
        if not self.world.events:
            return {"type": "open"}
        event = self.rng.choice(list(self.world.events.values()))
        chosen = self.rng.sample(names, min(self.rng.choice((1, 1, 2)), len(names)))
        found = {name: getattr(event, name) for name in chosen}
        return {name: value for name, value in found.items() if value is not None} or {"type": event.type}

    def feed(self) -> None:
        told = self.service.walk("/v1/feed", limit=1000)
        posts = {event.id: event.post for event in self.world.events.values()}
        self.note("fed events, each once", "all", sorted(row["id"] for row in told), sorted(posts))
        order = [posts.get(row["id"], 0) for row in told]
        self.note("feed, order of posts", "all", order, sorted(order))
        for row in told:
            event = self.world.events.get(row["id"])
            if event is not None:
                self.note("fed events", row["id"], row, view(event))

    # --- messages and people ---

    def messages(self) -> None:
        by_id: dict[str, list[Event]] = {}
        for event in self.world.events.values():
            by_id.setdefault(event.message_id or "", []).append(event)
        by_id.pop("", None)
        for message_id in self._some(by_id, self.sample):
            mine = by_id[message_id]
            wanted = answers.message(mine)
            self.note("timelines", message_id, self.service.get(f"/v1/messages/{message_id}"), wanted)
            guid = next((event.message_guid for event in mine if event.message_guid), None)
            if guid:
                self.note("timelines by GUID", guid, self.service.get(f"/v1/messages/{guid}"), wanted)
        gone = self.service.get("/v1/messages/1")
        self.note("timelines of none", 1, gone.get("code"), "message_not_found")

    def recipients(self) -> None:
        for email in self._some(self._addresses(), self.sample):
            for folded in (False, True):
                told = self.service.get(f"/v1/recipients/{quote(email, safe='')}", folded=folded)
                wanted, latest = answers.recipient(self.world, email, folded=folded)
                shown = told.pop("events")
                told["suppressions"] = sorted(map(_place, told["suppressions"]), key=str)
                told["history"] = [{n: v for n, v in act.items() if n != "at"} for act in told["history"]]
                told["spellings"] = sorted(set(told["spellings"]) & set(wanted["spellings"]))
                self.note("recipients", (email, folded), told, wanted)
                fault = answers.latest_fault(shown, latest)
                self.note("recipients' latest events", (email, folded), fault, None)

    def _addresses(self) -> set[str]:
        standing = self.world.standing
        known = {event.email for event in self.world.events.values() if event.email}
        return known | {place[0] for place in (*standing.entries, *standing.hidden)} | {"nobody@example.com"}

    # --- suppressions ---

    def suppressions(self) -> None:
        entries = [answers.entry(*item) for item in self.world.standing.entries.items()]
        entries += [answers.entry(*item) for item in answers.hidden(self.world.standing).items()]
        self._suppression_list(entries, {})
        for name in ("reason", "scope", "list_id", "email_domain"):
            values = {"email_domain": "example.com", "list_id": "17", "scope": "list"}
            asked = {name: values.get(name, self.rng.choice(REASONS))}
            self._suppression_list([e for e in entries if _has(e, asked)], asked)
        self._checks()

    def _suppression_list(self, wanted: list[dict[str, Any]], asked: dict[str, str]) -> None:
        told = self.service.walk("/v1/suppressions", limit=200, **asked)
        order = [(row["since"], row.pop("id")) for row in told]
        key = lambda row: json.dumps(row, sort_keys=True)  # noqa: E731
        self.note("lists of suppressions", asked, sorted(told, key=key), sorted(wanted, key=key))
        self.note("lists of suppressions, order", asked, [at for at, _ in order], sorted((a for a, _ in order))[::-1])
        self.counts["suppressions in them"] += len(told)

    def _checks(self) -> None:
        emails = self._some(self._addresses(), min(self.sample * 2, 1000))
        for list_id in (None, "17"):
            body = {"emails": emails} | ({} if list_id is None else {"list_id": list_id})
            rows = self.service.send("/v1/suppressions/check", **body)["data"]
            for email, row in zip(emails, rows, strict=True):
                row["suppressions"] = sorted(row["suppressions"], key=str)
                wanted = answers.check(self.world.standing, email, list_id)
                self.note("checked addresses", (email, list_id), row, wanted)

    # --- statistics ---

    def stats(self) -> None:
        grouped = [(interval, group) for interval in LENGTHS for group in ((), *((name,) for name in GROUPS))]
        for interval, group in self._some(grouped, self.sample):
            self._stats(interval, group, {})
        for _ in range(min(self.sample, 40)):
            group_by = tuple(self.rng.sample(GROUPS, self.rng.choice((0, 1, 2))))
            self._stats(self.rng.choice(list(LENGTHS)), group_by, self._filters(*FILTERS))
        for name in ("email", "message_id"):
            self._stats("day", (), self._filters(name))
        for table, group_by in (("domains", ("email_domain",)), ("campaigns", ("campaign_id", "custom_campaign"))):
            self._table(table, group_by)

    def _stats(self, interval: str, group_by: tuple[str, ...], filters: dict[str, Any]) -> None:
        """A range that the rows of one answer fit into, with its ends anywhere."""
        first, beyond = self._range(interval)
        asked = _params(filters) | {"interval": interval, "group_by": list(group_by)}
        asked |= {"after": rfc3339(from_micros(first)), "before": rfc3339(from_micros(beyond))}
        told = self.service.get("/v1/stats", **asked)
        if told.get("status") == 404 or "data" not in told:
            self.note("statistics", asked, told, "an answer")
            return
        wanted = answers.stats(
            self.world, interval=interval, group_by=group_by, filters=filters, span=(first, beyond),
            from_events=bool(told["source"] == "events"),
        )  # fmt: skip
        self._rows("rows of statistics", asked, told, wanted, lambda row: (row["start"], *row["group"].values()))

    def _range(self, interval: str) -> tuple[int, int]:
        """Two months for days, four days for hours, and now and then ends that are no whole hours."""
        times = [event.occurred for event in self.world.events.values()] or [0]
        middle = self.rng.choice(times)
        length = (60 if interval == "day" else 4) * DAY
        first, beyond = max(middle - length // 2, 0), middle + length // 2
        if self.rng.random() < 0.7:
            return first - first % HOUR, beyond - beyond % HOUR
        return first, beyond

    def _table(self, name: str, group_by: tuple[str, ...]) -> None:
        told = self.service.get(f"/v1/stats/{name}", limit=1000)
        wanted = answers.stats(self.world, interval=None, group_by=group_by, filters={}, span=None, from_events=False)
        named = {key: row for key, row in wanted.items() if any(part is not None for part in key[1:])}
        self._rows(f"rows of /stats/{name}", name, told, named, lambda row: (None, *row["group"].values()))
        totals = [sum(row["counts"].values()) for row in told["data"]]
        self.note(f"/stats/{name}, order", name, totals, sorted(totals, reverse=True))

    def _rows(self, what: str, asked: Any, told: Any, wanted: Mapping[tuple[Any, ...], Any], key: Any) -> None:
        got = {key(row): {n: v for n, v in row.items() if n not in ("start", "group")} for row in told["data"]}
        self.note(f"{what}, which", asked, sorted(got, key=str), sorted(wanted, key=str))
        self.note("statistics that are complete", asked, told["complete"], True)
        for name in got.keys() & wanted.keys():
            if not told["unique_exact"]:
                guess, truth = got[name].pop("unique"), wanted[name].pop("unique")
                near = truth if _near(guess, truth, told["unique_sample"]) else guess
                self.note("uniques of a sample, near enough", (asked, name, told["unique_sample"]), near, truth)
            self.note(what, (asked, name), got[name], wanted[name])


def _near(guess: Mapping[str, int], truth: Mapping[str, int], sample: float) -> bool:
    """At most a third or a hundred off, or five times what chance does to a sample of so few recipients, each with all
    of their messages."""
    chance = math.sqrt((1 / sample - 1) / max(truth["recipients"], 1))
    return all(abs(guess[name] - number) <= max(number / 3, 100, 5 * number * chance) for name, number in truth.items())


def _params(filters: Mapping[str, Any]) -> dict[str, Any]:
    def told(value: Any) -> Any:
        return str(value).lower() if isinstance(value, bool) else value

    return {name: [*map(told, value)] if isinstance(value, list) else told(value) for name, value in filters.items()}


def _fits(event: Event, asked: Mapping[str, Any]) -> bool:
    """A list of values means any of them."""
    return all(getattr(event, name) in (value if isinstance(value, list) else [value]) for name, value in asked.items())


def _has(entry: Mapping[str, Any], asked: Mapping[str, str]) -> bool:
    told = entry | {"email_domain": (entry["email"] or "").rpartition("@")[2]}
    return all(told[name] == value for name, value in asked.items())


def _place(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "id"}


def _difference(got: Any, wanted: Any) -> str:
    """Of two objects only what differs, and of two lists the first place."""
    if isinstance(got, dict) and isinstance(wanted, dict):
        names = sorted(got.keys() | wanted.keys(), key=str)
        parts = {name: (got.get(name, "(missing)"), wanted.get(name, "(missing)")) for name in names}
        found = {name: _difference(*pair) for name, pair in parts.items() if pair[0] != pair[1]}
        return "; ".join(f"{name}: {told}" for name, told in found.items())
    if isinstance(got, list) and isinstance(wanted, list):
        at = next((n for n, pair in enumerate(zip(got, wanted, strict=False)) if pair[0] != pair[1]), None)
        if at is not None:
            return f"[{at}] {_difference(got[at], wanted[at])}"
        return (
            f"{len(got)} items {str(got[len(wanted) :])[:300]}, and not {len(wanted)} {str(wanted[len(got) :])[:300]}"
        )
    return f"{str(got)[:300]}, and not {str(wanted)[:300]}"
