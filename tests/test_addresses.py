from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.addresses import (
    DENIED,
    NEVER_ALLOWED,
    ONLY_ALWAYS,
    UNREADABLE,
    AddressRules,
    is_always_refused,
    parse_network,
)


def rules(deny: str = "", allow: str = "") -> AddressRules:
    return AddressRules(*(tuple(parse_network(text) for text in texts.split()) for texts in (deny, allow)))


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254", "169.254.170.2", "169.254.1.1", "fe80::1", "fe80::1%eth0", "fe80::1%25eth0",
        "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42",
        "100.100.100.200", "168.63.129.16", "192.0.0.192",
        "0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "239.255.255.250", "255.255.255.255", "ff02::1",
        "metadata.google.internal", "METADATA.google.internal.", "metadata.goog", "instance-data.ec2.internal",
    ],
)  # fmt: skip
def test_what_no_setting_opens(host: str) -> None:
    assert ONLY_ALWAYS.refusal(host) == NEVER_ALLOWED
    assert rules("0.0.0.0/0 ::/0", "0.0.0.0/0 ::/0").refusal(host) == NEVER_ALLOWED


@pytest.mark.parametrize(
    "host",
    [
        "2852039166", "0xa9fea9fe", "0xa9.254.0xa9.254", "0251.0376.0251.0376", "169.254.43518", "169.16689662",
        "169.254.169.254.", "169%2e254%2e169%2e254", "[::ffff:169.254.169.254]", "::ffff:a9fe:a9fe",
        "0:0:0:0:0:ffff:a9fe:a9fe", "::a9fe:a9fe", "::ffff:0:a9fe:a9fe",
    ],
)  # fmt: skip
def test_an_odd_spelling_is_the_same_address(host: str) -> None:
    assert ONLY_ALWAYS.refusal(host) == NEVER_ALLOWED


@pytest.mark.parametrize(
    "carrier",
    [
        pytest.param("2002:a9fe:a9fe::1", id="6to4"),
        pytest.param("64:ff9b::a9fe:a9fe", id="NAT64"),
        pytest.param("64:ff9b:1::a9fe:a9fe", id="local NAT64, 96 bits"),
        pytest.param("64:ff9b:1:0:a9:fea9:fe00:0", id="local NAT64, 64 bits"),
        pytest.param("64:ff9b:1:a9:fe:a9fe::", id="local NAT64, 56 bits"),
        pytest.param("64:ff9b:1:a9fe:a9:fe00::", id="local NAT64, 48 bits"),
        pytest.param("2001:0:a9fe:a9fe::1", id="Teredo server"),
        pytest.param("2001:0:808:808:0:0:5601:5601", id="Teredo client"),
        pytest.param("2001:db8::5efe:169.254.169.254", id="ISATAP"),
    ],
)
def test_an_address_that_carries_a_refused_one_is_refused(carrier: str) -> None:
    assert ONLY_ALWAYS.refusal(carrier) == NEVER_ALLOWED


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "::1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd12:3456::1", "203.0.113.7",
        "2606:4700::1111", "localhost", "sink.example", "metadata", "64:ff9b::808:808", "64:ff9b:1::808:808",
        "64:ff9b:1:808:8:800::", "2002:808:808::1", "::ffff:10.0.0.1", "169.253.255.255", "169.255.0.0", "", "a..b",
    ],
)  # fmt: skip
def test_all_else_is_allowed_unless_a_setting_denies_it(host: str) -> None:
    assert ONLY_ALWAYS.refusal(host) is None


