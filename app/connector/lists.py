"""Contact lists over REST, and who is on them: one contact at once, many as a job."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from functools import partial
from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from app.connector import jobs
from app.connector.doors import Doors
from app.connector.jobs import Subscriptions
from app.connector.manners import (
    TELLS_UNKNOWN,
    WALKING,
    ListId,
    Name,
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
from app.connector.problems import JobNotFound, ListNotFound
from app.http import ApiKeys
from app.mailjet import lists as mailjet
from app.mailjet.contacts import Value
from app.mailjet.fields import Given, Id, Shown, Text
from app.mailjet.fields import mailjet as read_from
from app.mailjet.lists import ACTIONS, Action, ContactList, ListFilters, NewList, Subscriber
from app.models import SubscriptionState
from app.views import EVENT_ID_PATTERN

MOST_CONTACTS = 50_000  # of one job
JOB_ID = "019ded47-d100-7c4e-9a51-3f9c2b7d1e60"  # the example of the documentation


class ListQuery(ListFilters, Paging):
    """`GET …/lists`."""


class ListPage(BaseModel):
    """A page of contact lists."""

    data: list[ContactList]
    next_cursor: str | None
    has_more: bool


class SubscriptionRequest(Given):
    """One contact (`email`), or many (`contacts`)."""

    action: Action = Field(description=ACTIONS)
    email: str | None = Field(None, min_length=3, max_length=320, pattern="@", description="the contact (`Email`)")
    name: str = Field("", max_length=500, description="`Name`")
    properties: dict[str, Value] = Field({}, description="values by name; defined before (`Properties`)")
    contacts: list[Subscriber] | None = Field(
        None, min_length=1, max_length=MOST_CONTACTS, description="many at once, as a job"
    )

    @model_validator(mode="after")
    def _one_or_many(self) -> Self:
        if (self.email is None) == (self.contacts is None):
            raise PydanticCustomError("one_or_many", "give exactly one of `email` and `contacts`")
        if self.contacts is not None and self.model_fields_set & {"name", "properties"}:
            raise PydanticCustomError("one_or_many", "with `contacts`, each has its own `name` and `properties`")
        return self

    @property
    def single(self) -> dict[str, Any]:
        return Subscriber(**self.model_dump(include={"email", "name", "properties"}, exclude_unset=True)).to_mailjet()


class Subscription(Shown):
    """What was done with one contact."""

    contact_id: Id = read_from("ContactID")
    email: Text = read_from("Email")
    action: Text = read_from("Action")
    name: Text = read_from("Name")


class SubscriptionJobModel(BaseModel):
    """Many contacts put on a list, or taken off it."""

    id: str
    list_id: str
    action: Action
    state: SubscriptionState
    count: int = Field(description="contacts in all")
    done: int = Field(description="of these, those that Mailjet has worked on")
    failed: int = Field(description="of these, those of parts that Mailjet reports as failed")
    error: str | None
    created_at: str = Field(json_schema_extra={"format": "date-time"})
    finished_at: str | None = Field(json_schema_extra={"format": "date-time"})


NAMES = names_of(NewList, Subscriber) | {"Action": "action"}
JobId = Annotated[str, Path(description="id of the job", examples=[JOB_ID])]


def build_router(doors: Doors, keys: ApiKeys, subscriptions: Subscriptions) -> APIRouter:
    router = new_router("contact lists")
    _add_lists(router, doors, keys)
    _add_subscriptions(router, doors, keys, subscriptions)
    _add_jobs(router, keys, subscriptions)
    return router


def _add_lists(router: APIRouter, doors: Doors, keys: ApiKeys) -> None:
    @router.get(
        "/lists",
        summary="List contact lists",
        description="The contact lists of the connection's API key, by id." + WALKING,
        responses=list_responses(ListPage),
        dependencies=[Depends(keys.reader), refuse_repeats()],
    )
    async def list_lists(request: Request, name: Name, query: Annotated[ListQuery, Query()]) -> Response:
        fetch = partial(mailjet.list_lists, doors.get(name))
        return await list_page(request, f"{name}:lists", query, fetch, shown_as(ContactList))

    @router.post(
        "/lists",
        summary="Make a contact list",
        description="A name that is taken is a 409." + TELLS_UNKNOWN,
        status_code=201,
        dependencies=[Depends(keys.sender)],
        response_model=ContactList,
    )
    async def create_list(name: Name, body: NewList) -> Response:
        with mailjet_problems(names=NAMES, unique="/name"):
            made = await mailjet.create_list(doors.get(name), body.name)
        return json_answer(shown_as(ContactList)(made), 201)


def _add_subscriptions(router: APIRouter, doors: Doors, keys: ApiKeys, subscriptions: Subscriptions) -> None:
    @router.post(
        "/lists/{list_id}/subscriptions",
        summary="Subscribe or unsubscribe",
        description="One contact is done at once, and made if it is not known. Many `contacts` become a job that goes"
        " on after a restart; asking for the same again does no harm.",
        dependencies=[Depends(keys.sender)],
        response_model=None,
        responses={
            200: {"model": Subscription, "description": "One contact"},
            202: {
                "model": SubscriptionJobModel,
                "description": "Many: it runs",
                "headers": {"Location": {"description": "where to watch it", "schema": {"type": "string"}}},
            },
        },
    )
    async def subscribe(name: Name, list_id: ListId, body: SubscriptionRequest) -> Response:
        door = doors.get(name)
        list_id = checked_id(list_id, ListNotFound, "contact list")
        if body.contacts is None:
            with mailjet_problems(ListNotFound, NAMES):
                done = await mailjet.subscribe(door, list_id, body.single, body.action)
            return json_answer(shown_as(Subscription)({"Email": body.email, "Action": body.action} | done))
        contacts = [contact.to_mailjet() for contact in body.contacts]
        row = await subscriptions.begin(name, list_id, body.action, contacts)
        where = f"/v1/connections/{name}/lists/{list_id}/subscriptions/{row.id}"
        return json_answer(jobs.view(row), 202, {"location": where})


def _add_jobs(router: APIRouter, keys: ApiKeys, subscriptions: Subscriptions) -> None:
    @router.get(
        "/lists/{list_id}/subscriptions/{job_id}",
        summary="Watch a job of subscriptions",
        description="How far it is.",
        dependencies=[Depends(keys.reader)],
        response_model=SubscriptionJobModel,
    )
    async def get_subscription_job(name: Name, list_id: ListId, job_id: JobId) -> Response:
        row = await subscriptions.find(job_id) if EVENT_ID_PATTERN.fullmatch(job_id) else None
        if row is None or (row.connection, row.list_id) != (name, list_id):
            raise JobNotFound("there is no such job")
        return json_answer(jobs.view(row))
