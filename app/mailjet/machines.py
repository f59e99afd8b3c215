"""Was an open or a click a person's, or a machine's? Pure; the table of rules is data, each with its source.

Judged as an event comes in, by what it says itself: its `agent`, then its `ip`. So the verdict is the same on every
replica, in every order and after an import. What also needs the message's `sent` is judged later, by `is_too_soon`.

A proxy is no machine of this sense: Gmail and Yahoo fetch an image when a person opens the message, and only hide
address and device. Apple's Mail Privacy Protection fetches everything in advance, whether or not anybody ever looks.
Nobody can tell all machines: a scanner that takes care looks like a browser. Where nothing is known, it is a person.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple

JUDGED_TYPES = frozenset({"open", "click"})
MOST_AGENT_CHARS = 1000  # of a real one; what is longer is cut before it is searched

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Verdict(NamedTuple):
    """`automated` is None for what is neither open nor click; `rule` names what decided, None where nothing did."""

    automated: bool | None
    rule: str | None


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to tell. `agent` is searched in the agent, whatever its case; `networks` hold the address.

    `sure` is False where the source is no publication of the one who runs the machine, or people come that way too.
    """

    name: str
    automated: bool
    source: str
    agent: str = ""
    networks: tuple[str, ...] = ()
    types: frozenset[str] = field(default=JUDGED_TYPES)
    sure: bool = True


_OPEN, _CLICK = frozenset({"open"}), frozenset({"click"})

# The first that fits decides; agents before addresses, since a proxy's address tells less than its name.
RULES: tuple[Rule, ...] = (
    # --- people behind proxies ---
    Rule("gmail_proxy", False, agent=r"GoogleImageProxy|via ggpht\.com", types=_OPEN,
         source="scientiamobile.com/what-is-google-image-proxy (2018); browscap/browscap#1108 (2016)"),
    Rule("yahoo_proxy", False, agent=r"YahooMailProxy", types=_OPEN,
         source="help.yahoo.com/kb/SLN28749.html (its own agent names it); faisalman/ua-parser-js#494 (2021)"),
    # --- fetched in advance ---
    Rule("gmail_prefetch", True, agent=r"Chrome/42\.0\.2311\.135 Safari/537\.36 Edge/12\.246 Mozilla/5\.0", types=_OPEN,
         source="bird.com/blog/gmail-prefetching-images (2022); mautic/mautic#10245 (2021)"),
    Rule("apple_privacy", True, agent=r"\AMozilla/5\.0\Z", types=_OPEN, sure=False,
         source="ua-parser/uap-core#509 (2021): the whole agent since Mail Privacy Protection; others could send it"),
    # --- security scanners that tell their name ---
    Rule("security_scanner", True,
         agent=r"barracuda|proofpoint|urldefense|mimecast|safelinks|CiscoSecureEmail|ironport|\bTMES\b|trend ?micro"
               r"|symantec|messagelabs|sophos|fireeye|trellix|forcepoint|zscaler|forti(?:guard|mail|net|sandbox)"
               r"|vade ?(?:secure|retro)|bitdefender|kaspersky|f-secure|cloudmark|netcraft|phishtank|virustotal"
               r"|urlscan|google-safety|paloalto|checkpoint|spamassassin|rspamd",
         source="field guide at live-direct-marketing.online/blog/bot-clicks-security-scanners-detect (2026);"
                " developers.google.com/search/docs/crawling-indexing/google-special-case-crawlers (2024)"),
    # --- previews, crawlers, programs ---
    Rule("link_preview", True,
         agent=r"slackbot|facebookexternal(?:hit|ua)|twitterbot|linkedinbot|whatsapp|telegrambot|discordbot"
               r"|skypeuripreview|bingpreview|microsoftpreview|snap url preview|embedly|iframely",
         source="suped.com/learn/email-deliverability, bot user agents in click data (2026)"),
    Rule("http_library", True,
         agent=r"\A(?:python-|python/|aiohttp|httpx|curl/|wget|go-http-client|java/|jetty|apache-httpclient|axios|"
               r"node-fetch|undici|libwww-perl|lwp::|ruby|faraday|guzzlehttp|php/|lua-resty-http|scrapy"
               r"|postmanruntime|powershell)",
         source="suped.com/learn/email-deliverability, bot user agents in click data (2026)", sure=False),
    Rule("headless_browser", True, agent=r"headlesschrome|phantomjs|puppeteer|playwright|selenium|electron/.*headless",
         source="developer.chrome.com/docs/chromium/headless (HeadlessChrome names itself, 2023)"),
    Rule("crawler", True, agent=r"(?<!cu)bot(?![a-z])|crawler|spider|slurp|feedfetcher",
         source="RFC 9309 (crawlers name themselves in the agent); `Cubot` is a telephone"),
    Rule("bare_agent", True, agent=r"\AMozilla/\d\.\d\Z", types=_CLICK, sure=False,
         source="no browser sends so little (RFC 9110, 10.1.5, and every agent in ua-parser/uap-core)"),
    Rule("no_agent", True, agent=r"\A\s*\Z", sure=False,
         source="live-direct-marketing.online, field guide (2026): Safe Links sends an empty agent; browsers never do"),
    # --- addresses ---
    Rule("apple_network", True, networks=("17.0.0.0/8",), types=_OPEN, sure=False,
         source="ARIN NET-17-0-0-0-1 (1990): Apple's own network, its caches, but its employees too"),
    Rule("microsoft_protection", True, networks=("40.92.0.0/15", "40.107.0.0/16", "52.100.0.0/14", "104.47.0.0/17",
                                                 "2a01:111:f400::/48", "2a01:111:f403::/48"),
         source="endpoints.office.com, Exchange Online Protection, also in spf.protection.outlook.com (2023)"),
    Rule("barracuda_network", True, networks=("209.222.80.0/21", "64.235.144.0/20"),
         source="campus.barracuda.com, Email Gateway Defense IP ranges (2024)"),
    Rule("proofpoint_network", True, networks=("67.231.144.0/20", "208.84.64.0/22", "208.86.200.0/22", "62.209.50.0/24",
                                               "91.209.104.0/24", "148.163.128.0/19"),
         source="proofpoint.my.site.com/support/PPSup_SupportInfo; Proofpoint Essentials connection details (2018)"),
    Rule("mimecast_network", True, sure=False,
         networks=("207.211.30.0/24", "207.211.31.0/25", "205.139.110.0/24", "205.139.111.0/24", "216.205.24.0/24",
                   "63.128.21.0/24", "170.10.128.0/24", "170.10.129.0/24", "170.10.132.0/24", "170.10.133.0/24",
                   "195.130.217.0/24", "91.220.42.0/24", "146.101.78.0/24", "207.82.80.0/24", "185.58.84.0/22"),
         source="community.mimecast.com, Mimecast Data Centers and URLs (2023, from memory)"),
    Rule("google_crawler", True, networks=("66.249.64.0/19",), types=_CLICK, sure=False,
         source="developers.google.com/static/search/apis/ipranges/googlebot.json (2024); mssola/user_agent#54 (2019)"),
    Rule("gmail_proxy", False, networks=("66.249.64.0/19", "66.102.0.0/20", "64.233.160.0/19"), types=_OPEN,
         source="mssola/user_agent#54 (2019): the networks of the image proxy", sure=False),
)  # fmt: skip

