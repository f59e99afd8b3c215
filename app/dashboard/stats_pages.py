"""Statistics: how mail fares over time, by campaign, by domain, and why it fails; each table as CSV, too."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
import csv
import io
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy.engine import Connection

from app.clock import utc_now
from app.dashboard import history
from app.dashboard.chart import make_chart
from app.dashboard.desk import Desk
from app.dashboard.figures import BOUNDS, figures
from app.dashboard.history import SPANS, Asked
from app.dashboard.pages import HEADERS
from app.dashboard.sessions import Session
from app.errors import Invalid, NotFound
from app.stats.memory import Memory
from app.views import clean

PATH = "/dashboard/statistics"
Rows = list[dict[str, Any]]
Table = Callable[[Connection, Asked, Memory], Rows]
TABLES: dict[str, tuple[str, Table]] = {
    "campaigns": ("Campaigns", history.campaigns),
    "domains": ("Recipients' domains", history.domains),
    "reasons": ("Why mail failed", history.reasons),
}
COUNTED = ("sent", "open", "click", "bounce", "blocked", "spam", "unsub")
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def add_routes(router: APIRouter, desk: Desk) -> None:
    viewer = Depends(desk.access.viewer)

    @router.get(PATH)
    def show_statistics(
        request: Request, session: Annotated[Session, viewer], span: str = "week", webhook: str = ""
    ) -> Response:
        asked = _asked(span, webhook)
        with desk.database.reading() as connection:
            chart = make_chart(
                SPANS[asked.span][0], asked.step_seconds, *history.series(connection, asked, desk.memory)
            )
            whole = history.whole(connection, asked, desk.memory)
            tables = {
                name: (title, *read_table(connection, asked, desk.memory, read))
                for name, (title, read) in TABLES.items()
            }
        return desk.pages.answer(
            request, "statistics.html", session, chart=chart, whole=whole, figures=figures(whole), tables=tables,
            bounds=BOUNDS, spans=SPANS, asked=asked, webhooks=list(desk.settings.effective_webhooks), webhook=webhook,
        )  # fmt: skip

    @router.get(PATH + "/{name}.csv", dependencies=[viewer])
    def download(name: str, span: str = "week", webhook: str = "") -> Response:
        if name not in TABLES:
            raise NotFound("there is no such table")
        asked = _asked(span, webhook)
        with desk.database.reading() as connection:
            rows = TABLES[name][1](connection, asked, desk.memory)
        headers = HEADERS | {"content-disposition": f'attachment; filename="jethook-{name}-{asked.span}.csv"'}
        return Response(csv_of(rows), headers=headers, media_type="text/csv; charset=utf-8")


def read_table(connection: Connection, asked: Asked, memory: Memory, table: Table) -> tuple[Rows, str | None]:
    """(rows, why there are none): what cannot be counted in a bounded time must not take the page with it."""
    try:
        return table(connection, asked, memory), None
    except Invalid as error:
        return [], error.detail


def _asked(span: str, webhook: str) -> Asked:
    name = clean(webhook)
    return Asked(span if span in SPANS else "week", (name,) if name else (), utc_now())


def csv_of(rows: Sequence[dict[str, Any]]) -> str:
    """What is shown, as a table. Outsiders choose some of the texts: none of them becomes a spreadsheet's formula."""
    groups = list(rows[0]["group"]) if rows else []
    rates = list(rows[0]["rates"]) if rows else []
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([*groups, *COUNTED, "open_by_machines", "click_by_machines", "recipients", "messages", *rates])
    for row in rows:
        writer.writerow([
            *(_harmless(row["group"][name]) for name in groups), *(row["counts"].get(name, 0) for name in COUNTED),
            row["automated"]["open"], row["automated"]["click"], *row["unique"].values(), *row["rates"].values(),
        ])  # fmt: skip
    return out.getvalue()


def _harmless(text: str | None) -> str:
    return "" if text is None else f"'{text}" if text.startswith(FORMULA) else text
