"""Two hosts, a guest, a link, and a lease store or none: all that can go wrong around the real machines.

A world has no clock and no dice. It says what can happen next (`steps`: what will happen if nothing comes
between; `chances`: what may happen besides), and `take` makes one of that happen. Whoever drives it chooses:
`sterna.sim.explore` takes every step in turn, `sterna.sim.seeded` has a clock and dice. What goes wrong is in
`sterna.sim.faults`.

Endpoints here are the machines, `History`, `judge`, `next_act` and `answer` of the core, and nothing else
that decides: this file carries out what they ask for, and takes the time between asking, taking effect and
hearing of it apart. A process may die in each of these gaps.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Final, TypeAlias

from sterna.core.history import RecordConflict
from sterna.core.records import NO_SESSION, RunnerRecord, SessionRecord, Side
from sterna.core.recovery import open_session
from sterna.core.verdict import Store
from sterna.registry import ErrorCode, Owner
from sterna.sim.defects import Defect
from sterna.sim.ends import ended
from sterna.sim.faults import inject
from sterna.sim.holder import Holder, Stage
from sterna.sim.holding import attach, controller_gone, hold
from sterna.sim.hosts import Hold, Host, Line, Process, Reach, Task, Write, write
from sterna.sim.judge import Judge
from sterna.sim.machines import Ask, Data, Done, Failed, Input, Lost, Start, Tick, Trouble
from sterna.sim.makers import Makers
from sterna.sim.plans import Answered, plan
from sterna.sim.recovering import Question, next_of
from sterna.sim.store import SlotStore
from sterna.wire.records import NO_RUNNER, Runner

Step: TypeAlias = tuple[str, int, int, int]
"""What happens: a word, and what it happens to."""

FIRST_IMAGE: Final = bytes([1]) * 16
_FIRST_COUNT: Final = 5


class World:
    """See the module's text.

    Attributes:
        hosts: the guest is at the first one.
        store: None for two hosts and nothing else.
        lines: connections.
        judge: watches the guest.
        now: the time that machines are told, for whoever has a clock.
        defects: what endpoints here do wrong.
        ends: how sessions ended, for who counts them.
    """

    def __init__(self, makers: Makers, *, store: bool, defects: frozenset[Defect] = frozenset()) -> None:
        self.makers: Final = makers
        self.hosts = (Host("alpha"), Host("beta"))
        self.lines: list[Line] = []
        self.opened = 0
        self.now = 0.0
        self.defects = defects
        self.ends: list[tuple[str, str]] = []
        here = self.hosts[0]
        holder = Holder(here.name, FIRST_IMAGE, Stage.RUNS)
        holder.count = _FIRST_COUNT
        self.store: SlotStore | None = None
        if store:
            holder.epoch, holder.runner = 1, Runner(here.name, bytes([2]) * 16)
            self.store = SlotStore((holder.runner,))
            here.history = here.history.after(RunnerRecord(NO_SESSION, 1, holder.runner, FIRST_IMAGE))
        here.holders.append(holder)
        self.judge = Judge(holder)
        for number in (0, 1):
            self._start_process(number)

    def copy(self) -> World:
        """One that goes its own way. Only with machines that can be recalled."""
        other = object.__new__(World)
        other.__dict__.update(self.__dict__)
        other.hosts = (self.hosts[0].copy(), self.hosts[1].copy())
        other.store = None if self.store is None else self.store.copy()
        other.lines = [each.copy() for each in self.lines]
        other.judge = self.judge.copy()
        other.ends = []
        return other

    def key(self) -> Hashable:
        """Equal for worlds in which the same can happen."""
        return (
            self.hosts[0].key(),
            self.hosts[1].key(),
            None if self.store is None else self.store.key(),
            tuple([each.key() for each in self.lines]),
            self.judge.key(),
        )

    # ---- looking ----

    def other(self, host: Host) -> Host:
        """The other one."""
        return self.hosts[1] if host is self.hosts[0] else self.hosts[0]

    def holders(self) -> Iterator[Holder]:
        """All of them."""
        for host in self.hosts:
            yield from host.holders

    def running(self) -> Holder | None:
        """The holder in which the guest runs."""
        return next((each for each in self.holders() if each.stage is Stage.RUNS), None)

    def line(self, number: int) -> Line | None:
        """The connection of this number, while there is somebody at one of its ends."""
        return next((each for each in self.lines if each.number == number), None)

    def at(self, host: int, process: int, task: int) -> tuple[Host, Process, Task]:
        """What a step is about."""
        found = self.hosts[host].process(process)
        assert found is not None
        busy = found.task(task)
        assert busy is not None
        return self.hosts[host], found, busy

    def locks(self, host: Host, process: Process) -> bool:
        """Whether this process has the guest's records here, or gets them now [ONE-60]."""
        if host.lock in {0, process.number} or Defect.OLD_CONTROLLER in self.defects:
            host.lock = process.number
            return True
        return False

    # ---- what can happen ----

    def steps(self) -> list[Step]:
        """What happens next, one of it, if nothing comes between."""
        found: list[Step] = []
        for number, host in enumerate(self.hosts):
            if host.endpoint is None:
                found.append(("restart", number, 0, 0))
            for process in host.processes:
                found += self._of_process(number, host, process)
        for line in self.lines:
            found += self._of_line(line)
        return found

    def _of_process(self, number: int, host: Host, process: Process) -> Iterator[Step]:
        at = number, process.number
        if process.frozen:
            yield ("wake", *at, 0)
        for task in process.tasks:
            if task.landed and not process.frozen:
                yield ("reply", *at, task.number)
            elif task.op is not None and not task.landed and self._may_land(task):
                yield ("act", *at, task.number)
        if not process.frozen and not process.beside and self._should_recover(host, process):
            yield ("recover", *at, 0)

    def _may_land(self, task: Task) -> bool:
        claims = isinstance(task.op, Reach) and task.op.verb == "claim"
        return not claims or self.store is None or self.store.answers

    def _should_recover(self, host: Host, process: Process) -> bool:
        if any(task.kind != "destination" or task.image for task in process.tasks):
            return False  # a session or recovery is under way
        if host.lock not in {0, process.number} and Defect.OLD_CONTROLLER not in self.defects:
            return False
        session = self._open_session(host, process)
        return session is not None and process.rest != self._view(host, session)

    @staticmethod
    def _open_session(host: Host, process: Process) -> SessionRecord | None:
        """The session to recover: one that ended undecided in this process, or one that is open.

        The former need not be open by records and mark: perhaps neither mark nor grant has come about.
        """
        mark = max((each.mark for each in host.holders if each.lives), default=0)
        return host.history.session(process.undecided) or open_session(host.history, mark)

    def _view(self, host: Host, session: SessionRecord) -> Hashable:
        """What recovery of a session goes by: as long as this is the same, it would come to the same end."""
        holders = tuple([(each.stage.name, each.mark, each.epoch, each.controller) for each in host.holders])
        slots = 0 if self.store is None else (len(self.store.slots), self.store.answers)
        own = (len(host.history.records), holders, slots)
        if session.side is Side.DESTINATION:
            return own
        peer = self.other(host)
        processes = tuple([(each.number, each.frozen) for each in peer.processes])
        return (*own, len(peer.history.records), processes, peer.lock)

    def _of_line(self, line: Line) -> Iterator[Step]:
        for end in (0, 1):
            host, number, _ = line.ends[end]
            process = self.hosts[host].process(number)
            if line.gone[end] or process is None or process.frozen:
                continue
            if line.broken:
                yield ("lost", line.number, end, 0)
            elif line.pipes[end]:
                yield ("deliver", line.number, end, 0)
            elif line.closed[1 - end]:
                yield ("closed", line.number, end, 0)

    def chances(self) -> Iterator[Step]:
        """What may also happen, and is no fault of its own: a consequence of one."""
        for line in self.lines:
            for end in (0, 1):
                if line.gone[end] or line.broken:
                    continue
                if line.crashed[1 - end] and line.pipes[end]:
                    yield ("drop", line.number, end, 0)
                if (
                    not line.closed[1 - end]
                    and self._is_still(line.ends[1 - end])
                    and not self._is_still(line.ends[end])
                ):
                    yield ("expire", line.number, end, 0)
        for number, host in enumerate(self.hosts):
            for process in host.processes:
                if process.frozen:
                    yield ("kill", number, process.number, 0)
            endpoint = host.endpoint
            if Defect.OLD_CONTROLLER in self.defects and endpoint is not None and endpoint.frozen:
                yield ("takeover", number, 0, 0)
        if self.store is not None and self.store.answers:
            yield from (("land", number, 0, 0) for number in range(len(self.store.astray)))

    def _is_still(self, end: tuple[int, int, int]) -> bool:
        process = self.hosts[end[0]].process(end[1])
        return process is not None and process.frozen

    # ---- letting it happen ----

    def take(self, step: Step) -> None:
        """One of the above, or one of `sterna.sim.faults`.

        Raises:
            Violation: something came of it that must never happen.
        """
        word, one, two, three = step
        match word:
            case "act":
                self._act(*self.at(one, two, three))
            case "reply":
                self._reply(*self.at(one, two, three))
            case "tick":
                self._tell(*self.at(one, two, three), Tick())
            case "deliver" | "lost" | "closed" | "expire" | "deadline":
                self._hears(word, one, two)
            case "recover":
                self._recover(one, two)
            case "restart":
                self._start_process(one)
            case "wake" | "freeze":
                process = self.hosts[one].process(two)
                assert process is not None
                process.frozen = word == "freeze"
            case "kill":
                self.kill(one, two)
            case "takeover":
                endpoint = self.hosts[one].endpoint
                assert endpoint is not None
                endpoint.beside, endpoint.stale = True, self.hosts[one].history
                self._start_process(one)
            case "land":
                assert self.store is not None
                self.store.lands(one)
            case "drop":
                line = self.line(one)
                assert line is not None
                line.pipes[two] = ()
            case _:
                inject(self, step)

    def begin(self, host: int) -> None:
        """The endpoint of the guest's host opens a session."""
        here = self.hosts[host]
        process, holder = here.endpoint, next(each for each in here.holders if each.stage is Stage.RUNS)
        assert process is not None
        self.locks(here, process)
        attach(self, holder, process)
        task = Task(self._number(process), "source", self.makers.source(holder), holder.image)
        process.tasks.append(task)
        self._connect(host, process, task)
        self._tell(here, process, task, Start())

    def _start_process(self, number: int, *, beside: bool = False) -> Process:
        host = self.hosts[number]
        host.starts += 1
        process = Process(2 * host.starts + number, beside=beside)
        host.processes.append(process)
        return process

    @staticmethod
    def _number(process: Process) -> int:
        return max((each.number for each in process.tasks), default=0) + 1

    def kill(self, number: int, process: int) -> None:
        """A process dies with all that it knew. What it has asked the store for may land all the same."""
        host = self.hosts[number]
        dead = host.process(process)
        assert dead is not None
        for task in dead.tasks:
            if isinstance(task.op, Reach) and task.op.verb == "claim" and not task.landed and self.store:
                self.store.strays(task.op.epoch, task.op.runner)
        host.processes.remove(dead)
        if host.lock == process:
            host.lock = 0
        for line in self.lines:
            for end in (0, 1):
                if line.ends[end][:2] == (number, process) and not line.gone[end]:
                    line.leaves(end, crashed=True)
        self.forget_lines()
        controller_gone(self, host, process)

    def forget_lines(self) -> None:
        """Connections with nobody at either end are no more."""
        self.lines = [each for each in self.lines if not all(each.gone)]

    # ---- connections ----

    def _connect(self, host: int, process: Process, task: Task) -> None:
        """Reach the other host, if anybody listens there: its endpoint, or one that stands beside it."""
        other = self.hosts[1 - host]
        listener = other.endpoint
        if "beside" in other.armed:
            other.armed -= {"beside"}
            listener = self._start_process(1 - host, beside=True)
        if listener is None or self._keeps_waiting(host, listener):
            return
        answering = Task(self._number(listener), "destination", self.makers.destination(other.name))
        listener.tasks.append(answering)
        self.opened += 1
        taken = {each.number for each in self.lines}
        number = next(each for each in range(1, len(taken) + 2) if each not in taken)
        here, there = (host, process.number, task.number), (1 - host, listener.number, answering.number)
        self.lines.append(Line(number, (here, there)))
        task.line = answering.line = number

    def _keeps_waiting(self, host: int, listener: Process) -> bool:
        """Whether a question that was given up waits before a frozen process: one more changes nothing."""
        if not listener.frozen:
            return False
        ends = [each.ends for each in self.lines if each.gone[0]]
        return any(here[0] == host and there[1] == listener.number for here, there in ends)

    def _end_of(self, process: Process, task: Task) -> tuple[Line | None, int]:
        line = self.line(task.line)
        if line is None:
            return None, 0
        return line, 0 if line.ends[0][1:] == (process.number, task.number) else 1

    def _hears(self, word: str, number: int, end: int) -> None:
        line = self.line(number)
        assert line is not None
        what: Input
        if word == "deliver":
            data, *rest = line.pipes[end]
            line.pipes[end] = tuple(rest)
            what = Data(data)
        else:
            what = Lost(closed=word == "closed" and not line.crashed[1 - end])
            line.leaves(end)
            self.forget_lines()
        self._tell(*self.at(*line.ends[end]), what)

    def _tell(self, host: Host, process: Process, task: Task, what: Input) -> None:
        """A machine is told something; what it says is sent, and what it asks for is begun."""
        assert task.machine is not None
        task.machine = task.machine.told(what, self.now)
        line, end = self._end_of(process, task)
        if line is not None:
            line.push(1 - end, task.machine.said)
        self._go_on(host, process, task)

    # ---- tasks ----

    def _go_on(self, host: Host, process: Process, task: Task) -> None:
        """Whatever a task can do now."""
        machine = task.machine
        if machine is None:
            self._go_on_recovering(host, process, task)
        elif machine.result is not None and not machine.asked:
            line, end = self._end_of(process, task)
            if line is not None:
                line.leaves(end)
                self.forget_lines()
            if ended(self, host, process, task, machine.result):
                self._go_on(host, process, task)
            elif task not in process.tasks:
                self._rests(host, process)
        elif machine.asked and task.op is None:
            doing = plan(self, host, process, task, machine.asked[0])
            if isinstance(doing, Answered):
                task.results = ()
                self._tell(host, process, task, Done(doing.answer))
            elif isinstance(doing, Trouble):
                task.results = ()
                self._tell(host, process, task, Failed(doing))
            else:
                task.op = doing

    def _rests(self, host: Host, process: Process) -> None:
        """A process without anything to do lets go of the records; one that stood beside ends."""
        if process.tasks:
            return
        if host.lock == process.number:
            host.lock = 0
        if process.beside and not process.frozen:
            host.processes.remove(process)

    def _act(self, host: Host, process: Process, task: Task) -> None:
        """What is under way takes effect, and if the process is not frozen it hears of it."""
        assert task.op is not None
        task.answer = self.effect(host, process, task)
        self.lands(host, process, task)

    def lands(self, host: Host, process: Process, task: Task) -> None:
        """What is under way has its answer; the process hears of it, or will when it wakes."""
        task.landed = True
        if not process.frozen:
            self._reply(host, process, task)

    def effect(self, host: Host, process: Process, task: Task) -> Hashable:
        """Let what a task has under way take effect; the answer."""
        match task.op:
            case Write(record):
                try:
                    write(host, process, record)
                except RecordConflict as conflict:
                    return Trouble(ErrorCode.RECORD_FAILED, conflict.existing)
                if isinstance(record, SessionRecord) and record.side is Side.SOURCE:
                    host.sent = (*host.sent, (record.session, task.image))
                return None
            case Hold():
                return hold(self, host, process, task, task.op)
            case Reach():
                return self._reach(task.op)
            case _:
                return None  # storage locks, taken

    def _reach(self, op: Reach) -> Hashable:
        assert self.store is not None
        if op.verb == "claim":
            return self.store.claim(op.epoch, op.runner)
        if not self.store.answers:
            return Trouble(ErrorCode.UNDECIDED)
        if op.verb == "read":
            return self.store.facts(op.epoch)
        newest = self.store.read(op.epoch) == op.runner and self.store.read(op.epoch + 1) is None
        return None if newest else Trouble(ErrorCode.STALE_EPOCH)

    def _reply(self, host: Host, process: Process, task: Task) -> None:
        """A task hears what came of what it had under way."""
        op, answer = task.op, task.answer
        task.op, task.answer, task.landed = None, None, False
        if task.machine is not None:
            task.results = (*task.results, answer)
            self._go_on(host, process, task)
            return
        if isinstance(answer, Store):
            task.store = answer
        elif isinstance(op, Reach):
            task.store = Store(answers=False)  # a claim has changed it: it is read again
        stuck = isinstance(answer, Trouble) and answer.existing is None
        if stuck or (isinstance(op, Reach) and op.verb == "claim" and answer is None):
            process.rest = None if isinstance(op, (Write, Reach)) else process.rest
            task.failed = task.failed or isinstance(op, (Write, Reach))
            self.settles(host, process, task)
            return
        self._go_on(host, process, task)

    # ---- recovery ----

    def _recover(self, number: int, process_number: int) -> None:
        host = self.hosts[number]
        process = host.process(process_number)
        assert process is not None
        session = self._open_session(host, process)
        assert session is not None
        self.locks(host, process)
        image = host.image_of(session.session)
        holder = host.holder(image)
        process.rest = self._view(host, session)
        if holder is not None and holder.lives and not attach(self, holder, process):
            return
        process.rest = self._view(host, session)
        task = Task(self._number(process), "recovery", None, image)
        task.session, task.peer = session.session, process.heard
        process.tasks.append(task)
        self._go_on(host, process, task)

    def _go_on_recovering(self, host: Host, process: Process, task: Task) -> None:
        following = next_of(self, host, task)
        if isinstance(following, Question):
            self._ask(host, process, task, following.session)
        elif isinstance(following, (Write, Hold, Reach)):
            task.op = following
        else:
            assert not isinstance(following, (Question,))
            host.settled = following  # type: ignore[assignment]
            self.settles(host, process, task)

    def settles(self, host: Host, process: Process, task: Task) -> None:
        """Recovery has come to its end for now; it begins again when there is something new."""
        if task.failed:
            process.rest = None
        elif host.settled is not None and host.settled.judgement.owner is not Owner.UNDECIDED:
            process.undecided = b""
        process.tasks.remove(task)
        self._rests(host, process)

    def _ask(self, host: Host, process: Process, task: Task, session: SessionRecord) -> None:
        number = self.hosts.index(host)
        runner = next(iter(sorted(host.history.runners(session.epoch), key=lambda each: each.id)), NO_RUNNER)
        task.machine = self.makers.asker(host.name, session.epoch, runner)
        task.line = 0
        self._connect(number, process, task)
        task.machine = task.machine.told(Ask(session.session, session.token), self.now)
        line, _ = self._end_of(process, task)
        if line is None:
            self._tell(host, process, task, Lost())
        else:
            line.push(1, task.machine.said)
