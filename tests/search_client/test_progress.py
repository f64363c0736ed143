import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from search_client import progress
from search_client.progress import ConsoleProgress


def test_off_a_terminal_there_are_plain_lines() -> None:
    text = io.StringIO()
    console = ConsoleProgress(Console(file=text, highlight=False))
    console.say("searching")
    with console.task("training", 2) as advance:
        advance(1, "loss 2.0")
        advance(2, "loss 1.0")
    first, last = text.getvalue().splitlines()
    assert first == "searching"
    assert last.startswith("training: loss 1.0, ")
    assert "\x1b" not in text.getvalue()


def test_a_line_says_how_much_time_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now_s))
    text = io.StringIO()
    with ConsoleProgress(Console(file=text, highlight=False)).task("measuring", 3) as advance:
        now_s += 20.0
        advance(0)
        now_s += 20.0
        advance(1, "steady")
        advance(3)
    nothing_known, first, _ = text.getvalue().splitlines()
    assert nothing_known == "measuring: 0 of 3"
    assert first == "measuring: 1 of 3, about 80 s left steady"


def test_on_a_terminal_there_is_a_bar() -> None:
    text = io.StringIO()
    console = ConsoleProgress(Console(file=text, force_terminal=True, width=100))
    with console.task("training", 2) as advance:
        advance(2)
    assert "2/2" in text.getvalue()
