"""A short run of `python -m tests.e2e.kill9`; twenty rounds are for the command."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import MakeDatabase
from tests.e2e import kill9

RATE = 300  # events a second: all that came has to be delivered before the end


@pytest.mark.timeout(150)
def test_what_was_answered_200_survives_kill_9_and_reaches_its_sink(make_database: MakeDatabase, folder: Path) -> None:
    """Both databases at once: most of it is waiting until the leases of the dead run out."""
    urls = [make_database("sqlite"), make_database("postgresql")]
    with ThreadPoolExecutor() as threads:
        reports = list(threads.map(lambda url: kill9.run(url, folder, rounds=2, seed=7, rate=RATE), urls))

    for report in reports:
        assert report.is_clean, str(report)
        assert len(report.acknowledged) > 100
        assert report.acknowledged <= report.stored == report.delivered