@pytest.mark.parametrize(
    ("deny", "allow", "host", "reason"),
    [
        pytest.param("10.0.0.0/8", "", "10.1.2.3", DENIED, id="denied"),
        pytest.param("10.0.0.0/8", "", "11.1.2.3", None, id="not denied"),
        pytest.param("10.0.0.0/8", "10.1.2.0/24", "10.1.2.3", None, id="an exception"),
        pytest.param("10.0.0.0/8", "10.1.2.0/24", "10.1.3.3", DENIED, id="beside the exception"),
        pytest.param("10.0.0.0/8", "10.0.0.0/7", "10.1.3.3", None, id="a wider exception wins too"),
        pytest.param("0.0.0.0/0 ::/0", "203.0.113.0/24", "203.0.113.9", None, id="in an allow list"),
        pytest.param("0.0.0.0/0 ::/0", "203.0.113.0/24", "198.51.100.1", DENIED, id="not in an allow list"),
        pytest.param("0.0.0.0/0 ::/0", "203.0.113.0/24", "2001:db8::1", DENIED, id="nor of the other family"),
        pytest.param("0.0.0.0/0 ::/0", "203.0.113.0/24", "sink.example", None, id="a name is judged when resolved"),
        pytest.param("10.0.0.0/8", "", "::ffff:10.1.2.3", DENIED, id="mapped"),
        pytest.param("::ffff:10.0.0.0/104", "", "10.1.2.3", DENIED, id="the list's entry is mapped"),
        pytest.param("10.0.0.0/8", "", "64:ff9b::10.1.2.3", DENIED, id="carried"),
        pytest.param("10.0.0.0/8", "10.1.2.3", "64:ff9b::10.1.2.3", None, id="carried, an exception"),
        pytest.param("0.0.0.0/0 ::/0", "64:ff9b::/96", "64:ff9b::808:808", None, id="its carrier is an exception"),
        pytest.param("10.0.0.0/8", "", "0x0a.0.0.1", DENIED, id="odd spelling"),
    ],
)
def test_deny_refuses_and_allow_makes_exceptions(deny: str, allow: str, host: str, reason: str | None) -> None:
    assert rules(deny, allow).refusal(host) == reason


@pytest.mark.parametrize("text", ["2852039166", "127.1", "0x7f.1", "localhost", "127.0.0.01", "", "1.2.3.4 x"])
def test_what_cannot_be_judged_is_not_connected_to(text: str) -> None:
    assert ONLY_ALWAYS.refusal_of_text(text) == UNREADABLE


@given(st.ip_addresses())
def test_an_address_has_one_verdict_however_it_is_given(address: object) -> None:
    some = rules("10.0.0.0/7 2001:db8::/32", "10.64.0.0/10")

    assert some.refusal(str(address)) == some.refusal_of_text(str(address)) == some.refusal_of(address)  # type: ignore[arg-type]


@given(st.text(max_size=40))
def test_any_text_has_a_verdict(text: str) -> None:
    for verdict in (ONLY_ALWAYS.refusal(text), ONLY_ALWAYS.refusal_of_url(f"http://{text}/")):
        assert verdict in (None, NEVER_ALLOWED)


def test_no_reason_tells_an_address() -> None:
    for reason in (DENIED, NEVER_ALLOWED):
        assert not any(character.isdigit() for character in reason)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("10.1.2.3/8", "has bits set behind its prefix; write 10.0.0.0/8"),
        ("fd00::1/8", "has bits set behind its prefix; write fd00::/8"),
        ("10.0.0.0/33", "is no network; write it as 10.0.0.0/8, fd00::/8 or a single address"),
        ("hunter2", "is no network; write it as 10.0.0.0/8, fd00::/8 or a single address"),
        ("internal.example", "is no network; write it as 10.0.0.0/8, fd00::/8 or a single address"),
    ],
)
def test_a_text_that_is_no_network_says_how_to_write_one(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as raised:
        parse_network(text)

    assert str(raised.value) == fault


def test_a_network_without_one_open_address_is_told_from_one_with_some() -> None:
    assert is_always_refused(parse_network("169.254.169.254"))
    assert is_always_refused(parse_network("fe80::/16"))
    assert not is_always_refused(parse_network("0.0.0.0/0"))
    assert not is_always_refused(parse_network("10.0.0.0/8"))
