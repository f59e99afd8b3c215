"""What the routes of all modules share: parameters given once, pages with cursors, Mailjet's errors as problems."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of what it depends on.
import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Protocol

import orjson
from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import BaseModel

from app.connector.paging import cursor_of, place_of, scope
from app.connector.problems import problem_of
from app.errors import AppError, FieldError, Invalid, NotFound
from app.http import PROBLEM_RESPONSES, problem_responses
from app.mailjet.errors import MailjetError
from app.mailjet.fields import Shown
from app.mailjet.pages import Page, Place
from app.query.routes import next_url

Name = Annotated[str, Path(description="name of the connection, in small letters", examples=["default"])]
ListId = Annotated[str, Path(description="id of the contact list", examples=["7"])]

PREFIX = "/v1/connections/{name}"
WALKING = (
    " Walk the list by giving `next_cursor` back as `cursor`, or by following the `Link` header; the last page may be"
    " empty. A parameter that is not listed is refused, since Mailjet would ignore it and answer with everything."
)
TELLS_UNKNOWN = " It is not repeated where Mailjet may have done it: then the answer is 502 or 504 and says so."
RESPONSES = PROBLEM_RESPONSES | problem_responses(404, 409, 502, 504)


def refuse_repeats(*, but: Collection[str] = ()) -> Any:
    """A dependency: of a parameter given twice only one would count, and nobody could tell which."""

    async def check(request: Request) -> None:
        names = [name for name, _ in request.query_params.multi_items()]
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1 and name not in but]
        if twice:
            errors = [FieldError(name, "may be given once only", "repeated_parameter") for name in twice]
            raise Invalid(f"{', '.join(twice)}: may be given once only", errors=errors)

    return Depends(check)


def new_router(tag: str) -> APIRouter:
    return APIRouter(prefix=PREFIX, tags=[tag], responses=RESPONSES)


@contextmanager
def mailjet_problems(
    missing: type[NotFound] = NotFound, names: Mapping[str, str] | None = None, unique: str = ""
) -> Iterator[None]:
    """What Mailjet refuses leaves as a problem, see `problem_of`."""
    try:
        yield
    except MailjetError as error:
        raise problem_of(error, missing=missing, names=names, unique=unique) from None


@contextmanager
def after(done: str) -> Iterator[None]:
    """What fails in here fails after something was done at Mailjet, and its problem says so."""
    try:
        yield
    except AppError as problem:
        problem.detail += f"; {done}"
        raise


def names_of(*models: type[BaseModel]) -> dict[str, str]:
    """Mailjet's property -> our field, for pointers."""
    return {
        field.serialization_alias: name
        for model in models
        for name, field in model.model_fields.items()
        if field.serialization_alias
    }


class Question(Protocol):
    """The parameters of a list: its filters, and `Paging`."""

    limit: int
    cursor: str | None

    def query(self) -> dict[str, str | int]:
        """The filters as Mailjet's."""


async def list_page(
    request: Request,
    name: str,
    question: Question,
    fetch: Callable[[dict[str, str | int], Place, int], Awaitable[Page]],
    show: Callable[[dict[str, Any]], Any],
) -> Response:
    """One page of the list `name`, which begins with its connection's: `{data, next_cursor, has_more}` and the `Link`
    header."""
    filters = question.query()
    bound_to = scope(name, filters)
    with mailjet_problems():
        page = await fetch(filters, place_of(question.cursor, bound_to), question.limit)
    cursor = cursor_of(page.following, bound_to)
    content = {"data": [show(item) for item in page.items], "next_cursor": cursor, "has_more": cursor is not None}
    headers = {"link": f'<{next_url(request, cursor)}>; rel="next"'} if cursor else {}
    return json_answer(content, headers=headers)


def shown_as(model: type[Shown]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """An object of Mailjet's in our names."""
    return lambda item: model.model_validate(item).model_dump()


def checked_id(text: str, missing: type[NotFound], thing: str) -> str:
    """One of Mailjet's ids, which goes into a path. Raises `missing`."""
    if not re.fullmatch(r"[0-9]{1,20}", text):
        raise missing(f"there is no {thing} of this id")
    return text


def json_answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, dict(headers or {}), "application/json")


def list_responses(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    link = {"description": 'the next page: `<…>; rel="next"`', "schema": {"type": "string"}}
    return {200: {"model": model, "headers": {"Link": link}}}
