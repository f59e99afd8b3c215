"""What every command needs: where to print, the settings, a database, and how to say that the usage was wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from app.errors import DatabaseFault
from app.logs import configure_logs
from app.settings import Settings, load_settings

out = Console(highlight=False, soft_wrap=True, markup=False)  # what is printed may hold brackets of other people
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
if not out.is_terminal:
    out.width = 400  # a table in a log or a pipe must not be folded


def settings() -> Settings:
    found = load_settings()
    configure_logs(found.log_format, found.log_level)
    return found


def usage(text: str) -> NoReturn:
    err.print(text)
    sys.exit(2)


@contextmanager
def database(found: Settings, *, as_it_is: bool = False) -> Iterator[Any]:
    """The database of one command, migrated; `as_it_is` for one that only looks: it must be there and up to date.

    A database that goes away is a sentence: raises DatabaseFault.
    """
    from app.db import Database, is_outage  # noqa: PLC0415  keeps the small commands quick to start
    from app.migrate import migrate  # noqa: PLC0415

    url = found.database_url.get_secret_value()
    if as_it_is:
        must_exist(url)
    opened = Database(url)
    try:
        if as_it_is:
            _must_be_current(opened)
        else:
            migrate(opened)
        yield opened
    except Exception as error:
        if isinstance(error, DatabaseFault) or not is_outage(error):
            raise
        raise DatabaseFault(f"JETHOOK_DATABASE_URL: the database does not answer ({type(error).__name__})") from None
    finally:
        opened.close()


def must_exist(url: str) -> None:
    """Opening a SQLite file makes it. Raises DatabaseFault where that would be so."""
    from sqlalchemy.engine import make_url  # noqa: PLC0415

    if url.startswith("sqlite") and (path := make_url(url).database) and not Path(path).exists():
        raise DatabaseFault(f"JETHOOK_DATABASE_URL: there is no database {path!r}")


def _must_be_current(opened: Any) -> None:
    from app.migrate import is_current  # noqa: PLC0415

    with opened.reading() as connection:
        if not is_current(connection):
            raise DatabaseFault("JETHOOK_DATABASE_URL: the schema is out of date; run `jethook migrate`")
