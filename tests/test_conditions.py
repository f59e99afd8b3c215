"""Conditions of sinks: what each operator says of a field, what is refused and where, and the laws of the whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.conditions import BadCondition, parse_condition
from app.dispatch.matching import Matcher, accepting
from app.errors import SettingsFault
from app.ingest.rows import event_row
from app.mailjet.payloads import MailjetEvent, parse_events
from app.settings import SinkSettings, load_settings

RAW = (
    '{"event":"bounce","time":1777802400,"MessageID":19421777835146490,"email":"a@example.com","error":"user unknown",'
    '"hard_bounce":true,"blocked":false,"comment":"550 5.1.1 gone","CustomID":"","mj_list_id":0,"customcampaign":null,'
    '"big":123456789012345678901234567890,"score":0.1000000000000000055,"one":1.0,"huge":1e400,"yes":true,'
    '"empty":"","void":null,"odd":{"deep":{"x":7}},"list":[1,2],"url":"https://example.com/?q=1"}'
)


def row(raw: str = RAW) -> tuple[Any, ...]:
    """As the receiving side makes it."""
    (element,) = parse_events(raw.encode())
    assert isinstance(element, MailjetEvent)
    return event_row("019ded47-d100-8c4e-9a51-3f9c2b7d1e60", element, webhook="orders", connection="default",
                     received_micros=1_777_802_401_123_456)  # fmt: skip


def holds(condition: Any, raw: str = RAW) -> bool:
    text = condition if isinstance(condition, str) else json.dumps(condition)
    return accepting(text)(row(raw))


# --- what holds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({}, True),
        ({"type": "bounce"}, True),
        ({"type": "open"}, False),
        ({"type": "bounce", "webhook": "orders"}, True),
        ({"type": "bounce", "webhook": "other"}, False),
        ({"type": {"$eq": "bounce"}}, True),
        ({"type": {"$ne": "bounce"}}, False),
        ({"type": {"$ne": "open"}}, True),
        ({"type": {"$in": ["open", "bounce"]}}, True),
        ({"type": {"$in": []}}, False),
        ({"type": {"$nin": ["open", "bounce"]}}, False),
        ({"type": {"$nin": []}}, True),
        ({"email": {"$startsWith": "a@"}}, True),
        ({"email": {"$startsWith": "A@"}}, False),
        ({"email": {"$endsWith": "@example.com"}}, True),
        ({"email": {"$endsWith": "@example.org"}}, False),
        ({"email": {"$contains": "@exam"}}, True),
        ({"email": {"$contains": "%"}}, False),
        ({"email": {"$startsWith": "a@", "$endsWith": ".org"}}, False),
        ({"email": {"$gt": "a", "$lt": "b"}}, True),
        ({"email": {"$not": {"$endsWith": ".org"}}}, True),
        ({"email": {"$not": "a@example.com"}}, False),
        ({"$not": {"type": "bounce"}}, False),
        ({"$or": [{"type": "open"}, {"reason": "user unknown"}]}, True),
        ({"$and": [{"type": "bounce"}, {"reason": "other"}]}, False),
        ({"$or": [{"type": "open"}], "webhook": "orders"}, False),
        ({"permanent": True, "test": False, "outcome": "bounced", "connection": "default"}, True),
        ({"details.comment": {"$contains": "5.1.1"}}, True),
        ({"details.odd.deep.x": 7}, True),
        ({"details.odd.deep": {"$exists": True}}, True),
        ({"details.odd.deep.x.y": {"$exists": False}}, True),
        ({"details.list.0": {"$exists": False}}, True),
        ({"details.nothing": {"$startsWith": ""}}, False),
        ({"raw.event": "bounce", "raw.hard_bounce": True}, True),
        ({"raw.MessageID": 19421777835146490}, True),
        ({"message_id": "19421777835146490"}, True),
    ],
)  # fmt: skip
def test_an_operator_says(condition: Any, expected: bool) -> None:
    assert holds(condition) is expected


@pytest.mark.parametrize(
    "path",
    ["custom_id", "list_id", "custom_campaign", "payload", "details.empty", "details.void", "details.missing",
     "raw.empty", "raw.void", "raw.missing.deep", "raw.event.deep"],
)  # fmt: skip
def test_null_an_empty_text_and_a_missing_field_are_the_same(path: str) -> None:
    for nothing in (None, ""):
        assert holds({path: nothing})
        assert holds({path: {"$in": [nothing, "x"]}})
        assert not holds({path: {"$ne": nothing}})
        assert not holds({path: {"$nin": [nothing]}})
    assert holds({path: {"$exists": False}})
    assert not holds({path: {"$exists": True}})
    assert holds({path: {"$ne": "x"}})
    for name in ("$gt", "$gte", "$lt", "$lte", "$startsWith", "$contains", "$endsWith"):
        assert not holds({path: {name: ""}})


@pytest.mark.parametrize(
    ("path", "value"),
    [("raw.yes", 1), ("raw.one", True), ("raw.MessageID", "19421777835146490"), ("message_id", 19421777835146490),
     ("permanent", 1), ("permanent", "true"), ("raw.list", 1), ("raw.odd", "x"), ("raw.void", False), ("raw.void", 0)],
)  # fmt: skip
def test_kinds_never_mix(path: str, value: Any) -> None:
    assert not holds({path: value})
    assert not holds({path: {"$in": [value]}})
    assert holds({path: {"$ne": value}})
    assert holds({path: {"$nin": [value]}})
    if not isinstance(value, bool):
        assert not any(holds({path: {name: value}}) for name in ("$gt", "$gte", "$lt", "$lte"))


@pytest.mark.parametrize(
    ("path", "number", "order"),
    [
        ("raw.MessageID", "19421777835146490", 0),
        ("raw.MessageID", "19421777835146489", 1),  # the same double
        ("raw.MessageID", "19421777835146490.0", 0),
        ("details.big", "123456789012345678901234567890", 0),
        ("details.big", "123456789012345678901234567891", -1),
        ("details.score", "0.1000000000000000055", 0),
        ("details.score", "0.1", 1),  # the same double
        ("details.one", "1", 0),
        ("details.one", "1e0", 0),
        ("details.huge", "1e400", 0),
        ("details.huge", "1e401", -1),
        ("raw.huge", "-1", 1),
    ],
)
def test_every_digit_of_a_number_counts(path: str, number: str, order: int) -> None:
    said = {name: holds(f'{{"{path}": {{"{name}": {number}}}}}') for name in ("$eq", "$gt", "$gte", "$lt", "$lte")}

    assert said == {"$eq": order == 0, "$gt": order > 0, "$gte": order >= 0, "$lt": order < 0, "$lte": order <= 0}


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"occurred_at": "2026-05-03T10:00:00Z"}, True),
        ({"occurred_at": "2026-05-03T12:00:00+02:00"}, True),
        ({"occurred_at": "2026-05-03T10:00:00.000Z"}, True),
        ({"occurred_at": {"$in": ["2026-05-03T05:30:00-04:30", "2020-01-01T00:00:00Z"]}}, True),
        ({"received_at": {"$gt": "2026-05-03T10:00:01.123Z"}}, True),
        ({"received_at": {"$gt": "2026-05-03T10:00:01.123456Z"}}, False),
        ({"received_at": {"$gte": "2026-05-03T10:00:01.123456Z"}}, True),
        # As texts it would be the other way round: "…01Z" sorts after "…01.123456Z".
        ({"received_at": {"$gt": "2026-05-03T10:00:01Z"}}, True),
        ({"received_at": {"$lt": "2026-05-03T12:00:01+03:00"}}, False),
        ({"received_at": {"$exists": True, "$startsWith": "2026-05-03T10"}}, True),
        ({"received_at": {"$ne": None}}, True),
    ],
)
def test_times_compare_as_moments(condition: Any, expected: bool) -> None:
    assert holds(condition) is expected


# --- what is refused -------------------------------------------------------------------------------------------------

DEEP = '{"$not":' * 30 + "{}" + "}" * 30
DEEP_FIELD = '{"type":' + '{"$not":' * 900 + '"x"' + "}" * 901


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("", "at /: not JSON"),
        ("{", "at /: not JSON"),
        ('{"details.x": 1e99999999999999999999}', "at /: "),
        ("[" * 100_000, "at /: "),
        ("[]", "at /: an object"),
        ("null", "at /: an object"),
        ('{"colour": 1}', "at /colour: no such field"),
        ('{"a/b~c": 1}', "at /a~1b~0c: no such field"),
        ('{"details": 1}', "at /details: no such field"),
        ('{"details.": 1}', "at /details.: no such field"),
        ('{"details.a..b": 1}', "at /details.a..b: no such field"),
        ('{"raw": {"$exists": true}}', "at /raw: no such field"),
        ('{"email.domain": 1}', "at /email.domain: no such field"),
        ('{"$nor": []}', "at /$nor: no such operator"),
        ('{"$eq": 1}', "at /$eq: no such operator"),
        ('{"type": {}}', "at /type: an operator"),
        ('{"type": {"eq": 1}}', "at /type/eq: no such operator"),
        ('{"type": {"$or": []}}', "at /type/$or: no such operator"),
        ('{"type": {"$eq": []}}', "at /type/$eq: a text"),
        ('{"type": ["open"]}', "at /type: a text"),
        ('{"type": NaN}', "at /type: a text"),
        ('{"type": {"$gt": null}}', "at /type/$gt: a number or text"),
        ('{"type": {"$gt": true}}', "at /type/$gt: a number or text"),
        ('{"type": {"$in": "open"}}', "at /type/$in: a list"),
        ('{"type": {"$in": ["open", {}]}}', "at /type/$in/1: a text"),
        ('{"type": {"$nin": ["open", [1]]}}', "at /type/$nin/1: a text"),
        ('{"type": {"$exists": 1}}', "at /type/$exists: true or false"),
        ('{"type": {"$contains": 1}}', "at /type/$contains: a text"),
        ('{"type": {"$not": {"$startsWith": null}}}', "at /type/$not/$startsWith: a text"),
        ('{"$and": {}}', "at /$and: a list"),
        ('{"$or": []}', "at /$or: a list"),
        ('{"$or": [{"type": "open"}, {"$and": [{"type": 1}, 7]}]}', "at /$or/1/$and/1: an object"),
        ('{"$not": [1]}', "at /$not: an object"),
        ('{"occurred_at": 1777802400}', "at /occurred_at: an RFC 3339"),
        ('{"occurred_at": {"$gt": "2026-05-03"}}', "at /occurred_at/$gt: an RFC 3339"),
        ('{"occurred_at": {"$gt": "2026-05-03T10:00:00"}}', "at /occurred_at/$gt: an RFC 3339"),
        ('{"occurred_at": {"$in": ["2026-05-03T10:00:00Z", "soon"]}}', "at /occurred_at/$in/1: an RFC 3339"),
        (DEEP, "at /$not/$not"),
        (DEEP_FIELD, "at /"),
    ],
)  # fmt: skip
def test_a_wrong_one_is_refused_with_the_place_of_the_fault(text: str, start: str) -> None:
    with pytest.raises(BadCondition) as raised:
        parse_condition(text)

    assert str(raised.value).startswith(start)


def test_the_start_is_refused_with_the_variable_and_the_place() -> None:
    environ = {
        "JETHOOK_SINKS__CRM__URL": "https://crm.example.com",
        "JETHOOK_SINKS__CRM__FILTER": '{"$or": [{"type": "open"}, {"details.comment": {"$has": "550"}}]}',
    }
    with pytest.raises(SettingsFault) as raised:
        load_settings(environ, env_file=None)

    (fault,) = raised.value.faults
    assert "JETHOOK_SINKS__CRM__FILTER" in fault
    assert "/$or/1/details.comment/$has" in fault


def test_all_faults_of_one_are_told_together() -> None:
    environ = {
        "JETHOOK_SINKS__CRM__URL": "https://crm.example.com",
        "JETHOOK_SINKS__CRM__FILTER": json.dumps(
            {
                "colour": 1,
                "type": {"$has": 1, "$in": ["open", {}]},
                "occurred_at": {"$in": ["soon", "later"]},
                "$or": [{"type": "open"}, {"email": {"$contains": 5}}, {"$not": {"size": 1}}],
            }
        ),
    }
    with pytest.raises(SettingsFault) as raised:
        load_settings(environ, env_file=None)

    places = [fault.removeprefix("JETHOOK_SINKS__CRM__FILTER: at ").split(": ")[0] for fault in raised.value.faults]
    assert places == [
        "/colour", "/type/$has", "/type/$in/1", "/occurred_at/$in/0", "/occurred_at/$in/1", "/$or/1/email/$contains",
        "/$or/2/$not/size",
    ]  # fmt: skip


def test_only_matching_events_are_owed() -> None:
    sinks = {
        "all": SinkSettings(url="http://all.invalid"),
        "hard": SinkSettings(url="http://hard.invalid", events=("bounce",), filter='{"permanent": true}'),
        "soft": SinkSettings(url="http://soft.invalid", filter='{"permanent": {"$ne": true}}', ordered_by="recipient"),
    }
    matcher = Matcher(sinks)
    soft = RAW.replace('"hard_bounce":true', '"hard_bounce":false')

    hard_targets = matcher.targets("orders", "bounce", row())
    soft_targets = matcher.targets("orders", "bounce", row(soft))

    assert [(t.sink, t.order_key) for t in hard_targets] == [("all", None), ("hard", None)]
    assert [(t.sink, t.order_key) for t in soft_targets] == [("all", None), ("soft", "a@example.com")]


# --- laws ------------------------------------------------------------------------------------------------------------

FIELDS = ["type", "reason", "permanent", "message_id", "occurred_at", "details.a", "details.b.c", "raw.a", "raw.b.c"]
MOMENTS = st.sampled_from(["2026-05-03T10:00:00Z", "2026-05-03T12:00:00+02:00", "2026-05-03T10:00:00.5Z", None])
NUMBERS = st.one_of(
    st.integers(-3, 3), st.sampled_from([2**53, 2**53 + 1, 10**25, 10**25 + 1, 0]),
    st.sampled_from(["0.5", "1.0", "0.1", "0.10000000000000001", "-3e0"]).map(Decimal),
)  # fmt: skip
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.sampled_from(["", "a", "ab", "b", "open", "bounce", "1"]))
VALUES = st.one_of(SCALARS, st.just([1]), st.fixed_dictionaries({"c": SCALARS}))
EVENTS = st.fixed_dictionaries(
    {"event": st.sampled_from(["open", "bounce"]), "time": st.just(1777802400)},
    optional={
        "a": VALUES,
        "b": VALUES,
        "hard_bounce": SCALARS,
        "error": SCALARS,
        "MessageID": st.sampled_from([0, 1, 7]),
    },
)


def _operands(field: str) -> st.SearchStrategy[Any]:
    scalars = MOMENTS if field == "occurred_at" else SCALARS
    ordered = scalars.filter(lambda v: v is not None and not isinstance(v, bool))
    texts = st.sampled_from(["", "a", "b", "o"])
    one = st.one_of(
        st.tuples(st.sampled_from(["$eq", "$ne"]), scalars),
        st.tuples(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), ordered),
        st.tuples(st.sampled_from(["$in", "$nin"]), st.lists(scalars, max_size=3)),
        st.tuples(st.just("$exists"), st.booleans()),
        st.tuples(st.sampled_from(["$startsWith", "$endsWith", "$contains"]), texts),
    )
    many = st.lists(one, min_size=1, max_size=2).map(dict)
    return st.one_of(scalars, many, many.map(lambda inner: {"$not": inner}))


LEAVES = st.sampled_from(FIELDS).flatmap(lambda field: _operands(field).map(lambda operand: {field: operand}))
CONDITIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"$and": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"$or": parts}),
        inner.map(lambda part: {"$not": part}),
        st.tuples(inner, inner).map(lambda two: two[0] | two[1]),
    ),
    max_leaves=5,
)


def dumped(value: Any) -> str:
    """JSON that keeps a Decimal's digits."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{dumped(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dumped, value)) + "]"
    return str(value) if isinstance(value, Decimal) else json.dumps(value)


