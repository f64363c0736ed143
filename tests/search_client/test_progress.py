import io

from rich.console import Console

from search_client.progress import ConsoleProgress


def test_off_a_terminal_there_are_plain_lines() -> None:
    text = io.StringIO()
    progress = ConsoleProgress(Console(file=text, highlight=False))
    progress.say("searching")
    with progress.task("training", 2) as advance:
        advance(1, "loss 2.0")
        advance(2, "loss 1.0")
    first, last = text.getvalue().splitlines()
    assert first == "searching"
    assert last.startswith("training: loss 1.0, ")
    assert "\x1b" not in text.getvalue()


def test_on_a_terminal_there_is_a_bar() -> None:
    text = io.StringIO()
    progress = ConsoleProgress(Console(file=text, force_terminal=True, width=100))
    with progress.task("training", 2) as advance:
        advance(2)
    assert "2/2" in text.getvalue()
