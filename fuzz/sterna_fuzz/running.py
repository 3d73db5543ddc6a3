"""Running a target: examples in batches, from one seed, until they are done or the time is up.

A batch is one run of Hypothesis, whose seed follows from the seed of the run, the name of the property and
the number of the batch. The same seed and the same number of examples give the same examples; the clock
decides only where a run with a time ends. A property that has failed is not run further: its example is
shrunk, and the other properties go on.
"""

from __future__ import annotations

import hashlib
import re
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Final

from hypothesis import HealthCheck, Phase, reproduce_failure, seed, settings
from hypothesis.errors import DidNotReproduce, InvalidArgument
from hypothesis.reporting import with_reporter

from sterna_fuzz.target import Configure, Property, TestT, Words

BATCH_EXAMPLES: Final = 100
_ROUND_EXAMPLES: Final = 200  # of all properties together, where a time bounds the run
_BLOB: Final = re.compile(r"@reproduce_failure\('([^']+)', b'([^']+)'\)")
_OFTEN: Final = frozenset({"state.holds()", "state.teardown()"})  # behind every step, and at the end
_HERE: Final = str(Path(__file__).parent)


@dataclass(frozen=True, slots=True)
class Wish:
    """How much is to be run, from which seed.

    Attributes:
        examples: of all properties together; None until the time is up.
        seconds: of wall clock, looked at between two examples; None until the examples are done.
        shrink: whether a failing example is made as small as possible.
        steps: the most steps of a state machine.
    """

    seed: int
    examples: int | None = None
    seconds: float | None = None
    shrink: bool = True
    steps: int = 50


@dataclass(frozen=True, slots=True)
class Failure:
    """An example for which a property does not hold.

    Attributes:
        error: what was raised, one line.
        example: the example, as Python would build it.
        where: the lines of the product that were running, newest last.
        blob: the example for Hypothesis, of the version below; empty if it gave none.
        version: of Hypothesis.
    """

    name: str
    invariant: str
    error: str
    example: str
    where: tuple[str, ...]
    blob: str
    version: str


@dataclass(slots=True)
class Report:
    """What a run has found.

    Attributes:
        examples: checked examples by property; those of shrinking are not counted.
        reached: how often examples of each property came to what end.
    """

    examples: Counter[str] = field(default_factory=Counter)
    reached: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: Report) -> None:
        """The sum of both; of one property, the first failure is kept."""
        self.examples.update(other.examples)
        for name, words in other.reached.items():
            self.reached.setdefault(name, Counter()).update(words)
        known = {failure.name for failure in self.failures}
        self.failures += [failure for failure in other.failures if failure.name not in known]
        self.seconds = max(self.seconds, other.seconds)


class _TimeUp(BaseException):
    """The time is over. No Exception, so that Hypothesis does not take it for a failure."""


