"""What a person sees while a search runs: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_S = 10.0  # between two plain lines about the same task


class Advance(Protocol):
    def __call__(self, done: int, note: str = "") -> None:
        """Say how far a task is, and something about it."""
        ...


class ConsoleProgress:
    """Progress on standard error, so that standard output is the result's alone."""

    def __init__(self, console: Console | None = None, *, heard: Callable[[str, int, int], None] | None = None) -> None:
        """`heard` is told of every step too: the task's name, how much is done, and of how much."""
        self._heard = heard
        self._console = console or Console(stderr=True, highlight=False, markup=False)

    def say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """A bar, or a line now and then, until the task ends; then one line that says how long it took."""
        started = time.monotonic()
        last_note = ""
        with self._bar(name, total) if self._console.is_terminal else self._lines(name, total) as show:

            def advance(done: int, note: str = "") -> None:
                nonlocal last_note
                last_note = note or last_note
                show(done, last_note)
                if self._heard is not None:
                    self._heard(name, done, total)

            if self._heard is not None:
                self._heard(name, 0, total)
            yield advance
        self.say(f"{name}: {last_note + ', ' if last_note else ''}{time.monotonic() - started:.1f} s")

    @contextmanager
    def _bar(self, name: str, total: int) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(name, total=total, note="")
            yield lambda done, note="": bar.update(task, completed=done, note=note)

    @contextmanager
    def _lines(self, name: str, total: int) -> Iterator[Advance]:
        started = last = time.monotonic()

        def line(done: int, note: str = "") -> None:
            nonlocal last
            if done < total and time.monotonic() - last > LINE_S:
                last = time.monotonic()
                left = f", about {(last - started) / done * (total - done):.0f} s left" if done else ""
                self.say(f"{name}: {done} of {total}{left} {note}".rstrip())

        yield line
