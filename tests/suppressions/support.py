from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from app.db import Database
from app.suppressions.queries import suppressions


def in_force(database: Database) -> list[dict[str, Any]]:
    """Every row, by id."""
    with database.reading() as connection:
        rows = connection.execute(sa.select(suppressions).order_by(suppressions.c.id)).mappings()
        return [{**row} for row in rows]
