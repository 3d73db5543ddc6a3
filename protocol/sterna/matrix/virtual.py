"""Cells in virtual time: the machines, records and recovery of the core in a world of `sterna.sim`.

The world says what can happen next; here is the order in which it does: as soon as possible, at random where
two things are possible at once, and a machine's timer only when nothing else is left. An endpoint that stops
is a process that is frozen, with the thing that it was about to do not done yet, or done and not heard of.
In a world to admit a session is no thing of its own: HELLO is not heard yet, or WELCOME has not left.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Final

from sterna.core.events import Outcome
from sterna.core.policy import Switchover
from sterna.core.records import Claiming, Complete, Granted, HandBack, Record, RunnerRecord, Start
from sterna.core.tables import DestinationState, SourceState
from sterna.errors import SternaError
from sterna.matrix.outcome import NOBODY, Done, Report, conclude
from sterna.matrix.table import Cell, Survivor
from sterna.registry import ErrorCode, Style
from sterna.sim.faults import Fault, inject
from sterna.sim.holder import Holder
from sterna.sim.hosts import Hold, Host, Line, Op, Process, Reach, TakeLocks, Task, Write
from sterna.sim.judge import Violation
from sterna.sim.machines import Driven, Trouble
from sterna.sim.makers import LiveMakers, Shape
from sterna.sim.rest import check_rest
from sterna.sim.world import Step, World

SOURCE: Final = Survivor.SOURCE
DESTINATION: Final = Survivor.DESTINATION
SIDES: Final = (SOURCE, DESTINATION)

_STEPS_MAX: Final = 20_000
# How long the others go on before what failed comes back, and everybody after that, in virtual seconds: more
# than any deadline, and than the pauses between two tries of a recovery, or of a resumption.
_MEANWHILE_S: Final = 60.0
_AFTERWARDS_S: Final = 120.0
_SOON_S: Final = 0.001
_RETRY_S: Final = 5.0
_WRITES_A_STEP: Final = 2

# A world's destination that is started again, or stands still, is not waited for: its source gives up.
_RESUMED: Final = frozenset({"cut", "source_killed"})

# What a request is in a world: the word to the holder, or the record.
_HOLDS: Final = {
    "Reserve": "reserve",
    "StartTracking": "track",
    "CollectDirty": "collect",
    "Prepare": "prepare",
    "Pause": "pause",
    "SaveState": "save",
    "LoadState": "load",
    "MarkGranted": "mark",
    "RunGuest": "run",
    "Installed": "install",
    "ReleaseImage": "release",
    "RunHere": "run",
}
_ACTS: Final = frozenset({"Note:RunnerRecord", "RunHere"})  # of a recovery
_WRITES: Final[dict[str, type[Record]]] = {
    "Persist:Granted": Granted,
    "Persist:Claiming": Claiming,
    "Persist:Start": Start,
    "Persist:HandBack": HandBack,
    "Note:RunnerRecord": RunnerRecord,
    "Persist:Complete": Complete,
}


_SWITCHOVERS: Final[dict[Style, Switchover]] = {
    Style.STOP_AND_COPY: "stop-and-copy",
    Style.BITMAP: "bitmap",
    Style.POST_COPY: "post-copy",
}


def run_cell(cell: Cell, seed: int) -> Report:
    """Carry out one cell; the same seed gives the same run."""
    began, done = time.monotonic(), Done()
    play = _Play(cell, seed)
    two: list[str] = []
    lost: list[str] = []
    try:
        play.carry_out()
        check_rest(play.world)
    except Violation as violation:
        kind = {"same-memory": lost}.get(violation.name, two)
        if "nobody runs" in violation.detail:
            done.failures.append(str(violation))
        else:
            kind.append(str(violation))
    except SternaError as error:
        done.failures.append(str(error))
    running = play.world.running()
    if running is not None and running.missing and play.resumes:
        done.failures.append("the source has not served its pages to the end")
    runs, done.meanwhile = play.runs(running), play.meanwhile
    done.judged = {"runs": runs, "two_runners": two, "lost_writes": lost}
    done.told = dict(play.told())
    return conclude(cell, "virtual", done, time.monotonic() - began)


class _Play:
    def __init__(self, cell: Cell, seed: int) -> None:
        self.resumes: Final = cell.expected.resumes and cell.fault.name in _RESUMED
        shape = Shape(store=cell.store, resume=self.resumes, switchover=_SWITCHOVERS[cell.style])
        self.world: World = World(LiveMakers(shape, lambda: self.world.now), store=cell.store)
        self.names: Final = [host.name for host in self.world.hosts]
        self._cell: Final = cell
        self._dice: Final = random.Random(f"{seed}/{cell.name}")
        # One host may be a lot slower than the other, or a race would have one winner.
        self._paces: Final = [10 ** self._dice.uniform(-1, 1) for _ in SIDES]
        self._due: dict[Step, float] = {}
        self._machines: dict[Survivor, Driven] = {}
        self._tried: set[Step] = set()
        self._stopped: Step | None = None
        self._unsaid: tuple[Line, tuple[bytes, ...]] | None = None  # by the one that has stopped
        self._has_no_room = False
        self._fails = cell.step.fails
        self._back = False
        self._steps = 0
        self.meanwhile: str | None = None

    def carry_out(self) -> None:
        """From the first frame until everybody is at rest.

        Raises:
            Violation: something happened that must never happen.
            SternaError: it does not come to the cell's step.
        """
        self.world.begin(0)
        self._follow()
        self._run(lambda: self._stopped is not None, _AFTERWARDS_S)
        if self._stopped is None:
            raise SternaError(ErrorCode.INTERNAL, f"it does not come to {self._cell.stop}")
        stopping = self._endpoint(self._cell.step.side)
        self._inject()
        if stopping is not None and stopping in self._host(self._cell.step.side).processes:
            stopping.frozen = self._frozen is self._cell.step.side
        self._run(self._others_were_told, _MEANWHILE_S)
        self._run(lambda: False, _MEANWHILE_S)
        running = self.world.running()
        self.meanwhile = self.runs(None if running is None or running.missing else running)
        self._bring_back()
        self._run(lambda: False, _AFTERWARDS_S)

    def _follow(self) -> None:
        """The machines of the session: behind a lost link come others, of either side."""
        for side, host in zip(SIDES, self.world.hosts, strict=True):
            known = self._machines.get(side)
            if known is not None and (known.result is None or known.result.outcome is not Outcome.SUSPENDED):
                continue
            for process in host.processes:
                for task in process.tasks:
                    # On a connection that only asks, a destination has no image.
                    goes_on = known is None or side is SOURCE or task.image
                    if task.kind == side.value and task.machine is not None and goes_on:
                        self._machines[side] = task.machine

    def runs(self, running: Holder | None) -> str:
        """At which side this is."""
        return NOBODY if running is None else SIDES[self.names.index(running.host)].value

    def told(self) -> Iterator[tuple[Survivor, tuple[str, str | None]]]:
        """How the session ended at each side that has lived to see it."""
        for side in SIDES:
            result = self._machines[side].result if side in self._machines else None
            if result is not None and self._is_told(side):
                code = None if result.code is None else result.code.name.lower()
                yield side, (result.outcome.value, code)

    def _is_told(self, side: Survivor) -> bool:
        expected = self._cell.expected
        return bool(expected.source if side is SOURCE else expected.destination)

    def _others_were_told(self) -> bool:
        waiting = [side for side in SIDES if self._is_told(side) and side is not self._frozen]
        return all(self._machines[side].result is not None for side in waiting)

    def _host(self, side: Survivor) -> Host:
        return self.world.hosts[SIDES.index(side)]

    def _endpoint(self, side: Survivor) -> Process | None:
        return self._host(side).endpoint

    # ---- the fault ----

    @property
    def _frozen(self) -> Survivor | None:
        return {"source_frozen": SOURCE, "destination_frozen": DESTINATION}.get(self._cell.fault.name)

    @property
    def _unwritable(self) -> int | None:
        if self._back or self._stopped is None:
            return None
        return {"source_record": 0, "destination_record": 1}.get(self._cell.fault.name)

    def _inject(self) -> None:
        world = self.world
        match self._cell.fault.name:
            case "cut":
                for line in list(world.lines):
                    inject(world, ("cut", line.number, 0, 0))
            case "source_killed" | "destination_killed" as name:
                host = 0 if name == "source_killed" else 1
                endpoint = world.hosts[host].endpoint
                assert endpoint is not None
                world.kill(host, endpoint.number)
            case "source_holder_killed":
                inject(world, ("destroy", 0, 0, 0))
            case "destination_holder_killed":
                self._destroy_room()
            case "source_frozen" | "destination_frozen":
                assert self._frozen is not None
                endpoint = self._endpoint(self._frozen)
                assert endpoint is not None
                endpoint.frozen = True
            case "store_gone":
                inject(world, ("store-out", 0, 0, 0))
            case _:
                pass  # what cannot be written fails when it is

    def _destroy_room(self) -> None:
        """In a world a holder begins with the room; before that it is the making of room that fails."""
        if self.world.hosts[1].holders:
            inject(self.world, ("destroy", 1, 0, 0))
        else:
            self._has_no_room = True

    def _bring_back(self) -> None:
        self._back = True
        if self.world.store is not None:
            self.world.store.answers = True
        for host in self.world.hosts:
            for process in host.processes:
                process.frozen = False

    # ---- the order of things ----

    def _run(self, over: Callable[[], bool], seconds: float) -> None:
        """Let things happen, until it is over, nothing is left to happen, or for so long."""
        until = self.world.now + seconds
        while not over():
            moments = [*self._soon(), *self._timers()]
            if not moments or min(moments)[0] > until:
                return
            at, step = min(moments)
            self._pass_time(at)
            self._due.pop(step, None)
            self._take(step)
            self._follow()
            self._steps += 1
            if self._steps > _STEPS_MAX:
                raise Violation("one-runner", f"no rest after {_STEPS_MAX} steps")

    def _soon(self) -> Iterator[tuple[float, Step]]:
        self._say_unsaid()
        possible = [step for step in self.world.steps() if self._may_come(step)]
        self._due = {step: self._due.get(step) or self._when(step) for step in possible}
        return ((at, step) for step, at in self._due.items())

    def _may_come(self, step: Step) -> bool:
        if step[0] == "wake":
            return False
        if step[0] == "restart":
            return self._back
        # What a process was about to do when it stopped is not done before it goes on.
        return step[0] != "act" or not self._process(step).frozen or step != self._stopped

    def _when(self, step: Step) -> float:
        wait = _RETRY_S if step in self._tried else _SOON_S
        pace = self._paces[step[1]] if step[0] in {"act", "recover"} else 1.0
        return self.world.now + wait * pace * (0.1 + self._dice.random())

    def _timers(self) -> Iterator[tuple[float, Step]]:
        for number, host in enumerate(self.world.hosts):
            for process in host.processes:
                for task in process.tasks:
                    timer = None if task.machine is None or process.frozen else task.machine.timer
                    if timer is not None:
                        yield timer, ("tick", number, process.number, task.number)

    def _pass_time(self, at: float) -> None:
        world = self.world
        holder = world.running()
        if holder is not None and at > world.now:
            for _ in range(_WRITES_A_STEP):
                if holder.waits_for is None:
                    world.judge.executes(holder)
        world.now = max(at, world.now)

    def _take(self, step: Step) -> None:
        if step[0] in {"recover", "resume"}:
            self._tried.add(step)
        if step[0] != "act":
            self._let(step)
            return
        process, task = self._at(step)
        if self._has_no_room and isinstance(task.op, Hold) and task.op.verb == "reserve":
            task.answer, task.landed = Trouble(ErrorCode.GUEST_FAILED), True
            return
        if self._unwritable == step[1] and isinstance(task.op, Write):
            inject(self.world, ("record-fails", *step[1:]))
            return
        holder = self.world.hosts[step[1]].holder(task.image)
        refused, self._fails = self._fails, "" if isinstance(task.op, TakeLocks) else self._fails
        if isinstance(task.op, TakeLocks) and (refused or holder is None or not holder.lives):
            # They are the guest's, so whoever takes them sees whether it is still there.
            inject(self.world, (Fault.LOCKS_REFUSED.value, *step[1:]))
            return
        when = self._is_the_step(step, task)
        if when is None:
            self._let(step)
            return
        process.frozen = True
        if when == "after":
            self.world.take(step)
        self._stopped = step

    def _let(self, step: Step) -> None:
        """Let it happen, unless it is HELLO that the cell's endpoint stops before; then, whether it stops."""
        admitting = self._admitting
        if self._cell.stop == "before Admit" and admitting is not None and step[0] == "deliver":
            process, task = admitting
            if step[1:3] == (task.line, 1):
                process.frozen, self._stopped = True, step
                return
        self.world.take(step)
        if self._cell.stop == "after Admit" and admitting is not None:
            process, task = admitting
            if task.machine is not None and task.machine.state is DestinationState.WELCOMED:
                process.frozen, self._stopped = True, step
                self._unsaid = self._taken_back()

    @property
    def _admitting(self) -> tuple[Process, Task] | None:
        """The destination's session, until the cell's step has come."""
        endpoint = self._endpoint(DESTINATION)
        if self._stopped is not None or endpoint is None:
            return None
        return next(((endpoint, task) for task in endpoint.tasks if task.kind == "destination"), None)

    def _taken_back(self) -> tuple[Line, tuple[bytes, ...]]:
        """WELCOME: it is said when the process goes on, if there is somebody then to say it to."""
        (line,) = self.world.lines
        *others, welcome = line.pipes[0]
        line.pipes[0] = tuple(others)
        return line, welcome

    def _say_unsaid(self) -> None:
        endpoint = self._endpoint(DESTINATION)
        if self._unsaid is not None and (endpoint is None or not endpoint.frozen):
            line, said = self._unsaid
            line.push(0, said)
            self._unsaid = None

    def _is_the_step(self, step: Step, task: Task) -> str | None:
        """`before` or `after`, if this is where the cell's endpoint stops."""
        when, _, request = self._cell.stop.partition(" ")
        kind = "recovery" if request in _ACTS else self._cell.step.side.value
        ours = step[1] == SIDES.index(self._cell.step.side) and task.kind == kind
        if self._stopped is not None or not ours:
            return None
        if request == "Claim" or (request == "Persist:Claiming" and not self._cell.store):
            # Without a store neither is anything to do yet [ONE-62]; behind it come the storage locks.
            return "before" if isinstance(task.op, TakeLocks) else None
        if request == "ProbeStore:last":  # earlier ones are asked in other states
            confirms = task.machine is not None and task.machine.state is SourceState.CONFIRMING
            return when if confirms and isinstance(task.op, Reach) else None
        if when == "before" and isinstance(task.op, Write) and task.held is not None:
            # What rests on CLAIMING is written with it, and so neither of them is there yet [ONE-62].
            hands_back = task.machine is not None and task.machine.state is DestinationState.HANDING_BACK
            return when if request == "Persist:HandBack" and hands_back else None
        return when if _is_request(request, task.op) else None

    def _process(self, step: Step) -> Process:
        return self._at(step)[0]

    def _at(self, step: Step) -> tuple[Process, Task]:
        _, process, task = self.world.at(*step[1:])
        return process, task


def _is_request(name: str, op: Op | None) -> bool:
    match op:
        case Hold():
            return op.verb == _HOLDS.get(name)
        case Write():
            return name in _WRITES and isinstance(op.record, _WRITES[name])
        case _:
            return False
