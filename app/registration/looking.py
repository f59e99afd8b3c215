"""What is known of webhooks: their settings, what the last look at Mailjet found, and when events came."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy.engine import Connection

from app.registration import queries
from app.registration.plan import Slot
from app.registration.shapes import WebhookModel, webhook_view
from app.settings import Settings
from app.silence.queries import list_expected


def find_webhooks(
    settings: Settings, slots: Sequence[Slot], connection: Connection, names: Iterable[str]
) -> list[WebhookModel]:
    """Configured webhooks in this order; `slots` are all of the settings."""
    names = list(names)
    used = {settings.effective_webhooks[name].connection for name in names}
    checked = {connection_name: queries.list_checked(connection, connection_name) for connection_name in used}
    expected = list_expected(connection)
    return [
        webhook_view(
            settings, name, slots, checked[settings.effective_webhooks[name].connection],
            lambda webhook, event_type: queries.last_event_at(connection, webhook, event_type), expected,
        )
        for name in names
    ]  # fmt: skip


def find_webhook(settings: Settings, slots: Sequence[Slot], connection: Connection, name: str) -> WebhookModel:
    (found,) = find_webhooks(settings, slots, connection, [name])
    return found
