"""Sent campaigns over REST."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel

from app.connector.doors import Doors
from app.connector.manners import (
    WALKING,
    Name,
    checked_id,
    json_answer,
    list_page,
    list_responses,
    mailjet_problems,
    new_router,
    refuse_repeats,
    shown_as,
)
from app.connector.paging import Paging
from app.connector.problems import CampaignNotFound
from app.http import ApiKeys
from app.mailjet import campaigns as mailjet
from app.mailjet.campaigns import Campaign, CampaignFilters

CampaignId = Annotated[str, Path(description="id of the campaign", examples=["7257"])]


class CampaignQuery(CampaignFilters, Paging):
    """`GET …/campaigns`."""


class CampaignPage(BaseModel):
    """A page of campaigns."""

    data: list[Campaign]
    next_cursor: str | None
    has_more: bool


def build_router(doors: Doors, keys: ApiKeys) -> APIRouter:
    router = new_router("campaigns")

    @router.get(
        "/campaigns",
        summary="List sent campaigns",
        description="Campaigns that were sent, transactional ones too." + WALKING,
        responses=list_responses(CampaignPage),
        dependencies=[Depends(keys.reader), refuse_repeats()],
    )
    async def list_campaigns(request: Request, name: Name, query: Annotated[CampaignQuery, Query()]) -> Response:
        fetch = partial(mailjet.list_campaigns, doors.get(name))
        return await list_page(request, f"{name}:campaigns", query, fetch, shown_as(Campaign))

    @router.get(
        "/campaigns/{campaign_id}",
        summary="Get a sent campaign",
        description="One campaign that was sent.",
        dependencies=[Depends(keys.reader)],
        response_model=Campaign,
    )
    async def get_campaign(name: Name, campaign_id: CampaignId) -> Response:
        door = doors.get(name)
        key = checked_id(campaign_id, CampaignNotFound, "campaign")
        with mailjet_problems(CampaignNotFound):
            return json_answer(shown_as(Campaign)(await mailjet.get_campaign(door, key)))

    return router
