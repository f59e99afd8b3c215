"""REST for webhooks: their callbacks at Mailjet, and registering them now."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path

from app.db import Database
from app.errors import Conflict, MailjetUnavailable, WebhookNotFound
from app.http import PROBLEM_RESPONSES, ApiKeys, problem_responses
from app.registration.looking import find_webhook, find_webhooks
from app.registration.plan import list_slots
from app.registration.service import Registrar
from app.registration.shapes import WebhookListModel, WebhookModel
from app.settings import Settings

Name = Annotated[str, Path(description="name of the webhook, in small letters", examples=["orders"])]


def build_router(settings: Settings, database: Database, keys: ApiKeys, registrar: Registrar) -> APIRouter:
    """`GET /v1/webhooks`, `GET /v1/webhooks/{name}` and `POST /v1/webhooks/{name}/register`."""
    router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], responses=PROBLEM_RESPONSES)
    reading: dict[str, Any] = {"dependencies": [Depends(keys.reader)]}

    slots = list_slots(settings)
    view = partial(find_webhook, settings, slots)

    @router.get(
        "",
        summary="List webhooks",
        description="Every configured webhook with the state of its callbacks at Mailjet, by name. Always one page.",
        **reading,
    )
    def list_webhooks() -> WebhookListModel:
        with database.reading() as connection:
            return WebhookListModel(data=find_webhooks(settings, slots, connection, settings.effective_webhooks))

    @router.get(
        "/{name}",
        summary="Get a webhook",
        description="One webhook with the state of its callbacks at Mailjet.",
        responses=problem_responses(404),
        **reading,
    )
    def get_webhook(name: Name) -> WebhookModel:
        if name not in settings.effective_webhooks:
            raise WebhookNotFound("there is no webhook of this name")
        with database.reading() as connection:
            return view(connection, name)

    @router.post(
        "/{name}/register",
        summary="Register a webhook now",
        description="Looks at Mailjet and brings this webhook's callbacks in line, then answers with the webhook. Where"
        " Mailjet could be asked the answer is 200, also if a callback is kept for a foreign URL or one change failed:"
        " the states tell. 502 means that nothing could be looked at: Mailjet is down or refuses the key. 409 means"
        " that registration is off; `detail` names the setting.",
        responses=problem_responses(404, 409, 502),
        dependencies=[Depends(keys.writer)],
    )
    async def register_webhook(name: Name) -> WebhookModel:
        report = await registrar.reconcile(webhook=name)
        for part in report.connections:
            if part.off is not None:
                raise Conflict(part.off)
            if part.error is not None:
                raise MailjetUnavailable(part.error)
        return await database.run_read(lambda connection: view(connection, name))

    return router
