"""`jethook demo`, as a stranger would try it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.service import ROOT
from tests.ports import free_port


def test_the_demo_registers_relays_and_ends_by_itself(folder: Path) -> None:
    environment = {
        "PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT), "JETHOOK_PORT": str(free_port()), "TERM": "dumb",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "app", "demo", "--seconds", "2.5", "--rate", "60"],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"registered 7 callbacks at Mailjet: .*unsub", done.stdout)
    assert f":{environment['JETHOOK_PORT']}/docs" in done.stdout
    assert re.search(rf":{environment['JETHOOK_PORT']}/dashboard/sign-in\?link=\S{{80,}}", done.stdout)
    assert re.search(r"REST key +\S{20,}", done.stdout)
    assert re.search(r"sink got  \w+ .* webhook-id [0-9a-f-]{36}", done.stdout)
    sent, got = map(int, re.findall(r"sent (\d+) events .* sink got (\d+)", done.stdout)[-1])
    assert sent >= got > 0
    assert list(folder.iterdir()) == []
