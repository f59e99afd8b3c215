"""The first page: what needs a person, whether events flow, and how each webhook and sink is.

It costs the same however much is stored: figures come from counters and rollups, lists are short, counts are bounded.
"""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy.engine import Connection

from app.clock import utc_now
from app.dashboard import history
from app.dashboard.attention import notices
from app.dashboard.chart import LONG_SPANS, SPANS, Chart, live_chart, make_chart
from app.dashboard.desk import Desk
from app.dashboard.figures import figures
from app.dashboard.sessions import Session
from app.filters import EventQuery, QuarantineQuery
from app.query import queries
from app.registration.queries import CallbackState
from app.registration.shapes import CallbackModel
from app.views import event_view

MOST_COUNTED = 10_000  # of a sink's deliveries; more are shown as "10,000+"
NEWEST = 8
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


def overview_values(desk: Desk, span: str) -> dict[str, Any]:
    now = utc_now()
    sinks = desk.sinks.list_all(most=MOST_COUNTED).data
    webhooks = desk.list_webhooks()
    with desk.database.reading() as connection:
        newest = queries.list_events(connection, EventQuery(limit=NEWEST), None)
        quarantine = queries.list_quarantine(connection, QuarantineQuery(limit=1), None)
        whole = history.whole(connection, history.Asked("day", (), now))
        chart = _chart(desk, connection, span, now)
    return {
        "notices": notices(desk.settings, sinks, webhooks, bool(quarantine.rows)),
        "sinks": sinks,
        "sink_rates": desk.pulse.deliveries_per_second(),
        "most_counted": MOST_COUNTED,
        "webhooks": [(webhook, {c.type: (c, health_of(c, now)) for c in webhook.callbacks if not c.backup})
                     for webhook in webhooks],
        "chart": chart,
        "tabs": TABS,
        "span": span,
        "rate": desk.pulse.events_per_second(),
        "figures": figures(whole),
        "events": [event_view(row, include_raw=False) for row in newest.rows],
        "last_event_at": max((row["received_at"] for row in newest.rows), default=None),
    }  # fmt: skip


def _chart(desk: Desk, connection: Connection, span: str, now: datetime) -> Chart:
    if span in SPANS:
        return live_chart(desk.pulse, span)
    asked = history.Asked(span, (), now)
    return make_chart(TABS[span], asked.step_seconds, *history.series(connection, asked))


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
