"""Known faults of every locked package, by pip-audit. Run by `.ci/supply audit` with its packages:

`python tests/deploy/advisories.py` exits 1 where a known fault is found. Where advisories cannot be asked it says so,
and for how many packages, which is no failure: a build must not hang on somebody else's service. pip-audit itself says
"not found on PyPI" and "no known vulnerabilities found" then: its exit code alone would be a pass that nobody checked.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCKS = (
    "requirements.lock",
    "tests/requirements.lock",
    "tests/deploy/requirements.lock",
    "tests/benchmarks/requirements.lock",
)
PROGRAM = (str(Path(sys.executable).with_name("pip-audit")),)
PATIENCE_SECONDS = 300.0


@dataclass(slots=True)
class Verdict:
    """`faults` are told by package, version, advisory and the versions that mend it; `error` is why there is no answer
    at all."""

    asked: int = 0
    unasked: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    error: str | None = None

    def lines(self, lock: str) -> list[str]:
        if self.error is not None:
            return [f"not asked  {lock}: {self.error}"]
        head = f"{'FAULTS ' if self.faults else 'ok     '}    {lock}: {self.asked} packages asked about"
        told = [head, *(f"           {fault}" for fault in self.faults)] if self.asked else []
        if self.unasked:
            told.append(f"not asked  {lock}: {len(self.unasked)} packages, {', '.join(self.unasked[:3])} and so on")
        return told


def judge(answer: str, complaint: str) -> Verdict:
    """`answer` is pip-audit's JSON, `complaint` what it said beside it."""
    try:
        packages = json.loads(answer)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = complaint.strip().splitlines()[-1:] or ["no answer"]
        return Verdict(error=last[0])
    found = Verdict()
    for package in packages:
        if "skip_reason" in package:
            found.unasked.append(package["name"])
            continue
        found.asked += 1
        for fault in package["vulns"]:
            mended = ", ".join(fault["fix_versions"]) or "none yet"
            found.faults.append(f"{package['name']} {package['version']}: {fault['id']}, mended in {mended}")
    return found


def ask(lock: str, program: Sequence[str] = PROGRAM) -> Verdict:
    """What is known of the packages in one lock file."""
    arguments = [
        "--disable-pip",
        "--require-hashes",
        "--progress-spinner",
        "off",
        "--format",
        "json",
        "--requirement",
        lock,
    ]
    try:
        done = subprocess.run(
            [*program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Verdict(error=str(error))
    return judge(done.stdout, done.stderr)


def main() -> int:
    failed = False
    for lock in LOCKS:
        verdict = ask(lock)
        print("\n".join(verdict.lines(lock)), flush=True)
        failed |= bool(verdict.faults)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
