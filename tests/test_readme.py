"""The README stays true: its settings, its commands and its two commands for a fresh clone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from app.cli import cli, reference_table
from app.operator_events import MEANINGS, asked_for
from app.settings import load_settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```[a-z]*\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_settings_table_is_the_one_of_the_code():
    """If it is not: put the output of `jethook config --reference` there."""
    start, end = README.index("| variable | default | |"), README.index("<!-- end of settings -->")

    assert README[start:end].splitlines() == reference_table()


@pytest.mark.parametrize(("block", "ends"), [(0, ".venv/bin/jethook demo"), (1, ".venv/bin/pytest -q")])
def test_a_fresh_clone_needs_one_line(block: int, ends: str):
    lines = BLOCKS[block].splitlines()

    assert len(lines) == 1
    assert lines[0].endswith(ends)
    assert "--require-hashes" in lines[0]


def test_every_operator_event_is_named_with_its_meaning_and_the_example_asks_for_all():
    rows = dict(re.findall(r"^\| `((?:jethook|suppression)\.[a-z.]+)` \| (.+) \|$", README, re.MULTILINE))
    (example,) = [block for block in BLOCKS if block.startswith("JETHOOK_SINKS__PAGER")]
    settings = load_settings(dict(line.split("=", 1) for line in example.splitlines()), env_file=None)

    assert rows == dict(MEANINGS)
    assert asked_for(settings.sinks["pager"].events) == tuple(n for n in MEANINGS if n.startswith("jethook."))


def _commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(cli)
    return dict(group.commands)


def test_every_command_named_exists_and_every_command_is_named():
    # At the start of code or after a path: prose may say "Jethook registers".
    named = set(re.findall(r"(?:`|/bin/|\bruns? )jethook ([a-z]+)", README))

    assert named == set(_commands())


def test_every_option_named_with_a_command_exists():
    for code in re.findall(r"`jethook ([^`]+)`", README):
        name, *_ = code.split()
        command = _commands()[name]
        parts = [command, *getattr(command, "commands", {}).values()]
        known = {option for part in parts for parameter in part.params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", code)) <= known, code


def test_every_variable_named_is_a_setting():
    known = {re.match(r"\| `([A-Z_{}]+)`", line)[1] for line in reference_table()[2:]}  # type: ignore[index]
    for variable in set(re.findall(r"\b(?:JETHOOK|MJ)_[A-Z_{}]*[A-Z]", README)) - {"JETHOOK_"}:
        pattern = re.sub(r"__[A-Z{}]+__", "__{N}__", variable)
        assert pattern in known, variable


def test_the_example_of_an_environment_fits():
    (example,) = [block for block in BLOCKS if block.startswith("MJ_APIKEY_PUBLIC")]
    settings = load_settings(dict(line.split("=", 1) for line in example.splitlines()), env_file=None)

    assert settings.effective_connections["default"].has_keys
    assert list(settings.sinks) == ["crm"]


def test_the_example_environment_of_deploy_fits_also_with_its_comments_taken_away(tmp_path: Path):
    text = (ROOT / "deploy" / "example.env").read_text(encoding="utf-8").replace("whsec_...", "whsec_" + "QUFB" * 8)
    plain, full = tmp_path / "plain.env", tmp_path / "full.env"
    plain.write_text(text, encoding="utf-8")
    full.write_text(re.sub(r"^# (?=[A-Z_]+=)", "", text, flags=re.MULTILINE), encoding="utf-8")

    assert load_settings({}, env_file=plain) == load_settings({}, env_file=None)
    assert list(load_settings({}, env_file=full).sinks) == ["crm"]


def test_the_verification_snippet_verifies_a_signed_delivery():
    (snippet,) = [block for block in BLOCKS if "standardwebhooks" in block]
    scope: dict[str, object] = {}
    exec(compile(snippet, "README.md", "exec"), scope)
    verified = scope["verified_event"]
    assert callable(verified)
    body, headers = _signed(re.findall(r"whsec_\w+", snippet)[0])

    assert verified(body, headers) == {"event": "open"}
    assert verified(body + b" ", headers) is None


def _signed(secret: str) -> tuple[bytes, dict[str, str]]:
    import time

    from app.delivery.signing import Signer

    body, now = b'{"event":"open"}', int(time.time())
    signature = Signer.from_secrets([secret]).header("id", now, body)
    return body, {"webhook-id": "id", "webhook-timestamp": str(now), "webhook-signature": signature}
