"""Messages over REST: list them, read one's history, send."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import BaseModel, Field

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
from app.connector.sending import Sending, SendRequest
from app.db import Database
from app.errors import MessageNotFound
from app.http import ApiKeys
from app.mailjet import messages as mailjet
from app.mailjet.letters import Result
from app.mailjet.messages import HistoryEntry, MailjetMessage, MessageFilters
from app.query.messages import MessageQuery, find_message
from app.query.shapes import MessageModel
from app.views import dump

MessageId = Annotated[str, Path(description="Mailjet's MessageID", examples=["19421777835146490"])]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", min_length=1, max_length=255, pattern=r"^[\x20-\x7e]+$",
        description="names this request: repeated with it, what Mailjet accepted is not sent twice. Kept for a week",
    ),
]  # fmt: skip


class ListedMessages(MessageFilters, Paging):
    """`GET …/messages`."""


class MailjetMessagePage(BaseModel):
    """A page of messages."""

    data: list[MailjetMessage]
    next_cursor: str | None
    has_more: bool


class MailjetMessageDetail(MailjetMessage):
    """One message with its history."""

    history: list[HistoryEntry] = Field(description="by Mailjet (`messagehistory`)")
    timeline: MessageModel | None = Field(description="by our own events, see `GET /v1/messages/{message_id}`")


class SendAnswer(BaseModel):
    """What became of each message, in order."""

    results: list[Result]


def build_router(doors: Doors, keys: ApiKeys, database: Database, sending: Sending) -> APIRouter:
    router = build_list_router(doors, keys)
    _add_history(router, doors, keys, database)
    _add_sending(router, doors, keys, sending)
    return router


def build_list_router(doors: Doors, keys: ApiKeys) -> APIRouter:
    """What needs no database of ours."""
    router = new_router("messages at Mailjet")

    @router.get(
        "/messages",
        summary="List messages",
        description="Messages as Mailjet keeps them, by id, with subject, address and custom id." + WALKING,
        responses=list_responses(MailjetMessagePage),
        dependencies=[Depends(keys.reader), refuse_repeats()],
    )
    async def list_mailjet_messages(
        request: Request, name: Name, query: Annotated[ListedMessages, Query()]
    ) -> Response:
        fetch = partial(mailjet.list_messages, doors.get(name))
        return await list_page(request, f"{name}:messages", query, fetch, shown_as(MailjetMessage))

    return router


def _add_history(router: APIRouter, doors: Doors, keys: ApiKeys, database: Database) -> None:
    @router.get(
        "/messages/{message_id}",
        summary="Get a message and its history",
        description="One message as Mailjet keeps it, its history there, and beside it the timeline of our own events.",
        dependencies=[Depends(keys.reader)],
        response_model=MailjetMessageDetail,
    )
    async def get_mailjet_message(name: Name, message_id: MessageId) -> Response:
        door = doors.get(name)
        checked_id(message_id, MessageNotFound, "message")
        with mailjet_problems(MessageNotFound):
            found: dict[str, Any] = shown_as(MailjetMessage)(await mailjet.get_message(door, message_id))
            history = await mailjet.get_history(door, message_id)
        timeline = await database.run_read(lambda c: find_message(c, message_id, MessageQuery()))
        shown = found | {"history": [entry.model_dump() for entry in history], "timeline": timeline}
        return Response(dump(shown), media_type="application/json")


def _add_sending(router: APIRouter, doors: Doors, keys: ApiKeys, sending: Sending) -> None:
    @router.post(
        "/messages",
        summary="Send messages",
        description="Up to 50 messages, with one result each: Mailjet may accept some and refuse others, and the answer"
        " is 200 all the same. With an `Idempotency-Key` the request can be repeated after any failure, also of this"
        " service: what was accepted is told and not sent again, and what a crash or a lost answer left unknown is"
        " looked up at Mailjet by its custom id first. Another body under the same key is a 422.",
        dependencies=[Depends(keys.sender)],
        response_model=SendAnswer,
    )
    async def send_messages(name: Name, body: SendRequest, idempotency_key: IdempotencyKey = None) -> Response:
        results = await sending.send(doors.get(name), body, idempotency_key)
        return json_answer({"results": [result.model_dump() for result in results]})
