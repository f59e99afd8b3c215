"""The commands about what lives at Mailjet: contacts, drafts, campaigns, messages, SMS and any call.

Tables on a terminal, JSON elsewhere. Names of filters and fields are those of REST.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl, quote

import typer
from rich.table import Table
from typer.core import TyperGroup

from app.errors import JethookError
from app.logs import configure_logs
from app.settings import Settings
from app.terminal import database, err, out, settings, usage
from app.transfer.progress import progress

T = TypeVar("T")

COLUMNS = {
    "contacts": ("id", "email", "name", "is_excluded", "delivered_count", "created_at", "updated_at"),
    "drafts": ("id", "status", "subject", "title", "contact_list_id", "edit_mode", "modified_at", "delivered_at"),
    "campaigns": ("id", "from_type", "subject", "from_email", "contact_list_id", "started_at", "open_tracked",
                  "click_tracked"),
    "messages": ("id", "arrived_at", "email", "subject", "status", "state", "custom_id"),
    "sms": ("message_id", "created_at", "to", "from", "parts", "status"),
}  # fmt: skip
DEFAULT_LIMIT = 50


class _ListFirst(TyperGroup):
    """`jethook contacts …` without a command of its own lists."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = ["list", *args]
        return super().parse_args(ctx, args)


Connection = Annotated[str, typer.Option("--connection", help="Name of the connection.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on a terminal too.")]
Body = Annotated[
    str, typer.Argument(metavar="BODY", help="JSON with the fields of REST; @FILE, or - for standard input.")
]
Key = Annotated[str, typer.Argument(metavar="ID")]

mailjet_commands = typer.Typer()


# --- lists and objects -----------------------------------------------------------------------------------------------


def _group(module: str, told: str) -> typer.Typer:
    group = typer.Typer(cls=_ListFirst, help=f"{told} Without a command: list.")
    mailjet_commands.add_typer(group, name=module)

    @group.command("list")
    def list_(
        filters: Annotated[
            list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="Filters, named as in REST.")
        ] = None,
        limit: Annotated[int, typer.Option(help="At most that many.", min=1)] = DEFAULT_LIMIT,
        everything: Annotated[bool, typer.Option("--all", help="All there are.")] = False,
        connection: Connection = "default",
        as_json: AsJson = False,
    ) -> None:
        """List them, by the filters of REST."""
        _list(module, _pairs(filters or []), None if everything else limit, connection, as_json=as_json)

    return group


def _add_get(group: typer.Typer, module: str) -> None:
    @group.command()
    def get(key: Key, connection: Connection = "default", as_json: AsJson = False) -> None:
        """Show one."""
        _show(_ask(module, connection, "GET", _path(module, key)), as_json=as_json)


contacts = _group("contacts", "Contacts at Mailjet.")
drafts = _group("drafts", "Draft campaigns at Mailjet.")
campaigns = _group("campaigns", "Campaigns that were sent.")
messages = _group("messages", "Messages at Mailjet.")
sms = _group("sms", "SMS at Mailjet.")
for _name, _typer in (("contacts", contacts), ("drafts", drafts), ("campaigns", campaigns), ("messages", messages)):
    _add_get(_typer, _name)


def _add_writing(group: typer.Typer, module: str) -> None:
    @group.command()
    def create(body: Body, connection: Connection = "default", as_json: AsJson = False) -> None:
        """Make one."""
        _show(_ask(module, connection, "POST", f"/{module}", _json(body)), as_json=as_json)

    @group.command()
    def update(key: Key, body: Body, connection: Connection = "default", as_json: AsJson = False) -> None:
        """Change what is given, and nothing else."""
        _show(_ask(module, connection, "PATCH", _path(module, key), _json(body)), as_json=as_json)


_add_writing(contacts, "contacts")
_add_writing(drafts, "drafts")


@contacts.command()
def delete(key: Key, connection: Connection = "default") -> None:
    """Delete one: Mailjet anonymises it at once."""
    _ask("contacts", connection, "DELETE", _path("contacts", key))