# --- time since `sent` ---

TOO_SOON_RULE = "soon_after_sent"
TOO_SOON_SECONDS = 2
BEFORE_SENT_SECONDS = 60
"""Source of both: scanners follow links while the receiving server still thinks about the message, and seconds after
(nation.marketo.com/t5/support-blogs/understanding-a-spike-in-click-activity; act-on.com, Identifying False Positives).
Mailjet's times are whole seconds of several clocks, so up to a minute before counts as at once."""


def is_too_soon(sent_micros: int, happened_micros: int) -> bool:
    """Did it happen sooner after the receiving server took the message than a person can read it?"""
    return -BEFORE_SENT_SECONDS * 1_000_000 <= happened_micros - sent_micros <= TOO_SOON_SECONDS * 1_000_000


# --- agent and address ---


def judge(event_type: str, payload: Mapping[str, Any]) -> Verdict:
    """The verdict on one event by what Mailjet sent with it."""
    if event_type not in JUDGED_TYPES:
        return NOT_JUDGED
    agent, ip = payload.get("agent"), payload.get("ip")
    found = _by_agent(event_type, agent[:MOST_AGENT_CHARS]) if isinstance(agent, str) else None
    if found is None and isinstance(ip, str):
        found = _by_address(event_type, ip) if _may_be_known(ip) else None
    return PERSON if found is None else found


NOT_JUDGED = Verdict(None, None)
PERSON = Verdict(False, None)


def _first(rules: Iterable[Rule]) -> Verdict | None:
    return next((Verdict(rule.automated, rule.name) for rule in rules), None)


_AGENTS = [(rule, re.compile(rule.agent, re.IGNORECASE)) for rule in RULES if rule.agent]
_NETWORKS: list[tuple[Rule, list[Network]]] = [
    (rule, [ip_network(network) for network in rule.networks]) for rule in RULES if rule.networks
]
# Most addresses are in no network of ours, and parsing one costs more than all the rest: the first octets of those that
# may be. No network is wider than a /8.
_FIRST_OCTETS = frozenset(
    str(int(network.network_address) >> 24) for _, networks in _NETWORKS for network in networks if network.version == 4
)


def _may_be_known(ip: str) -> bool:
    return ":" in ip or ip.partition(".")[0].strip() in _FIRST_OCTETS


@lru_cache(maxsize=8192)
def _by_agent(event_type: str, agent: str) -> Verdict | None:
    return _first(rule for rule, pattern in _AGENTS if event_type in rule.types and pattern.search(agent))


@lru_cache(maxsize=8192)
def _by_address(event_type: str, ip: str) -> Verdict | None:
    try:
        address = ip_address(ip.strip())
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return _first(
        rule for rule, networks in _NETWORKS if event_type in rule.types and any(address in net for net in networks)
    )
