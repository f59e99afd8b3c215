import io

from rich.console import Console

from app.transfer import progress as module
from app.transfer.progress import progress


def test_plain_lines_come_now_and_then_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr(module, "PLAIN_SECONDS", 0.0)
    file = io.StringIO()

    with progress(Console(file=file, force_terminal=False), "import", 10) as tell:
        tell("1 lines", 1)
        monkeypatch.setattr(module, "PLAIN_SECONDS", 60.0)
        tell("2 lines", 2)

    assert file.getvalue() == "import: 1 lines\n"


def test_a_terminal_gets_a_bar_that_goes_away():
    file = io.StringIO()

    for total in (10, None):
        with progress(Console(file=file, force_terminal=True, width=80), "import", total) as tell:
            tell("7 lines [b]", 7)

    assert "7 lines" in file.getvalue()
    assert "\x1b[2K" in file.getvalue()
