"""Mailjet's REST resource `eventcallbackurl`: list, create, update, delete.

Mailjet returns callback URLs whole, passwords included, and echoes what it refuses: see `app.mailjet.door`.

Source: mailjet/api-documentation:guides/_event-api.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

import httpx2

from app.clock import utc_now
from app.mailjet.answers import Answer, whole_number
from app.mailjet.door import MAX_ANSWER_BYTES, PATIENT, Closed, Door, Observe, RetryPolicy
from app.mailjet.errors import (
    MailjetCredentialsRefused,
    MailjetDuplicate,
    MailjetError,
    MailjetNotFound,
    MailjetPropertyReadOnly,
    MailjetRateLimited,
    MailjetRefused,
    MailjetServerFault,
    MailjetUnreachable,
    MailjetUnreadable,
)
from app.mailjet.operations import CallbackOperation as Operation

__all__ = [
    "MAX_ANSWER_BYTES",
    "ActualCallback",
    "MailjetCallbackNotFound",
    "MailjetClient",
    "MailjetCredentialsRefused",
    "MailjetDuplicate",
    "MailjetError",
    "MailjetPropertyReadOnly",
    "MailjetRateLimited",
    "MailjetRefused",
    "MailjetServerFault",
    "MailjetUnreachable",
    "MailjetUnreadable",
    "Observe",
    "Operation",
    "RetryPolicy",
    "slot_key",
]

RESOURCE = "/v3/REST/eventcallbackurl"
PAGE = 1000  # Mailjet's maximum; without a Limit it shows ten
MOST_PAGES = 20  # an API key has 14 callbacks at most: more pages than this is a server that ignores Offset

MailjetCallbackNotFound = MailjetNotFound


@dataclass(frozen=True, slots=True)
class ActualCallback:
    """What Mailjet holds in one slot. `url` bears a password, so it is left out of the repr.

    `id` is None when the answer had none that can be used; `version` and `status` are None when it did not say.
    `url` is empty for the callbacks of cloud queues, which have a queue instead.
    """

    id: str | None
    event_type: str
    is_backup: bool
    url: str = field(repr=False)
    version: int | None = None
    status: str | None = None

    @property
    def key(self) -> str:
        """How to name it in a path: its id, or else its unique key `open|false`."""
        return self.id or slot_key(self.event_type, self.is_backup)


def slot_key(event_type: str, is_backup: bool) -> str:
    return f"{event_type}|{str(is_backup).lower()}"


class MailjetClient(Closed):
    """The callbacks of one API key. Use it as an async context manager, or call `aclose()`.

    Parameters and errors as those of `Door`.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        secret_key: str,
        *,
        timeout: float = 15.0,
        observe: Observe | None = None,
        connection: str = "default",
        retry: RetryPolicy = PATIENT,
        now: Callable[[], datetime] = utc_now,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._connection = connection
        self._door = Door(
            base_url, api_key, secret_key, timeout=timeout, observe=observe, connection=connection, retry=retry,
            now=now, transport=transport,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<MailjetClient {self._connection!r}>"

    async def aclose(self) -> None:
        await self._door.aclose()

    async def list_callbacks(self) -> list[ActualCallback]:
        """All callbacks of this API key. `Total` is not read: in a plain listing it counts the page."""
        return await self._door.repeat(self._list_once)

    async def create_callback(
        self, *, event_type: str, url: str, is_backup: bool = False, version: int = 2
    ) -> ActualCallback:
        """Register `url` for one event type. Raises MailjetDuplicate if the slot is held by another URL.

        A POST that may have worked (timeout, 5xx, a broken answer) is not simply sent again: the callbacks are listed
        first, and one with this very URL is the answer.
        """
        body = {"EventType": event_type, "IsBackup": is_backup, "Url": url, "Version": version}
        in_doubt = False

        async def create() -> ActualCallback:
            nonlocal in_doubt
            if in_doubt:
                held = _in_slot(await self._list_once(), event_type, is_backup)
                if held is not None and held.url == url:
                    return held
                in_doubt = False
            try:
                return await self._create_once(body)
            except MailjetError as error:
                in_doubt = error.ambiguous
                raise

        return await self._door.repeat(create)

    async def update_callback(self, key: str, changes: Mapping[str, Any]) -> ActualCallback | None:
        """PUT only `changes` (Mailjet's property names) on a callback by id or `open|false`.

        None when Mailjet says that nothing changed (304, empty) or does not show the result. Sending more than what
        changes is refused: the whole object back is a 401 with MJ19.
        """
        return await self._door.repeat(lambda: self._update_once(key, changes))

    async def delete_callback(self, key: str) -> None:
        """One that is gone already counts as deleted."""

        async def delete() -> None:
            try:
                await self._send("delete", "DELETE", key)
            except MailjetNotFound:
                return

        await self._door.repeat(delete)

    # One try each

    async def _list_once(self) -> list[ActualCallback]:
        found: dict[str, ActualCallback] = {}
        for page in range(MOST_PAGES):
            query = {"Limit": PAGE} | ({"Offset": page * PAGE} if page else {})
            answer = await self._send("list", "GET", query=query)
            items = answer.data()
            known = len(found)
            for callback in map(_parse_callback, items):
                if callback is not None:
                    found[callback.key] = callback
            if len(items) < PAGE or len(found) == known:
                break
        return list(found.values())

    async def _create_once(self, body: dict[str, Any]) -> ActualCallback:
        answer = await self._send("create", "POST", body=body)
        created = _callback_of(answer)
        if (created.event_type, created.is_backup) != (body["EventType"], body["IsBackup"]):
            raise answer.unreadable("it shows another callback than the one asked for")
        return created

    async def _update_once(self, key: str, changes: Mapping[str, Any]) -> ActualCallback | None:
        answer = await self._send("update", "PUT", key, body=dict(changes))
        if answer.status == 304 or not answer.body:
            return None
        return _callback_of(answer)

    async def _send(
        self,
        operation: Operation,
        method: str,
        key: str = "",
        *,
        query: Mapping[str, int] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Answer:
        path = f"{RESOURCE}/{quote(key, safe='')}" if key else RESOURCE
        urls = (str(body["Url"]),) if body and "Url" in body else ()
        return await self._door.send(operation, method, path, query=query, body=body, secret_urls=urls)


def _callback_of(answer: Answer) -> ActualCallback:
    """The one callback in `Data[0]`: the answers to POST and PUT are envelopes too."""
    item = answer.first()
    callback = _parse_callback(item) if item is not None else None
    if callback is None:
        raise answer.unreadable("`Data` shows no callback")
    return callback


def _parse_callback(item: Mapping[str, Any]) -> ActualCallback | None:
    """One object of `Data`; None for one without an event type, which names no slot.

    Mailjet's samples show numbers and booleans as text, its answers mostly do not: both are read.
    """
    event_type = item.get("EventType")
    if not isinstance(event_type, str) or not event_type:
        return None
    url, status, number = item.get("Url"), item.get("Status"), whole_number(item.get("ID"))
    return ActualCallback(
        id=None if number is None else str(number),
        event_type=event_type.lower(),
        is_backup=item.get("IsBackup") in (True, 1, "1", "true", "True", "TRUE"),
        url=url if isinstance(url, str) else "",
        version=whole_number(item.get("Version")),
        status=status.lower() if isinstance(status, str) and status else None,
    )


def _in_slot(callbacks: list[ActualCallback], event_type: str, is_backup: bool) -> ActualCallback | None:
    return next((c for c in callbacks if (c.event_type, c.is_backup) == (event_type, is_backup)), None)
