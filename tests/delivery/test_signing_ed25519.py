"""Standard Webhooks signatures, checked by the standard's own package (v1) and by `cryptography` (v1a)."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from app.delivery.signing import Signer, signature_header
from app.signing_keys import parse_signing_key, public_key_of

BODY = b'{"event":"open","MessageID":19421777835146490}'


def shared_secret(fill: int = 7, size: int = 24) -> str:
    return "whsec_" + base64.b64encode(bytes([fill]) * size).decode()


def private_secret(fill: int = 7, *, with_public: bool = False) -> str:
    seed = bytes([fill]) * 32
    key = Ed25519PrivateKey.from_private_bytes(seed)
    raw = seed + (key.public_key().public_bytes_raw() if with_public else b"")
    return "whsk_" + base64.b64encode(raw).decode()


def public_of(secret: str) -> Ed25519PublicKey:
    key = parse_signing_key(secret)
    assert isinstance(key, Ed25519PrivateKey)
    encoded = public_key_of(key)
    assert encoded.startswith("whpk_")
    return Ed25519PublicKey.from_public_bytes(base64.b64decode(encoded.removeprefix("whpk_")))


def now() -> int:
    return int(dt.datetime.now(dt.UTC).timestamp())


def verify_shared(secret: str, header: str, timestamp: int) -> None:
    """Raises WebhookVerificationError."""
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(timestamp), "webhook-signature": header}
    Webhook(secret).verify(BODY, headers)


def verify_private(key: Ed25519PublicKey, header: str, timestamp: int) -> None:
    """As a receiver does: one signature of its version has to fit. Raises InvalidSignature."""
    signed = b"msg_1.%d.%s" % (timestamp, BODY)
    for signature in header.split(" "):
        version, _, encoded = signature.partition(",")
        if version == "v1a":
            try:
                key.verify(base64.b64decode(encoded), signed)
            except InvalidSignature:
                continue
            return
    raise InvalidSignature


@pytest.mark.parametrize("with_public", [False, True], ids=["seed", "seed and public key"])
def test_a_private_secret_signs_so_that_its_public_key_verifies(with_public):
    secret = private_secret(with_public=with_public)

    header = Signer.from_secrets([secret]).header("msg_1", 1, BODY)

    assert header.startswith("v1a,")
    verify_private(public_of(secret), header, 1)


def test_every_secret_signs_in_order():
    signer = Signer.from_secrets([shared_secret(1), private_secret(2), shared_secret(3)])

    header = signer.header("msg_1", 1, BODY)

    assert [part.split(",")[0] for part in header.split(" ")] == ["v1", "v1a", "v1"]


@pytest.mark.parametrize("known", [0, 1], ids=["old", "new"])
def test_a_receiver_that_knows_only_one_shared_secret_verifies_during_rotation(known):
    secrets, timestamp = [shared_secret(1), shared_secret(2)], now()

    header = Signer.from_secrets(secrets).header("msg_1", timestamp, BODY)

    verify_shared(secrets[known], header, timestamp)
    with pytest.raises(WebhookVerificationError):
        verify_shared(shared_secret(9), header, timestamp)


@pytest.mark.parametrize("known", [0, 1], ids=["old", "new"])
def test_a_receiver_that_knows_only_one_private_key_verifies_during_rotation(known):
    secrets = [private_secret(1), private_secret(2)]

    header = Signer.from_secrets(secrets).header("msg_1", 1, BODY)

    verify_private(public_of(secrets[known]), header, 1)
    with pytest.raises(InvalidSignature):
        verify_private(public_of(private_secret(9)), header, 1)


def test_receivers_of_either_scheme_verify_while_one_takes_over_from_the_other():
    timestamp = now()
    header = Signer.from_secrets([shared_secret(), private_secret()]).header("msg_1", timestamp, BODY)

    verify_shared(shared_secret(), header, timestamp)
    verify_private(public_of(private_secret()), header, timestamp)


def test_another_id_time_or_body_does_not_verify():
    signer, key = Signer.from_secrets([private_secret()]), public_of(private_secret())

    for header in (signer.header("msg_2", 1, BODY), signer.header("msg_1", 2, BODY), signer.header("msg_1", 1, b"{}")):
        with pytest.raises(InvalidSignature):
            verify_private(key, header, 1)


def test_no_secret_no_signature():
    assert Signer.from_secrets([]).header("msg_1", 1, BODY) == ""


def test_the_function_takes_the_keys_of_shared_secrets_as_bytes():
    header = signature_header([bytes([7]) * 24], message_id="msg_1", timestamp=1, body=BODY)

    assert header == Signer.from_secrets([shared_secret()]).header("msg_1", 1, BODY)


WRONG_PUBLIC = "whsk_" + base64.b64encode(bytes([7]) * 64).decode()


@pytest.mark.parametrize(
    ("secret", "told"),
    [
        pytest.param("hunter2", "must be whsec_ (shared) or whsk_", id="no prefix"),
        pytest.param("v1,whsec_AAAA", "must be whsec_ (shared) or whsk_", id="a prefix before the prefix"),
        pytest.param("whsec_?", "must be whsec_ and base64", id="shared, not base64"),
        pytest.param(shared_secret(size=23), "24 to 64 bytes", id="shared, too short"),
        pytest.param(shared_secret(size=65), "24 to 64 bytes", id="shared, too long"),
        pytest.param("whsk_é", "must be whsk_ and base64", id="private, not base64"),
        pytest.param("whsk_AAAA", "32 bytes (seed) or 64 bytes", id="private, too short"),
        pytest.param(WRONG_PUBLIC, "does not belong to its seed", id="private, with another's public key"),
        pytest.param(private_secret().replace("whsk_", "whpk_"), "public key (whpk_)", id="public"),
    ],
)
def test_a_wrong_secret_is_refused_in_a_sentence_that_does_not_repeat_it(secret, told):
    with pytest.raises(ValueError, match=r"^(must be|is) ") as refused:
        Signer.from_secrets([secret])

    assert told in str(refused.value)
    assert secret not in str(refused.value)


@given(st.sampled_from(["", "whsec_", "whsk_", "whpk_"]), st.text())
def test_any_text_is_a_key_or_a_value_error(prefix, text):
    with contextlib.suppress(ValueError):
        parse_signing_key(prefix + text)


def test_a_signer_shows_no_key():
    assert repr(Signer.from_secrets([shared_secret()])) == "Signer()"
