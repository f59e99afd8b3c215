from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

from app.credentials import callback_passwords, derive, load_secret_key, made_api_key, registered_passwords
from app.db import Database
from app.settings import Settings

KEY = b"k" * 32
SAFE = re.compile(r"[A-Za-z0-9_-]{43}\Z")


def test_the_key_is_made_once_and_stays(database: Database) -> None:
    made = load_secret_key(Settings(), database)

    again = Database(
        database.writer.url.render_as_string(hide_password=False)
    )  # another process, or the same after a restart
    try:
        assert load_secret_key(Settings(), again) == made
    finally:
        again.close()
    assert len(made) >= 32


def test_processes_that_start_together_agree_on_the_key(database: Database) -> None:
    with ThreadPoolExecutor(8) as threads:
        keys = set(threads.map(lambda _: load_secret_key(Settings(), database), range(16)))

    assert len(keys) == 1


def test_two_installations_make_different_keys(database: Database) -> None:
    assert len({derive(load_secret_key(Settings(), database), "x"), derive(KEY, "x")}) == 2


def test_a_configured_key_is_used_and_not_stored(database: Database) -> None:
    assert load_secret_key(Settings(secret_key="a configured key"), database) == b"a configured key"
    assert load_secret_key(Settings(), database) != b"a configured key"


def test_passwords_are_derived_for_each_webhook_and_instance() -> None:
    settings = Settings(webhooks={"orders": {}, "news": {}})

    passwords = callback_passwords(settings, KEY)
    others = callback_passwords(Settings(webhooks={"orders": {}}, instance="second"), KEY)

    assert passwords.keys() == {"orders", "news"}
    derived = [*passwords["orders"], *passwords["news"], *others["orders"]]
    assert len(set(derived)) == 3
    assert all(SAFE.match(password) for password in derived)  # they stand in a URL
    assert callback_passwords(settings, KEY) == passwords
    assert callback_passwords(settings, b"K" * 32) != passwords


def test_configured_passwords_replace_the_derived_one_and_the_first_is_registered() -> None:
    settings = Settings(webhooks={"orders": {"passwords": "new,old"}})

    passwords = callback_passwords(settings, KEY)

    assert passwords == {"orders": ("new", "old")}
    assert registered_passwords(passwords) == {"orders": "new"}


def test_a_rest_key_is_made_only_where_none_is_configured() -> None:
    made = made_api_key(Settings(), KEY)

    assert made is not None
    assert SAFE.match(made)
    assert made == made_api_key(Settings(), KEY)
    assert made not in callback_passwords(Settings(), KEY)["default"]
    assert made_api_key(Settings(api_keys="a"), KEY) is None
    assert made_api_key(Settings(read_api_keys="a"), KEY) is None