class _Clock:
    """The time of a run. It starts with the first example: what has to be made before that is not counted.

    Attributes:
        has_ended: `_TimeUp` was raised. Where that was inside of Hypothesis it may come out as another error:
            a history that stops drawing all at once looks flaky.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._end: float | None = None
        self.has_ended = False

    @property
    def is_up(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end

    def begins(self) -> None:
        """An example begins, or the time is up."""
        if self.is_up:
            self.has_ended = True
            raise _TimeUp
        if self._end is None and self._seconds is not None:
            self._end = time.monotonic() + self._seconds


class _Counting:
    """Counts for one property, and ends its run when the time is up."""

    def __init__(self, name: str, report: Report, clock: _Clock, tick: Callable[[], None]) -> None:
        self._name = name
        self._report = report
        self._clock = clock
        self._tick = tick
        self._pending = False  # an example has begun and was not found good
        self._failed = False

    def begins(self) -> None:
        self._failed = self._failed or self._pending
        if self._failed:
            return  # this is shrinking, which is not cut short
        self._clock.begins()
        self._pending = True
        self._report.examples[self._name] += 1
        self._tick()

    def reached(self, words: Words) -> None:
        self._pending = False
        if self._failed:
            return
        self._report.reached.setdefault(self._name, Counter()).update(words)


def run(properties: Sequence[Property], wish: Wish, tick: Callable[[], None] = lambda: None) -> Report:
    """Run properties as wished. `tick` is called for every example."""
    report, started, clock = Report(), time.monotonic(), _Clock(wish.seconds)
    for each, batch, examples in _batches(properties, wish, report):
        if clock.is_up:
            break
        number = derived_seed(wish.seed, each.name, batch)
        configure = _configured(_settings(wish, examples), seed(number))
        test = each.bind(_Counting(each.name, report, clock, tick), configure)
        said: list[object] = []
        try:
            with with_reporter(said.append):
                test()
        except _TimeUp:
            break
        except Exception as error:  # noqa: BLE001 - whatever the product raised is what was looked for
            if clock.has_ended:
                break
            report.failures.append(_failure(each, error, said))
    report.seconds = time.monotonic() - started
    return report


def replay(each: Property, blob: str, version: str, wish: Wish) -> Report:
    """Check the one example of a blob.

    Raises:
        ValueError: it is of another version of Hypothesis, or none of this property's.
    """
    report, started = Report(), time.monotonic()
    again: Configure = reproduce_failure(version, blob.encode())
    configure = _configured(_settings(wish, 1), again)
    said: list[object] = []
    try:
        with with_reporter(said.append):
            each.bind(_Counting(each.name, report, _Clock(None), lambda: None), configure)()
    except DidNotReproduce as error:
        if not report.examples[each.name]:
            raise ValueError(f"this is no example of {each.name}") from error
    except InvalidArgument as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # noqa: BLE001 - see above
        failure = _failure(each, error, said)
        report.failures.append(replace(failure, blob=blob, version=version))
    report.seconds = time.monotonic() - started
    return report


def derived_seed(number: int, *path: object) -> int:
    """A seed of 64 bits that follows from another one and from what it is for."""
    text = "/".join(map(str, (number, *path)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _batches(
    properties: Sequence[Property], wish: Wish, report: Report
) -> Iterator[tuple[Property, int, int]]:
    """Which property is next, the number of its batch, and the examples of that."""
    total = sum(each.weight for each in properties)
    failed: set[str] = set()
    left = dict(zip([each.name for each in properties], _shares(properties, wish.examples), strict=True))
    batches: Counter[str] = Counter()
    for each in cycle(properties):
        failed.update(failure.name for failure in report.failures)
        left = {name: count for name, count in left.items() if count > 0 and name not in failed}
        if not left:
            return
        if each.name not in left:
            continue
        share = max(1, _ROUND_EXAMPLES * each.weight // total) if wish.seconds else BATCH_EXAMPLES
        examples = min(share, BATCH_EXAMPLES, left[each.name])
        left[each.name] -= examples
        yield each, batches[each.name], examples
        batches[each.name] += 1


def _shares(properties: Sequence[Property], examples: int | None) -> list[int]:
    """Examples by weight, at least one each."""
    if examples is None:
        return [1 << 62] * len(properties)
    total, shares = sum(each.weight for each in properties), []
    for index, each in enumerate(properties):
        before = sum(earlier.weight for earlier in properties[:index])
        share = examples * (before + each.weight) // total - examples * before // total
        shares.append(max(1, share))
    return shares


def _settings(wish: Wish, examples: int) -> settings:
    return settings(
        max_examples=examples,
        phases=(Phase.generate, Phase.shrink) if wish.shrink else (Phase.generate,),
        database=None,
        deadline=None,
        derandomize=False,
        print_blob=True,
        report_multiple_bugs=False,
        stateful_step_count=wish.steps,
        suppress_health_check=list(HealthCheck),
    )


def _configured(chosen: settings, start: Configure) -> Configure:
    def configure(test: TestT, /) -> TestT:
        return start(chosen(test))

    return configure


def _failure(each: Property, error: Exception, said: Sequence[object]) -> Failure:
    """What is to be told of it; `said` is what Hypothesis has printed."""
    notes = "\n".join([*map(str, said), *getattr(error, "__notes__", ())])
    found = _BLOB.search(notes)
    version, blob = found.groups() if found else ("", "")
    told = notes.split("\nYou can reproduce")[0].strip().splitlines()
    example = "\n".join(line for line in told if line.strip() not in _OFTEN)
    lines = traceback.extract_tb(error.__traceback__)
    where = [
        f"{_short(line.filename)}:{line.lineno} in {line.name}" for line in lines if _ours(line.filename)
    ]
    text = str(error).strip().split("\n")[0] or "no text"
    return Failure(
        each.name,
        each.invariant,
        f"{type(error).__name__}: {text}",
        example,
        tuple(where[-6:]),
        blob,
        version,
    )


def _ours(path: str) -> bool:
    return "sterna" in path and "hypothesis" not in path and path not in {__file__, f"{_HERE}/target.py"}


def _short(path: str) -> str:
    """From the package on: where the package is does not matter to anybody else."""
    parts = Path(path).parts
    at = max((index for index, part in enumerate(parts) if part in {"sterna", "sterna_fuzz"}), default=0)
    return "/".join(parts[at:])
