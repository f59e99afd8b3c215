"""Replays: count first, start, watch to the end, cancel."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from app.clock import utc_now
from app.dashboard.desk import Desk
from app.dashboard.filters import segment
from app.dashboard.forms import Form, parse_fields, read_form, whole_times
from app.dashboard.pages import redirect
from app.dashboard.sessions import Session
from app.errors import FieldError, Invalid, ReplayNotFound, SinkNotFound
from app.query.cursor import decode_cursor, encode_cursor, scope_of
from app.replay import queries, service
from app.replay.routes import replay_view
from app.replay.selection import DeadSelection, EventSelection, Recipient, Selection
from app.views import EVENT_ID_PATTERN

LISTED = 20
FILTER_PREFIX = "filter."


def add_routes(router: APIRouter, desk: Desk) -> None:
    _add_watching(router, desk)
    _add_asking(router, desk)


def _add_watching(router: APIRouter, desk: Desk) -> None:
    viewer, actor = Depends(desk.access.viewer), Depends(desk.access.actor)

    @router.get("/dashboard/replays")
    def list_replays(request: Request, session: Annotated[Session, viewer], cursor: str | None = None) -> Response:
        scope = scope_of("replays", {}, "desc")
        beyond = str(decode_cursor(cursor, scope, (str,))[0]) if cursor else None
        with desk.database.reading() as connection:
            rows = queries.page(connection, beyond=beyond, descending=True, limit=LISTED + 1)
        shown = rows[:LISTED]
        following = encode_cursor(scope, (shown[-1].id,)) if len(rows) > LISTED else None
        return desk.pages.answer(
            request, "replays.html", session, replays=[replay_view(row) for row in shown], following=following,
            is_first=not cursor,
        )  # fmt: skip

    @router.get("/dashboard/replays/{id}")
    def show_replay(request: Request, session: Annotated[Session, viewer], id: str) -> Response:
        _check_id(id)
        with desk.database.reading() as connection:
            replay = replay_view(queries.get(connection, id))
        return desk.pages.answer(request, "replay.html", session, replay=replay)

    @router.post("/dashboard/replays/{id}/cancel", dependencies=[actor])
    def cancel_replay(id: str) -> Response:
        _check_id(id)
        desk.database.write(lambda c: queries.cancel(c, id, utc_now()))
        desk.replays_look_again()
        return redirect(f"/dashboard/replays/{id}", "The replay takes up nothing more.")


def _add_asking(router: APIRouter, desk: Desk) -> None:
    actor = Depends(desk.access.actor)

    @router.post("/dashboard/sinks/{name}/replay")
    def replay_events(
        request: Request, session: Annotated[Session, actor], form: Annotated[Form, Depends(read_form)], name: str
    ) -> Response:
        recipient = _recipient(desk, name)
        try:
            selection, rate = (
                parse_fields(EventSelection, whole_times(form.under(FILTER_PREFIX))),
                _rate(form.text("rate")),
            )
        except Invalid as fault:
            return _ask_again(desk, request, session, name, form, fault=fault)
        if form.text("step") == "start":
            return _start(desk, recipient, selection, rate)
        with desk.database.reading() as connection:
            count, _ = service.count(connection, recipient, selection, utc_now())
        return _ask_again(desk, request, session, name, form, count=count)

    @router.post("/dashboard/sinks/{name}/retry-dead", dependencies=[actor])
    def retry_dead(name: str) -> Response:
        return _start(desk, _recipient(desk, name), DeadSelection(state="dead"), None)


def _recipient(desk: Desk, name: str) -> Recipient:
    recipient = desk.recipients.get(name)
    if recipient is None:
        raise SinkNotFound(f"sink {name[:63]!r} is not configured")
    return recipient


def _start(desk: Desk, recipient: Recipient, selection: Selection, rate: float | None) -> Response:
    now = utc_now()
    with desk.database.reading() as connection:
        found, last_seq = service.count(connection, recipient, selection, now)
    if not found:
        return redirect(f"/dashboard/sinks/{segment(recipient.name)}", "There is nothing to send again.", kind="bad")
    values = service.new_replay(recipient.name, selection, rate, found=found, last_seq=last_seq, now=now)
    row = desk.database.write(lambda c: queries.insert(c, values))
    desk.replays_look_again()
    return redirect(f"/dashboard/replays/{row.id}")


def _ask_again(desk: Desk, request: Request, session: Session, name: str, form: Form, **told: Any) -> Response:
    """The form as it was filled in, with what the dry run found, or what does not fit."""
    given = {name: [value] for name, value in form.under(FILTER_PREFIX) if value}
    values = {"count": None, "fault": None, "given": given, "rate": form.text("rate"), **told}
    status = 422 if values["fault"] else 200
    return desk.pages.answer(
        request, "replay_new.html", session, status=status, name=name,
        webhooks=list(desk.settings.effective_webhooks), **values,
    )  # fmt: skip


def _rate(text: str) -> float | None:
    """Raises Invalid; the bounds are those of REST."""
    if not text:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 1e-6 <= rate <= 1e6:
        told = "must be a number of deliveries a second, from 0.000001 to a million"
        raise Invalid(f"rate: {told}", errors=[FieldError("rate", told, "rate")])
    return rate


def _check_id(replay_id: str) -> None:
    if not EVENT_ID_PATTERN.fullmatch(replay_id):
        raise ReplayNotFound("there is no replay with this id")
