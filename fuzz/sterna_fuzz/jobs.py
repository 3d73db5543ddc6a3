"""A run in several processes, each with a seed of its own, and words about it for whoever waits."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import replace
from multiprocessing.sharedctypes import Synchronized
from typing import Final

from sterna.core.words import count_text
from sterna_fuzz.running import Report, Wish, derived_seed, run
from sterna_fuzz.targets import TARGETS

PROGRESS_S: Final = 5.0
_POLL_S: Final = 0.5

_count: Synchronized[int] | None = None  # examples of all processes; set where a worker begins


def run_jobs(target: str, only: Sequence[str], wish: Wish, jobs: int, say: Callable[[str], None]) -> Report:
    """Run a target. One job runs here, several run in processes of their own.

    Args:
        target: its name.
        only: properties and mutators, as `Target.properties` takes them.
        wish: of all jobs together; examples are shared out.
        jobs: how many.
        say: is told every few seconds how far it is.
    """
    progress = _Progress(say)
    if jobs == 1:
        return run(TARGETS[target]().properties(only), wish, progress.tick)
    context = multiprocessing.get_context("spawn")
    count: Synchronized[int] = context.Value("q", 0)
    report = Report()
    with ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(count,)) as pool:
        left = {pool.submit(_work, target, tuple(only), each) for each in share(wish, jobs)}
        while left:
            done, left = wait(left, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            for each in done:
                report.add(each.result())
            progress.at(count.value)
    return report


def share(wish: Wish, jobs: int) -> list[Wish]:
    """What each job does of it: with a seed of its own, and its part of the examples, none for nothing."""
    wishes = []
    for job in range(jobs):
        examples = wish.examples
        if examples is not None:
            examples = examples * (job + 1) // jobs - examples * job // jobs
        if examples != 0:
            wishes.append(replace(wish, seed=derived_seed(wish.seed, "job", job), examples=examples))
    return wishes


def _begin(count: Synchronized[int]) -> None:
    global _count  # noqa: PLW0603 - a process has one, and the pool no other way to hand it over
    _count = count
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Who is killed cannot tell its workers, and they would work on to the end of their time."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(target: str, only: Sequence[str], wish: Wish) -> Report:
    return run(TARGETS[target]().properties(only), wish, _tick)


def _tick() -> None:
    if _count is not None:
        with _count.get_lock():
            _count.value += 1


class _Progress:
    """Says every few seconds how many examples there were."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._started = self._said = time.monotonic()
        self._examples = 0

    def tick(self) -> None:
        self.at(self._examples + 1)

    def at(self, examples: int) -> None:
        self._examples = examples
        now = time.monotonic()
        if now - self._said >= PROGRESS_S:
            self._said = now
            self._say(f"  {count_text(examples, 'example')} in {now - self._started:.0f} s")
