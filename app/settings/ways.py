"""How sinks are reached: files, credentials and addresses that do not fit together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast
from urllib.parse import urlsplit

from app import addresses, tls
from app.addresses import AddressRules
from app.settings.names import PREFIX
from app.settings.values import check_networks, split_list

_OAUTH_NEEDED = ("oauth_token_url", "oauth_client_id", "oauth_client_secret")


def way_faults(sinks: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Files and combinations that do not fit, from the unchecked tree, so that a fault elsewhere does not hide them."""
    for name, sink in sinks.items():
        for setting, text in (*_tls_faults(sink), *_oauth_faults(sink)):
            yield f"{PREFIX}SINKS__{name.upper()}__{setting}: {text}"


def address_faults(tree: Mapping[str, Any]) -> Iterator[str]:
    """Literal addresses that may not be connected to, from the unchecked tree; and an exception to nothing, whose
    author expects it to close the door."""
    deny, allow = tree.get("sink_deny_cidrs"), tree.get("sink_allow_cidrs")
    if allow and not deny:
        yield f"{addresses.ALLOW}: has no effect without {addresses.DENY}; 0.0.0.0/0,::/0 there denies all others"
    try:
        networks = (check_networks(tuple(cast("list[str]", split_list(value or "")))) for value in (deny, allow))
        rules = address_rules(*networks)
    except (ValueError, TypeError, AttributeError):  # told by the validator
        rules = AddressRules()
    for name, sink in tree.get("sinks", {}).items():
        for setting in ("url", "oauth_token_url", "proxy"):
            if reason := rules.refusal_of_url(str(sink.get(setting, ""))):
                yield f"{PREFIX}SINKS__{name.upper()}__{setting.upper()}: its address {reason}"


def address_rules(deny: Iterable[str], allow: Iterable[str]) -> AddressRules:
    return AddressRules(*(tuple(addresses.parse_network(text) for text in texts) for texts in (deny, allow)))


def _tls_faults(sink: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(last part of the variable, sentence). Reads the files."""
    cert, key = sink.get("client_cert_file"), sink.get("client_key_file")
    for ca, cert_or_none, key_or_none in ((sink.get("ca_file"), None, None), (None, cert, key)):
        if ca or cert_or_none or key_or_none:
            try:
                tls.client_context(ca_file=ca, cert_file=cert_or_none, key_file=key_or_none)
            except tls.BadTlsFile as fault:
                yield fault.setting, str(fault)
    if cert and str(sink.get("url", "")).lower().startswith("http://"):
        yield tls.CERT_FILE, "needs a URL that starts with https://"


def _oauth_faults(sink: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    given = [name for name in sink if name.startswith("oauth_")]
    if not given:
        return
    for name in _OAUTH_NEEDED:
        if name not in sink:
            yield name.upper(), f"is required with {given[0].upper()}"
    if '"authorization"' in str(sink.get("headers", "")).lower() or "@" in _netloc(str(sink.get("url", ""))):
        yield "OAUTH_TOKEN_URL", "HEADERS or URL give credentials too; a request can carry one kind"


def _netloc(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""
