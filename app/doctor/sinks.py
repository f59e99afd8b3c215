"""Can each sink be reached as the relay would reach it?"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from app.addresses import AddressRules
from app.delivery.sender import SinkSender
from app.doctor.findings import Finding, failure, ok, warning
from app.models import AttemptOutcome
from app.settings import SinkSettings
from app.tls import BadTlsFile

Test = Callable[[str], Awaitable[dict[str, Any]]]
"""Posts a test event to the sink of this name; what came of it."""


async def examine(name: str, sink: SinkSettings, rules: AddressRules, test: Test | None) -> list[Finding]:
    """Resolve, connect, TLS, proxy and token; an event goes out only with `test`."""
    prefix = f"JETHOOK_SINKS__{name.upper()}__"
    try:
        outcome, text = await (_probe(sink, rules) if test is None else _send(name, test))
    except BadTlsFile as fault:
        return [failure("sink", str(fault), prefix + "CA_FILE", subject=name)]
    if outcome is not AttemptOutcome.SUCCESS:
        return [failure("sink", text, prefix + _setting(outcome, text, sink), subject=name)]
    found = [ok("sink", text, subject=name)]
    if urlsplit(sink.url).scheme != "https" and not _is_near(sink.url):
        found.append(warning("sink", "is not https: addresses travel for all to read", prefix + "URL", subject=name))
    if not sink.secrets:
        found.append(warning("sink", "gets no signature to check", prefix + "SECRETS", subject=name))
    return found


async def _probe(sink: SinkSettings, rules: AddressRules) -> tuple[AttemptOutcome, str]:
    sender = SinkSender(sink, rules)
    try:
        result = await sender.probe()
    finally:
        await sender.close()
    return result.outcome, result.error or f"can be reached in {result.duration_ms:.0f} ms (nothing was sent)"


async def _send(name: str, test: Test) -> tuple[AttemptOutcome, str]:
    result = await test(name)
    told = f"answered {result['status']} to a test event in {result['duration_ms']:.0f} ms"
    return AttemptOutcome(result["outcome"]), result["error"] or told


def _setting(outcome: AttemptOutcome, text: str, sink: SinkSettings) -> str:
    if "token" in text and sink.oauth_token_url:
        return "OAUTH_TOKEN_URL"
    if "proxy" in text and sink.proxy:
        return "PROXY"
    return "CA_FILE" if outcome is AttemptOutcome.TLS and sink.ca_file else "URL"


def _is_near(url: str) -> bool:
    """Within one machine, or by a name without a dot as containers and pods have them."""
    host = urlsplit(url).hostname or ""
    return host.startswith("127.") or host == "::1" or "." not in host
