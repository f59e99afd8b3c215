"""How values look on a page: numbers, times, sizes. Pure; Jinja2 filters."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

Moment = datetime | str | None
NONE = "–"
_STEPS = ((60, 1, "s"), (3600, 60, "min"), (86_400, 3600, "h"), (float("inf"), 86_400, "d"))


def number(value: float | None) -> str:
    """`12,345`; fractions below a hundred keep one digit."""
    if value is None:
        return NONE
    if isinstance(value, float) and abs(value) < 100 and not value.is_integer():
        return f"{value:,.1f}"
    return f"{value:,.0f}"


def percent(share: float | None) -> str:
    """A share from 0 to 1 with as many digits as a threshold of a thousandth needs."""
    if share is None:
        return NONE
    return f"{share * 100:.1f} %" if share >= 0.0995 else f"{share * 100:.2f} %"


def duration(seconds: float | None) -> str:
    """`850 ms`, `12 s`, `3 min`, `5 h`, `2 d`; a second part where the first alone would be coarse."""
    if seconds is None:
        return NONE
    if 0 < seconds < 1:
        return f"{max(seconds * 1000, 1):.0f} ms"
    _, unit, name = next(step for step in _STEPS if seconds < step[0])
    whole, rest = divmod(int(seconds), unit)
    smaller = {"min": (1, "s"), "h": (60, "min"), "d": (3600, "h")}.get(name)
    if smaller is None or whole >= 10 or rest < smaller[0]:
        return f"{whole} {name}"
    return f"{whole} {name} {rest // smaller[0]} {smaller[1]}"


def size(count: int) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count = count / 1000  # type: ignore[assignment]
    return f"{count:.1f} GB"


def moment_of(value: datetime | str) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)


def moment(value: Moment) -> str:
    """`2026-05-03 10:00:00`, in UTC as everywhere here."""
    return NONE if value is None else f"{moment_of(value).astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def iso(value: Moment) -> str:
    """For the `datetime` attribute."""
    return "" if value is None else moment_of(value).astimezone(UTC).isoformat().replace("+00:00", "Z")


def age(value: Moment, now: datetime) -> str:
    """`12 s ago`. What lies ahead, by another clock, is now."""
    if value is None:
        return "never"
    seconds = (now - moment_of(value)).total_seconds()
    return "now" if seconds < 1 else f"{duration(int(seconds))} ago"


def address(path: str, **parameters: Any) -> str:
    """A path with a query; empty values are left out, lists repeat their name."""
    kept = {name: value for name, value in parameters.items() if value not in (None, "", [])}
    return f"{path}?{urlencode(kept, doseq=True)}" if kept else path


def segment(value: str) -> str:
    """One part of a path, whatever it holds."""
    return quote(value, safe="")


FILTERS: dict[str, Any] = {
    "number": number, "percent": percent, "duration": duration, "size": size, "moment": moment, "iso": iso,
    "age": age, "segment": segment,
}  # fmt: skip
