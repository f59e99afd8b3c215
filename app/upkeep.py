"""The commands that look after an installation: audit, doctor, move, backfill."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from app.errors import AppError, DatabaseFault
from app.logs import configure_logs
from app.settings import EVENT_TYPES
from app.terminal import database, err, must_exist, out, settings, usage

upkeep = typer.Typer()


@upkeep.command()
def audit(
    since: Annotated[str | None, typer.Option(help="Events that happened then or later, as 2026-05-01T00:00Z.")] = None,
    until: Annotated[str | None, typer.Option(help="Events that happened before.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Only JSON on standard output.")] = False,
) -> None:
    """Prove that what was accepted is stored, and what was owed is settled or waits."""
    from app.audit.service import audit as compare  # noqa: PLC0415  keeps the small commands quick to start

    first, end = _moment("--since", since), _moment("--until", until)
    if first and end and first >= end:
        usage("--since must be before --until")
    with database(settings(), as_it_is=True) as opened, opened.reading() as connection:
        report = compare(connection, since=first, until=end)
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        _print_audit(report)
    raise typer.Exit(0 if report.is_clean else 1)


def _moment(option: str, text: str | None) -> datetime | None:
    """RFC 3339, or a part of it; without a zone it is UTC."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        usage(f"{option}: {text!r} is no time, as 2026-05-01T00:00:00Z")


def _print_audit(report: Any) -> None:
    for rows in (report.webhooks, report.sinks):
        if rows:
            table = Table(*rows[0], box=None, pad_edge=False)
            for row in rows:
                table.add_row(*(str(value) for value in row.values()))
            out.print(table)
            out.print()
    for difference in report.differences:
        err.print(str(difference))
    events, owed = report.events, report.deliveries
    states = ", ".join(f"{owed[state]} {state}" for state in ("delivered", "pending", "dead", "cancelled"))
    verdict = f"{len(report.differences)} differences" if report.differences else "it adds up"
    kept = f"{events['stored']} stored, {events['quarantined']} quarantined"
    out.print(f"{events['accepted']} accepted, {kept}; {owed['owed']} owed, {states}: {verdict}")


@upkeep.command()
def move(
    to: Annotated[str, typer.Option("--to", metavar="DATABASE_URL", help="PostgreSQL, empty or half moved.")],
    as_json: Annotated[bool, typer.Option("--json", help="Only JSON on standard output.")] = False,
) -> None:
    """Copy everything from SQLite into PostgreSQL, ids and cursors unchanged. Stop the service first."""
    from app.move.service import must_be_movable  # noqa: PLC0415

    url = settings().database_url.get_secret_value()
    must_be_movable(url)
    must_exist(url)
    report = _moved(url, to)
    if as_json:
        print(json.dumps({"ok": report.is_whole, "tables": [asdict(table) for table in report.tables]}, indent=2))
    else:
        for table in report.tables:
            out.print(f"{table.table}: {table.rows} rows" + ("" if table.is_equal else ": NOT EQUAL"))
        out.print("everything is there" if report.is_whole else "the move is not whole; run it again")
    raise typer.Exit(0 if report.is_whole else 1)


def _moved(url: str, to: str) -> Any:
    from app.db import is_outage  # noqa: PLC0415
    from app.move import source, target  # noqa: PLC0415
    from app.move.service import Move, name_of  # noqa: PLC0415
    from app.transfer.progress import progress  # noqa: PLC0415

    try:
        with source.opened_alone(url) as here, target.opened(to) as there:
            move = Move(here, there, name_of(url, here))
            with progress(err, "move", move.total) as tell:
                return move.run(tell)
    except Exception as error:
        if isinstance(error, DatabaseFault) or not is_outage(error):
            raise
        raise DatabaseFault(f"--to: the database went away ({type(error).__name__}); run the move again") from None


@upkeep.command()
def backfill(
    since: Annotated[str, typer.Option(help="Messages that Mailjet got then or later, as 2026-05-01T00:00Z.")],
    until: Annotated[str | None, typer.Option(help="Messages that it got before; without it: until now.")] = None,
    connection: Annotated[str, typer.Option(help="The connection whose messages are looked at.")] = "default",
    types: Annotated[list[str] | None, typer.Option("--type", help="Only this event type; repeatable.")] = None,
    no_deliver: Annotated[bool, typer.Option("--no-deliver", help="Owe what is found to no sink.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Only JSON on standard output.")] = False,
) -> None:
    """Fetch events that no callback brought from Mailjet's histories; what is there already is not stored again."""
    from app.completeness.command import Asked, run  # noqa: PLC0415
    from app.models import ReplayState  # noqa: PLC0415

    found = settings()
    first, end = _moment("--since", since), _moment("--until", until) or datetime.now(UTC)
    assert first is not None
    if first >= end:
        usage("--since must be before --until")
    if strange := sorted(set(types or ()) - set(EVENT_TYPES)):
        usage(f"--type: {strange[0]!r} is none of {', '.join(EVENT_TYPES)}")
    asked = Asked(connection, first, end, tuple(types or ()), not no_deliver)
    with database(found) as opened:
        try:
            job = asyncio.run(run(found, opened, asked, err))
        except AppError as error:
            usage(f"--connection: {error}")
    told = f"{job['messages']} messages: {job['stored']} events stored, {job['known']} were there"
    if as_json:
        print(json.dumps(job, indent=2))
    else:
        out.print(f"{told}; {job['state']}" + (f": {job['error']}" if job["error"] else ""))
    raise typer.Exit(0 if job["state"] == ReplayState.DONE else 1)


@upkeep.command()
def doctor(
    send_test: Annotated[bool, typer.Option("--send-test", help="Post a test event to each sink.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Only JSON on standard output.")] = False,
) -> None:
    """Check public URL, Mailjet, callbacks, database, disk, clock and sinks; each finding names the setting."""
    from app.doctor.findings import Level  # noqa: PLC0415
    from app.doctor.service import examine  # noqa: PLC0415

    found = settings()
    configure_logs(found.log_format, "error")  # what is wrong stands in the table
    findings = examine(found, send_test=send_test)
    failed = any(finding.level is Level.FAILURE for finding in findings)
    if as_json:
        print(json.dumps({"ok": not failed, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        _print_findings(findings)
    raise typer.Exit(1 if failed else 0)


def _print_findings(findings: list[Any]) -> None:
    colours = {"ok": "green", "warning": "yellow", "failure": "bold red", "skipped": "dim"}
    table = Table("", "part", "", "finding", "setting", box=None, pad_edge=False)
    for finding in findings:
        level = Text(finding.level.value, style=colours[finding.level])
        table.add_row(level, finding.about, finding.subject or "", Text(finding.text), finding.setting or "")
    out.print(table)
    counts = Counter(finding.level.value for finding in findings)
    out.print(", ".join(f"{number} {level}" for level, number in counts.items()))
