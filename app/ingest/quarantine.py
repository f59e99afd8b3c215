"""POST /v1/quarantine/{id}/reprocess: read the kept bytes again, after a release that understands more."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of these closures.
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection

from app import ledger
from app.clock import to_micros, utc_now
from app.db import Database
from app.errors import Conflict, QuarantineNotFound
from app.http import PROBLEM_RESPONSES, ApiKeys, problem_responses
from app.ingest.service import Ingest
from app.mailjet.payloads import Reject, parse_events
from app.models import Quarantined

_quarantine: sa.Table = Quarantined.__table__  # type: ignore[attr-defined]


class Reprocessed(BaseModel):
    """What became of the entry; it is gone from quarantine."""

    model_config = ConfigDict(json_schema_extra={"example": {"stored": 1, "duplicates": 0}})

    stored: int = Field(description="elements stored as new events")
    duplicates: int = Field(description="elements that were stored before")


def build_router(database: Database, keys: ApiKeys, ingest: Ingest) -> APIRouter:
    router = APIRouter(prefix="/v1/quarantine", tags=["quarantine"], dependencies=[Depends(keys.writer)])

    @router.post(
        "/{id}/reprocess",
        summary="Read an entry again",
        description="Stores the entry's events and removes it. An entry that still cannot be read stays, and is a 409"
        " that tells why.",
        responses=PROBLEM_RESPONSES | problem_responses(404, 409),
    )
    async def reprocess_quarantined(id: Annotated[str, Path(description="id of the entry")]) -> Reprocessed:
        return await reprocess(database, ingest, id)

    return router


async def reprocess(database: Database, ingest: Ingest, id: str) -> Reprocessed:
    """Raises QuarantineNotFound, Conflict."""
    entry = await database.run_read(lambda connection: _get(connection, id))
    if entry.webhook not in ingest.webhooks:
        raise Conflict(f"no webhook {entry.webhook!r} is configured any more")
    for element in parse_events(entry.body):
        if isinstance(element, Reject):
            raise Conflict(f"still not an event: {element.reason}")
    accepted = await ingest.accept(entry.webhook, entry.body, now_micros=to_micros(utc_now()))
    await database.run_write(lambda c: ledger.delete_quarantined(c, _quarantine.c.id == id, ledger.Entry.ERASED))
    return Reprocessed(stored=accepted.stored, duplicates=accepted.duplicates)


def _get(connection: Connection, id: str) -> Any:
    statement = sa.select(_quarantine.c.webhook, _quarantine.c.body).where(_quarantine.c.id == id)
    row = connection.execute(statement).one_or_none() if "\0" not in id else None
    if row is None:
        raise QuarantineNotFound("there is no quarantine entry with this id")
    return row
