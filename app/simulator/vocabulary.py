"""The words that simulated events are made of.

Names and addresses are those set aside for examples (RFC 2606, RFC 5737, RFC 3849): nothing here can reach anybody.
The errors are the table of mailjet/api-documentation:guides/_event-api.md.
"""

from typing import NamedTuple


class BounceError(NamedTuple):
    """A pair of the error table, whether it is for good, and what the mail server said."""

    related_to: str
    error: str
    is_hard: bool
    comment: str


BOUNCE_ERRORS = (
    BounceError("recipient", "user unknown", True, "550 5.1.1 <{email}>: Recipient address rejected: User unknown"),
    BounceError("recipient", "mailbox inactive", True, "550 5.2.1 The mailbox of {email} is inactive"),
    BounceError("recipient", "quota exceeded", False, "452 4.2.2 The mailbox of {email} is over its quota"),
    BounceError("domain", "invalid domain", True, "Host or domain name not found"),
    BounceError("domain", "no mail host", False, "connect to mx1.example.net[192.0.2.40]:25: Connection timed out"),
    BounceError("domain", "relay/access denied", False, "554 5.7.1 <{email}>: Relay access denied"),
    BounceError("domain", "greylisted", False, "451 4.7.1 Greylisting in action, please come back later"),
    BounceError("domain", "typofix", True, ""),
    BounceError("spam", "content blocked", False, "554 5.7.1 Message content rejected by policy"),
    BounceError("spam", "policy issue", False, "421 4.7.0 Too many connections from 198.51.100.9, “try later”"),
    BounceError("system", "system issue", False, "451 4.3.0 Temporary system problem"),
    BounceError("system", "protocol issue", False, "503 5.5.1 Bad sequence of commands"),
    BounceError("system", "connection issue", False, "lost connection with mx1.example.org[203.0.113.7]"),
)

BLOCK_ERRORS = (
    ("recipient", "user unknown"),
    ("recipient", "blacklisted"),
    ("recipient", "spam reporter"),
    ("domain", "typofix"),
    ("content", "bad or empty template"),
    ("content", "error in template language"),
    ("spam", "sender blocked"),
    ("mailjet", "preblocked"),
    ("mailjet", "spam preblocked"),  # in the list of message states, not in the table of events
    ("mailjet", "duplicate in campaign"),
)

FEEDBACK_LOOPS = ("JMRPP", "JMRPP", "feedback.example", "")

GIVEN_NAMES = ("ada", "bo", "chloé", "dmitri", "elif", "fatima", "goran", "hana", "ines", "jo", "kofi", "lars")
FAMILY_NAMES = ("abe", "berg", "costa", "dubois", "evans", "fischer", "garcia", "hoang", "ito", "jensen", "kowalski")

# How often each is drawn. The last has no top-level domain: bounces report addresses that are wrong.
DOMAINS = {
    "example.com": 40,
    "example.net": 20,
    "example.org": 15,
    "mail.example.com": 10,
    "bürgeramt.example": 5,
    "webmail.test": 8,
    "post": 2,
}

CAMPAIGN_NAMES = (
    "welcome",
    "order confirmation",
    "spring sale 2026",
    "password reset",
    "invoice",
    "newsletter été",
    "survey",
    "winback",
)

LINKS = (
    "https://shop.example.com/orders/{id}",
    "https://shop.example.com/?utm_source=mailjet&utm_campaign=spring%20sale&id={id}",
    "https://www.example.org/news/{id}#more",
    "https://example.net/unsubscribe?token={id}",
)

SMTP_REPLIES = (
    "250 2.0.0 Ok: queued as {id}",
    "250 2.0.0 OK 1784628000 x-si{id}.42 - smtp",
    "250 2.6.0 <{id}@mx.example.com> Queued mail for delivery",
    "250 Message received: {id}",
)

NETWORKS = ("192.0.2.{n}", "198.51.100.{n}", "203.0.113.{n}", "2001:db8::{n:x}")

COUNTRIES = ("FR", "DE", "US", "BR", "JP", "GB", "EU", "")

AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via proxy.example ImageProxy)",
    "Mozilla/5.0",
    "",
)
