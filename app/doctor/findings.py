"""What the doctor says: one finding for each thing looked at, with the setting that would change it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"  # it works, and a person should know
    FAILURE = "failure"
    SKIPPED = "skipped"  # it could not be looked at, or there is nothing to look at


@dataclass(frozen=True, slots=True)
class Finding:
    """`about` is the part looked at, `subject` which one of several; no secret is in `text`."""

    level: Level
    about: str  # settings, public_url, mailjet, callback, database, disk, clock, sink, silence, completeness
    text: str
    setting: str | None = None
    subject: str | None = None


def ok(about: str, text: str, *, subject: str | None = None) -> Finding:
    return Finding(Level.OK, about, text, subject=subject)


def warning(about: str, text: str, setting: str, *, subject: str | None = None) -> Finding:
    return Finding(Level.WARNING, about, text, setting, subject)


def failure(about: str, text: str, setting: str, *, subject: str | None = None) -> Finding:
    return Finding(Level.FAILURE, about, text, setting, subject)


def skipped(about: str, text: str, setting: str | None = None, *, subject: str | None = None) -> Finding:
    return Finding(Level.SKIPPED, about, text, setting, subject)
