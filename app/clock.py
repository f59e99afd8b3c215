"""The one place that reads the wall clock; everything else takes the time as an argument."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Of the years 1 to 9999, in microseconds since 1970: beyond them a `datetime` has no room.
EARLIEST_MICROS, LATEST_MICROS = -62_135_596_800_000_000, 253_402_300_799_999_999


def utc_now() -> datetime:
    return datetime.now(UTC)


def now_micros() -> int:
    """Microseconds since 1970, where a `datetime` would only be turned into them again."""
    return time.time_ns() // 1000


def uptime_seconds() -> float:
    """Seconds since the machine's start, those asleep included where it tells: no change of the wall clock moves it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970, exact: `timestamp()` goes through a float and rounds."""
    since = moment - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def from_micros(micros: int) -> datetime:
    return EPOCH + timedelta(microseconds=micros)


def rfc3339(moment: datetime) -> str:
    """`2026-05-03T10:00:00Z`, with microseconds only where there are any."""
    text = (moment if moment.tzinfo is UTC else moment.astimezone(UTC)).isoformat()
    return text.removesuffix("+00:00") + "Z"


def rfc3339_of_micros(micros: int) -> str:
    """The same of microseconds since 1970, in a third of the time: many that are told together share a second."""
    second, rest = divmod(micros, 1_000_000)
    return f"{_second_text(second)}.{rest:06d}Z" if rest else f"{_second_text(second)}Z"


@lru_cache(maxsize=2048)
def _second_text(second: int) -> str:
    return (EPOCH + timedelta(seconds=second)).replace(tzinfo=None).isoformat()


async def wait_for_event(event: asyncio.Event, seconds: float) -> None:
    """Until the event, and no longer than that; with nothing left to wait for, others get their turn all the same."""
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
