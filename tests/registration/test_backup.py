"""The backup slot is Mailjet's own fail-over: registered beside the primary one, kept in step, taken away with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.db import Database
from app.simulator.mailjet import StandInMailjet
from app.simulator.server import LocalServer
from tests.registration.test_service import FOREIGN, KEY, OURS, SECRET, SHOP_KEY, SHOP_SECRET, SHOWN, World, rest

STANDBY = "https://standby.example.com"
THEIRS = "https://jethook:callback-password@standby.example.com/webhooks/orders"


@pytest.fixture
def world(database: Database) -> Iterator[World]:
    """One type, with a standby; on both databases."""
    mailjet = StandInMailjet({KEY: SECRET, SHOP_KEY: SHOP_SECRET})
    with LocalServer(mailjet) as server:
        yield World(mailjet, server, database).set(
            WEBHOOKS__ORDERS__EVENTS="open", WEBHOOKS__ORDERS__BACKUP_URL=STANDBY
        )


def backup(world: World) -> str | None:
    found = world.mailjet.find_callback(KEY, "open", is_backup=True)
    return None if found is None else found.url


def told(world: World) -> dict[str, tuple[str, str | None]]:
    callbacks = rest(world).get("/v1/webhooks/orders").json()["callbacks"]
    return {"backup" if c["backup"] else "primary": (c["state"], c["held_by"]) for c in callbacks}


def test_the_standby_is_registered_in_its_slot_with_the_same_credentials(world: World) -> None:
    report = world.register()

    assert report.changed == 2
    assert (world.urls()["open"], backup(world)) == (OURS, THEIRS)
    assert [body["IsBackup"] for body in world.changing_bodies()] == [False, True]
    assert told(world) == {"primary": ("ok", None), "backup": ("ok", None)}
    assert world.register().changed == 0


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        pytest.param({"WEBHOOKS__ORDERS__BACKUP_URL": "https://other.example.com"},
                     THEIRS.replace("standby", "other"), id="another standby"),
        pytest.param({"PUBLIC_URL": "https://new.example.com"}, THEIRS, id="another public URL"),
    ],
)  # fmt: skip
def test_it_follows_the_settings(world: World, change: dict[str, str], wanted: str) -> None:
    world.register()

    assert world.set(**change).register().changed == 1

    assert backup(world) == wanted


def test_a_new_password_reaches_both_slots(world: World) -> None:
    world.register()
    world.password = "rotated-password"

    assert world.register().changed == 2
    assert "rotated-password" in str(backup(world))


def test_it_is_healed_by_itself_when_dead_ungrouped_or_gone(world: World) -> None:
    world.register()
    world.mailjet.mark_dead(KEY, "open", is_backup=True)
    world.register()
    revived = world.mailjet.find_callback(KEY, "open", is_backup=True)
    assert revived is not None
    assert (revived.status, revived.url) == ("alive", f"{THEIRS}?revived=1")
    assert world.urls()["open"] == OURS

    world.mailjet.put_callback(KEY, "open", THEIRS, version=1, is_backup=True)
    world.register()
    assert [(c.version, c.is_backup) for c in world.mailjet.callbacks(KEY)] == [(2, False), (2, True)]

    world.mailjet.remove_callback(KEY, "open", is_backup=True)
    world.register()
    assert backup(world) == THEIRS


def test_a_strangers_standby_is_kept_and_told_or_replaced_and_put_back(world: World) -> None:
    world.mailjet.put_callback(KEY, "open", FOREIGN, is_backup=True)

    assert len(world.register().faults) == 1
    assert backup(world) == FOREIGN
    assert told(world)["backup"] == ("foreign", SHOWN)
    assert world.herald.news() == [("failed", "orders", "open (backup)")]

    world.set(WEBHOOKS__ORDERS__ON_CONFLICT="replace").register()
    assert backup(world) == THEIRS
    assert world.herald.news() == [("recovered", "orders", "open (backup)")]
    world.unregister()
    assert (backup(world), world.urls()) == (FOREIGN, {})


def test_a_stranger_who_takes_a_slot_of_ours_is_told_and_left(world: World) -> None:
    """Also of the primary one, and after everything was well."""
    world.register()
    world.mailjet.put_callback(KEY, "open", FOREIGN)
    world.mailjet.put_callback(KEY, "open", FOREIGN, is_backup=True)

    assert len(world.register().faults) == 2
    assert told(world) == {"primary": ("foreign", SHOWN), "backup": ("foreign", SHOWN)}
    assert world.herald.news() == [("failed", "orders", "open,open (backup)")]
    assert world.gauges["orders", "open"] is False


def test_it_is_taken_away_with_the_rest(world: World) -> None:
    world.register()

    assert world.unregister().changed == 2
    assert world.mailjet.callbacks(KEY) == []


def test_a_standby_no_longer_asked_for_is_told_and_left_until_unregister(world: World) -> None:
    world.register()
    report = world.unset("WEBHOOKS__ORDERS__BACKUP_URL").register()

    assert (report.changed, backup(world)) == (0, THEIRS)
    (left,) = [result.action for part in report.connections for result in part.results if result.action.backup]
    assert left.describe().endswith("is ours, but no webhook asks for this backup any more")
    world.unregister()
    assert backup(world) is None
