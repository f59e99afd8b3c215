"""`jethook backfill`: a job made and carried through here, beside a running service or without one."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Console

from app.completeness.backfill import Backfills
from app.completeness.backfill_queries import Row
from app.completeness.backfill_routes import backfill_view
from app.connector.doors import Doors
from app.db import Database
from app.models import ReplayState
from app.settings import Settings
from app.suppressions.keeping import Keeper, policy_of
from app.transfer.progress import progress

LOOK_SECONDS = 1.0  # at a job that the service carries on


@dataclass(frozen=True, slots=True)
class Asked:
    connection: str
    since: datetime
    until: datetime
    types: Sequence[str]
    deliver: bool


async def run(settings: Settings, database: Database, asked: Asked, told: Console) -> dict[str, Any]:
    """The job as it ended, in REST's shape. Raises ConnectionNotFound, ConnectionIncomplete."""
    doors = Doors(settings.effective_connections)
    backfills = Backfills(settings, doors, database, secrets.token_hex(4), keeper=Keeper(policy_of(settings)))
    try:
        row: Row | None = await backfills.begin(
            asked.connection, asked.since, asked.until, types=asked.types, deliver=asked.deliver
        )  # fmt: skip
        with progress(told, "backfill", None) as tell:
            while row is not None and row.state == ReplayState.RUNNING:
                seconds = await backfills.round()
                row = await backfills.find(row.id)
                if row is not None and row.state == ReplayState.RUNNING:
                    tell(f"{row.messages} messages, {row.stored} events", row.messages)
                    await asyncio.sleep(min(seconds, LOOK_SECONDS))
        assert row is not None
        return backfill_view(row)
    finally:
        await backfills.release()
        await doors.aclose()
