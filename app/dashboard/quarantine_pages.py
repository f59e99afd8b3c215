"""Quarantine: what could not be read, byte by byte; read it again, or delete it."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from app.dashboard.desk import Desk
from app.dashboard.filters import address
from app.dashboard.forms import given_fields, parse_fields
from app.dashboard.hexdump import hexdump
from app.dashboard.pages import redirect
from app.dashboard.sessions import Session
from app.errors import Conflict, QuarantineNotFound
from app.filters import QuarantineQuery
from app.ingest.quarantine import reprocess
from app.query import queries
from app.query.cursor import decode_cursor, encode_cursor, scope_of
from app.query.shapes import quarantine_view
from app.views import EVENT_ID_PATTERN

LIST = "/dashboard/quarantine"
DUMPED_BYTES = 4096
SHOWN_CHARS = 50_000


def add_routes(router: APIRouter, desk: Desk) -> None:
    viewer, actor = Depends(desk.access.viewer), Depends(desk.access.actor)

    @router.get(LIST)
    def list_quarantine(request: Request, session: Annotated[Session, viewer]) -> Response:
        query = parse_fields(QuarantineQuery, request.query_params.multi_items())
        scope = scope_of("quarantine", query.normalised(), query.order)
        position = None if query.cursor is None else decode_cursor(query.cursor, scope, (int, str))
        with desk.database.reading() as connection:
            page = queries.list_quarantine(connection, query, position)
        given = given_fields(request)
        cursor = None if page.beyond is None else encode_cursor(scope, page.beyond)
        entries = [quarantine_view(row) for row in page.rows]
        return desk.pages.answer(
            request, "quarantine.html", session, entries=entries,
            following=address(LIST, **given, cursor=cursor) if cursor else None,
            start=None if query.cursor is None else address(LIST, **given),
        )  # fmt: skip

    @router.get(LIST + "/{id}")
    def show_entry(request: Request, session: Annotated[Session, viewer], id: str) -> Response:
        with desk.database.reading() as connection:
            row = queries.find_quarantined(connection, id) if EVENT_ID_PATTERN.fullmatch(id) else None
        if row is None:
            raise QuarantineNotFound("there is no quarantine entry with this id")
        entry = quarantine_view(row)
        text = entry["body"] if entry["body_encoding"] == "text" else None
        return desk.pages.answer(
            request, "quarantine_entry.html", session, entry=entry, text=None if text is None else text[:SHOWN_CHARS],
            cut=text is not None and len(text) > SHOWN_CHARS, dump=hexdump(bytes(row["body"]), DUMPED_BYTES),
            dumped=DUMPED_BYTES,
        )  # fmt: skip

    @router.post(LIST + "/{id}/reprocess", dependencies=[actor])
    async def read_again(id: str) -> Response:
        try:
            done = await reprocess(desk.database, desk.ingest, id)
        except Conflict as conflict:
            return redirect(f"{LIST}/{id}", f"It stays: {conflict.detail}", kind="bad")
        return redirect(LIST, f"Read again: {done.stored} stored, {done.duplicates} known before.")

    @router.post(LIST + "/{id}/delete", dependencies=[actor])
    def delete(id: str) -> Response:
        if not (EVENT_ID_PATTERN.fullmatch(id) and desk.database.write(lambda c: queries.delete_quarantined(c, id))):
            raise QuarantineNotFound("there is no quarantine entry with this id")
        return redirect(LIST, "The entry is deleted.")
