from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dashboard.sessions import LIFE, LINK_LIFE, Sessions
from app.dashboard.throttle import GUESSES, MOST_ADDRESSES, SECONDS_A_GUESS, Throttle

NOW = datetime(2026, 5, 3, 12, tzinfo=UTC)
SESSIONS = Sessions(b"secret", full=["full", "both"], read=["read", "both"])
COOKIE = SESSIONS.sign_in("read", NOW) or ""


@pytest.mark.parametrize(("key", "may_act"), [("full", True), ("read", False), ("both", True)])
def test_a_session_may_what_its_key_may(key: str, may_act: bool):
    cookie = SESSIONS.sign_in(key, NOW)

    assert cookie is not None
    session = SESSIONS.read(cookie, NOW)
    assert session is not None
    assert session.may_act is may_act


@given(st.text(max_size=40).filter(lambda text: text not in ("full", "read", "both")))
def test_no_other_text_opens_anything(key: str):
    assert SESSIONS.sign_in(key, NOW) is None
    assert SESSIONS.read(key, NOW) is None
    assert SESSIONS.redeem(key, NOW) is None


def test_another_replica_reads_it_and_another_installation_does_not():
    cookie = SESSIONS.sign_in("full", NOW) or ""

    assert Sessions(b"secret", full=["full"], read=[]).read(cookie, NOW) == SESSIONS.read(cookie, NOW)
    assert Sessions(b"other", full=["full"], read=[]).read(cookie, NOW) is None


def test_a_key_that_is_taken_away_closes_its_sessions_and_one_that_is_demoted_acts_no_more():
    cookie = SESSIONS.sign_in("full", NOW) or ""

    assert Sessions(b"secret", full=["new"], read=[]).read(cookie, NOW) is None
    demoted = Sessions(b"secret", full=[], read=["full"]).read(cookie, NOW)
    assert demoted is not None
    assert not demoted.may_act


def test_a_session_ends():
    cookie = SESSIONS.sign_in("full", NOW) or ""

    assert SESSIONS.read(cookie, NOW + LIFE - timedelta(seconds=1)) is not None
    assert SESSIONS.read(cookie, NOW + LIFE) is None


@given(st.data())
def test_a_changed_cookie_is_none(data: st.DataObject):
    cookie = COOKIE
    at = data.draw(st.integers(0, len(cookie) - 1))
    changed = cookie[:at] + data.draw(st.sampled_from("aB9-_.x").filter(lambda c: c != cookie[at])) + cookie[at + 1 :]

    # The last digits of base64 hold spare bits, but text is compared and not bytes.
    assert SESSIONS.read(changed, NOW) is None


def test_a_link_is_no_session_and_a_session_no_link():
    link, cookie = SESSIONS.link(NOW), SESSIONS.sign_in("full", NOW) or ""

    assert SESSIONS.read(link, NOW) is None
    assert SESSIONS.redeem(cookie, NOW) is None
    assert SESSIONS.redeem(link, NOW + LINK_LIFE) is None
    redeemed = SESSIONS.redeem(link, NOW)
    assert redeemed is not None
    opened = SESSIONS.read(redeemed[2], NOW)
    assert opened is not None
    assert opened.may_act


def test_guesses_run_out_for_one_address_and_come_back():
    throttle = Throttle()
    for _ in range(GUESSES):
        assert throttle.wait_seconds("a", 100.0) == 0
        throttle.failed("a", 100.0)

    assert throttle.wait_seconds("a", 100.0) == SECONDS_A_GUESS
    assert throttle.wait_seconds("b", 100.0) == 0
    assert throttle.wait_seconds("a", 100.0 + SECONDS_A_GUESS) == 0
    throttle.failed("a", 100.0 + SECONDS_A_GUESS)
    assert throttle.wait_seconds("a", 100.0 + SECONDS_A_GUESS) > 0


def test_guesses_from_everywhere_do_not_fill_the_memory():
    throttle = Throttle()
    for number in range(MOST_ADDRESSES + 10):
        throttle.failed(str(number), 1.0)

    assert len(throttle._buckets) == MOST_ADDRESSES
