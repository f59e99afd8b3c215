"""What Jethook is made of: the judgement over its locked packages, the image, and the list of both."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.deploy.advisories import LOCKS, ROOT, ask, judge

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
RUN = (ROOT / ".ci/run").read_text(encoding="utf-8")


def answer(*packages: object) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


CLEAN = {"name": "orjson", "version": "3.11", "vulns": []}
FAULTY = {
    "name": "jinja2", "version": "3.1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.1.9"], "aliases": []}]
}  # fmt: skip
SKIPPED = {"name": "uvicorn", "skip_reason": "Dependency not found on PyPI and could not be audited: uvicorn (0.5)"}


def test_a_known_fault_is_named_with_the_version_that_mends_it() -> None:
    verdict = judge(answer(CLEAN, FAULTY), "")

    assert verdict.asked == 2
    assert verdict.faults == ["jinja2 3.1.0: PYSEC-1, mended in 3.1.9"]


def test_packages_that_could_not_be_asked_about_are_no_pass_in_silence() -> None:
    verdict = judge(answer(CLEAN, SKIPPED), "No known vulnerabilities found")

    assert verdict.faults == []
    assert (verdict.asked, verdict.unasked) == (1, ["uvicorn"])
    assert any("not asked" in line and "uvicorn" in line for line in verdict.lines("requirements.lock"))


@pytest.mark.parametrize(("said", "complaint"), [("", "ERROR: could not connect\n"), ("<html>", ""), ("[]", "odd")])
def test_an_advisory_service_that_does_not_answer_is_told_and_is_no_fault(said: str, complaint: str) -> None:
    verdict = judge(said, complaint)

    assert verdict.faults == []
    assert verdict.error
    assert verdict.lines("x.lock")[0].startswith("not asked  x.lock")


def test_the_program_is_asked_about_the_lock_file_with_its_hashes(tmp_path: Path) -> None:
    fake = tmp_path / "fake.py"
    fake.write_text(
        "import json, sys\nprint(json.dumps({'dependencies': [{'name': a, 'skip_reason': ''} for a in sys.argv]}))"
    )

    verdict = ask("requirements.lock", [sys.executable, str(fake)])

    assert {"--require-hashes", "--disable-pip", "requirements.lock"} <= set(verdict.unasked)
    assert ask("requirements.lock", [str(tmp_path / "missing")]).error


def test_ci_asks_about_every_lock_file_and_lists_what_is_in_the_image() -> None:
    assert set(LOCKS) == {
        str(path.relative_to(ROOT)) for path in ROOT.rglob("requirements.lock") if ".venv" not in str(path)
    }
    assert "bash .ci/supply audit" in RUN
    assert "bash .ci/supply sbom" in RUN


# --- the image -------------------------------------------------------------------------------------------------------


def stages() -> list[str]:
    return re.split(r"^(?=FROM )", DOCKERFILE, flags=re.MULTILINE)[1:]


def test_both_stages_stand_on_one_base_whose_release_is_pinned() -> None:
    bases = {stage.split()[1] for stage in stages()}

    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", bases.pop())


def test_the_image_installs_wheels_of_the_lock_file_and_nothing_else() -> None:
    build, final = stages()

    assert "--require-hashes --only-binary :all: -r requirements.lock" in build
    assert not re.search(r"apt-get|apk |gcc|build-essential", DOCKERFILE)
    assert not re.search(r"pip|curl|wget", final)


def test_the_image_runs_as_a_number_that_is_not_root_and_writes_into_its_volume_alone() -> None:
    final = stages()[-1]

    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", final, re.MULTILINE)
    assert final.index("USER ") < final.index('CMD ["serve"]')
    assert re.findall(r"^VOLUME (.+)$", final, re.MULTILINE) == ["/data"]
    assert "STOPSIGNAL SIGTERM" in final
