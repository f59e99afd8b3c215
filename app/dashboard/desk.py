"""What every page works with: the parts of the service, who may see and act, and how a page is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from app.dashboard.access import Access
from app.dashboard.pages import Pages
from app.dashboard.pulse import Pulse
from app.db import Database
from app.ingest.service import Ingest
from app.query.feed import Feed
from app.registration.looking import find_webhooks
from app.registration.plan import Slot, list_slots
from app.registration.service import Registrar
from app.registration.shapes import WebhookModel
from app.replay.selection import Recipient
from app.settings import Settings
from app.sinks.service import Sinks
from app.stats.memory import Memory
from app.suppressions.keeping import Keeper


@dataclass(frozen=True)
class Desk:
    """The parts of REST. `look_again` wakes the worker, `replays_look_again` what carries replays on, `digest`
    finds who was erased and stays suppressed."""

    settings: Settings
    database: Database
    access: Access
    pages: Pages
    pulse: Pulse
    feed: Feed
    sinks: Sinks
    registrar: Registrar
    ingest: Ingest
    recipients: Mapping[str, Recipient]
    look_again: Callable[[], None]
    replays_look_again: Callable[[], None]
    on_stream_end: Callable[[str], None]
    keeper: Keeper
    digest: Callable[[str], str]
    memory: Memory = field(default_factory=Memory)
    slots: Sequence[Slot] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", list_slots(self.settings))

    def list_webhooks(self) -> list[WebhookModel]:
        with self.database.reading() as connection:
            return find_webhooks(self.settings, self.slots, connection, self.settings.effective_webhooks)
