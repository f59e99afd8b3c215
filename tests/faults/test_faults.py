"""The fastest fault, played in the suite; the others are for `python -m tests.faults`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.faults import __main__ as faults
from tests.faults import kills, table
from tests.faults.stage import Outcome


@pytest.mark.timeout(120)
def test_a_migration_that_was_killed_leaves_a_database_that_starts() -> None:
    once = partial(kills.migration, deaths=kills.MIGRATION_DEATHS[:1])

    outcome = faults.play(faults.Fault("kill-migration", once), "sqlite", None)

    assert outcome.wrong == []
    assert outcome.acknowledged == outcome.stored == outcome.delivered > 50


def test_a_loss_is_told() -> None:
    lost = Outcome("kill-commit", "sqlite", 3, 2, 2, wrong=["1 acknowledged and not stored"])
    assert "1 acknowledged and not stored" in table.line(lost)


def test_rows_are_replaced_in_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{table.BEGIN}\n{table.END}\nafter\n")
    monkeypatch.setattr(table, "README", readme)
    for faults_played in (["b"], ["a"], ["b"]):
        outcomes = [Outcome(name, "sqlite", len(faults_played)) for name in faults_played]
        table.write(table.markdown(outcomes, [], ["a", "b"]))

    written = readme.read_text()

    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert [line.split(" | ")[0] for line in written.splitlines()[3:7]] == ["| fault", "| ---", "| a", "| b"]
