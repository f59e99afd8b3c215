"""One object of a resource at Mailjet: get it, make it where its key must be the only one, do a thing to it once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from app.mailjet.door import Door, Query
from app.mailjet.errors import MailjetDuplicate, MailjetError, MailjetNotFound
from app.mailjet.operations import Operation

T = TypeVar("T")


async def get_one(
    door: Door, operation: Operation, path: str, thing: str, query: Query | None = None
) -> dict[str, Any]:
    """Raises MailjetNotFound, also for a 200 that shows none; `thing` names it then."""
    answer = await door.ask(operation, path, query)
    found = answer.first()
    if found is None:
        raise MailjetNotFound(f"{answer.where}: there is no such {thing}", status=404)
    return found


async def create_unique(door: Door, operation: Operation, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Raises MailjetDuplicate where the key is taken. None where Mailjet does not show what was made."""

    async def create() -> dict[str, Any] | None:
        return (await door.send(operation, "POST", path, body=dict(body))).first()

    return await once(door, create, MailjetDuplicate)


async def once(door: Door, call: Callable[[], Awaitable[T]], effect: type[MailjetError]) -> T | None:
    """`call`, repeated while that can help. Where a try may have worked, `effect`, which is what that makes of a
    repeat, counts as success: None."""
    in_doubt = False

    async def one_try() -> T | None:
        nonlocal in_doubt
        try:
            return await call()
        except effect:
            if not in_doubt:
                raise
            return None
        except MailjetError as error:
            in_doubt = in_doubt or error.ambiguous
            raise

    return await door.repeat(one_try)
