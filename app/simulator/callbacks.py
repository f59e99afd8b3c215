"""The resource eventcallbackurl as Mailjet keeps it for one API key: pure rules, no HTTP.

Sources: mailjet/api-documentation:guides/_event-api.md for the properties; the texts of MJ18 and MJ19 are those users
reported (Notifuse/notifuse#142, mailjet/mailjet-apiv3-java#46).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

TYPE_NUMBERS = {"click": 1, "bounce": 2, "spam": 3, "blocked": 4, "unsub": 5, "open": 6, "sent": 7}
"""The numbers Mailjet has for the event types; they show in the text of MJ18 and may stand in a filter."""

CLOUD_PROPERTIES = ("AccountID", "ProjectID", "QueueName", "Region", "Resource", "SharedAccessSignature", "Topic")
READ_ONLY_PROPERTIES = ("ID", "APIKeyID", "APIKey")


@dataclass(frozen=True, slots=True)
class Callback:
    """One callback; `url` holds its credentials, as Mailjet returns them."""

    id: int
    api_key_id: int
    event_type: str
    url: str
    is_backup: bool = False
    status: str = "alive"
    version: int = 1

    @property
    def slot(self) -> tuple[str, bool]:
        """The unique key within an API key, `EventType|Backup`."""
        return self.event_type, self.is_backup

    def to_json(self) -> dict[str, Any]:
        """As the API shows it. The order of the keys differs from one object to the next, as it does at Mailjet."""
        items: list[tuple[str, Any]] = [
            ("APIKeyID", self.api_key_id),
            ("EventType", self.event_type),
            ("ID", self.id),
            ("IsBackup", self.is_backup),
            ("Status", self.status),
            ("Url", self.url),
            ("Version", self.version),
        ]
        first = self.id % len(items)
        return dict(items[first:] + items[:first])


class CallbackError(Exception):
    """Mailjet refuses: `status` is the HTTP status, `message` the `ErrorMessage`."""

    def __init__(self, status: int, message: str, info: Any = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.info = info


class NotFoundError(CallbackError):
    """There is no callback of this id or key."""

    def __init__(self) -> None:
        super().__init__(404, "Object not found")


class CallbackTable:
    """The callbacks of one API key, at most one primary and one backup for each event type."""

    def __init__(self, api_key_id: int, first_id: int, *, status_alone_revives: bool = False) -> None:
        self._api_key_id = api_key_id
        self._next_id = first_id
        self._status_alone_revives = status_alone_revives
        self._rows: dict[int, Callback] = {}

    def all(self) -> list[Callback]:
        """By ID, ascending."""
        return [self._rows[key] for key in sorted(self._rows)]

    def find(self, event_type: str, is_backup: bool = False) -> Callback | None:
        return next((row for row in self._rows.values() if row.slot == (event_type, is_backup)), None)

    def get(self, key: str) -> Callback:
        """By id (`17`) or by unique key (`open|false`). Raises NotFoundError."""
        if key.isascii() and key.isdigit():
            found = self._rows.get(int(key))
        else:
            event_type, _, backup = key.partition("|")
            found = self.find(event_type, backup == "true") if backup in ("true", "false") else None
        if found is None:
            raise NotFoundError
        return found

    def create(self, properties: Mapping[str, Any]) -> Callback:
        """POST: only `Url` is required; the rest is open, primary, alive, Version 1. Raises CallbackError."""
        given = _read(properties)
        if "url" not in given:
            raise CallbackError(400, 'Property "Url" is required')
        row = replace(Callback(self._next_id, self._api_key_id, event_type="open", url=""), **given)
        self._refuse_taken(row)
        self._next_id += 1
        self._rows[row.id] = row
        return row

    def update(self, key: str, properties: Mapping[str, Any]) -> Callback | None:
        """PUT: changes what is given; None when that changes nothing. Raises CallbackError.

        Mailjet revives a dead callback by a new URL. Whether `Status` alone does so is not known.
        """
        row = self.get(key)
        given = _read(properties)
        has_new_url = given.get("url", row.url) != row.url
        if row.status == "dead":
            if has_new_url:
                given.setdefault("status", "alive")
            elif not self._status_alone_revives:
                given.pop("status", None)
        changed = replace(row, **given)
        if changed == row:
            return None
        if changed.slot != row.slot:
            self._refuse_taken(changed)
        self._rows[row.id] = changed
        return changed

    def delete(self, key: str) -> None:
        """Raises NotFoundError."""
        del self._rows[self.get(key).id]

    def put(self, event_type: str, url: str, *, version: int, status: str, is_backup: bool) -> Callback:
        """Set a slot from outside the API; a callback that holds it keeps its id."""
        held = self.find(event_type, is_backup)
        row_id = self._next_id if held is None else held.id
        self._next_id += held is None
        row = Callback(row_id, self._api_key_id, event_type, url, is_backup, status, version)
        self._rows[row_id] = row
        return row

    def _refuse_taken(self, row: Callback) -> None:
        if self.find(*row.slot) is not None:
            value = f"{TYPE_NUMBERS[row.event_type]}|{str(row.is_backup).lower()}"
            raise CallbackError(
                400, f'MJ18 A EventCallbackURL resource with value "{value}" for EventType|Backup already exists.'
            )


def _read(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Mailjet's properties as fields of Callback; the ones for cloud queues are accepted and dropped."""
    for name in properties:
        if name in READ_ONLY_PROPERTIES:
            raise CallbackError(401, f'Internal error: MJ19 Setting a value for property "{name}" is not allowed')
    return dict(_read_property(name, value) for name, value in properties.items() if name not in CLOUD_PROPERTIES)


def _read_property(name: str, value: Any) -> tuple[str, Any]:
    match name:
        case "EventType" if isinstance(value, str) and value in TYPE_NUMBERS:
            return "event_type", value
        case "IsBackup" if isinstance(value, bool):
            return "is_backup", value
        case "Status" if value in ("alive", "dead"):
            return "status", value
        case "Url" if isinstance(value, str) and value.lower().startswith(("http://", "https://")):
            return "url", value
        case "Version" if value in (1, 2) and not isinstance(value, bool):
            return "version", value
        case "EventType" | "IsBackup" | "Status" | "Url" | "Version":
            raise CallbackError(400, f'Invalid value for property "{name}"')
        case _:
            raise CallbackError(400, f'Invalid json input: property "{name}" does not exist')
