"""The command `jethook`: the one place that starts things.

Exit codes: 0 done, 1 it found a fault, 2 wrong usage or settings.
"""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from app import __version__
from app.errors import DatabaseFault, SettingsFault
from app.mailjet_commands import mailjet_commands
from app.settings import Settings, effective_rows, load_settings, reference_rows
from app.terminal import database as _database
from app.terminal import err, out
from app.terminal import settings as _settings
from app.terminal import usage as _usage
from app.upkeep import upkeep

cli = typer.Typer(
    name="jethook",
    help="Registers Mailjet's event callbacks, keeps every event, relays it to your services, answers questions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cli.add_typer(upkeep)
cli.add_typer(mailjet_commands)


def main() -> None:
    """The console script. Faults that a person can mend are sentences, not tracebacks."""
    # Nothing that a start builds is garbage, and looking for some took a fifth of its time.
    gc.set_threshold(50_000, 20, 100)
    try:
        cli()
    except SettingsFault as fault:
        err.print("The settings do not fit:", style="bold red")
        for line in fault.faults:
            err.print(f"  {line}")
        raise SystemExit(2) from None
    except DatabaseFault as fault:
        err.print(str(fault))
        raise SystemExit(1) from None


def _version(asked: bool) -> None:
    if asked:
        out.print(f"jethook {__version__}")
        raise typer.Exit


@cli.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = (
        False
    ),
) -> None:
    del version


@cli.command()
def serve() -> None:
    """Run the service: migrate, register, receive, deliver, answer REST."""
    from app.serving import serve as run  # noqa: PLC0415  keeps the small commands quick to start

    settings = _settings()
    raise typer.Exit(run(settings))


@cli.command()
def demo(
    seconds: Annotated[float, typer.Option(help="Stop after that long; 0: on Ctrl-C.", min=0)] = 0,
    rate: Annotated[float, typer.Option(help="Events a second.", min=0.1, max=1000)] = 20,
) -> None:
    """The whole service on this machine without an account: a simulated Mailjet, live traffic, a sample sink."""
    from app.demo import run_demo  # noqa: PLC0415

    raise typer.Exit(run_demo(seconds=seconds, rate=rate))


@cli.command()
def migrate() -> None:
    """Bring the database to the newest schema; safe from many replicas at once."""
    from app.db import Database  # noqa: PLC0415
    from app.migrate import migrate as migrate_database  # noqa: PLC0415

    settings = _settings()
    database = Database(settings.database_url.get_secret_value())
    try:
        found, now = migrate_database(database)
    finally:
        database.close()
    out.print(f"schema {now}" + (" (was there already)" if found == now else f" (was {found or 'empty'})"))


@cli.command()
def register(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, change nothing.")] = False,
    webhook: Annotated[str | None, typer.Option(help="Only the callbacks of this webhook.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Only JSON on standard output.")] = False,
) -> None:
    """Bring the callbacks at Mailjet in line with the settings, once."""
    _registration(lambda r: r.reconcile(webhook=webhook, dry_run=dry_run), webhook, as_json=as_json)


@cli.command()
def unregister(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, change nothing.")] = False,
    webhook: Annotated[str | None, typer.Option(help="Only the callbacks of this webhook.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Only JSON on standard output.")] = False,
) -> None:
    """Remove our own callbacks from Mailjet, and put back what they replaced. Nothing else ever deletes one."""
    _registration(lambda r: r.unregister(webhook=webhook, dry_run=dry_run), None, as_json=as_json)


def _registration(work: Callable[[Any], Any], webhook: str | None, *, as_json: bool) -> None:
    from app.serving import one_registrar  # noqa: PLC0415

    settings = _settings()
    if webhook is not None and webhook not in settings.effective_webhooks:
        _usage(f"no webhook {webhook!r} is configured (configured: {', '.join(settings.effective_webhooks)})")
    with one_registrar(settings) as registrar:
        report = asyncio.run(work(registrar))
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        _print_report(report.to_json())
    raise typer.Exit(1 if report.has_faults else 0)


def _print_report(report: dict[str, Any]) -> None:
    table = Table("connection", "type", "slot", "webhook", "action", "state", "", box=None, pad_edge=False)
    for connection in report["connections"]:
        for action in connection["actions"]:
            table.add_row(
                connection["connection"], action["type"], "backup" if action["backup"] else "primary",
                action["webhook"] or "", action["action"], action["state"] or "", action["error"] or "",
            )  # fmt: skip
    if table.row_count:
        out.print(table)
    for fault in report["faults"]:
        err.print(str(fault))
    what = "to change" if report["dry_run"] else "changed"
    out.print(f"{report['changed']} {what}, {len(report['faults'])} faults")