@drafts.command("test")
def send_test(key: Key, recipients: list[str], connection: Connection = "default") -> None:
    """Send it to these addresses only."""
    body = {"recipients": [{"email": address} for address in recipients]}
    _ask("drafts", connection, "POST", _path("drafts", key) + "/test", body)


@drafts.command()
def schedule(
    key: Key, at: Annotated[str, typer.Argument(help="RFC 3339, or now.")], connection: Connection = "default"
) -> None:
    """Send it to its list at that time."""
    _ask("drafts", connection, "POST", _path("drafts", key) + "/schedule", {"at": at})


@drafts.command()
def unschedule(key: Key, connection: Connection = "default") -> None:
    """Cancel its schedule."""
    _ask("drafts", connection, "DELETE", _path("drafts", key) + "/schedule")


@drafts.command("send")
def send_draft(key: Key, connection: Connection = "default", as_json: AsJson = False) -> None:
    """Send it to its list now."""
    _show(_ask("drafts", connection, "POST", _path("drafts", key) + "/send"), as_json=as_json)


@messages.command("send")
def send_messages(
    body: Body,
    connection: Connection = "default",
    idempotency_key: Annotated[
        str | None, typer.Option(help="Repeated with it, what Mailjet accepted is not sent again.")
    ] = None,
) -> None:
    """Send up to 50; 1 is the exit code where not all of them were accepted."""
    headers = {"idempotency-key": idempotency_key} if idempotency_key else {}
    answer = _ask("messages", connection, "POST", "/messages", _json(body), headers)
    _print_json(answer)
    raise typer.Exit(0 if all(result["status"] == "accepted" for result in answer["results"]) else 1)


@sms.command("send")
def send_sms(body: Body, connection: Connection = "default", as_json: AsJson = False) -> None:
    """Send one."""
    _show(_ask("sms", connection, "POST", "/sms", _json(body)), as_json=as_json)


@mailjet_commands.command()
def call(
    method: Annotated[str, typer.Argument(help="GET, POST, PUT, DELETE …")],
    path: Annotated[str, typer.Argument(help="Below the connection's base URL, as /v3/REST/campaigndraft?Limit=5.")],
    body: Annotated[str | None, typer.Argument(help="JSON; @FILE, or - for standard input.")] = None,
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME:VALUE", help="A further header; repeatable.")
    ] = None,
    connection: Connection = "default",
) -> None:
    """Call Mailjet's API; prints the body of its answer. 1 is the exit code where Mailjet answers with an error."""
    plain, _, told = path.partition("?")
    query: dict[str, list[str]] = {}
    for name, value in parse_qsl(told, keep_blank_values=True):
        query.setdefault(name, []).append(value)
    headers = dict(_split(text, ":") for text in header or [])
    asked = {"method": method.upper(), "path": plain, "query": query, "headers": headers}
    if body is not None:
        asked["body"] = _json(body)
    answer = _ask("call", connection, "POST", "/call", asked)
    if out.is_terminal or answer["status"] >= 400:
        err.print(str(answer["status"]))
    if isinstance(answer["body"], str):
        _write(answer["body"])
    elif answer["body"] is not None:
        _print_json(answer["body"])
    raise typer.Exit(0 if answer["status"] < 400 else 1)


# --- asking ----------------------------------------------------------------------------------------------------------


def _settings() -> Settings:
    found = settings()
    configure_logs(found.log_format, "error")  # what went wrong is told by the command itself
    return found


def _database(found: Settings, module: str) -> AbstractContextManager[Any]:
    return database(found) if module == "messages" else nullcontext()


