"""The first page: what needs a person, whether events flow, and how each webhook and sink is.

It costs the same however much is stored: figures come from counters and rollups, lists are short, counts are bounded.
"""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy.engine import Connection

from app.clock import utc_now
from app.dashboard import history
from app.dashboard.attention import MOST_COUNTED, notices
from app.dashboard.chart import LONG_SPANS, SPANS, Chart, live_chart, make_chart
from app.dashboard.desk import Desk
from app.dashboard.figures import figures
from app.dashboard.sessions import Session
from app.filters import EventQuery, QuarantineQuery
from app.query import queries
from app.registration.queries import CallbackState
from app.registration.shapes import CallbackModel, WebhookModel
from app.views import event_view

MOST_NOTICES = 5  # open at first: what flows should be seen on the first screen, too
MOST_WEBHOOKS = 3  # shown in full; more have a line each
NEWEST = 8
TEMPLATES = (
    "base.html", "macros.html", "overview.html", "notice.html", "tiles.html", "event_table.html", "event_rows.html",
)  # fmt: skip
FLOWS = timedelta(minutes=1)
QUIET = timedelta(days=1)
TABS = {**{name: SPANS[name][0] for name in SPANS}, **{name: history.SPANS[name][0] for name in LONG_SPANS}}


def add_routes(router: APIRouter, desk: Desk) -> None:
    @router.get("/")
    def overview(
        request: Request, session: Annotated[Session, Depends(desk.access.viewer)], span: str = "live"
    ) -> Response:
        return desk.pages.answer(
            request, "overview.html", session, **overview_values(desk, span if span in TABS else "live")
        )


@dataclass(frozen=True, slots=True)
class Flow:
    """The first thing to see: do events come? `mood` is a colour, `words` the same for who sees none."""

    mood: str
    words: str


def flow_of(last_event_at: datetime | None, now: datetime, *, is_silent: bool) -> Flow:
    """`is_silent`: something should have come and did not."""
    if last_event_at is None:
        return Flow("calm", "No event yet")
    if now - last_event_at < FLOWS:
        return Flow("ok", "Events flow")
    return Flow("warn", "Too quiet") if is_silent else Flow("calm", "Quiet now")


@dataclass(frozen=True, slots=True)
class Watched:
    """A webhook with (callback, one word for its health) of each type."""

    webhook: WebhookModel
    callbacks: Mapping[str, tuple[CallbackModel, str]]

    @property
    def last_event_at(self) -> datetime | None:
        return latest(callback.last_event_at for callback, _ in self.callbacks.values())

    @property
    def is_silent(self) -> bool:
        return any(health == "silent" for _, health in self.callbacks.values())


def latest(moments: Iterable[datetime | None]) -> datetime | None:
    return max((moment for moment in moments if moment is not None), default=None)


def overview_values(desk: Desk, span: str) -> dict[str, Any]:
    now = utc_now()
    sinks = desk.sinks.list_all(most=MOST_COUNTED).data
    webhooks = desk.list_webhooks()
    watched = [Watched(webhook, {c.type: (c, health_of(c, now)) for c in webhook.callbacks if not c.backup})
               for webhook in webhooks]  # fmt: skip
    with desk.database.reading() as connection:
        newest = queries.list_events(connection, EventQuery(limit=NEWEST), None)
        quarantine = queries.list_quarantine(connection, QuarantineQuery(limit=1), None)
        whole = history.whole(connection, history.Asked("day", (), now), desk.memory)
        chart = _chart(desk, connection, span, now)
    last_event_at = latest([*(row["received_at"] for row in newest.rows), *(w.last_event_at for w in watched)])
    return {
        "notices": notices(desk.settings, sinks, webhooks, bool(quarantine.rows)),
        "sinks": sinks,
        "is_alone": desk.database.is_sqlite,
        "sink_rates": desk.pulse.deliveries_per_second(),
        "most_counted": MOST_COUNTED,
        "most_notices": MOST_NOTICES,
        "webhooks": watched,
        "most_webhooks": MOST_WEBHOOKS,
        "chart": chart,
        "tabs": TABS,
        "span": span,
        "rate": desk.pulse.events_per_second(),
        "figures": figures(whole),
        "events": [event_view(row, include_raw=False) for row in newest.rows],
        "last_event_at": last_event_at,
        "flow": flow_of(last_event_at, now, is_silent=any(w.is_silent for w in watched)),
    }


def _chart(desk: Desk, connection: Connection, span: str, now: datetime) -> Chart:
    if span in SPANS:
        return live_chart(desk.pulse, span)
    asked = history.Asked(span, (), now)
    return make_chart(TABS[span], asked.step_seconds, *history.series(connection, asked, desk.memory))


def health_of(callback: CallbackModel, now: datetime) -> str:
    """One word for a callback. Of one that is well: `silent` where something should have come; `quiet` where nothing is
    expected yet and nothing came for a day."""
    if callback.state is not CallbackState.OK:
        return callback.state.value
    state = callback.rhythm.state if callback.rhythm is not None else "learning"
    if state == "silent":
        return state
    heard = callback.last_event_at
    return "ok" if state == "heard" or (heard is not None and now - heard < QUIET) else "quiet"
