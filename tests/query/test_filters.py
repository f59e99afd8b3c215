"""The pure part: times, ids of a time, and what a filter becomes. The lists themselves are in test_events.py."""

import re
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy.dialects import postgresql, sqlite

from app.clock import EPOCH, rfc3339
from app.filters import EventFilters, event_conditions, first_id, parse_moment
from app.ingest.identity import event_id
from app.mailjet.vocabulary import normal_email
from app.models import Event
from app.views import MAX_COLUMN_CHARS

seconds = st.integers(0, 4_102_444_800)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-05-03T10:00:00Z", "2026-05-03T10:00:00Z"),
        ("2026-05-03t10:00:00z", "2026-05-03T10:00:00Z"),
        ("2026-05-03 10:00:00Z", "2026-05-03T10:00:00Z"),
        ("2026-05-03T10:00:00+02:00", "2026-05-03T08:00:00Z"),
        pytest.param("2026-05-03T10:00:00 02:00", "2026-05-03T08:00:00Z", id="a plus that nobody escaped"),
        ("2026-05-03T10:00:00-00:30", "2026-05-03T10:30:00Z"),
        ("2026-05-03T10:00:00.5Z", "2026-05-03T10:00:00.500000Z"),
        ("2026-05-03T10:00:00.123456Z", "2026-05-03T10:00:00.123456Z"),
        ("2026-05-03T10:00:00.123456000Z", "2026-05-03T10:00:00.123456Z"),
        pytest.param("2026-05-03T10:00:00.1234560001Z", "2026-05-03T10:00:00.123457Z", id="rounded up"),
        pytest.param("2026-05-03T10:00:00.9999999Z", "2026-05-03T10:00:01Z", id="rounded up to the next second"),
        pytest.param("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z", id="leap second"),
    ],
)
def test_a_time_is_read(text, expected):
    assert rfc3339(parse_moment(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "now", "2026-05-03", "2026-05-03T10:00:00", "2026-05-03T10:00Z", "2026-05-03T10:00:00+0200", "1777802400",
        "2026-13-01T00:00:00Z", "2026-02-30T00:00:00Z", "2026-05-03T24:00:00Z", "2026-05-03T10:60:00Z",
        "2026-05-03T10:00:61Z", "2026-05-03T10:00:00+24:00", "2026-05-03T10:00:00+01:60", "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59.9999999Z", "2026-05-03T10:00:00Z\n", "２026-05-03T10:00:00Z",
        "2026-05-03T10:00:00.Z", "2026-05-03T10:00:00\0Z", "2026-05-03T10:00:00." + "1" * 5000 + "Z",
    ],
)  # fmt: skip
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValidationError):
        EventFilters(after=[text])


@given(seconds, seconds, st.integers(0, 10**6 - 1))
def test_the_first_id_of_a_moment_divides_ids_exactly(second, other, micros):
    moment = EPOCH + timedelta(seconds=other, microseconds=micros)
    occurred_at = EPOCH + timedelta(seconds=second)

    assert (event_id("orders", second, {"n": other}) >= first_id(moment)) == (occurred_at >= moment)


def test_the_first_id_of_a_time_before_1970_is_before_every_id():
    assert first_id(datetime(1, 1, 1, tzinfo=UTC)) == first_id(EPOCH) <= event_id("orders", 0, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Jo.Doe@Example.COM", "Jo.Doe@example.com"),
        ('"A@B"@C.D', '"A@B"@c.d'),
        ("No-At-Sign", "No-At-Sign"),
        ("", ""),
        (" A@B ", " A@b "),
    ],
)
def test_an_address_is_compared_by_its_domain_in_lower_case(text, expected):
    assert normal_email(text) == expected


def test_a_value_is_cut_and_cleaned_as_the_column_was():
    filters = EventFilters(custom_id=["a\0b", "x" * 10_000], email=["A@B.C"], email_domain=["EXAMPLE.com"])

    assert filters.custom_id == ["a\ufffdb", "x" * MAX_COLUMN_CHARS]
    assert filters.email == ["A@b.c"]
    assert filters.email_domain == ["example.com"]


def sql(filters: EventFilters, dialect: sa.Dialect) -> str:
    statement = sa.select(Event.__table__.c.id).where(*event_conditions(filters, Event.__table__.c))
    return re.sub(r"\s+", " ", str(statement.compile(dialect=dialect)))


def test_only_the_most_selective_filter_may_use_an_index_on_sqlite():
    filters = EventFilters(email=["a@b"], webhook=["orders"], type=["open"], campaign_id=["7"])

    text = sql(filters, sqlite.dialect())

    assert "events.email = ?" in text
    assert "+events.email" not in text
    assert all(f"+events.{name} = ?" in text for name in ("webhook", "type", "campaign_id"))


def test_postgresql_plans_by_itself():
    assert "+" not in sql(EventFilters(email=["a@b"], webhook=["orders"], type=["open"]), postgresql.dialect())