@cli.command()
def simulate(
    url: Annotated[str, typer.Option(help="Callback URL, user and password in it.")] = (
        "http://127.0.0.1:8000/webhooks/default"
    ),
    rate: Annotated[float, typer.Option(help="Events a second; 0: as fast as it goes.", min=0)] = 0,
    count: Annotated[int, typer.Option(help="Events in all; 0: until Ctrl-C.", min=0)] = 1000,
    group: Annotated[int, typer.Option(help="Events in one body; 1: bare objects.", min=1, max=10_000)] = 1,
    mixed: Annotated[bool, typer.Option("--mixed", help="Both body shapes.")] = False,
    seed: Annotated[int, typer.Option(help="The same seed makes the same traffic.")] = 1,
    types: Annotated[str | None, typer.Option(help="Only these event types, comma separated.")] = None,
    retries: Annotated[float, typer.Option(help="Share of bodies sent twice.", min=0, max=1)] = 0,
    duplicates: Annotated[float, typer.Option(help="Share of events regrouped and sent again.", min=0, max=1)] = 0,
    disorder: Annotated[float, typer.Option(help="Share of events out of order.", min=0, max=1)] = 0,
    concurrency: Annotated[int, typer.Option(help="Requests under way at once.", min=1, max=1000)] = 32,
    timeout: Annotated[float, typer.Option(help="Seconds for one answer.", min=0.1)] = 15,
    as_json: Annotated[bool, typer.Option("--json", help="Only JSON on standard output.")] = False,
) -> None:
    """Send valid Mailjet traffic to any callback URL: all types, both shapes, retries, duplicates, disorder."""
    from app.simulator import simulate as simulator  # noqa: PLC0415
    from app.simulator.traffic import EVENT_TYPES  # noqa: PLC0415

    try:
        chosen = tuple(t.strip() for t in types.split(",") if t.strip()) if types else EVENT_TYPES
        options = simulator.SimulateOptions(
            url=url, rate=rate, count=count, group=group, mixed=mixed, seed=seed, types=chosen, retries=retries,
            duplicates=duplicates, disorder=disorder, concurrency=concurrency, timeout_seconds=timeout,
        )  # fmt: skip
        report = asyncio.run(simulator.simulate(options, None if as_json else _progress))
    except ValueError as fault:
        _usage(str(fault))
    except KeyboardInterrupt:
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        for name, value in report.to_json().items():
            out.print(f"{name}: {value}")
    raise typer.Exit(0 if report.is_clean else 1)


def _progress(report: Any) -> None:
    end = "\r" if out.is_terminal else "\n"
    out.print(f"{report.events} events in {report.posts} posts, {report.events_per_second:.0f} events/s", end=end)


@cli.command()
def export(
    filters: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=VALUE]...", help="Filters of GET /v1/events, as type=bounce; repeated: any."),
    ] = None,
    form: Annotated[str, typer.Option("--format", help="ndjson, csv or parquet.")] = "ndjson",
    output: Annotated[Path | None, typer.Option(help="File to write; it is there only when whole.")] = None,
    order: Annotated[str, typer.Option(help="asc (oldest first) or desc.")] = "asc",
    gzip: Annotated[bool, typer.Option("--gzip", help="Compress; so does a name ending in .gz.")] = False,
    csv_safe: Annotated[bool, typer.Option("--csv-safe", help="CSV without formulas, for spreadsheets.")] = False,
) -> None:
    """Write stored events to standard output or a file, with what Mailjet sent."""
    from app.transfer import files  # noqa: PLC0415
    from app.transfer.progress import progress  # noqa: PLC0415

    packed = gzip or (output is not None and output.suffix == ".gz")
    try:
        asked = files.parse_filters(filters or [], gzip=packed, format=form, order=order, csv_safe=csv_safe)
    except files.BadFilters as fault:
        _usage("\n".join(fault.faults))
    try:
        with _database(_settings()) as database, files.whole_file(output) as file, progress(err, "export") as tell:
            count = files.export_events(
                database, asked, file, gzip=packed, on_progress=lambda n: tell(f"{n} events", n)
            )
    except BrokenPipeError:  # who read it has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        raise typer.Exit(1) from None
    except OSError as fault:
        err.print(f"cannot write the export: {fault.strerror}")
        raise typer.Exit(1) from None
    err.print(f"{count} events")


