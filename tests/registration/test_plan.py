"""The plan is pure: settings and what Mailjet holds in, actions out."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.mailjet.client import ActualCallback
from app.registration.plan import (
    Action,
    Kind,
    Original,
    SlotKey,
    callback_url,
    is_ours,
    list_slots,
    plan_leftovers,
    plan_registration,
    plan_removal,
    same_callback_url,
    shown_url,
    wanted_slots,
    webhook_of,
)
from app.settings import EVENT_TYPES, Settings, load_settings

PASSWORD = "pass/word?@#:é %41"
FOREIGN = "https://crm:foreign-password@crm.example.com/in"
OURS = "https://jethook:pw@hooks.example.com/webhooks/orders"

KEYS = {"MJ_APIKEY_PUBLIC": "key", "MJ_APIKEY_PRIVATE": "secret"}
PUBLIC = {"JETHOOK_PUBLIC_URL": "https://hooks.example.com"}


def settings_of(**variables: str) -> Settings:
    return load_settings(PUBLIC | KEYS | {f"JETHOOK_{name}": value for name, value in variables.items()}, env_file=None)


ORDERS = settings_of(WEBHOOKS__ORDERS__EVENTS="open")
REPLACING = settings_of(WEBHOOKS__ORDERS__EVENTS="open", WEBHOOKS__ORDERS__ON_CONFLICT="replace")


def wanted_of(settings: Settings, password: str = "pw"):
    return wanted_slots(settings, dict.fromkeys(settings.effective_webhooks, password))


def plan_of(*actual: ActualCallback, settings: Settings = ORDERS, password: str = "pw") -> list[Action]:
    return plan_registration(
        wanted_of(settings, password), actual, connection="default", instance=settings.instance
    )  # fmt: skip


def held(url: str = OURS, **given: Any) -> ActualCallback:
    return replace(ActualCallback("17", "open", False, url, 2, "alive"), **given)


# --- wanted ----------------------------------------------------------------------------------------------------------


def test_without_webhooks_one_watches_all_seven_types():
    wanted = wanted_of(settings_of())

    assert [item.slot.type for item in wanted] == list(EVENT_TYPES)
    assert {item.url for item in wanted} == {"https://jethook:pw@hooks.example.com/webhooks/default"}


def test_a_type_that_two_webhooks_watch_is_held_by_the_first_by_name():
    settings = settings_of(WEBHOOKS__ZEBRA__EVENTS="open,click", WEBHOOKS__ANT__EVENTS="click")

    assert {s.type: (s.holder, s.watchers) for s in list_slots(settings)} == {
        "open": ("zebra", ("zebra",)),
        "click": ("ant", ("ant", "zebra")),
    }


def test_webhooks_of_two_connections_do_not_share():
    settings = settings_of(
        CONNECTIONS__SHOP__API_KEY="k", CONNECTIONS__SHOP__SECRET_KEY="s",
        WEBHOOKS__ANT__EVENTS="open", WEBHOOKS__BEE__EVENTS="open", WEBHOOKS__BEE__CONNECTION="shop",
    )  # fmt: skip

    assert [(s.connection, s.holder) for s in list_slots(settings)] == [("default", "ant"), ("shop", "bee")]


def test_a_backup_url_asks_for_the_backup_slots_with_the_same_credentials():
    wanted = wanted_of(settings_of(WEBHOOKS__ORDERS__EVENTS="open", WEBHOOKS__ORDERS__BACKUP_URL="https://b.example/x"))

    assert [(item.slot.backup, item.url) for item in wanted] == [
        (False, "https://jethook:pw@hooks.example.com/webhooks/orders"),
        (True, "https://jethook:pw@b.example/x/webhooks/orders"),
    ]


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param(KEYS, id="no public URL"),
        pytest.param(PUBLIC, id="no keys"),
        pytest.param(PUBLIC | {"MJ_APIKEY_PUBLIC": "key"}, id="half of the keys"),
    ],
)
def test_nothing_is_wanted_where_registration_is_off(environment):
    settings = load_settings(environment, env_file=None)

    assert wanted_of(settings) == []
    assert len(list_slots(settings)) == 7


def test_the_public_url_may_have_a_port_a_path_and_an_ipv6_host():
    assert callback_url("https://h:8443/hooks/", "me", "p", "w") == "https://me:p@h:8443/hooks/webhooks/w"
    assert callback_url("http://[::1]:8000", "me", "p", "w") == "http://me:p@[::1]:8000/webhooks/w"


@given(password=st.text(min_size=1))
def test_any_password_comes_back_out_of_the_url(password):
    url = callback_url("https://hooks.example.com:8443/x", "jethook", password, "orders")
    parts = urlsplit(url)

    assert unquote(parts.password or "", errors="surrogateescape") == password
    assert (parts.hostname, parts.port, parts.path) == ("hooks.example.com", 8443, "/x/webhooks/orders")
    assert is_ours(url, "jethook")
    assert webhook_of(url) == "orders"


# --- each case -------------------------------------------------------------------------------------------------------


def test_an_empty_slot_is_created():
    (action,) = plan_of()

    assert action.kind is Kind.CREATE
    assert action.changes == {"EventType": "open", "IsBackup": False, "Url": OURS, "Version": 2}


@pytest.mark.parametrize(
    ("callback", "changes"),
    [
        pytest.param(held(), {}, id="right"),
        pytest.param(held(version=None), {}, id="a version not told is no difference"),
        pytest.param(held(status=None), {}, id="a status not told is no difference"),
        pytest.param(held(OURS + "?revived=3"), {}, id="revived once and alive"),
        pytest.param(held(OURS.replace("hooks.ex", "HOOKS.ex")), {}, id="the host in other letters"),
        pytest.param(held(OURS.replace(".com/", ".com:443/")), {}, id="the port of https written out"),
        pytest.param(held(version=1), {"Version": 2}, id="ungrouped"),
        pytest.param(held("https://jethook:old@old.example/webhooks/orders"), {"Url": OURS}, id="another host"),
        pytest.param(held(OURS.replace(":pw@", ":old@")), {"Url": OURS}, id="another password"),
        pytest.param(held(OURS.replace("orders", "older")), {"Url": OURS}, id="another holder"),
        pytest.param(held(OURS + "?x=1"), {"Url": OURS}, id="a parameter that is not ours"),
        pytest.param(held(OURS.replace("https", "http")), {"Url": OURS}, id="another scheme"),
        pytest.param(
            held(OURS.replace("pw", "old") + "?revived=2", version=1),
            {"Url": OURS + "?revived=2", "Version": 2}, id="the count of revivals goes on",
        ),
        pytest.param(held(status="dead"), {"Url": OURS + "?revived=1", "Status": "alive"}, id="dead"),
        pytest.param(
            held(OURS + "?revived=1", status="dead", version=1),
            {"Url": OURS + "?revived=2", "Status": "alive", "Version": 2}, id="dead again, and ungrouped",
        ),
        pytest.param(
            held(OURS + "?revived=x", status="dead"),
            {"Url": OURS + "?revived=1", "Status": "alive"}, id="dead with a broken count",
        ),
    ],
)  # fmt: skip
def test_our_own_callback_gets_only_what_differs(callback, changes):
    (action,) = plan_of(callback)

    assert action.changes == changes
    assert action.kind is (Kind.UPDATE if changes else Kind.KEEP)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param(FOREIGN, id="another user"),
        pytest.param("https://hooks.example.com/webhooks/orders", id="our host without our name"),
        pytest.param("https://jethook2:pw@hooks.example.com/webhooks/orders", id="another instance"),
        pytest.param("https://hooks.example.com/jethook:pw@x", id="our name in the path"),
        pytest.param("", id="a cloud queue"),
        pytest.param("https://[broken", id="no URL at all"),
    ],
)
@pytest.mark.parametrize("status", ["alive", "dead"])
def test_a_foreign_callback_is_kept(url, status):
    (action,) = plan_of(held(url, status=status))

    assert action.kind is Kind.CONFLICT
    assert not action.changes_mailjet


def test_an_instance_name_may_come_back_escaped():
    assert is_ours("https://%6Aethook:pw@h/", "jethook")


@pytest.mark.parametrize(
    ("given_", "changes", "version"),
    [
        pytest.param({"version": 1}, {"Version": 2}, 1, id="ungrouped"),
        pytest.param({"version": 2}, {}, 2, id="grouped"),
        pytest.param({"version": None}, {"Version": 2}, 1, id="version not told"),
        pytest.param({"status": "dead"}, {"Status": "alive"}, 2, id="dead"),
    ],
)
def test_a_foreign_callback_is_replaced_and_remembered_where_that_is_wished(given_, changes, version):
    (action,) = plan_of(held(FOREIGN, **given_), settings=REPLACING)

    assert action.kind is Kind.REPLACE
    assert action.changes == {"Url": OURS} | changes
    assert action.original == Original(FOREIGN, version)


def test_what_cannot_be_put_back_is_not_replaced():
    (action,) = plan_of(held(""), settings=REPLACING)

    assert action.kind is Kind.CONFLICT


def test_the_first_of_the_list_is_not_taken_for_another_type_or_slot():
    (action,) = plan_of(held(FOREIGN, event_type="click"), held(FOREIGN, is_backup=True))

    assert action.kind is Kind.CREATE


def test_of_two_callbacks_for_one_slot_ours_counts():
    for actual in ([held(FOREIGN), held(id="18")], [held(id="18"), held(FOREIGN)]):
        (action,) = plan_of(*actual)
        assert action.kind is Kind.KEEP


def test_what_is_ours_and_no_longer_watched_is_told_and_left():
    actual = [held(), held(event_type="click"), held(FOREIGN, event_type="spam")]

    (action,) = plan_leftovers(list_slots(ORDERS), actual, connection="default", instance="jethook")

    assert (action.kind, action.type, action.webhook) == (Kind.LEFTOVER, "click", "orders")
    assert not action.changes_mailjet


# --- removal ---------------------------------------------------------------------------------------------------------


def removal_of(*actual: ActualCallback, webhook: str | None = None, **originals: Original) -> list[Action]:
    known = {SlotKey(name, False): original for name, original in originals.items()}
    return plan_removal(actual, known, connection="default", instance="jethook", webhook=webhook)


def test_only_our_own_callbacks_are_removed_also_of_forgotten_names_and_hosts():
    old = "https://jethook:x@old.example/base/webhooks/gone?revived=1"
    actions = removal_of(held(), held(FOREIGN, event_type="click"), held(old, event_type="spam", is_backup=True))

    assert [(a.kind, a.type, a.backup, a.webhook) for a in actions] == [
        (Kind.DELETE, "open", False, "orders"),
        (Kind.DELETE, "spam", True, "gone"),
    ]


def test_removal_can_be_restricted_to_the_name_in_the_url():
    other = held(OURS.replace("orders", "other"), event_type="click")

    assert [action.type for action in removal_of(held(), other, webhook="other")] == ["click"]


def test_what_we_replaced_is_put_back_instead():
    (action,) = removal_of(held(), open=Original(FOREIGN, 1))
    (dead,) = removal_of(held(status="dead"), open=Original(FOREIGN, 2))

    assert (action.kind, action.changes) == (Kind.RESTORE, {"Url": FOREIGN, "Version": 1})
    assert dead.changes == {"Url": FOREIGN, "Status": "alive"}


# --- always ----------------------------------------------------------------------------------------------------------

urls = st.one_of(
    st.sampled_from([OURS, OURS + "?revived=1", FOREIGN, "", "https://jethook:old@x.example/webhooks/orders"]),
    st.builds("https://jethook:pw@hooks.example.com/webhooks/orders?revived={}".format, st.integers(0, 10**10)),
    st.text(max_size=40),
    st.builds("{}://{}:{}@{}/{}".format, *[st.text(max_size=8)] * 5),
)
callbacks = st.builds(
    ActualCallback,
    id=st.none() | st.integers(1, 99).map(str),
    event_type=st.sampled_from(EVENT_TYPES),
    is_backup=st.booleans(),
    url=urls,
    version=st.sampled_from([None, 1, 2]),
    status=st.sampled_from([None, "alive", "dead", "odd"]),
)
configurations = st.builds(
    lambda first, second, conflict, backup: settings_of(
        WEBHOOKS__ORDERS__EVENTS=",".join(first), WEBHOOKS__ZEBRA__EVENTS=",".join(second),
        WEBHOOKS__ORDERS__ON_CONFLICT=conflict, **backup,
    ),
    *[st.sets(st.sampled_from(EVENT_TYPES), min_size=1)] * 2, st.sampled_from(["keep", "replace"]),
    st.sampled_from([{}, {"WEBHOOKS__ORDERS__BACKUP_URL": "https://b.example"}]),
)  # fmt: skip
actuals = st.lists(callbacks, max_size=14, unique_by=lambda c: (c.event_type, c.is_backup))


def carried_out(actual: list[ActualCallback], actions: list[Action]) -> list[ActualCallback]:
    """What Mailjet holds after a plan."""
    found = {(c.event_type, c.is_backup): c for c in actual}
    for action in actions:
        changes = action.changes
        if action.kind is Kind.CREATE:
            found[action.key] = ActualCallback("1", action.type, action.backup, changes["Url"], 2, "alive")
        elif action.kind is Kind.DELETE:
            del found[action.key]
        elif action.changes_mailjet:
            row = found[action.key]
            version = changes.get("Version", row.version)
            found[action.key] = replace(
                row, url=changes.get("Url", row.url), version=version, status=changes.get("Status", row.status)
            )
    return list(found.values())


@given(settings=configurations, actual=actuals)
def test_a_plan_is_settled_after_it_was_carried_out_once(settings, actual):
    actions = plan_of(*actual, settings=settings)
    again = plan_of(*carried_out(actual, actions), settings=settings)

    assert not [action for action in again if action.changes_mailjet]
    assert [a.key for a in actions] == [w.slot.key for w in wanted_of(settings)]


@given(settings=configurations, actual=actuals)
def test_nothing_foreign_is_touched_unless_asked_and_nothing_is_ever_deleted(settings, actual):
    foreign = {(c.event_type, c.is_backup) for c in actual if not is_ours(c.url, "jethook")}
    for action in plan_of(*actual, settings=settings):
        assert action.kind is not Kind.DELETE
        if action.key in foreign:
            assert action.kind in (Kind.CONFLICT, Kind.REPLACE)
            assert action.kind is Kind.CONFLICT or action.original is not None


@given(settings=configurations, actual=actuals)
def test_registering_and_unregistering_leaves_what_was_there_without_ours(settings, actual):
    assume(all(c.version is not None and c.status == "alive" for c in actual))
    actions = plan_of(*actual, settings=settings)
    after = carried_out(actual, actions)
    originals = {a.key: a.original for a in actions if a.kind is Kind.REPLACE and a.original is not None}
    removal = plan_removal(after, originals, connection="default", instance="jethook")

    left = {(c.event_type, c.is_backup): (c.url, c.version) for c in carried_out(after, removal)}

    assert left == {
        (c.event_type, c.is_backup): (c.url, c.version) for c in actual if not is_ours(c.url, "jethook")
    }  # fmt: skip


@given(count=st.integers(0, 10**12), base=st.sampled_from([OURS, "https://jethook:old@old.example/webhooks/x"]))
def test_a_revived_callback_always_gets_a_new_url_and_the_same_one_each_time(count, base):
    found = held(f"{base}?revived={count}", status="dead")
    (action,), (same,) = plan_of(found), plan_of(found)

    assert action.changes["Url"] != found.url
    assert action.changes == same.changes
    assert same_callback_url(action.changes["Url"], OURS)


@given(settings=configurations, actual=actuals)
def test_no_description_or_repr_of_a_plan_shows_a_password(settings, actual):
    marked = [c if c.url != FOREIGN else replace(c, url=FOREIGN) for c in actual]
    for action in plan_of(*marked, settings=settings, password="hidden-password"):
        text = action.describe() + repr(action) + str(action)
        assert "hidden-password" not in text
        assert "foreign-password" not in text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        pytest.param(FOREIGN, "https://crm:***@crm.example.com/in", id="a password"),
        pytest.param("https://h/in?token=SECRET&b=SECRET", "https://h/in?token=***&b=***", id="tokens"),
        pytest.param("https://h/in?SECRET", "https://h/in?***", id="a token without a name"),
        pytest.param("https://h/in#SECRET", "https://h/in", id="a fragment"),
        pytest.param("https://u:SEC/RET@h/in", "https://***@h/in", id="a password with a slash"),
        pytest.param("https://u:SE@CRET@h/in", "https://u:***@h/in", id="a password with an at sign"),
        pytest.param("https://SECRET@h/in", "https://***@h/in", id="a token as user"),
        pytest.param("u:SECRET@h", "(not a URL)", id="no scheme"),
        pytest.param("https://[SECRET", "(not a URL)", id="broken"),
        pytest.param("", "(no URL)", id="a cloud queue"),
    ],
)
def test_foreign_urls_are_shown_without_their_secrets(url, shown):
    assert shown_url(url) == shown
    assert "SECRET" not in repr(Original(url, 1))


@given(password=st.text(alphabet=st.characters(categories=["L", "N"]), min_size=4, max_size=12))
def test_no_form_of_password_is_shown(password):
    assume(not re.search(password, "https://user:***@host.example/in"))
    for start in ("", "a/", "a?", "a#"):
        assert password not in shown_url(f"https://user:{start}{password}@host.example/in")
