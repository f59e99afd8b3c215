"""Which addresses may be connected to when an event goes to a sink. Pure: names are resolved elsewhere.

At the bottom, so that the settings can refuse a literal address before anything starts; the same rules judge what a
name resolved to, right before the connection is made (see `delivery.transport`).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import unquote

from yarl import URL

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

DENY, ALLOW = "JETHOOK_SINK_DENY_CIDRS", "JETHOOK_SINK_ALLOW_CIDRS"
# Sentences that go on after "the address …"; no address is in them, an attempt's row is shown to many.
NEVER_ALLOWED = (
    "is never connected to: link-local, multicast, unspecified or a cloud's metadata service; change the URL"
)
DENIED = f"is in {DENY}, and {ALLOW} makes no exception for it"
UNREADABLE = "is in a spelling that nobody should need; write it as 192.0.2.1 or [2001:db8::1]"

# What answers there gives credentials of the machine to whoever asks, or is no one receiver at all.
ALWAYS_REFUSED: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8", "::/128",  # "this host": connects to loopback on Linux
        "169.254.0.0/16", "fe80::/10",  # link-local, with the metadata services of most clouds
        "fd00:ec2::/32", "fd20:ce::254/128",  # AWS, Google
        "fd00:c1::a9fe:a9fe/128", "192.0.0.192/32",  # Oracle, its classic cloud
        "fd00:42::42/128", "100.100.100.200/32", "168.63.129.16/32",  # Scaleway, Alibaba, Azure's wire server
        "224.0.0.0/4", "ff00::/8", "255.255.255.255/32",  # multicast, broadcast
    )
)  # fmt: skip
# They resolve to the above; by name they matter where a proxy resolves for us.
METADATA_HOSTS = frozenset(
    {"metadata.google.internal", "metadata.goog", "metadata.azure.internal", "instance-data.ec2.internal",
     "metadata.tencentyun.com"}
)  # fmt: skip
_MAPPED = IPv6Network("::ffff:0:0/96")
_LAST_32_BITS = (  # IPv4-compatible, IPv4-translated, NAT64
    IPv6Network("::/96"), IPv6Network("::ffff:0:0:0/96"), IPv6Network("64:ff9b::/96"),
)  # fmt: skip
_LOCAL_NAT64, _TEREDO, _6TO4 = IPv6Network("64:ff9b:1::/48"), IPv6Network("2001::/32"), IPv6Network("2002::/16")
_ISATAP = frozenset({0x5EFE, 0x0200_5EFE})  # bits 64 to 95


@dataclass(frozen=True, slots=True)
class AddressRules:
    """`deny` refuses what it holds, `allow` makes exceptions to it; neither opens what is always refused.

    An IPv6 address that carries an IPv4 one (mapped, 6to4, NAT64, Teredo …) is judged as both.
    """

    deny: tuple[Network, ...] = ()
    allow: tuple[Network, ...] = ()

    def refusal(self, host: str) -> str | None:
        """Why not to connect to this host, None if one may: a literal address in any spelling that the C library
        takes, or a name. A name may be resolved, and what comes of it is asked for next."""
        name = unquote(host).strip("[]").rstrip(".").lower()
        if name in METADATA_HOSTS:
            return NEVER_ALLOWED
        address = _literal(name)
        return None if address is None else self.refusal_of(address)

    def refusal_of(self, address: Address) -> str | None:
        address, *carried = _forms(address)
        if any(_holds(ALWAYS_REFUSED, form) for form in (address, *carried)):
            return NEVER_ALLOWED
        if _holds(self.allow, address):
            return None
        is_denied = any(_holds(self.deny, form) and not _holds(self.allow, form) for form in (address, *carried))
        return DENIED if is_denied else None

    def refusal_of_text(self, address: str) -> str | None:
        """As `refusal_of`, of an address about to be connected to; what cannot be judged is refused."""
        try:
            return self.refusal_of(ip_address(address.partition("%")[0]))
        except ValueError:
            return UNREADABLE

    def refusal_of_url(self, url: str) -> str | None:
        """As `refusal`, of the host as aiohttp reads it from this URL; None for what is no URL."""
        try:
            return self.refusal(URL(url).raw_host or "")
        except ValueError:
            return None


ONLY_ALWAYS = AddressRules()
"""The rules of who sets none."""


def parse_network(text: str) -> Network:
    """`10.0.0.0/8`, `fd00::/8` or a single address. Raises ValueError with a sentence that repeats no garbage."""
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError("is no network; write it as 10.0.0.0/8, fd00::/8 or a single address") from None
    if "/" in text and ip_address(text.partition("/")[0]) != network.network_address:
        raise ValueError(f"has bits set behind its prefix; write {network}")
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):  # addresses are judged in their short form
        return IPv4Network((int(network.network_address) & 0xFFFF_FFFF, network.prefixlen - 96))
    return network


def is_always_refused(network: Network) -> bool:
    """No address of it may be connected to, whatever the lists say."""
    return any(
        network.version == refused.version and network.subnet_of(refused)  # type: ignore[arg-type]
        for refused in ALWAYS_REFUSED
    )


def _literal(host: str) -> Address | None:
    """The address that this host is, also as `0x7f.1`, `2852039166` or with a zone."""
    try:
        if ":" in host:
            return IPv6Address(host.partition("%")[0])
        return IPv4Address(socket.inet_aton(host))
    except (ValueError, OSError):
        return None


def _forms(address: Address) -> Iterator[Address]:
    """The address itself, then the IPv4 addresses that it carries. A mapped one is nothing but its IPv4 address."""
    if isinstance(address, IPv4Address):
        yield address
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
        return
    yield address
    value = int(address)
    if (any(address in network for network in _LAST_32_BITS) and value > 1) or value >> 32 & 0xFFFF_FFFF in _ISATAP:
        yield IPv4Address(value & 0xFFFF_FFFF)
    if address in _LOCAL_NAT64:
        yield from (IPv4Address(bits) for bits in _nat64_readings(value))
    if address in _TEREDO:
        yield IPv4Address(value >> 64 & 0xFFFF_FFFF)
        yield IPv4Address(~value & 0xFFFF_FFFF)
    if address in _6TO4:
        yield IPv4Address(value >> 80 & 0xFFFF_FFFF)


def _nat64_readings(value: int) -> Iterator[int]:
    """A local NAT64 prefix may end at bit 48, 56, 64 or 96, and all but the last leave out the bits 64 to 71 (RFC 6052,
    2.2). Wrong readings often look like multicast or `0.x`, so these do not count."""
    before, after = value >> 64 & 0xFFFF, value >> 24 & 0xFFFF_FFFF
    for bits in (before << 16 | after >> 16, (before & 0xFF) << 24 | after >> 8, after, value & 0xFFFF_FFFF):
        if 1 << 24 <= bits < 224 << 24:
            yield bits


def _holds(networks: Sequence[Network], address: Address) -> bool:
    return any(address in network for network in networks)