def plainly(condition: Mapping[str, Any], event: Mapping[str, Any]) -> bool:
    """The reference: no compiling, no cleverness. `event` is Mailjet's own object."""
    said = []
    for key, value in condition.items():
        if key == "$and":
            said.append(all(plainly(part, event) for part in value))
        elif key == "$or":
            said.append(any(plainly(part, event) for part in value))
        elif key == "$not":
            said.append(not plainly(value, event))
        else:
            said.append(field_says(value, field_of(event, key), is_time=key == "occurred_at"))
    return all(said)


def field_says(value: Any, found: Any, *, is_time: bool) -> bool:
    if not isinstance(value, dict):
        value = {"$eq": value}
    return all(operator_says(name, operand, found, is_time=is_time) for name, operand in value.items())


def operator_says(name: str, operand: Any, found: Any, *, is_time: bool) -> bool:
    if name == "$not":
        return not field_says(operand, found, is_time=is_time)
    if name == "$exists":
        return (found not in (None, "")) == operand
    if name in ("$startsWith", "$endsWith", "$contains"):
        if not isinstance(found, str) or found == "":
            return False
        return {"$startsWith": found.startswith, "$endsWith": found.endswith, "$contains": found.__contains__}[name](
            operand
        )
    if name in ("$in", "$nin"):
        return any(operator_says("$eq", one, found, is_time=is_time) for one in operand) == (name == "$in")
    if name in ("$eq", "$ne"):
        return same(comparable(found, is_time), comparable(operand, is_time)) == (name == "$eq")
    left, right = comparable(found, is_time), comparable(operand, is_time)
    if operand == "" and isinstance(left, tuple) and left[0] == "text":
        right = ("text", "")
    if left is None or right is None or left[0] != right[0] or left[0] in ("boolean", "other"):
        return False
    a, b = left[1], right[1]
    return bool({"$gt": a > b, "$gte": a >= b, "$lt": a < b, "$lte": a <= b}[name])


