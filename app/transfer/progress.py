"""How far long work is: a bar on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PLAIN_SECONDS = 5.0
Told = Callable[[str, float], None]
"""What has been done, in words and in the unit of the total."""


@contextmanager
def progress(console: Console, what: str, total: float | None = None) -> Iterator[Told]:
    """Without a `total` there is no bar, only what has been done."""
    if not console.is_terminal:
        yield _plainly(console, what)
        return
    columns = [SpinnerColumn(), TextColumn(what), TimeElapsedColumn(), TextColumn("{task.fields[told]}")]
    if total:
        columns.insert(2, BarColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total, told="")
        yield lambda told, done: bar.update(task, completed=done, told=told)


def _plainly(console: Console, what: str) -> Told:
    last = time.monotonic()

    def tell(told: str, _: float) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            console.print(f"{what}: {told}")

    return tell
