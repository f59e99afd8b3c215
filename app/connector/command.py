"""The commands' way to Mailjet: the connector's own routes, asked within this process.

So a command takes the same names, checks the same and says the same as REST, beside a running service or without one.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx2
from fastapi import APIRouter, FastAPI
from pydantic import ValidationError

from app.connector import calls, campaigns, contacts, drafts, messages, sms
from app.connector.doors import Doors
from app.connector.sending import Sending
from app.db import Database
from app.errors import JethookError
from app.http import ApiKeys, install_problem_handlers
from app.mailjet.answers import whole_number
from app.mailjet.campaigns import CampaignFilters
from app.mailjet.contacts import ContactFilters
from app.mailjet.door import RetryPolicy
from app.mailjet.drafts import DraftFilters
from app.mailjet.fields import Listed
from app.mailjet.messages import MessageFilters
from app.settings import Settings

# Nobody waits for an answer over HTTP, and walking a long list meets Mailjet's limit by the minute.
RETRY = RetryPolicy(attempts=8, total_seconds=180.0, wait_initial_seconds=0.5, wait_max_seconds=30.0)
PAGE = 1000
COUNTED: dict[str, tuple[type[Listed], str]] = {
    "contacts": (ContactFilters, "/v3/REST/contact"),
    "drafts": (DraftFilters, "/v3/REST/campaigndraft"),
    "campaigns": (CampaignFilters, "/v3/REST/campaign"),
    "messages": (MessageFilters, "/v3/REST/message"),
}

BUILDERS: dict[str, Callable[[Doors, ApiKeys], APIRouter]] = {
    "contacts": contacts.build_router,
    "drafts": drafts.build_router,
    "campaigns": campaigns.build_router,
    "messages": messages.build_list_router,
    "sms": sms.build_router,
    "call": calls.build_router,
}

Parameters = Mapping[str, list[str]]


class Refused(JethookError):
    """A problem in the place of an answer; `is_usage` says that the request is at fault."""

    def __init__(self, problem: Mapping[str, Any]) -> None:
        detail = str(problem["detail"])
        more = [fault for fault in problem.get("errors") or [] if fault["pointer"] and fault["message"] not in detail]
        super().__init__("\n".join([detail, *(f"{fault['pointer']}: {fault['message']}" for fault in more)]))
        self.is_usage = problem["status"] in (400, 422) or str(problem["code"]).startswith("connection_")


@dataclass(frozen=True, slots=True)
class Local:
    """One connection, by the routes of one module."""

    http: httpx2.AsyncClient
    base: str

    async def ask(
        self, method: str, path: str, *, body: Any = None, query: Parameters | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:  # fmt: skip
        """The JSON of the answer, None for an empty one. Raises Refused."""
        content = None if body is None else json.dumps(body).encode()
        given = {**(headers or {}), "content-type": "application/json"}
        response = await self.http.request(method, self.base + path, params=query, headers=given, content=content)
        if response.status_code >= 400:
            raise Refused(response.json())
        return response.json() if response.content else None

    async def pages(self, module: str, query: Parameters, limit: int | None) -> AsyncIterator[list[dict[str, Any]]]:
        """Up to `limit` objects of a list, all without one, page by page."""
        left, cursor = limit, None
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            asked = {**query, "limit": [str(size)]} | ({"cursor": [cursor]} if cursor else {})
            page = await self.ask("GET", f"/{module}", query=asked)
            yield page["data"]
            cursor = page["next_cursor"]
            if cursor is None:
                return
            left = None if left is None else left - len(page["data"])

    async def count(self, module: str, query: Parameters) -> int | None:
        """How many a list holds in all, where Mailjet tells it; needs the routes of `call`."""
        if module not in COUNTED:
            return None
        filters, path = COUNTED[module]
        try:
            plain = {name: values if name == "status" and module == "drafts" else values[0]
                     for name, values in query.items()}  # fmt: skip
            asked = filters.model_validate(plain).query() | {"countOnly": 1}
            answer = await self.ask("POST", "/call", body={"path": path, "query": asked})
            return whole_number(answer["body"]["Total"]) if answer["status"] == 200 else None
        except (ValidationError, Refused, KeyError, TypeError):
            return None  # the list itself will say what is wrong


@asynccontextmanager
async def local(
    settings: Settings, connection: str, *modules: str, database: Database | None = None
) -> AsyncIterator[Local]:
    """`modules` of `BUILDERS`; with a `database` also what `messages` needs one for."""
    key = secrets.token_urlsafe()
    keys, doors, app = ApiKeys([key], []), Doors(settings.effective_connections, retry=RETRY), FastAPI()
    for module in modules:
        if module == "messages" and database is not None:
            sending = Sending(database, f"command:{secrets.token_hex(8)}")
            app.include_router(messages.build_router(doors, keys, database, sending))
        else:
            app.include_router(BUILDERS[module](doors, keys))
    install_problem_handlers(app)
    transport = httpx2.ASGITransport(app)
    headers = {"authorization": f"Bearer {key}"}
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://jethook", headers=headers) as http:
            yield Local(http, f"/v1/connections/{quote(connection, safe='')}")
    finally:
        await doors.aclose()