@cli.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="NDJSON as exported, also gzip; -: standard input.")],
    deliver: Annotated[
        bool, typer.Option("--deliver", help="Deliver what is new to the sinks as well; without it nothing is owed.")
    ] = False,
) -> None:
    """Store exported events again; those that are there already stay as they are."""
    from app.clock import now_micros  # noqa: PLC0415
    from app.dispatch.matching import Matcher  # noqa: PLC0415
    from app.suppressions.keeping import Keeper, policy_of  # noqa: PLC0415
    from app.transfer.progress import progress  # noqa: PLC0415
    from app.transfer.service import Importer, opened  # noqa: PLC0415

    if str(file) != "-" and (file.is_dir() or not os.access(file, os.R_OK)):
        _usage(f"{file}: there is no such file, or it cannot be read")
    settings = _settings()
    matcher = Matcher(settings.sinks) if deliver else None
    with _database(settings) as database, opened(file) as (source, size), progress(err, "import", size) as tell:
        importer = Importer(
            database,
            matcher=matcher,
            keeper=Keeper(policy_of(settings), _herald(settings, database)),
            on_fault=lambda number, text: err.print(f"line {number}: {text}"),
            on_progress=lambda report: tell(f"{report.lines} lines", source.tell() if size else 0),
        )
        report = importer.run(source, now_micros=now_micros())
    out.print(
        f"{report.lines} lines: {report.stored} stored, {report.duplicates} there already, {report.faults} faults;"
        f" {report.deliveries} deliveries owed"
    )
    raise typer.Exit(1 if report.faults else 0)


class Rebuildable(StrEnum):
    """What can be made again from the stored events."""

    SUPPRESSIONS = "suppressions"
    STATS = "stats"


@cli.command()
def rebuild(
    what: Annotated[Rebuildable, typer.Argument(help="What to make again.")] = Rebuildable.SUPPRESSIONS,
) -> None:
    """Make what is derived from the stored events again, as the settings are now; also while the service runs."""
    if what is Rebuildable.STATS:
        _rebuild_stats()
    else:
        _rebuild_suppressions()


def _rebuild_stats() -> None:
    from app.rollups.rebuild import rebuild_stats  # noqa: PLC0415
    from app.transfer.progress import progress  # noqa: PLC0415

    with _database(_settings()) as database, progress(err, "rebuild stats") as tell:
        done = rebuild_stats(database, on_progress=lambda done: tell(f"{done.events} events", done.events))
    told = f"{done.kept} days kept as they were, since not all of their events are here"
    out.print(f"{done.events} events of {done.days} days counted again; {told}")


def _rebuild_suppressions() -> None:
    from app.suppressions.keeping import Keeper, policy_of  # noqa: PLC0415
    from app.suppressions.rebuild import rebuild as rebuild_suppressions  # noqa: PLC0415
    from app.transfer.progress import progress  # noqa: PLC0415

    settings = _settings()
    with _database(settings) as database, progress(err, "rebuild suppressions") as tell:
        keeper = Keeper(policy_of(settings), _herald(settings, database))
        report = rebuild_suppressions(
            database, keeper, on_progress=lambda report: tell(f"{report.addresses} addresses", report.addresses)
        )
    out.print(
        f"{report.addresses} addresses looked at: {report.added} suppressions added, {report.removed} removed,"
        f" {report.changed} changed"
    )


def _herald(settings: Settings, database: Any) -> Any:
    """Tells the sinks that ask for it what a command changes."""
    from app.main import make_alerts  # noqa: PLC0415
    from app.operator_events import NOBODY  # noqa: PLC0415

    return make_alerts(settings, database) or NOBODY


@cli.command()
def config(
    reference: Annotated[bool, typer.Option("--reference", help="The table of all settings.")] = False,
) -> None:
    """Print the effective settings, secrets masked."""
    if reference:
        print("\n".join(reference_table()))
        return
    for variable, value in effective_rows(load_settings()):
        print(f"{variable}={value}")


def reference_table() -> list[str]:
    """The lines of the table of all settings, in Markdown; the README repeats them."""
    rows = [
        f"| `{row.variable}` | {_cell(row.default)} | {row.description}{'; or `…_FILE`' if row.secret else ''} |"
        for row in reference_rows()
    ]
    return ["| variable | default | |", "| --- | --- | --- |", *rows]


def _cell(default: str) -> str:
    return default if default in ("unset", "required") else f"`{default}`"


@cli.command()
def healthcheck() -> None:
    """Exit 0 when the service on this machine is ready; for images without curl."""
    settings = load_settings()
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    connection = http.client.HTTPConnection(host, settings.port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        err.print(f"no answer from {host}:{settings.port}: {error}")
        raise typer.Exit(1) from None
    finally:
        connection.close()
    if status != 200:
        err.print(f"not ready: /readyz answered {status}")
        raise typer.Exit(1)
