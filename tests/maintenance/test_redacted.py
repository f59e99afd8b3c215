"""What has lost its payload: how it is shown, and that nobody tries to send it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from app.db import Database
from app.delivery import queue
from app.delivery.queue import NOTHING_TO_SEND, ClaimRequest
from app.errors import Conflict
from app.models import Delivery, Priority
from app.query.exporting import Export, ExportFilters
from app.query.queries import find_delivery, find_event
from app.replay import service
from app.replay.selection import DeadSelection, EventSelection, Recipient
from app.views import event_view
from tests.factories import insert
from tests.maintenance.support import NOW, retain, store
from tests.maintenance.test_retention import EARLY, _set


def test_it_is_shown_without_raw_and_says_so(database: Database) -> None:
    (event_id,) = store(database, 1, days=40)
    retain(database, EARLY)

    with database.reading() as connection:
        view = event_view(find_event(connection, event_id) or {}, include_raw=True)

    assert (view["raw"], view["redacted"], view["details"], view["email"]) == (None, True, {}, None)


@pytest.mark.parametrize("form", ["ndjson", "csv"])
def test_it_is_exported_like_others(database: Database, form: str) -> None:
    (event_id,) = store(database, 1, days=40)
    retain(database, EARLY)

    with database.reading() as connection:
        assert event_id.encode() in Export(ExportFilters(format=form)).next_part(connection)  # type: ignore[arg-type]


@pytest.mark.parametrize("selection", [EventSelection(), DeadSelection(state="dead")])
def test_a_replay_passes_it_over(database: Database, selection: EventSelection | DeadSelection) -> None:
    store(database, 2, days=40, state="dead")
    store(database, 3, days=10, state="dead")
    retain(database, EARLY)

    with database.reading() as connection:
        found, _ = service.count(connection, Recipient("crm", accepts=lambda values: True), selection, NOW)

    assert found == 3


def test_it_cannot_be_retried(database: Database) -> None:
    (event_id,) = store(database, 1, days=40, state="dead")
    retain(database, EARLY)

    with pytest.raises(Conflict, match="removed by retention"):
        database.write(lambda c: queue.retry(c, event_id, "crm", NOW))


@pytest.mark.parametrize("is_there", [True, False])
def test_a_delivery_that_is_owed_all_the_same_ends_with_the_reason(database: Database, is_there: bool) -> None:
    (event_id,) = store(database, 1, days=40, state=None if is_there else "pending")
    retain(database, EARLY)
    if is_there:
        values = {"event_id": event_id, "sink": "crm", "webhook": "orders", "type": "open", "state": "pending",
                  "priority": 0, "attempt_count": 0, "schedule_step": 0, "next_attempt_at": NOW, "replay": False,
                  "created_at": NOW}  # fmt: skip
        insert(database, Delivery, [values])
    else:
        table = find_event.__globals__["events"]
        database.write(lambda c: c.execute(table.delete()))
        _set(database, event_id, priority=0)
    request = ClaimRequest("crm", Priority.FIRST, 10, NOW, NOW + timedelta(seconds=9), "token")

    assert database.write(lambda c: queue.claim_due(c, request)) == []
    with database.reading() as connection:
        row = find_delivery(connection, event_id, "crm")
    assert row is not None
    assert (row["state"], row["last_error"]) == ("cancelled", NOTHING_TO_SEND)
