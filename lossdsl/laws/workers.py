"""Laws checked side by side in worker processes: the reports in order, the same for any number of processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context

import torch

from lossdsl.diagnostics import UserError
from lossdsl.laws.catalogue import Law
from lossdsl.laws.past import Past
from lossdsl.laws.python_laws import PythonLaw, check_python_law, report_of
from lossdsl.laws.search import Effort, check_statement, reported
from lossdsl.laws.verdict import LawReport, Verdict

_work: list[tuple[Sequence[Law | PythonLaw], Effort, Past | None]] = []
"""Of a worker: what it was started with."""


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reports(laws: Sequence[Law | PythonLaw], effort: Effort, past: Past | None, jobs: int) -> Iterator[LawReport]:
    """Of every law, in order. jobs: processes; one statement is the smallest task. New counterexamples are added to `past` here.

    Workers are spawned, not forked: torch's threads do not survive a fork. Each computes with one thread. They are ended when the
    iteration is, by an interrupt too. Raises UserError where a worker dies (it ran out of memory, or was killed).
    """
    tasks = [(place, n) for place, law in enumerate(laws) for n in range(statements(law))]
    if min(jobs, len(tasks)) <= 1:
        yield from _here(laws, effort, past)
        return
    others = set(active_children())
    try:
        with _ignored_interrupts():
            pool = ProcessPoolExecutor(min(jobs, len(tasks)), get_context("spawn"), _begin, (laws, effort, past))
            futures = {task: pool.submit(_task, *task) for task in tasks}
        for place, law in enumerate(laws):
            yield _gathered(law, [_result(futures[place, n]) for n in range(statements(law))], past)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(active_children()) - others:
            child.terminate()


def _here(laws: Sequence[Law | PythonLaw], effort: Effort, past: Past | None) -> Iterator[LawReport]:
    """In this process, with one thread as a worker has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for law in laws:
            yield _gathered(law, [_judged(law, n, effort, past) for n in range(statements(law))], past)
    finally:
        torch.set_num_threads(threads)


def statements(law: Law | PythonLaw) -> int:
    """How many are judged: a law in Python is one."""
    return len(law.first.statements) if isinstance(law, Law) else 1


def _judged(law: Law | PythonLaw, n: int, effort: Effort, past: Past | None) -> Verdict:
    return check_statement(law, n, effort, past) if isinstance(law, Law) else check_python_law(law, effort).verdicts[0]


def _gathered(law: Law | PythonLaw, verdicts: Sequence[Verdict], past: Past | None) -> LawReport:
    if isinstance(law, PythonLaw):
        return report_of(law, verdicts[0])
    return reported(law, verdicts, past)


def _begin(laws: Sequence[Law | PythonLaw], effort: Effort, past: Past | None) -> None:
    """In a new worker."""
    torch.set_num_threads(1)
    _work[:] = [(laws, effort, past)]


def _task(place: int, n: int) -> Verdict:
    laws, effort, past = _work[0]
    return _judged(laws[place], n, effort, past)


def _result(future: Future[Verdict]) -> Verdict:
    try:
        return future.result()
    except BrokenProcessPool:
        fix = "take fewer processes (--jobs 1), or give them more memory"
        raise UserError("a worker process ended before its laws were judged", where="laws", fix=fix) from None


@contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """Processes started here leave an interrupt of the terminal to this one, from their first line on."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
