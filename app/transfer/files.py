"""Exports into files, which are whole or not there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from app.db import Database
from app.filters import EventFilters
from app.query import parquet
from app.query.exporting import Export, ExportFilters


class BadFilters(ValueError):
    """Filters that do not fit: a sentence for each."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


def parse_filters(pairs: Sequence[str], *, gzip: bool = False, **options: object) -> ExportFilters:
    """`NAME=VALUE` as in the query of `/v1/events`; a repeated name means any of its values. Raises BadFilters."""
    asked: dict[str, list[str]] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in EventFilters.model_fields:
            raise BadFilters([f"{name}: there is no such filter (there are: {', '.join(EventFilters.model_fields)})"])
        asked.setdefault(name, []).append(value)
    try:
        found = ExportFilters.model_validate({**asked, **options})
    except ValidationError as error:
        raise BadFilters([f"{fault['loc'][0]}: {fault['msg']}" for fault in error.errors()]) from None
    if told := [f"{name}: {text}" for name, text in parquet.faults(found.format, gzip=gzip)]:
        raise BadFilters(told)
    return found


@contextmanager
def whole_file(path: Path | None) -> Iterator[IO[bytes]]:
    """A file to write to that gets its name only when the block ends well; None is standard output.

    For its owner alone: it holds addresses. Raises OSError.
    """
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if path.exists() and not path.is_file():  # a pipe or a device
        with path.open("wb") as file:
            yield file
        return
    part = path.with_name(path.name + ".part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def export_events(
    database: Database, asked: ExportFilters, file: IO[bytes], *, gzip: bool, on_progress: Callable[[int], None]
) -> int:
    """Write all events asked for, a page and a transaction at a time; how many there were."""
    export = Export(asked, gzip=gzip)
    while not export.done:
        with database.reading() as connection:
            part = export.next_part(connection)
        file.write(part)
        on_progress(export.count)
    return export.count
