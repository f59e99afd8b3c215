"""What is known of a webhook: its settings, what the last look at Mailjet found, and when events came."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.engine import Connection

from app.registration import queries
from app.registration.plan import Slot
from app.registration.shapes import WebhookModel, webhook_view
from app.settings import Settings
from app.silence.queries import list_expected


def find_webhook(settings: Settings, slots: Sequence[Slot], connection: Connection, name: str) -> WebhookModel:
    """A configured webhook; `slots` are all of the settings."""
    checked = queries.list_checked(connection, settings.effective_webhooks[name].connection)
    return webhook_view(
        settings, name, slots, checked, lambda w, event_type: queries.last_event_at(connection, w, event_type),
        list_expected(connection),
    )  # fmt: skip
