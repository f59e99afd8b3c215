"""What needs a person, the worst first, each with what helps. Pure.

A sentence says what is wrong and what it means; the action is a button (a form to post) or a link; a setting is named
where only that helps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from urllib.parse import quote

from app.registration.queries import CallbackState
from app.registration.shapes import CallbackModel, WebhookModel
from app.settings import Settings
from app.sinks.shapes import Sink

OVERDUE_SECONDS = 60.0
MOST_COUNTED = 10_000  # of a sink's deliveries; more are told as "10,000+"
PUBLIC_URL = "JETHOOK_PUBLIC_URL=https://hooks.example.com"
MAILJET_KEYS = "MJ_APIKEY_PUBLIC=…\nMJ_APIKEY_PRIVATE=…"
FIRST_SINK = "JETHOOK_SINKS__CRM__URL=https://crm.example.com/mail-events"


class Weight(IntEnum):
    """How soon: now, today, when setting it up."""

    BAD = 0
    WARN = 1
    NEXT = 2


@dataclass(frozen=True, slots=True)
class Button:
    """`post` is an action of ours, `href` a page; one of them."""

    label: str
    href: str | None = None
    post: str | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    weight: Weight
    title: str
    text: str
    buttons: Sequence[Button] = ()
    setting: str | None = None


def notices(
    settings: Settings, sinks: Iterable[Sink], webhooks: Sequence[WebhookModel], quarantined: bool
) -> list[Notice]:
    found = [*_first_steps(settings, webhooks), *_of_webhooks(webhooks)]
    for sink in sinks:
        found += _of_sink(sink)
    if quarantined:
        look = Button("Look at it", href="/dashboard/quarantine")
        found.append(
            Notice(Weight.WARN, "Something could not be read", "It is kept in quarantine with its reason.", [look])
        )
    return sorted(found, key=lambda notice: notice.weight)


def _first_steps(settings: Settings, webhooks: Sequence[WebhookModel]) -> Iterator[Notice]:
    """What is not set up yet, one step at a time for registration."""
    off = [webhook.connection for webhook in webhooks if webhook.registration == "off"]
    without_keys = [name for name in dict.fromkeys(off) if not settings.effective_connections[name].has_keys]
    if not settings.public_url:
        text = "Tell Jethook where Mailjet reaches it, then start it again: it registers its callbacks by itself."
        yield Notice(Weight.NEXT, "Next step: a public URL", text, setting=PUBLIC_URL)
    elif without_keys:
        name = without_keys[0]
        prefix = f"JETHOOK_CONNECTIONS__{name.upper()}__"
        keys = MAILJET_KEYS if name == "default" else f"{prefix}API_KEY=…\n{prefix}SECRET_KEY=…"
        text = f"The connection {name!r} has no keys of Mailjet's, so its callbacks cannot be registered."
        yield Notice(Weight.NEXT, "Next step: Mailjet's keys", text, setting=keys)
    if not settings.sinks:
        text = "Events are kept, and can be replayed to a sink that you add later. Name your first one:"
        yield Notice(Weight.NEXT, "Next step: a sink", text, setting=FIRST_SINK)


# --- webhooks --------------------------------------------------------------------------------------------------------

_WRONG = {
    CallbackState.DEAD: ("is dead", "are dead", "Mailjet gave up on it after failures and sends no more of these."),
    CallbackState.MISSING: ("is missing", "are missing", "Mailjet has no callback, so these events do not come."),
    CallbackState.FOREIGN: ("is somebody else's", "are somebody else's", "Another URL holds the place at Mailjet."),
    CallbackState.ERROR: ("could not be looked at", "could not be looked at", "Mailjet refused or did not answer."),
}


def _of_webhooks(webhooks: Iterable[WebhookModel]) -> Iterator[Notice]:
    for webhook in webhooks:
        for state in _WRONG:
            wrong = [callback for callback in webhook.callbacks if callback.state is state]
            if wrong:
                yield _of_callbacks(webhook.name, state, wrong)
        yield from _of_silence(webhook)


def _of_silence(webhook: WebhookModel) -> Iterator[Notice]:
    since = {c.type: c.rhythm.silent_since for c in webhook.callbacks if c.rhythm and c.rhythm.state == "silent"}
    if not since:
        return
    last = max((moment for moment in since.values() if moment is not None), default=None)
    told = f" since {last:%Y-%m-%d %H:%M} UTC" if last is not None else ""
    text = f"Nothing came{told}, though by the past weeks or the setting something should have."
    setting = f"JETHOOK_WEBHOOKS__{webhook.name.upper()}__SILENT_AFTER_SECONDS"
    look = Button("Details", href=f"/dashboard/webhooks/{quote(webhook.name)}")
    yield Notice(Weight.WARN, f"{webhook.name}: {', '.join(since)} silent", text, [look], setting)


def _of_callbacks(name: str, state: CallbackState, wrong: Sequence[CallbackModel]) -> Notice:
    one, several, meaning = _WRONG[state]
    types = ", ".join(callback.type + " (backup)" * callback.backup for callback in wrong)
    title = f"{name}: {types} {one if len(wrong) == 1 else several}"
    page = f"/dashboard/webhooks/{quote(name)}"
    if state is CallbackState.FOREIGN:
        setting = f"JETHOOK_WEBHOOKS__{name.upper()}__ON_CONFLICT=replace"
        text = f"{meaning} Jethook leaves it there and gets none of these events. To have it replaced, set:"
        return Notice(Weight.BAD, title, text, [Button("See who holds it", href=page)], setting)
    register = Button("Register now", post=f"{page}/register")
    return Notice(Weight.BAD, title, wrong[0].error or meaning, [register, Button("Details", href=page)])


# --- sinks -----------------------------------------------------------------------------------------------------------


def _counted(count: int) -> str:
    return f"{MOST_COUNTED:,}+" if count >= MOST_COUNTED else f"{count:,}"


def _of_sink(sink: Sink) -> Iterator[Notice]:
    page = f"/dashboard/sinks/{quote(sink.name)}"
    details = Button("Details", href=page)
    if sink.state == "removed":
        text = f"{_counted(sink.backlog)} deliveries wait until it is configured again or they are cancelled."
        yield Notice(Weight.WARN, f"Sink {sink.name} is no longer configured", text, [details])
        return
    if sink.state == "paused":
        text = f"{_counted(sink.backlog)} deliveries wait. Reason: {sink.paused_reason or 'none given'}."
        yield Notice(Weight.BAD, f"Sink {sink.name} is paused", text, [Button("Resume", post=f"{page}/resume")])
    elif sink.breaker != "closed":
        text = f"Its breaker is {sink.breaker.replace('_', ' ')}: {_counted(sink.backlog)} deliveries wait."
        text += f" Last error: {sink.last_error}." if sink.last_error else ""
        yield Notice(Weight.BAD, f"Sink {sink.name} fails", text, [Button("Test it", post=f"{page}/test"), details])
    elif sink.oldest_overdue_seconds > OVERDUE_SECONDS:
        text = f"The oldest delivery is {sink.oldest_overdue_seconds:,.0f} s overdue; {_counted(sink.backlog)} wait."
        yield Notice(Weight.WARN, f"Sink {sink.name} falls behind", text, [details])
    if sink.dead:
        retry = Button("Retry all", post=f"{page}/retry-dead")
        text = "Every retry failed. They are kept until you retry or cancel them."
        title = f"Sink {sink.name}: {_counted(sink.dead)} dead {'delivery' if sink.dead == 1 else 'deliveries'}"
        yield Notice(Weight.BAD, title, text, [retry, Button("Look at them", href=f"{page}#dead")])
