"""SMS over REST: send one, list them."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field

from app.connector.doors import Doors
from app.connector.manners import (
    TELLS_UNKNOWN,
    WALKING,
    Name,
    json_answer,
    list_page,
    list_responses,
    mailjet_problems,
    new_router,
    refuse_repeats,
)
from app.connector.paging import Paging
from app.errors import FieldError, Invalid
from app.http import ApiKeys
from app.mailjet import sms as mailjet
from app.mailjet.sms import MOST_PARTS, Encoding, NewSms, Sms, SmsFilters, encoding_of, parts_of

NAMES = {"From": "from", "To": "to", "Text": "text"}


class SmsQuery(SmsFilters, Paging):
    """`GET …/sms`."""


class SmsModel(Sms):
    """One text to one number."""

    encoding: Encoding | None = Field(None, description="by the text, where it is known")


class SmsPage(BaseModel):
    """A page of texts."""

    data: list[SmsModel]
    next_cursor: str | None
    has_more: bool


def build_router(doors: Doors, keys: ApiKeys) -> APIRouter:
    router = new_router("SMS")

    @router.post(
        "/sms",
        summary="Send an SMS",
        description="With the connection's token (`JETHOOK_CONNECTIONS__{N}__SMS_TOKEN`). At most five parts: each"
        " holds 160 characters of GSM-7 (153, if there are several), or 70 (67) as soon as one is none of these."
        + TELLS_UNKNOWN,
        status_code=201,
        dependencies=[Depends(keys.sender)],
        response_model=SmsModel,
    )
    async def send_sms(name: Name, body: NewSms) -> Response:
        door = doors.get_for_sms(name)
        parts = parts_of(body.text)
        if parts > MOST_PARTS:
            told = f"makes {parts} parts as {encoding_of(body.text)}; {MOST_PARTS} are allowed"
            raise Invalid(f"/text: {told}", errors=[FieldError("/text", told, "too_long")])
        with mailjet_problems(names=NAMES):
            return json_answer((await mailjet.send_sms(door, body)).shown(), 201)

    @router.get(
        "/sms",
        summary="List SMS",
        description="The newest first; Mailjet shows three months where no time is given." + WALKING,
        responses=list_responses(SmsPage),
        dependencies=[Depends(keys.reader), refuse_repeats(but=("status",))],
    )
    async def list_sms(request: Request, name: Name, query: Annotated[SmsQuery, Query()]) -> Response:
        fetch = partial(mailjet.list_sms, doors.get_for_sms(name))
        return await list_page(request, f"{name}:sms", query, fetch, _shown)

    return router


def _shown(item: dict[str, Any]) -> dict[str, Any]:
    return Sms.model_validate(item).shown()
