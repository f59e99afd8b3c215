"""What one look at Mailjet found, held against the one before -> what is worth telling. Pure.

The look before is the table's, so that a change is told once, whichever replica or command saw it, over restarts too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from app.operator_events import REGISTRATION_FAILED, REGISTRATION_RECOVERED, Change
from app.registration.plan import SlotKey
from app.registration.queries import CallbackState, Checked

_FAULTS = {
    CallbackState.DEAD: "Mailjet has suspended the callback and did not revive it",
    CallbackState.FOREIGN: "a callback of somebody else holds the slot",
    CallbackState.ERROR: "the look or the change failed",
}


def fault_of(row: Checked) -> str | None:
    """Why a person should look; None for a slot that is as it should be, or empty without anything having failed."""
    if row.error is not None:
        return row.error
    return _FAULTS.get(row.state)


def changes_between(before: Mapping[SlotKey, Checked], now: Iterable[Checked]) -> list[Change]:
    """Slots of one connection that went wrong, or are right again. Those of one webhook that share a fault, as they do
    when Mailjet does not answer, are one change."""
    groups: dict[tuple[str, str | None, str | None], list[Checked]] = {}
    for row in now:
        known = before.get(row.key)
        was, fault = fault_of(known) if known is not None else None, fault_of(row)
        if fault is not None and was is None:
            groups.setdefault((REGISTRATION_FAILED, row.holder, fault), []).append(row)
        elif was is not None and row.state is CallbackState.OK and fault is None:
            groups.setdefault((REGISTRATION_RECOVERED, row.holder, None), []).append(row)
    return [_change(event_type, fault, rows) for (event_type, _, fault), rows in groups.items()]


def _change(event_type: str, fault: str | None, rows: list[Checked]) -> Change:
    first = rows[0]
    return Change(
        event_type, first.checked_at, webhook=first.holder, connection=first.connection, error=fault, count=len(rows),
        details={"types": ",".join(_slots(rows)), "state": first.state.value},
    )  # fmt: skip


def _slots(rows: Iterable[Checked]) -> Iterator[str]:
    yield from (f"{row.type}{' (backup)' * row.backup}" for row in rows)
