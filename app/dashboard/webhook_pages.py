"""Webhooks: their callbacks at Mailjet, what a registration would do, and registering now."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from app.clock import utc_now
from app.dashboard.desk import Desk
from app.dashboard.filters import segment
from app.dashboard.overview import health_of
from app.dashboard.pages import redirect
from app.dashboard.sessions import Session
from app.errors import WebhookNotFound
from app.registration.looking import find_webhook
from app.registration.report import RegistrationReport
from app.registration.shapes import WebhookModel

LIST = "/dashboard/webhooks"


def add_routes(router: APIRouter, desk: Desk) -> None:
    viewer, actor = Depends(desk.access.viewer), Depends(desk.access.actor)

    @router.get(LIST)
    def list_webhooks(request: Request, session: Annotated[Session, viewer]) -> Response:
        return desk.pages.answer(request, "webhooks.html", session, webhooks=_with_health(desk.list_webhooks()))

    @router.get(LIST + "/{name}")
    def show_webhook(request: Request, session: Annotated[Session, viewer], name: str) -> Response:
        return _page(desk, request, session, name, None)

    @router.post(LIST + "/{name}/plan")
    async def plan(request: Request, session: Annotated[Session, actor], name: str) -> Response:
        _check(desk, name)
        report = await desk.registrar.reconcile(webhook=name, dry_run=True)
        return await desk.database.run_read(lambda _: _page(desk, request, session, name, report))

    @router.post(LIST + "/{name}/register", dependencies=[actor])
    async def register(name: str) -> Response:
        _check(desk, name)
        report = await desk.registrar.reconcile(webhook=name)
        told = "; ".join(report.faults) or f"{report.changed} changes made; all callbacks are as they should be."
        return redirect(f"{LIST}/{segment(name)}", told, kind="bad" if report.has_faults else "ok")


def _check(desk: Desk, name: str) -> None:
    if name not in desk.settings.effective_webhooks:
        raise WebhookNotFound("there is no webhook of this name")


def _page(desk: Desk, request: Request, session: Session, name: str, report: RegistrationReport | None) -> Response:
    _check(desk, name)
    with desk.database.reading() as connection:
        webhook = find_webhook(desk.settings, desk.slots, connection, name)
    off = desk.registrar.off_reason(webhook.connection) if webhook.registration == "off" else None
    ((_, callbacks),) = _with_health([webhook])
    return desk.pages.answer(
        request, "webhook.html", session, webhook=webhook, callbacks=callbacks, report=report, off=off,
        on_conflict=f"JETHOOK_WEBHOOKS__{name.upper()}__ON_CONFLICT=replace",
    )  # fmt: skip


def _with_health(webhooks: list[WebhookModel]) -> list[tuple[WebhookModel, list[tuple[object, str]]]]:
    now = utc_now()
    return [(webhook, [(c, health_of(c, now)) for c in webhook.callbacks]) for webhook in webhooks]
