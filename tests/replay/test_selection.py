"""What a caller may ask for, and what of it becomes SQL."""

import itertools

import pytest
import sqlalchemy as sa
from pydantic import ValidationError

from app.db import Database
from app.dispatch.matching import matches
from app.migrate import migrate
from app.replay import queries
from app.replay.selection import (
    DeadSelection,
    EventSelection,
    Recipient,
    UnreadableSelection,
    candidates,
    parse_selection,
    recipients,
    selection_text,
)
from app.settings import SinkSettings
from tests.factories import NOON, make_event


def faults(model, value):
    with pytest.raises(ValidationError) as raised:
        model.model_validate(value)
    return [(fault["loc"], fault["type"]) for fault in raised.value.errors()]


@pytest.mark.parametrize(
    ("given", "place", "code"),
    [
        ({"type": 7}, ("type",), "string_type"),
        ({"type": ["open", 7]}, ("type", 1), "string_type"),
        ({"type": []}, ("type",), "too_short"),
        ({"type": None}, ("type",), "string_type"),
        ({"kind": "open"}, ("kind",), "extra_forbidden"),
        ({"after": "yesterday"}, ("after",), "time"),
        ({"after": ["2026-05-03T10:00:00Z", "x"]}, ("after", 1), "time"),
        ({"outcome": "lost"}, ("outcome",), "enum"),
        ({"permanent": {"a": 1}}, ("permanent",), "bool_type"),
        ({"message_id": ["1"] * 1001}, ("message_id",), "too_long"),
        ({"limit": 5}, ("limit",), "extra_forbidden"),
        (["open"], (), "model_type"),
    ],
)
def test_a_fault_is_told_at_the_place_the_caller_knows(given, place, code):
    assert faults(EventSelection, given) == [(place, code)]


def test_only_dead_deliveries_can_be_asked_for():
    assert faults(DeadSelection, {}) == [(("state",), "missing")]
    assert faults(DeadSelection, {"state": "delivered"}) == [(("state",), "literal_error")]
    assert faults(DeadSelection, {"state": ["dead"]}) == [(("state",), "literal_error")]
    assert faults(DeadSelection, {"state": "dead", "email": "a@example.com"}) == [(("email",), "extra_forbidden")]


@pytest.mark.parametrize(
    ("selection", "text"),
    [
        (EventSelection(), '{"filter":{}}'),
        (
            EventSelection(type="open", permanent=[True, False], after="2026-05-03T12:00:00+02:00", email="a@X.com"),
            '{"filter":{"type":["open"],"email":["a@x.com"],"permanent":[true,false],"after":["2026-05-03T10:00:00Z"]}}',
        ),
        (
            DeadSelection(state="dead", webhook=["orders"], before="2026-05-03T10:00:00.000001Z"),
            '{"deliveries":{"state":"dead","webhook":["orders"],"before":["2026-05-03T10:00:00.000001Z"]}}',
        ),
    ],
)
def test_a_selection_is_kept_as_text(selection, text):
    assert selection_text(selection) == text
    assert parse_selection(text) == selection


@pytest.mark.parametrize("text", ["", "[]", "{}", "7", '{"filter":{"kind":["open"]}}', '{"deliveries":{}}', '"filter"'])
def test_a_text_of_another_release_is_unreadable(text):
    with pytest.raises(UnreadableSelection):
        parse_selection(text)


@pytest.mark.parametrize("webhooks", [(), ("orders",), ("orders", "news")])
@pytest.mark.parametrize("types", [(), ("bounce",), ("bounce", "spam")])
def test_a_sink_is_given_what_it_would_hear_of(database, webhooks, types):
    sink = SinkSettings(url="http://crm.invalid", webhooks=webhooks, events=types)
    kinds = list(itertools.product(("orders", "news", "other"), ("bounce", "spam", "open", "odd")))
    for webhook, kind in kinds:
        make_event(database, webhook=webhook, type=kind)

    with database.reading() as connection:
        found = queries.count(
            connection, EventSelection(), recipients({"crm": sink})["crm"], last_seq=10**6, made_at=NOON
        )

    assert found == sum(matches(sink, webhook=webhook, event_type=kind) for webhook, kind in kinds)


OURS = "jethook.sink.opened", "jethook.delivery.dead"


@pytest.mark.parametrize("types", [(), ("bounce",), ("bounce", "jethook.*"), ("jethook.sink.opened",)])
@pytest.mark.parametrize("webhooks", [(), ("orders",)])
def test_operator_events_are_replayed_to_those_who_would_hear_of_them(database, webhooks, types):
    sink = SinkSettings(url="http://crm.invalid", webhooks=webhooks, events=types)
    mine = matches(sink, webhook="orders", event_type="bounce") + matches(sink, webhook="orders", event_type=OURS[0])
    make_event(database, type="bounce")
    make_event(database, type=OURS[0])  # a sender's own word
    for kind, about in itertools.product(OURS, ("c_m", "cxm", "erp")):
        make_event(database, webhook="jethook", type=kind, raw=f'{{"event":"{kind}","sink":"{about}","error":"\\"x"}}')

    def found(**filters):
        with database.reading() as connection:
            return queries.count(
                connection, EventSelection(**filters), recipients({"c_m": sink})["c_m"], last_seq=10**6, made_at=NOON
            )

    assert found() == mine
    # Never those about the sink itself; a name is no pattern.
    heard = sum(matches(sink, webhook="jethook", event_type=kind) for kind in OURS)
    assert found(webhook="jethook") == 2 * heard
    assert found(webhook=["jethook", "orders"]) == mine + 2 * heard


def test_what_only_python_can_judge_is_counted_too(database, monkeypatch):
    monkeypatch.setattr(queries, "JUDGED_AT_ONCE", 3)
    odd = [make_event(database, email=f"{n}@example.com")["email"] for n in range(10)][1::2]
    recipient = Recipient("crm", accepts=lambda values: values[8] in odd)

    with database.reading() as connection:
        assert queries.count(connection, EventSelection(), recipient, last_seq=10**6, made_at=NOON) == 5


@pytest.mark.parametrize(
    ("selection", "plan"),
    [
        (EventSelection(), "(id>?)"),
        (EventSelection(webhook="orders", outcome="bounced"), "(id>?)"),
        (EventSelection(email="a@example.com"), "ix_events_email"),
        (DeadSelection(state="dead"), "ix_deliveries_dead"),
    ],
)
def test_sqlite_walks_the_index_that_gives_the_order(sqlite_url, selection, plan):
    database = Database(sqlite_url)
    migrate(database)
    recipient = Recipient("crm", webhooks=("orders",), events=("open",))
    wanted = candidates(selection, recipient, last_seq=10, made_at=NOON)
    statement = sa.select(wanted.key).select_from(wanted.rows).where(*wanted.conditions, wanted.key > "0")
    with database.reading() as connection:
        compiled = statement.order_by(wanted.key).limit(5).compile(connection, compile_kwargs={"literal_binds": True})
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}").all()
    database.close()

    assert plan in rows[0][-1]
