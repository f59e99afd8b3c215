"""Draft campaigns over REST: list, get, make, change, test, schedule, send."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, Field

from app.connector.doors import Doors
from app.connector.manners import (
    TELLS_UNKNOWN,
    WALKING,
    Name,
    after,
    checked_id,
    json_answer,
    list_page,
    list_responses,
    mailjet_problems,
    names_of,
    new_router,
    refuse_repeats,
    shown_as,
)
from app.connector.paging import Paging
from app.connector.problems import DraftNotFound
from app.http import ApiKeys
from app.mailjet import drafts as mailjet
from app.mailjet.door import Door
from app.mailjet.drafts import Content, Draft, DraftChanges, DraftFilters, NewDraft
from app.mailjet.fields import Given, IsoTime
from app.mailjet.letters import Person

DraftId = Annotated[str, Path(description="id of the draft", examples=["44098"])]


class DraftQuery(DraftFilters, Paging):
    """`GET …/drafts`."""


class DraftPage(BaseModel):
    """A page of drafts."""

    data: list[Draft]
    next_cursor: str | None
    has_more: bool


class DraftDetail(Draft, Content):
    """One draft campaign with its content."""


class TestRequest(Given):
    """Who gets the test."""

    __test__ = False  # no class of tests, whatever its name begins with

    recipients: list[Person] = Field(min_length=1, max_length=50, description="`Recipients`")


class ScheduleRequest(Given):
    """When to send."""

    at: Literal["now"] | IsoTime = Field(serialization_alias="Date", description="a time, or `now` (`Date`)")


NAMES = names_of(NewDraft, TestRequest, ScheduleRequest, Person) | {"Sender": "sender_name"}


problems = partial(mailjet_problems, DraftNotFound, NAMES)


def build_router(doors: Doors, keys: ApiKeys) -> APIRouter:
    router = new_router("draft campaigns")
    _add_reading(router, doors, keys)
    _add_writing(router, doors, keys)
    _add_actions(router, doors, keys)
    _add_schedule(router, doors, keys)
    return router


def _add_reading(router: APIRouter, doors: Doors, keys: ApiKeys) -> None:
    @router.get(
        "/drafts",
        summary="List draft campaigns",
        description="Draft campaigns by id, without their content." + WALKING,
        responses=list_responses(DraftPage),
        dependencies=[Depends(keys.reader), refuse_repeats(but=("status",))],
    )
    async def list_drafts(request: Request, name: Name, query: Annotated[DraftQuery, Query()]) -> Response:
        fetch = partial(mailjet.list_drafts, doors.get(name))
        return await list_page(request, f"{name}:drafts", query, fetch, shown_as(Draft))

    @router.get(
        "/drafts/{draft_id}",
        summary="Get a draft campaign",
        description="One draft campaign with its content.",
        dependencies=[Depends(keys.reader)],
        response_model=DraftDetail,
    )
    async def get_draft(name: Name, draft_id: DraftId) -> Response:
        with problems():
            return await _detail(doors.get(name), checked(draft_id))


def _add_writing(router: APIRouter, doors: Doors, keys: ApiKeys) -> None:
    options: dict[str, Any] = {"dependencies": [Depends(keys.sender)], "response_model": DraftDetail}

    @router.post(
        "/drafts",
        summary="Make a draft campaign",
        description="If the draft was made and its content was refused, `detail` says so." + TELLS_UNKNOWN,
        status_code=201,
        **options,
    )
    async def create_draft(name: Name, body: NewDraft) -> Response:
        door = doors.get(name)
        with mailjet_problems(names=NAMES):
            made = await mailjet.create_draft(door, body.properties)
        draft_id = Draft.model_validate(made).id or ""
        if body.content:
            with after(f"the draft was made without its content (id {draft_id})"), problems():
                await mailjet.create_content(door, draft_id, body.content)
        with after(f"the draft was made (id {draft_id})"), problems():
            return await _detail(door, draft_id, 201)

    @router.patch(
        "/drafts/{draft_id}",
        summary="Change a draft campaign",
        description="Changes what is given and nothing else: also of the content, a part that is left out is kept.",
        **options,
    )
    async def update_draft(name: Name, draft_id: DraftId, body: DraftChanges) -> Response:
        door, key = doors.get(name), checked(draft_id)
        with problems():
            if changes := body.properties:
                await mailjet.update_draft(door, key, changes)
            if body.content:
                await mailjet.write_content(door, key, body.content)
            return await _detail(door, key)


def _add_actions(router: APIRouter, doors: Doors, keys: ApiKeys) -> None:
    options: dict[str, Any] = {"dependencies": [Depends(keys.sender)], "response_model": DraftDetail}

    @router.post(
        "/drafts/{draft_id}/test",
        summary="Send a draft campaign as a test",
        description="Sends it to these addresses only." + TELLS_UNKNOWN,
        **options,
    )
    async def send_test(name: Name, draft_id: DraftId, body: TestRequest) -> Response:
        door, key = doors.get(name), checked(draft_id)
        recipients = [person.model_dump(by_alias=True, exclude_none=True) for person in body.recipients]
        with problems():
            await mailjet.send_test(door, key, recipients)
        with after("the test was sent"), problems():
            return await _detail(door, key)

    @router.post(
        "/drafts/{draft_id}/send",
        summary="Send a draft campaign",
        description="Sends it to its list now." + TELLS_UNKNOWN,
        **options,
    )
    async def send_draft(name: Name, draft_id: DraftId) -> Response:
        door, key = doors.get(name), checked(draft_id)
        with problems():
            await mailjet.send_now(door, key)
        with after("the draft is on its way"), problems():
            return await _detail(door, key)


def _add_schedule(router: APIRouter, doors: Doors, keys: ApiKeys) -> None:
    @router.post(
        "/drafts/{draft_id}/schedule",
        summary="Schedule a draft campaign",
        description="Sends it to its list at that time.",
        dependencies=[Depends(keys.sender)],
        response_model=DraftDetail,
    )
    async def schedule_draft(name: Name, draft_id: DraftId, body: ScheduleRequest) -> Response:
        door, key = doors.get(name), checked(draft_id)
        moment = str(body.to_mailjet()["Date"])
        with problems():
            await mailjet.schedule(door, key, moment.upper())
            return await _detail(door, key)

    @router.delete(
        "/drafts/{draft_id}/schedule",
        summary="Cancel the schedule of a draft campaign",
        description="It is a draft again.",
        status_code=204,
        dependencies=[Depends(keys.sender)],
    )
    async def unschedule_draft(name: Name, draft_id: DraftId) -> None:
        with problems():
            await mailjet.unschedule(doors.get(name), checked(draft_id))


def checked(draft_id: str) -> str:
    return checked_id(draft_id, DraftNotFound, "draft campaign")


async def _detail(door: Door, draft_id: str, status: int = 200) -> Response:
    draft = shown_as(Draft)(await mailjet.get_draft(door, draft_id))
    return json_answer(draft | shown_as(Content)(await mailjet.get_content(door, draft_id)), status)
