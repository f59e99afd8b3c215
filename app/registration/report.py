"""What a registration run planned and did: for the command's output, the log and whoever waits for the result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from app.registration.plan import Action, Kind
from app.registration.queries import CallbackState


@dataclass(frozen=True, slots=True)
class Result:
    """One action and what came of it. In a dry run, and after a failure, `done` is False.

    `error` is set when a call failed. `state` is what the slot is now, as far as is known.
    """

    action: Action
    state: CallbackState
    done: bool
    error: str | None = None
    mailjet_id: str | None = None
    held_by: str | None = None
    # The slot changed between our look and our call: worth one more look.
    stale: bool = False

    @property
    def fault(self) -> str | None:
        """Why a person should look, None when there is no need. A change still to be made is no fault."""
        if self.error is not None:
            return f"{self._place}: {self.error}"
        if self.action.kind is Kind.CONFLICT:
            return f"{self._place}: {self.action.detail}"
        if self.done and self.state is CallbackState.DEAD:
            return f"{self._place}: is dead, and Mailjet did not revive it"
        return None

    @property
    def _place(self) -> str:
        return f"connection {self.action.connection!r}, {self.action.type}{' (backup)' * self.action.backup}"

    def to_json(self) -> dict[str, Any]:
        return {
            "type": self.action.type,
            "backup": self.action.backup,
            "webhook": self.action.webhook,
            "action": self.action.kind.value,
            "changed": sorted(self.action.changes),
            "done": self.done,
            "state": self.state.value,
            "held_by": self.held_by,
            "mailjet_id": self.mailjet_id,
            "error": self.error,
            "description": self.action.describe(),
        }


@dataclass(frozen=True, slots=True)
class ConnectionReport:
    """One Mailjet connection: `off` says why nothing was tried, `error` why nothing could be planned."""

    connection: str
    results: tuple[Result, ...] = ()
    off: str | None = None
    error: str | None = None
    retry_after_seconds: float | None = None

    @property
    def state(self) -> str:
        if self.off is not None:
            return "off"
        return "ok" if self.error is None and not any(result.fault for result in self.results) else "degraded"

    @property
    def failed(self) -> bool:
        """A call failed, so that trying again soon makes sense; a foreign callback does not go away by asking."""
        return self.error is not None or any(result.error is not None for result in self.results)

    def faults(self) -> Iterator[str]:
        if self.off is not None:
            yield self.off
        if self.error is not None:
            yield f"connection {self.connection!r}: {self.error}"
        yield from (fault for result in self.results if (fault := result.fault) is not None)

    def to_json(self) -> dict[str, Any]:
        return {
            "connection": self.connection,
            "state": self.state,
            "off": self.off,
            "error": self.error,
            "actions": [result.to_json() for result in self.results],
        }


@dataclass(frozen=True, slots=True)
class RegistrationReport:
    """Every connection of one run. Nothing in it holds a password."""

    connections: tuple[ConnectionReport, ...]
    dry_run: bool = False

    @property
    def faults(self) -> list[str]:
        """Sentences, each once: off, failed calls, and slots kept for foreign callbacks."""
        return list(dict.fromkeys(fault for connection in self.connections for fault in connection.faults()))

    @property
    def has_faults(self) -> bool:
        return bool(self.faults)

    @property
    def is_off(self) -> bool:
        """Nothing was tried at any connection."""
        return all(connection.off is not None for connection in self.connections)

    @property
    def failed(self) -> bool:
        return any(connection.failed for connection in self.connections)

    @property
    def retry_after_seconds(self) -> float:
        """The longest wait that Mailjet asked for, 0 when it asked for none."""
        return max((connection.retry_after_seconds or 0.0 for connection in self.connections), default=0.0)

    @property
    def changed(self) -> int:
        """Changes made at Mailjet; in a dry run the changes that would be made."""
        results = [result for connection in self.connections for result in connection.results]
        return sum(r.action.changes_mailjet and (r.done or (self.dry_run and r.error is None)) for r in results)

    def to_json(self) -> dict[str, Any]:
        return {
            "dry_run": self.dry_run,
            "changed": self.changed,
            "faults": self.faults,
            "connections": [connection.to_json() for connection in self.connections],
        }
