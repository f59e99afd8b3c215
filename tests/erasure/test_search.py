"""An address is found however it was written, and nobody else's is taken for it."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.erasure.search import finder, holds, without

ADDRESS = "Ann.Lee+x@example.com"


def found(body: bytes, *, folded: bool = False) -> bool:
    return holds(body, finder(ADDRESS, folded=folded))


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(c):04x}" for c in text)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(f'{{"email":"{ADDRESS}"'.encode(), id="cut JSON"),
        pytest.param(b'{"email":"Ann.Lee+x@EXAMPLE.Com"}', id="domain in another case"),
        pytest.param(f'"{escaped(ADDRESS)}"'.encode(), id="every letter escaped"),
        pytest.param(b'"Ann.Lee\\u002Bx\\u0040example.com"', id="some letters escaped"),
        pytest.param(json.dumps(json.dumps({"email": escaped(ADDRESS)})).encode(), id="JSON within JSON"),
        pytest.param(f"https://x.example/?e={quote(ADDRESS)}&n=1".encode(), id="in a URL"),
        pytest.param(f"550 <{ADDRESS}>: unknown.".encode(), id="in an answer of a server"),
        pytest.param(f"write to {ADDRESS}.".encode(), id="at the end of a sentence"),
        pytest.param(
            json.dumps({"comment": f"no such user:\n{ADDRESS}\r\n"})[:-1].encode(), id="after a line break in JSON"
        ),
        pytest.param(json.dumps(f"\t{ADDRESS}").encode(), id="after a tab in JSON"),
        pytest.param(b"\xff\xfe" + ADDRESS.encode("utf-16-le"), id="UTF-16"),
        pytest.param(b"\xe9 " + ADDRESS.encode(), id="Latin-1"),
    ],
)
def test_an_address_is_found_however_it_was_written(body: bytes) -> None:
    assert found(body)


@pytest.mark.parametrize(
    "body",
    [
        b"ann.lee+x@example.com", b"Mary.Ann.Lee+x@example.com", b"Ann.Lee+x@example.community", b"Lee+x@example.com",
        b"Ann.Lee+x@example.com.au", b"Ann.Lee@example.com", b"", b"\\u00",
    ],
)  # fmt: skip
def test_another_person_is_left_alone(body: bytes) -> None:
    assert not found(body)


def test_a_folded_search_finds_the_local_part_in_any_case() -> None:
    assert found(b"ann.lee+X@example.com", folded=True)


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_are_too_odd(body: bytes, folded: bool) -> None:
    assert found(body, folded=folded) in (True, False)


@given(st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=8))
def test_any_way_json_writes_an_address_is_found(local: str) -> None:
    address = f"{local}@example.com"
    finds = finder(address, folded=False)

    assert holds(json.dumps({"email": address}).encode(), finds)
    assert holds(json.dumps({"email": address}, ensure_ascii=False).encode(), finds)


def test_a_selection_keeps_what_does_not_name_the_address() -> None:
    told = without(
        json.dumps({"filter": {"email": [ADDRESS, "b@x.org"], "type": ["open"]}}), finder(ADDRESS, folded=False)
    )

    assert json.loads(told) == {"filter": {"email": ["(erased)", "b@x.org"], "type": ["open"]}}


def test_what_has_no_at_sign_is_an_address_only_where_it_is_told_as_one() -> None:
    finds = finder("sent", folded=False)

    assert holds(b'{"event": "sent", "email" : "sent"}', finds)
    assert holds(b'{"payload": "{\\"email\\":\\"sent\\"}"}', finds)
    assert not holds(b'{"event": "sent", "email": "sent@example.com"}', finds)
    assert not holds(b"sent", finds)
