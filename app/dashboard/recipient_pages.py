"""Recipients: one address, what happened to it and what suppresses it; and all that is suppressed."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from app.clock import to_micros, utc_now
from app.dashboard.desk import Desk
from app.dashboard.filters import address, moment_of
from app.dashboard.forms import Form, given_fields, parse_fields, read_form
from app.dashboard.pages import redirect
from app.dashboard.sessions import Session
from app.dashboard.strip import strip_of
from app.models import SuppressionReason
from app.query.cursor import decode_cursor, encode_cursor, scope_of
from app.query.recipients import RecipientQuery, find_recipient, suppression_view
from app.query.suppression_lists import SuppressionQuery, list_suppressions
from app.query.suppression_shapes import Lift, NewSuppression
from app.suppressions import service

PATH = "/dashboard/recipients"


def add_routes(router: APIRouter, desk: Desk) -> None:
    viewer, actor = Depends(desk.access.viewer), Depends(desk.access.actor)
    form_of = Annotated[Form, Depends(read_form)]

    @router.get(PATH)
    def show(request: Request, session: Annotated[Session, viewer]) -> Response:
        email = request.query_params.get("email", "").strip()
        return _recipient(desk, request, session, email) if email else _suppressed(desk, request, session)

    @router.post(PATH + "/suppress", dependencies=[actor])
    def suppress(form: form_of) -> Response:
        asked = parse_fields(NewSuppression, [(n, form.text(n)) for n in ("email", "list_id", "comment")])
        _, _, is_new = desk.database.write(lambda c: service.add(
            c, desk.keeper, email=asked.email, list_id=asked.list_id, comment=asked.comment, now=utc_now()
        ))  # fmt: skip
        desk.look_again()
        told = "is suppressed." if is_new else "was suppressed by hand before."
        return redirect(address(PATH, email=asked.email), f"{asked.email} {told}")

    @router.post(PATH + "/lift", dependencies=[actor])
    def lift(form: form_of) -> Response:
        asked = parse_fields(Lift, [(n, form.text(n)) for n in ("email", "comment")])
        ended = desk.database.write(lambda c: service.lift(
            c, desk.keeper, email=asked.email, digest=desk.digest, comment=asked.comment, now=utc_now()
        ))  # fmt: skip
        desk.look_again()
        told = f"{len(ended)} lifted. What happens from now on suppresses again." if ended else "Nothing was in force."
        return redirect(address(PATH, email=asked.email), told)


def _recipient(desk: Desk, request: Request, session: Session, email: str) -> Response:
    with desk.database.reading() as connection:
        recipient = find_recipient(connection, email, RecipientQuery(folded=True), desk.digest)
    times = [(moment_of(event["occurred_at"]), event["type"]) for event in reversed(recipient["events"])]
    return desk.pages.answer(request, "recipient.html", session, recipient=recipient, strip=strip_of(times))


def _suppressed(desk: Desk, request: Request, session: Session) -> Response:
    query = parse_fields(SuppressionQuery, request.query_params.multi_items())
    scope = scope_of("suppressions", query.normalised(), query.order)
    position = None if query.cursor is None else decode_cursor(query.cursor, scope, (int, str))
    with desk.database.reading() as connection:
        rows, has_more = list_suppressions(connection, query, position)
    following = encode_cursor(scope, (to_micros(rows[-1]["since"]), rows[-1]["id"])) if has_more else None
    given = given_fields(request)
    return desk.pages.answer(
        request, "recipients.html", session, rows=[suppression_view({**row}) for row in rows], given=given,
        reasons=[str(reason) for reason in SuppressionReason],
        following=address(PATH, **given, cursor=following) if following else None,
        start=None if query.cursor is None else address(PATH, **given),
    )  # fmt: skip