def _ask(
    module: str, connection: str, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> Any:
    from app.connector.command import local  # noqa: PLC0415  keeps the small commands quick to start

    found = _settings()

    async def ask(opened: Any) -> Any:
        async with local(found, connection, module, database=opened) as here:
            return await here.ask(method, path, body=body, headers=headers)

    with _database(found, module) as opened:
        return _run(lambda: ask(opened))


def _list(module: str, query: dict[str, list[str]], limit: int | None, connection: str, *, as_json: bool) -> None:
    from app.connector.command import local  # noqa: PLC0415

    found = _settings()
    rows = _Rows(COLUMNS[module], as_json=as_json or not out.is_terminal)

    async def walk() -> None:
        async with local(found, connection, module, "call") as here:
            total = await here.count(module, query) if limit is None and err.is_terminal else None
            with progress(err, module, total) if limit is None else nullcontext(lambda told, done: None) as tell:
                async for page in _told_pages(here.pages(module, query, limit), tell):
                    rows.add(page)

    _run(walk)
    rows.end()


async def _told_pages(pages: AsyncIterator[Any], tell: Callable[[str, float], None]) -> AsyncIterator[Any]:
    count = 0
    async for page in pages:
        count += len(page)
        tell(f"{count}", count)
        yield page


def _run(work: Callable[[], Awaitable[T]]) -> T:
    """Problems become sentences: 2 for a request that does not fit, 1 for what Mailjet or the network does."""

    async def run() -> T:
        return await work()

    try:
        return asyncio.run(run())
    except JethookError as refused:
        err.print(_printable(str(refused)))
        raise typer.Exit(2 if getattr(refused, "is_usage", False) else 1) from None


# --- reading what was typed ------------------------------------------------------------------------------------------


def _path(module: str, key: str) -> str:
    return f"/{module}/{quote(key, safe='')}"


def _pairs(texts: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in texts:
        name, value = _split(text, "=")
        found.setdefault(name, []).append(value)
    if strange := {"limit", "cursor"} & found.keys():
        usage(f"{strange.pop()}: use --limit or --all")
    return found


def _split(text: str, mark: str) -> tuple[str, str]:
    name, found, value = text.partition(mark)
    if not found or not name:
        usage(f"{text!r}: must be NAME{mark}VALUE")
    return name.strip(), value.strip()


def _json(text: str) -> Any:
    try:
        if text == "-":
            text = sys.stdin.read()
        elif text.startswith("@"):
            text = Path(text[1:]).read_text(encoding="utf-8")
        return json.loads(text)
    except OSError as fault:
        usage(f"{text[1:]}: {fault.strerror}")
    except ValueError:
        usage("the body is not JSON")


# --- printing --------------------------------------------------------------------------------------------------------


class _Rows:
    """What a list shows: one JSON array, written as it comes and closed at the end only; or a table."""

    def __init__(self, columns: tuple[str, ...], *, as_json: bool) -> None:
        self._as_json = as_json
        self._columns = columns
        self._table = Table(box=None, pad_edge=False)
        for name in columns:
            self._table.add_column(name, overflow="fold")  # an id or address that is cut short is of no use
        self._begun = False

    def add(self, rows: list[dict[str, Any]]) -> None:
        if not self._as_json:
            for row in rows:
                self._table.add_row(*(_cell(row[name]) for name in self._columns))
        elif rows:
            lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
            _write((",\n" if self._begun else "[\n") + lines, end="")
            self._begun = True

    def end(self) -> None:
        if self._as_json:
            _write("\n]" if self._begun else "[]")
        else:
            out.print(self._table)
            err.print(f"{self._table.row_count} shown")


def _show(found: Any, *, as_json: bool) -> None:
    if as_json or not out.is_terminal:
        _print_json(found)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in found.items():
        table.add_row(name, _cell(value))
    out.print(table)


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case str():
            return _printable(value)
        case _:
            return _printable(json.dumps(value, ensure_ascii=False))


def _print_json(value: Any) -> None:
    _write(json.dumps(value, indent=2, ensure_ascii=False))


def _write(text: str, end: str = "\n") -> None:
    try:
        sys.stdout.write((_printable(text) if out.is_terminal else text) + end)
        sys.stdout.flush()
    except BrokenPipeError:  # who read it has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        raise typer.Exit(1) from None


def _printable(text: str) -> str:
    """Without what would steer a terminal: names and subjects are other people's."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
