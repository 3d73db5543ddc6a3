"""A world with a clock and dice: migrations one after the other, and faults that a seed has drawn.

Everything follows from the seed. What goes wrong is drawn first, as a list: each item says what, in which
migration, and when (so many steps after a machine has entered a state for the first time). The list is what
is made shorter to explain a failure, and a run can be given another one than its own.

Faults are drawn swarm-wise: each seed knows only some kinds, so that a few faults of the same kind meet as
often as many of different kinds.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from sterna.core.tables import DestinationState, SourceState
from sterna.sim.defects import Defect
from sterna.sim.faults import Fault, Step, possible
from sterna.sim.hosts import Reach, Write
from sterna.sim.judge import Violation
from sterna.sim.makers import LiveMakers, Shape
from sterna.sim.rest import End, check_rest
from sterna.sim.world import World

STEPS_MAX: Final = 20_000
"""Of one migration with all that follows: what takes more goes round in circles."""

_S, _D = SourceState, DestinationState
# When something goes wrong: mostly where it matters.
ANCHORS: Final = (
    _S.GREETING, _S.ACKING, _S.COLLECTING, _S.PREPARING, _S.PAUSING, _S.FREEZING, _D.READY, _D.LOADING,
    *(_S.SEALED, _S.GRANTING, _S.RECORDING, _S.HANDED_OVER, _S.MOVED, _S.ROLLING_BACK) * 2,
    *(_D.LOADED, _D.RECORDING, _D.CLAIMING, _D.COMMITTING, _D.STARTING, _D.COMPLETING, _D.RUNNING) * 2,
    *(_D.FETCHING, _D.PARTING) * 2,
)  # fmt: skip
_UNHASHED: Final = 0.2  # the share of seeds whose sessions go without page hashes
_ANEW: Final = 0.4  # the share of seeds in which a source opens another session, if one has failed
RECOVERY: Final = "recovery"
_NAMES: Final = (*(type(each).__name__[0] + "." + each.name for each in ANCHORS), RECOVERY, RECOVERY)


DRAWN: Final = [each for each in Fault if each not in {Fault.TORN, Fault.OPENED_ANEW}]
"""These guests write all of their pages in a round, so that no two groups are on their way. A session that is
opened anew is drawn by itself, since it needs one that has failed."""
SEEDED: Final = (*DRAWN, Fault.OPENED_ANEW)
"""All that happens in seeds."""


@dataclass(frozen=True, slots=True)
class Mishap:
    """One thing that goes wrong.

    Attributes:
        fault: what.
        leg: in which migration, from 0.
        anchor: behind which state of a machine, or behind the begin of recovery.
        behind: so many steps later, or as soon as it can happen then.
        choice: which one, of several that are possible.
        seconds: how long, for what lasts.
    """

    fault: Fault
    leg: int
    anchor: str
    behind: int
    choice: int
    seconds: float

    def __str__(self) -> str:
        when = f"migration {self.leg + 1}, {self.behind} steps behind {self.anchor}"
        return f"{self.fault.text} ({when}, choice {self.choice}, {self.seconds:.3g} s)"


@dataclass(frozen=True, slots=True)
class Script:
    """A seed, unfolded."""

    seed: int
    shape: Shape
    legs: int
    mishaps: tuple[Mishap, ...]


def script_of(seed: int) -> Script:
    """What a seed stands for."""
    dice = random.Random(f"script/{seed}")
    others = random.Random(f"unhashed/{seed}")  # so that all else of a seed is as it was before
    shape = Shape(
        store=dice.random() < 0.6,
        max_rounds=dice.randint(1, 3),
        resume=dice.random() < 0.5,
        downtime_s=dice.choice((0.01, 0.3, 2.0)),
        switchover=dice.choice(("stop-and-copy", "stop-and-copy", "bitmap", "post-copy", "auto")),
        unhashed=others.random() < _UNHASHED,
    )
    legs = dice.choice((1, 1, 2, 3))
    known = dice.sample(DRAWN, dice.randint(2, 6))
    if not shape.store:
        known = [each for each in known if each not in _OF_STORE] or [Fault.CUT]
    count = dice.choice((1, 1, 2, 2, 3, 3, 4, 5))
    mishaps = tuple(_mishap(dice, dice.choice(known), legs) for _ in range(count))
    anew = random.Random(f"anew/{seed}")
    if anew.random() < _ANEW:
        first = mishaps[0]  # what it needs is that this one has ended a session
        mishaps += (replace(first, fault=Fault.OPENED_ANEW, behind=first.behind + anew.choice((0, 1, 2, 5))),)
    return Script(seed, shape, legs, mishaps)


_OF_STORE: Final = frozenset({Fault.REPLY_LOST, Fault.CLAIM_LATE, Fault.CLAIM_DOUBLED, Fault.STORE_OUT})
# They have few occasions, so they wait for the first.
_RARE: Final = _OF_STORE - {Fault.STORE_OUT} | {Fault.MARK_FAILS, Fault.LOCKS_REFUSED, Fault.NOT_READY}


def _mishap(dice: random.Random, fault: Fault, legs: int) -> Mishap:
    anchor = dice.choice(_NAMES)
    return Mishap(
        fault,
        dice.randrange(legs),
        _NAMES[0] if fault in _RARE else anchor,
        dice.choice((0, 0, 1, 1, 2, 3, 5, 8)),
        dice.randrange(1 << 16),
        dice.choice((0.01, 0.3, 3.0, 12.0, 50.0)) * (0.5 + dice.random()),
    )


class Failure(NamedTuple):
    """A seed that has failed.

    Attributes:
        error: what was wrong.
        loss: whether that was how the guest was lost, or that it was said to be.
    """

    seed: int
    error: str
    loss: bool


@dataclass(slots=True)
class Tally:
    """What came of seeds.

    Attributes:
        faults: that have happened, by kind.
        completed: migrations after which the guest was at the other host.
        rolled_back: after which it was where it had been.
        resumed: sessions that were taken up again after a loss.
        lost, undecided: migrations after which it ran nowhere, as it had to be.
        failures: seeds that have failed.
    """

    seeds: int = 0
    steps: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    completed: int = 0
    rolled_back: int = 0
    resumed: int = 0
    lost: int = 0
    undecided: int = 0
    failures: list[Failure] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """The sum of both."""
        for name in ("seeds", "steps", "completed", "rolled_back", "resumed", "lost", "undecided"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.faults.update(other.faults)
        self.failures += other.failures


class Run:
    """One script, played."""

    def __init__(self, script: Script, defects: frozenset[Defect] = frozenset()) -> None:
        self.tally: Final = Tally(seeds=1)
        self._script: Final = script
        self._dice: Final = random.Random(f"run/{script.seed}")
        self.world: Final = World(
            LiveMakers(script.shape, lambda: self.world.now), store=script.shape.store, defects=defects
        )
        self._due: dict[Step, float] = {}
        self._later: list[tuple[float, Step]] = []
        self._waiting: list[Mishap] = []
        self._seen: dict[str, int] = {}
        self._live_at = 0.0
        self._source = 0
        self.trace: list[tuple[float, Step]] = []

    def play(self) -> Tally:
        """All migrations.

        Raises:
            Violation: something happened that must never happen.
        """
        for leg in range(self._script.legs):
            if (running := self.world.running()) is not None and running.missing:
                break  # pages of it are elsewhere, so it cannot be offered to anybody [ONE-41]
            end = self._migrate(leg)
            if end is not End.RUNS:
                self.tally.lost += end is End.LOST
                self.tally.undecided += end is End.UNDECIDED
                break
        return self.tally

    def _migrate(self, leg: int) -> End:
        world = self.world
        self._waiting = [each for each in self._script.mishaps if each.leg == leg]
        self._seen = {}
        holder = world.running()
        assert holder is not None
        self._source = [host.name for host in world.hosts].index(holder.host)
        for host in world.hosts:
            host.settled = None
        before = world.resumed
        world.begin(self._source)
        for _ in range(STEPS_MAX):
            self._mishaps()
            if not self._step():
                break
            self.tally.steps += 1
        else:
            raise Violation("one-runner", f"no rest after {STEPS_MAX} steps")
        end = check_rest(world)
        self.tally.resumed += world.resumed - before
        running = world.running()
        if running is not None:
            moved = running.host != holder.host
            self.tally.completed += moved
            self.tally.rolled_back += not moved
        return end

    # ---- time ----

    def _step(self) -> bool:
        """The next thing happens. Whether there was one."""
        world = self.world
        steps = world.steps()
        due, self._due = self._due, {}
        for step in steps:
            self._due[step] = due[step] if step in due else world.now + self._delay(step)
        for step in world.chances():
            if step[0] == "drop" and step not in due:
                self._due[step] = world.now + self._dice.choice((0.0, 60.0))
            elif step in due:
                self._due[step] = due[step]
            elif step[0] == "takeover":
                self._due[step] = world.now + self._dice.random()
            elif step[0] == "land":
                self._due[step] = world.now + self._dice.choice((0.001, 0.1, 5.0, 60.0)) * self._dice.random()
        timers = list(self._timers())
        if not self._due and not self._later and not timers:
            return False
        moments = [*((at, step) for step, at in self._due.items()), *self._later, *timers]
        at, step = min(moments)
        if not self._due and not self._later and not steps and not timers:
            return False
        self._live(max(at, world.now))
        self._due.pop(step, None)
        if (at, step) in self._later:
            self._later.remove((at, step))
            if not self._is_possible(step):
                return True
        self.trace.append((world.now, step))
        world.take(step)
        self._look()
        return True

    def _is_possible(self, step: Step) -> bool:
        """Whether what was to come later can still come."""
        match step[0]:
            case "wake" | "kill":
                process = self.world.hosts[step[1]].process(step[2])
                return process is not None and process.frozen
            case _:
                return True

    def _timers(self) -> list[tuple[float, Step]]:
        found: list[tuple[float, Step]] = []
        for number, host in enumerate(self.world.hosts):
            for process in host.processes:
                if process.frozen:
                    continue
                for task in process.tasks:
                    timer = None if task.machine is None else task.machine.timer
                    if timer is not None:
                        found.append((timer, ("tick", number, process.number, task.number)))
        return found

    def _live(self, at: float) -> None:
        """Time passes, and a guest that runs executes in it."""
        world = self.world
        holder = world.running()
        if holder is not None and at > world.now:
            for _ in range(min(int((at - world.now) * 2000) + 1, 6)):
                if holder.waits_for is None:
                    world.judge.executes(holder)
        world.now = at

    def _delay(self, step: Step) -> float:
        """How long something takes that has been begun."""
        word, one, two, three = step
        dice = self._dice
        match word:
            case "act":
                _, _, task = self.world.at(one, two, three)
                match task.op:
                    case Write():
                        return dice.expovariate(1 / 0.002)
                    case Reach():
                        return dice.expovariate(1 / 0.004)
                    case _:
                        return dice.expovariate(1 / 0.001)
            case "deliver":
                return 0.0002 + dice.expovariate(1 / 0.0005)
            case "restart":
                return dice.choice((0.001, 0.5, 20.0)) * (0.5 + dice.random())
            case "wake":
                return 1e9  # a mishap says when
            case "recover":
                process = self.world.hosts[one].process(two)
                again = process is not None and process.rest is None
                return dice.random() * (2.0 if again else 0.01)
            case "resume":
                return dice.choice((0.01, 0.5, 10.0)) * dice.random()
            case "lost" | "closed":
                return dice.choice((0.0, 0.001, 1.0)) * dice.random()
            case _:
                return 0.0001

    # ---- what goes wrong ----

    def _look(self) -> None:
        """Note which states were entered for the first time, and when."""
        for host in self.world.hosts:
            for process in host.processes:
                for task in process.tasks:
                    if task.kind == RECOVERY:
                        self._seen.setdefault(RECOVERY, self.tally.steps)
                    elif task.machine is not None:
                        state = task.machine.state
                        name = type(state).__name__[0] + "." + state.name
                        self._seen.setdefault(name, self.tally.steps)

    def _mishaps(self) -> None:
        for mishap in list(self._waiting):
            seen = self._seen.get(mishap.anchor)
            if seen is None or self.tally.steps < seen + mishap.behind:
                continue
            steps = possible(self.world, mishap.fault, self._source)
            if steps:
                self._waiting.remove(mishap)
                self._befalls(mishap, steps[mishap.choice % len(steps)])

    def _befalls(self, mishap: Mishap, step: Step) -> None:
        world = self.world
        until = world.now + mishap.seconds
        self.tally.faults[mishap.fault] += 1
        self.trace.append((world.now, step))
        match mishap.fault:
            case Fault.RECORD_SLOW:
                self._due["act", step[1], step[2], step[3]] = until
                return
            case Fault.STORE_OUT:
                self._later.append((until, ("store-back", 0, 0, 0)))
            case Fault.SOURCE_FROZEN | Fault.DESTINATION_FROZEN:
                self._later.append((until, ("wake", *step[1:])))
            case Fault.FROZEN_KILLED:
                self._later.append((until, ("kill", *step[1:])))
            case _:
                pass
        world.take(step)
        self._look()


def run_seed(seed: int, defects: frozenset[Defect] = frozenset()) -> Tally:
    """Play a seed; a violation is a failure in the tally."""
    return play(script_of(seed), defects)


def play(script: Script, defects: frozenset[Defect] = frozenset()) -> Tally:
    """Play a script; a violation is a failure in the tally."""
    run = Run(script, defects)
    try:
        return run.play()
    except Violation as violation:
        run.tally.failures.append(Failure(script.seed, str(violation), violation.loss))
        return run.tally


def minimised(script: Script, fails: Callable[[Sequence[Mishap]], bool]) -> tuple[Mishap, ...]:
    """As few of a script's mishaps as still make it fail: delta debugging.

    Args:
        script: one that fails.
        fails: whether it does with these mishaps only.
    """
    mishaps, parts = list(script.mishaps), 2
    while len(mishaps) > 1:
        size = -(-len(mishaps) // parts)
        chunks = [mishaps[at : at + size] for at in range(0, len(mishaps), size)]
        rests = [[each for each in mishaps if each not in chunk] for chunk in chunks]
        shorter = next((each for each in rests if fails(each)), None)
        if shorter is not None:
            mishaps, parts = shorter, max(parts - 1, 2)
        elif size == 1:
            break
        else:
            parts = min(2 * parts, len(mishaps))
    return tuple(mishaps)
