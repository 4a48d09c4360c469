"""What a person sees of a run: a live bar on a terminal, one line per epoch elsewhere, nothing without a console."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SAME_SIGNAL_SECONDS = 1.0


class Reporter:
    """Receives the events of a run. `bar` opens the live bar around one stage."""

    def __init__(self, console: Console | None) -> None:
        self.console = console or Console(quiet=True)
        self._progress: Progress | None = None
        self._task: Any = None
        self._accuracy = ""

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[None]:
        """A bar of `total` units, `done` of which an earlier part of the run has made."""
        if not self.console.is_terminal:
            yield
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[about]}"))
        with Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=self.console) as progress:
            self._progress, self._task = progress, progress.add_task(title, total=total, completed=done, about="")
            try:
                yield
            finally:
                self._progress = None

    def update(self, title: str, values: Mapping[str, float]) -> None:
        """One training batch is done; `values` are the epoch's running means."""
        if self._progress is not None:
            shown = " ".join(f"{name} {value:.4g}" for name, value in values.items())
            self._progress.update(self._task, advance=1, description=title, about=f"{shown} {self._accuracy}")

    def advance(self, units: int) -> None:
        """Some units of a measurement are done."""
        if self._progress is not None:
            self._progress.update(self._task, advance=units)

    def epoch(self, record: Mapping[str, Any], epochs: int) -> None:
        """An epoch is over: keep its accuracies in the bar, or print its line."""
        self._accuracy = f"| clean {record['validation']['clean']:.1%} robust {record['validation']['robust']:.1%}"
        if self._progress is None:
            terms = " ".join(f"{name} {value:.4g}" for name, value in record["terms"].items())
            best = " (best)" if record["best"] else ""
            self.note(
                f"epoch {record['epoch']}/{epochs}: loss {record['loss']:.4g} {terms} {self._accuracy}{best}, {record['seconds']:.0f} s"
            )

    def note(self, text: str) -> None:
        """A line of its own."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def stop_request() -> Iterator[Callable[[], bool]]:
    """A function that says whether Ctrl-C or SIGTERM has come. The first one only sets it, so that the run can end at a batch's border;
    a second one acts as ever, unless it follows so closely that it is the same one, passed on by a wrapper (timeout, a shell).
    Outside the main thread signals cannot be caught and it stays False."""
    asked = threading.Event()
    times: list[float] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    names = (signal.SIGINT, signal.SIGTERM)
    before = {name: signal.getsignal(name) for name in names}

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        times.append(time.monotonic())
        if len(times) > 1 and times[-1] - times[0] > SAME_SIGNAL_SECONDS:
            signal.signal(number, before[signal.Signals(number)] or signal.SIG_DFL)
            signal.raise_signal(number)

    for name in names:
        signal.signal(name, ask)
    try:
        yield asked.is_set
    finally:
        for name in names:
            signal.signal(name, before[name] or signal.SIG_DFL)
