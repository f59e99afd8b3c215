"""The tables as they travel: every one that the models know, row by row, by the order of its primary key. Generic, so
that a table somebody adds comes along by itself.

Values travel as plain as the database keeps them: times are microseconds, states are text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlmodel import SQLModel

from app import models
from app.db import UTCDateTime
from app.views import clean

Row = tuple[Any, ...]

_ = models  # the tables are known to the metadata once they are imported


def all_tables() -> list[sa.Table]:
    return list(SQLModel.metadata.sorted_tables)


def plain_columns(table: sa.Table) -> list[sa.ColumnElement[Any]]:
    return [_plain(column) for column in table.columns]


def _plain(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    return sa.type_coerce(column, sa.BigInteger) if isinstance(column.type, UTCDateTime) else column


def page_after(table: sa.Table, cursor: Sequence[Any] | None, limit: int) -> sa.Select[Any]:
    """The next rows in the order of the primary key, after the one with the key `cursor`."""
    keys = [_plain(column) for column in table.primary_key.columns]
    statement = sa.select(*plain_columns(table)).order_by(*keys).limit(limit)
    if cursor is None:
        return statement
    last = [sa.literal(value, key.type) for key, value in zip(keys, cursor, strict=True)]
    return statement.where(sa.tuple_(*keys) > sa.tuple_(*last))


def key_of(table: sa.Table, row: Row) -> list[Any]:
    names = list(table.columns.keys())
    return [row[names.index(key.name)] for key in table.primary_key.columns]


def portable(row: Iterable[Any]) -> Row:
    """The same values, but text as both databases can carry it: PostgreSQL refuses NUL, UTF-8 lone surrogates."""
    return tuple(clean(value) if isinstance(value, str) else value for value in row)


class Digest:
    """Of a table's rows in any order: their number, and the sum of their hashes."""

    def __init__(self) -> None:
        self.rows = 0
        self._sum = 0

    def add(self, row: Row) -> None:
        self.rows += 1
        self._sum += int.from_bytes(hashlib.blake2b(repr(row).encode(), digest_size=16).digest())

    def __str__(self) -> str:
        return f"{self._sum % (1 << 128):032x}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Digest) and (self.rows, str(self)) == (other.rows, str(other))

    __hash__ = None  # type: ignore[assignment]
