"""TLS towards a sink: whom to trust, and who we are.

At the bottom, so that the settings can refuse a file that does not fit before anything starts. What reads the files
is imported only where there are some: it is 7 MB of memory.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

CA_FILE = "CA_FILE"
CERT_FILE = "CLIENT_CERT_FILE"
KEY_FILE = "CLIENT_KEY_FILE"
LONGEST_PATH = 255


class BadTlsFile(ValueError):
    """A TLS file that cannot be used. `setting` is the last part of its variable, the text tells of the file."""

    def __init__(self, setting: str, text: str) -> None:
        super().__init__(text)
        self.setting = setting


def client_context(
    *, ca_file: str | None = None, cert_file: str | None = None, key_file: str | None = None, also_system: bool = False
) -> ssl.SSLContext:
    """TLS 1.2 or newer, certificate and host name checked, HTTP/1.1 by ALPN.

    `ca_file` (PEM, one or more) takes the place of the system's authorities, or with `also_system` joins them.
    `cert_file` (PEM, the chain included) and `key_file` (PEM, without a passphrase) go together and may be one file.
    Reads files. Raises BadTlsFile naming the setting and the file.
    """
    context = ssl.create_default_context(cafile=_checked_authorities(ca_file) if not also_system else None)
    if also_system and ca_file is not None:
        context.load_verify_locations(cafile=_checked_authorities(ca_file))
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    context.set_alpn_protocols(["http/1.1"])
    if cert_file is not None or key_file is not None:
        _add_identity(context, cert_file, key_file)
    return context


def _checked_authorities(file: str | None) -> str | None:
    if file is not None:
        _certificates(CA_FILE, file)
    return file


def _add_identity(context: ssl.SSLContext, cert_file: str | None, key_file: str | None) -> None:
    if cert_file is None or key_file is None:
        missing, given = (CERT_FILE, KEY_FILE) if cert_file is None else (KEY_FILE, CERT_FILE)
        raise BadTlsFile(missing, f"is required with {given}")
    certificate = _certificates(CERT_FILE, cert_file)[0]
    if _public_bytes(certificate) != _public_bytes(_private_key(key_file)):
        raise BadTlsFile(KEY_FILE, f"the key in {_shown(key_file)} does not belong to {CERT_FILE} {_shown(cert_file)}")
    try:
        context.load_cert_chain(cert_file, key_file)
    except (ssl.SSLError, OSError) as error:  # a key too weak for OpenSSL's security level, for one
        reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
        raise BadTlsFile(CERT_FILE, f"{_shown(cert_file)} cannot be used: {reason}") from None


def _certificates(setting: str, file: str) -> list[x509.Certificate]:
    from cryptography import x509  # noqa: PLC0415

    try:
        return x509.load_pem_x509_certificates(_read(setting, file))
    except BadTlsFile:
        raise
    except ValueError:
        raise BadTlsFile(setting, f"{_shown(file)} holds no PEM certificate that can be read") from None


def _private_key(file: str) -> PrivateKeyTypes:
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        return load_pem_private_key(_read(KEY_FILE, file), password=None)
    except TypeError:
        raise BadTlsFile(KEY_FILE, f"the key in {_shown(file)} has a passphrase; give one without") from None
    except BadTlsFile:
        raise
    except (ValueError, UnsupportedAlgorithm):
        raise BadTlsFile(KEY_FILE, f"{_shown(file)} holds no PEM private key that can be read") from None


def _public_bytes(owner: x509.Certificate | PrivateKeyTypes) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415

    return owner.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _read(setting: str, file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise BadTlsFile(setting, f"cannot read {_shown(file)}: {reason}") from None


def _shown(file: str) -> str:
    """The path, unless somebody put the key itself where its file belongs."""
    is_path = len(file) <= LONGEST_PATH and file.isprintable() and "-----" not in file
    return repr(file) if is_path else "the value (it is no path; name a file)"
