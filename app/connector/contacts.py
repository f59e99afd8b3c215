"""Contacts over REST: list, get, make, change, delete."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
import re
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from app.connector.doors import Doors
from app.connector.manners import (
    TELLS_UNKNOWN,
    WALKING,
    Name,
    after,
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
from app.connector.problems import ContactNotFound
from app.http import ApiKeys
from app.mailjet import contacts as mailjet
from app.mailjet.contacts import Contact, ContactChanges, ContactFilters, NewContact
from app.mailjet.door import Door

Key = Annotated[str, Path(description="id of the contact, or its address", examples=["a@example.com"])]


class ContactQuery(ContactFilters, Paging):
    """`GET …/contacts`."""


def _refuse_address(value: Any) -> Any:
    raise PydanticCustomError("email_fixed", "Mailjet changes no contact's address; make a new contact")


class ContactDetail(Contact):
    """One contact with its own values."""

    properties: dict[str, Any] = Field({}, description="values by name, most of them texts (`contactdata`)")


class ContactUpdate(ContactChanges):
    """`PATCH …/contacts/{contact}`."""

    email: Annotated[None, BeforeValidator(_refuse_address)] = Field(
        None, description="never given: Mailjet changes no contact's address"
    )


class ContactPage(BaseModel):
    """A page of contacts."""

    data: list[Contact]
    next_cursor: str | None
    has_more: bool


NAMES = names_of(NewContact)


def build_router(doors: Doors, keys: ApiKeys) -> APIRouter:
    router = new_router("contacts")
    _add_reading(router, doors, keys)
    _add_creation(router, doors, keys)
    _add_changes(router, doors, keys)
    return router


def _add_reading(router: APIRouter, doors: Doors, keys: ApiKeys) -> None:
    @router.get(
        "/contacts",
        summary="List contacts",
        description="The contacts of the connection's API key, by id, without their own values." + WALKING,
        responses=list_responses(ContactPage),
        dependencies=[Depends(keys.reader), refuse_repeats()],
    )
    async def list_contacts(request: Request, name: Name, query: Annotated[ContactQuery, Query()]) -> Response:
        fetch = partial(mailjet.list_contacts, doors.get(name))
        return await list_page(request, f"{name}:contacts", query, fetch, shown_as(Contact))

    @router.get(
        "/contacts/{contact:path}",
        summary="Get a contact",
        description="One contact by its id or address, with its own values.",
        dependencies=[Depends(keys.reader)],
        response_model=ContactDetail,
    )
    async def get_contact(name: Name, contact: Key) -> Response:
        with mailjet_problems(ContactNotFound):
            return await _detail(doors.get(name), checked(contact))


def _add_creation(router: APIRouter, doors: Doors, keys: ApiKeys) -> None:
    @router.post(
        "/contacts",
        summary="Make a contact",
        description="A known address is a 409. If the contact was made and its `properties` were refused, `detail` says"
        " so." + TELLS_UNKNOWN,
        status_code=201,
        dependencies=[Depends(keys.sender)],
        response_model=ContactDetail,
    )
    async def create_contact(name: Name, body: NewContact) -> Response:
        door = doors.get(name)
        with mailjet_problems(names=NAMES, unique="/email"):
            made = await mailjet.create_contact(door, body.to_mailjet("email", "name", "is_excluded"))
        contact_id = Contact.model_validate(made).id or body.email
        if body.properties:
            with (
                after(f"the contact was made without them (id {contact_id})"),
                mailjet_problems(ContactNotFound, NAMES),
            ):
                await mailjet.update_properties(door, contact_id, body.properties)
        with after(f"the contact was made (id {contact_id})"), mailjet_problems(ContactNotFound):
            return await _detail(door, contact_id, 201, made)


def _add_changes(router: APIRouter, doors: Doors, keys: ApiKeys) -> None:
    @router.patch(
        "/contacts/{contact:path}",
        summary="Change a contact",
        description="Changes what is given and nothing else; a property that is not named keeps its value.",
        dependencies=[Depends(keys.sender)],
        response_model=ContactDetail,
    )
    async def update_contact(name: Name, contact: Key, body: ContactUpdate) -> Response:
        door, key = doors.get(name), checked(contact)
        with mailjet_problems(ContactNotFound, NAMES):
            if changes := body.to_mailjet("name", "is_excluded"):
                await mailjet.update_contact(door, key, changes)
            if body.properties:
                await mailjet.update_properties(door, key, body.properties)
            return await _detail(door, key)

    @router.delete(
        "/contacts/{contact:path}",
        summary="Delete a contact",
        description="Mailjet anonymises it at once and removes it after 30 days.",
        status_code=204,
        dependencies=[Depends(keys.sender)],
    )
    async def delete_contact(name: Name, contact: Key) -> None:
        door, key = doors.get(name), checked(contact)
        with mailjet_problems(ContactNotFound):
            if not key.isdigit():
                found = Contact.model_validate(await mailjet.get_contact(door, key))
                key = found.id or key
            await mailjet.delete_contact(door, key)


def checked(key: str) -> str:
    """An id or an address. Raises ContactNotFound for what is neither."""
    if re.fullmatch(r"[0-9]{1,19}", key) or (re.search(r".@.", key) and len(key) <= 320):
        return key
    raise ContactNotFound("there is no contact of this id or address")


async def _detail(door: Door, key: str, status: int = 200, found: dict[str, Any] | None = None) -> Response:
    found = found or await mailjet.get_contact(door, key)
    shown = Contact.model_validate(found).model_dump()
    return json_answer(shown | {"properties": await mailjet.get_properties(door, key)}, status)
