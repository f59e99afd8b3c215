"""Whose open or click it was."""

import re
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.mailjet.machines import RULES, TOO_SOON_RULE, is_too_soon, judge

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
GMAIL = "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)"
PREFETCH = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/42.0.2311.135"
    " Safari/537.36 Edge/12.246 Mozilla/5.0"
)
ANDROID = (
    "Mozilla/5.0 (Linux; Android 9; CUBOT_X18) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/99.0 Mobile Safari/537.36"
)


@pytest.mark.parametrize(
    ("kind", "fields", "verdict"),
    [
        pytest.param("open", {"agent": FIREFOX, "ip": "203.0.113.7"}, (False, None), id="a browser is a person"),
        pytest.param("open", {}, (False, None), id="nothing known is a person"),
        pytest.param("open", {"agent": None, "ip": None}, (False, None), id="null is nothing known"),
        pytest.param("open", {"agent": GMAIL, "ip": "66.249.84.1"}, (False, "gmail_proxy"), id="Gmail, for a person"),
        pytest.param("open", {"agent": FIREFOX, "ip": "66.249.84.1"}, (False, "gmail_proxy"), id="by address too"),
        pytest.param("open", {"agent": "YahooMailProxy; https://help.yahoo.com/kb/yahoo-mail-proxy-SLN28749.html"},
                     (False, "yahoo_proxy"), id="so does Yahoo"),
        pytest.param("open", {"agent": PREFETCH, "ip": "66.249.84.1"}, (True, "gmail_prefetch"), id="Gmail in advance"),
        pytest.param("open", {"agent": "Mozilla/5.0"}, (True, "apple_privacy"), id="Apple fetches everything"),
        pytest.param("open", {"agent": FIREFOX, "ip": "17.58.1.2"}, (True, "apple_network"), id="from Apple's network"),
        pytest.param("click", {"agent": FIREFOX, "ip": "17.58.1.2"}, (False, None), id="its employees click"),
        pytest.param("click", {"agent": "Mozilla/5.0"}, (True, "bare_agent"), id="no browser says so little"),
        pytest.param("click", {"agent": "  "}, (True, "no_agent"), id="or nothing"),
        pytest.param("click", {"agent": "BarracudaCentral/1.0"}, (True, "security_scanner"), id="a scanner's name"),
        pytest.param("click", {"agent": FIREFOX, "ip": "209.222.82.9"}, (True, "barracuda_network"), id="its address"),
        pytest.param("click", {"agent": FIREFOX, "ip": "40.94.87.1"}, (False, None), id="a neighbour of Microsoft's"),
        pytest.param("click", {"agent": FIREFOX, "ip": "40.93.0.1"}, (True, "microsoft_protection"), id="Microsoft's"),
        pytest.param("open", {"agent": FIREFOX, "ip": "2a01:111:f400::5"}, (True, "microsoft_protection"), id="IPv6"),
        pytest.param("open", {"agent": FIREFOX, "ip": "::ffff:40.93.0.1"}, (True, "microsoft_protection"), id="mapped"),
        pytest.param("click", {"agent": "python-requests/2.32"}, (True, "http_library"), id="a program"),
        pytest.param("click", {"agent": "Slackbot-LinkExpanding 1.0"}, (True, "link_preview"), id="a preview"),
        pytest.param("click", {"agent": "Mozilla/5.0 (compatible; AhrefsBot/7.0)"}, (True, "crawler"), id="a crawler"),
        pytest.param("click", {"agent": ANDROID}, (False, None), id="a telephone called Cubot"),
        pytest.param("open", {"agent": FIREFOX, "ip": "17.no address"}, (False, None), id="no address"),
        pytest.param("open", {"agent": 7, "ip": ["17.0.0.1"]}, (False, None), id="other types than text"),
        pytest.param("sent", {"agent": "curl/8"}, (None, None), id="only opens and clicks are judged"),
        pytest.param("unsub", {"agent": ""}, (None, None), id="no unsubscribes"),
    ],
)  # fmt: skip
def test_whose_it_was(kind, fields, verdict):
    assert tuple(judge(kind, fields)) == verdict


@given(st.dictionaries(st.sampled_from(["agent", "ip"]), st.one_of(st.none(), st.text(), st.ip_addresses().map(str))))
def test_whatever_stands_there_is_judged_and_told_by_a_rule_of_the_table(fields):
    for kind in ("open", "click"):
        verdict = judge(kind, fields)

        assert verdict == judge(kind, fields)
        assert verdict.rule in {rule.name for rule in RULES} | {None}
        assert verdict.automated is False if verdict.rule is None else verdict.automated in (True, False)


def test_every_rule_says_where_it_comes_from_and_can_be_read():
    for rule in RULES:
        assert re.search(r"\b(19|20)\d\d\b|RFC \d+|SLN\d+", rule.source), rule.name
        assert bool(rule.agent) != bool(rule.networks), rule.name
        assert len(rule.name) <= 32
        re.compile(rule.agent)
        assert all(ip_network(network) for network in rule.networks)
    assert TOO_SOON_RULE not in {rule.name for rule in RULES}


@pytest.mark.parametrize(("seconds", "soon"), [(-61, False), (-60, True), (0, True), (2, True), (3, False)])
def test_too_soon_is_seconds_after_sent_or_a_little_before(seconds, soon):
    assert is_too_soon(10**15, 10**15 + seconds * 10**6) is soon
