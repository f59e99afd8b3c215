"""What can go wrong with a call of Mailjet's API: a tree of errors that say what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from app.errors import JethookError


@dataclass(frozen=True, slots=True)
class Told:
    """What Mailjet said about a refusal, in its own words: they may hold an address and are for the caller only.

    `code` is like `send-0008` or `mj-0003`, `related` are the properties it names (v3.1), `info` an object of v3.
    """

    message: str = field(default="", repr=False)
    code: str | None = None
    related: tuple[str, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict, repr=False)


NOTHING_TOLD = Told()


class MailjetError(JethookError):
    """A call to Mailjet failed; `retryable` says whether the same call later can help.

    `status` is the HTTP status, None when no answer came. `ambiguous` means that Mailjet may have done what was asked.
    """

    retryable: ClassVar[bool] = False
    ambiguous: bool = False

    def __init__(
        self, text: str, *, status: int | None = None, retry_after_seconds: float | None = None,
        told: Told = NOTHING_TOLD, changes: bool = True,
    ) -> None:  # fmt: skip
        """`changes`: the call was one that changes something; reading leaves no doubt."""
        super().__init__(text)
        self.ambiguous = self.ambiguous and changes
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        self.told = told


class MailjetCredentialsRefused(MailjetError):
    """401: the API key or its secret is wrong, suspended, or belongs to another host (US accounts)."""


class MailjetPropertyReadOnly(MailjetError):
    """401 with MJ19: the body named a property that Mailjet sets itself. A fault of ours, never of the credentials."""


class MailjetDuplicate(MailjetError):
    """400 with MJ18: something else has this key already (an address, a list's name, a callback's slot)."""


class MailjetNotFound(MailjetError):
    """404: there is no such object (any more)."""


class MailjetRefused(MailjetError):
    """Mailjet understood and said no (another 4xx), or sent us elsewhere (3xx)."""


class MailjetRateLimited(MailjetError):
    """429. `retry_after_seconds` is set when Mailjet says how long; its documents promise no such header."""

    retryable = True


class MailjetServerFault(MailjetError):
    """5xx, or 408."""

    retryable = True
    ambiguous = True


class MailjetUnreachable(MailjetError):
    """No answer: DNS, connection, TLS, a broken answer or a timeout."""

    retryable = True

    def __init__(self, text: str, *, ambiguous: bool, timed_out: bool = False) -> None:
        super().__init__(text)
        self.ambiguous = ambiguous
        self.timed_out = timed_out


class MailjetUnreadable(MailjetError):
    """A success whose body is not what Mailjet promises: no JSON, no envelope, too long, another callback's data."""

    retryable = True
    ambiguous = True