def comparable(value: Any, is_time: bool) -> tuple[str, Any] | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return "boolean", value
    if isinstance(value, (int, Decimal)):
        return "number", Decimal(value)
    if isinstance(value, str):
        return ("time", datetime.fromisoformat(value)) if is_time else ("text", value)
    return "other", object()


def same(left: tuple[str, Any] | None, right: tuple[str, Any] | None) -> bool:
    return left == right


def field_of(event: Mapping[str, Any], path: str) -> Any:
    """REST's fields, told in a second way."""
    match path.split("."):
        case ["type"]:
            return event["event"]
        case ["message_id"]:
            return str(event["MessageID"]) if event.get("MessageID") else None
        case ["occurred_at"]:
            return "2026-05-03T10:00:00Z"
        case ["reason"] | ["permanent"]:
            return row(dumped(event))[{"reason": 18, "permanent": 17}[path]]
        case [_, *rest]:
            node: Any = event
            for part in rest:
                node = node.get(part) if isinstance(node, dict) else None
            return node
    raise AssertionError(path)


@given(CONDITIONS, EVENTS)
def test_a_compiled_condition_says_what_a_plain_reading_of_it_says(condition: Any, event: Any) -> None:
    raw = dumped(event)

    assert holds(dumped(condition), raw) is plainly(condition, event)


@given(st.lists(CONDITIONS, min_size=1, max_size=3), EVENTS)
def test_de_morgan(parts: list[Any], event: Any) -> None:
    raw = dumped(event)
    denied = [{"$not": part} for part in parts]

    assert holds(dumped({"$not": {"$and": parts}}), raw) is holds(dumped({"$or": denied}), raw)
    assert holds(dumped({"$not": {"$or": parts}}), raw) is holds(dumped({"$and": denied}), raw)


@given(CONDITIONS, EVENTS)
def test_not_of_not_is_the_same_and_not_is_the_opposite(condition: Any, event: Any) -> None:
    raw, text = dumped(event), dumped(condition)

    assert holds(f'{{"$not": {text}}}', raw) is not holds(text, raw)
    assert holds(f'{{"$not": {{"$not": {text}}}}}', raw) is holds(text, raw)
