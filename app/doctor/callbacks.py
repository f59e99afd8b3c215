"""Credentials at Mailjet and the callbacks' state there: what a registration run would find, changing nothing."""

from __future__ import annotations

from collections.abc import Iterator

from app.doctor.findings import Finding, failure, ok, warning
from app.registration.plan import Kind
from app.registration.queries import CallbackState
from app.registration.report import ConnectionReport, RegistrationReport, Result
from app.settings import Settings


def judged(settings: Settings, report: RegistrationReport) -> list[Finding]:
    return [finding for connection in report.connections for finding in _connection(settings, connection)]


def key_setting(connection: str) -> str:
    return f"JETHOOK_CONNECTIONS__{connection.upper()}__API_KEY"


def _connection(settings: Settings, report: ConnectionReport) -> Iterator[Finding]:
    name = report.connection
    if report.off is not None:
        setting = key_setting(name) if settings.public_url else "JETHOOK_PUBLIC_URL"
        yield warning("mailjet", report.off, setting, subject=name)
        return
    if report.error is not None:
        yield failure("mailjet", report.error, key_setting(name), subject=name)
        return
    yield ok("mailjet", "accepts the keys", subject=name)
    yield from (_slot(result) for result in report.results)


def _slot(result: Result) -> Finding:
    action = result.action
    subject = f"{action.connection} {action.type}" + " (backup)" * action.backup
    setting = f"JETHOOK_WEBHOOKS__{(action.webhook or 'default').upper()}__"
    if result.error is not None:
        return failure("callback", result.error, key_setting(action.connection), subject=subject)
    if action.kind is Kind.CONFLICT:
        return failure("callback", action.detail, setting + "ON_CONFLICT", subject=subject)
    if result.state is CallbackState.DEAD:
        return failure("callback", "Mailjet has suspended it", "JETHOOK_PUBLIC_URL", subject=subject)
    if action.changes_mailjet:
        text = f"{action.detail}: `jethook serve` or `jethook register` does it"
        return warning("callback", text, setting + "EVENTS", subject=subject)
    return ok("callback", result.state.value, subject=subject)
