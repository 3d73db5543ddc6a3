"""Two hosts, a guest, a link, and a lease store or none: all that can go wrong around the real machines.

A world has no clock and no dice. It says what can happen next (`steps`: what will happen if nothing comes
between; `chances`: what may happen besides), and `take` makes one of that happen. Whoever drives it chooses:
`sterna.sim.explore` takes every step in turn, `sterna.sim.seeded` has a clock and dice. What goes wrong is in
`sterna.sim.faults`.

Endpoints here are the machines, `History`, `judge`, `next_act`, `answer` and `sterna.core.admitting`, and
nothing else that decides: this file carries out what they ask for, and takes the time between asking, taking
effect and hearing of it apart. A process may die in each of these gaps.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Final, TypeAlias

from sterna.core.records import NO_SESSION, RunnerRecord
from sterna.sim.connecting import connect, forget, hears
from sterna.sim.defects import Defect
from sterna.sim.faults import inject
from sterna.sim.holder import Holder, Stage
from sterna.sim.holding import attach, controller_gone, keep
from sterna.sim.hosts import NAMES, Front, GiveWay, Guests, Host, Line, Process, Task, View
from sterna.sim.judge import Judge
from sterna.sim.machines import Lost, Start, Tick, Touch
from sterna.sim.makers import Makers
from sterna.sim.recovering import begin as recover
from sterna.sim.recovering import is_due, others_kept, source_view
from sterna.sim.replacing import have_ended
from sterna.sim.store import SlotStore
from sterna.sim.tasks import act, reply, tell
from sterna.wire.records import Runner

Step: TypeAlias = tuple[str, int, int, int]
"""What happens: a word, and what it happens to."""

FIRST_IMAGE: Final = bytes([1]) * 16
FIRST_COUNT: Final = 9


# What happens to an end of a connection, and what to nothing of a host's; all else happens to a host.
_OF_LINES: Final = frozenset({"deliver", "lost", "closed", "expire", "deadline"})
RESUMES_MAX: Final = 4
"""So often a source takes a session up again, then it gives up."""

_OF_NO_HOST: Final = frozenset({"cut", "torn", "drop", "land", "store-out", "store-back"})


def are_idle(steps: Iterable[Step]) -> bool:
    """Whether nothing happens in these steps but that somebody wakes."""
    return all(step[0] == "wake" for step in steps)


class World:
    """See the module's text.

    Attributes:
        hosts: the guest is at the first one.
        store: None for two hosts and nothing else; `stores`: whether there is one.
        lines: connections.
        judge: watches the guest.
        now: the time that machines are told, for whoever has a clock.
        defects: what endpoints here do wrong.
        resumed: sessions that were taken up again.
        ends: how sessions ended, for who counts them.
    """

    def __init__(self, makers: Makers, *, store: bool, defects: frozenset[Defect] = frozenset()) -> None:
        self.makers: Final = makers
        self.hosts: Sequence[Host] = tuple([Host(name) for name in NAMES])
        self._shared = [False, False]
        self.lines: list[Line] = []
        self.now = 0.0
        self.defects = defects
        self.ends: list[tuple[str, str]] = []
        self.resumed = 0
        here = self.hosts[0]
        holder = Holder(here.name, FIRST_IMAGE, Stage.RUNS)
        holder.count = FIRST_COUNT
        self.store: SlotStore | None = None
        self.stores: Final = store
        if store:
            holder.epoch, holder.runner = 1, Runner(here.name, bytes([2]) * 16)
            self.store = SlotStore((holder.runner,))
            here.history = here.history.after(RunnerRecord(NO_SESSION, 1, holder.runner, FIRST_IMAGE))
        here.holders.append(holder)
        self.judge = Judge(holder)
        for number in (0, 1):
            self.start_process(number)

    def copy(self) -> World:
        """One that goes its own way. Only with machines that can be recalled."""
        other = object.__new__(World)
        other.__dict__.update(self.__dict__)
        self._shared, other._shared = [True, True], [True, True]
        other.store = None if self.store is None else self.store.copy()
        other.lines = [each.copy() for each in self.lines]
        other.judge = self.judge.copy()
        other.ends = []
        return other

    def key(self) -> Hashable:
        """Equal for worlds in which the same can happen."""
        names = [host.names() for host in self.hosts]
        ends = self.hosts[0].ends() | self.hosts[1].ends()
        return (
            self.hosts[0].key(lambda rest: self._still_seen(0, rest, names)),
            self.hosts[1].key(lambda rest: self._still_seen(1, rest, names)),
            None if self.store is None else self.store.key(),
            tuple([each.key(ends) for each in self.lines]),
            self.judge.key(),
        )

    def _still_seen(self, number: int, rest: View, names: list[dict[int, int]]) -> View | None:
        """What somebody at a host has seen, None if that is never to be seen again."""
        slots = None if self.store is None else len(self.store.slots)
        records = len(self.hosts[number].history.records)
        if not rest.may_be_again(records, slots, self.front(1 - number)):
            return None
        return rest.named(names[number], names[1 - number])

    def own(self, number: int) -> Host:
        """A host that is about to change: this world's own, not one that it shares with a copy."""
        host = self.hosts[number]
        if self._shared[number]:
            host = host.copy()
            self.hosts = (host, self.hosts[1]) if number == 0 else (self.hosts[0], host)
            self._shared[number] = False
        host.cached = None
        return host

    # ---- looking ----

    def guests(self, number: int) -> Guests:
        """What there is of the guest at a host."""
        return self.hosts[number].guests()

    def holders_with(self, holder: Holder) -> Iterator[Holder]:
        """All holders, seen from this one's host: of the other host's nobody may change anything."""
        number = NAMES.index(holder.host)
        yield from self.hosts[number].holders
        yield from self.guests(1 - number).holders

    def front(self, number: int) -> Front:
        """What can be seen of a host from outside."""
        return self.hosts[number].front()

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

    def line_numbers(self) -> set[int]:
        """Of the connections that there are."""
        return {each.number for each in self.lines}

    def add_line(self, line: Line) -> None:
        """There is one more; they stand in the order of their numbers."""
        self.lines = sorted([*self.lines, line], key=lambda each: each.number)

    def forget_line(self, line: Line) -> None:
        """A connection is no more."""
        self.lines = [each for each in self.lines if each is not line]

    def frozen(self, host: int, process: int) -> bool | None:
        """Whether a process is; None if it is not there."""
        return self.front(host).frozen(process)

    def at(self, host: int, process: int, task: int) -> tuple[Host, Process, Task]:
        """What a step is about."""
        here, found = self.in_(host, process)
        busy = found.task(task)
        assert busy is not None
        return here, found, busy

    def in_(self, host: int, process: int) -> tuple[Host, Process]:
        """A process, and its host."""
        found = self.hosts[host].process(process)
        assert found is not None
        return self.hosts[host], found

    def locks(self, host: Host, process: Process) -> bool:
        """Whether this process has the guest's records here, or gets them now [ONE-60]."""
        if host.may_lock(process) or Defect.OLD_CONTROLLER in self.defects:
            host.lock = process.number
            return True
        return False

    # ---- what can happen ----

    def steps(self) -> list[Step]:
        """What happens next, one of it, if nothing comes between."""
        found = [*self.steps_at(0), *self.steps_at(1), *self.steps_on_lines()]
        if are_idle(found):
            found += [*self.again_at(0), *self.again_at(1)]
        return found

    def steps_at(self, number: int) -> Iterator[Step]:
        """Those of a host: its processes do what they have under way, or begin."""
        host = self.hosts[number]
        if host.endpoint is None:
            yield ("restart", number, 0, 0)
        for process in host.processes:
            yield from self._of_process(number, host, process)

    def again_at(self, number: int) -> Iterator[Step]:
        """Recovery of a source that has looked in vain, or was refused, and sees something new.

        It looks again when nobody else does anything. It might at any time; but as it has changed nothing and
        remembers nothing, that would be as if it had not looked before.
        """
        host = self.hosts[number]
        endpoint = host.endpoint
        if endpoint is None or endpoint.frozen:
            return
        if endpoint.looked:
            yield from self._recovers(number, host, endpoint)
        if endpoint.refused is not None and self._may_be_let_in(host, endpoint.refused):
            yield from self._resumes(number, endpoint)

    def _may_be_let_in(self, host: Host, refused: View) -> bool:
        """Whether a source may be where it was refused: there is something new, or the session is kept there.

        In the latter case something was under way there, and is not any more [RES-18]; and so where it was
        turned away by a process that had not had the session, and can take it up.
        """
        there = 1 - host.place
        may = self.front(there).keeps or "turned-away" in self.hosts[there].armed
        return may or refused != source_view(self, host)

    def _of_process(self, number: int, host: Host, process: Process) -> Iterator[Step]:
        at = number, process.number
        if process.frozen:
            yield ("wake", *at, 0)
        for task in process.tasks:
            if task.landed and not process.frozen:
                yield ("reply", *at, task.number)
            elif task.op is not None and not task.landed and self._may_land(process, task):
                yield ("act", *at, task.number)
        if process.refused is None:
            yield from self._resumes(number, process)
        yield from self._faults(number, host, process)
        if not process.frozen and not process.beside and not process.looked:
            yield from self._recovers(number, host, process)

    def _faults(self, number: int, host: Host, process: Process) -> Iterator[Step]:
        """The endpoint is told what the guest waits for, once."""
        for task in process.tasks if not process.frozen else ():
            holder = host.holder(task.image) if task.kind == "destination" else None
            if holder is not None and holder.stage is Stage.RUNS:
                waits = holder.waits_for
                if waits not in {None, holder.faulted} and task.machine is not None:
                    yield ("fault", number, process.number, task.number)

    def _resumes(self, number: int, process: Process) -> Iterator[Step]:
        if b"" in process.kept and not process.frozen and not process.tasks:
            yield ("resume", number, process.number, 0)

    def _recovers(self, number: int, host: Host, process: Process) -> Iterator[Step]:
        if is_due(self, host, process):
            yield ("recover", number, process.number, 0)

    def _may_land(self, process: Process, task: Task) -> bool:
        if isinstance(task.op, GiveWay):
            return have_ended(process, task.op)
        return not task.claims or self.store is None or self.store.answers

    def steps_on_lines(self) -> Iterator[Step]:
        """Those of connections: their ends hear what is on its way, or that nothing is to come."""
        for line in self.lines:
            for end in (0, 1):
                host, process, _ = line.ends[end]
                if line.gone[end] or self.frozen(host, process) is not False:
                    continue
                if line.pipes[end]:
                    yield ("deliver", line.number, end, 0)
                elif line.broken:
                    yield ("lost", line.number, end, 0)
                elif line.closed[1 - end]:
                    yield ("closed", line.number, end, 0)

    def chances(self) -> Iterator[Step]:
        """What may also happen, and is no fault of its own: a consequence of one."""
        yield from self.chances_on_lines()
        for number in (0, 1):
            yield from self.chances_at(number)
        yield from self.chances_at_store()

    def chances_on_lines(self) -> Iterator[Step]:
        """Bytes of a dead process are lost; who speaks to a frozen one gives up."""
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

    def chances_at(self, number: int) -> Iterator[Step]:
        """Who is frozen is killed."""
        host = self.hosts[number]
        for process in host.processes:
            if process.frozen:
                yield ("kill", number, process.number, 0)
        endpoint = host.endpoint
        if Defect.OLD_CONTROLLER in self.defects and endpoint is not None and endpoint.frozen:
            yield ("takeover", number, 0, 0)

    def chances_at_store(self) -> Iterator[Step]:
        """Claims that went astray get there."""
        if self.store is not None and self.store.answers:
            yield from (("land", number, 0, 0) for number in range(len(self.store.astray)))

    def _is_still(self, end: tuple[int, int, int]) -> bool:
        return bool(self.frozen(end[0], end[1]))

    # ---- letting it happen ----

    def take(self, step: Step) -> None:
        """One of the above, or one of `sterna.sim.faults`.

        Raises:
            Violation: something came of it that must never happen.
        """
        word, one, two, three = step
        line = self.line(one) if word in _OF_LINES else None
        if word in _OF_LINES:
            assert line is not None
            self.own(line.ends[two][0])
        elif word not in _OF_NO_HOST:
            self.own(one)
        match word:
            case "act":
                act(self, *self.at(one, two, three))
            case "reply":
                reply(self, *self.at(one, two, three))
            case "tick":
                tell(self, *self.at(one, two, three), Tick())
            case "fault":
                host, process, task = self.at(one, two, three)
                holder = host.holder(task.image)
                assert holder is not None
                assert holder.waits_for is not None
                holder.faulted = holder.waits_for
                tell(self, host, process, task, Touch(holder.faulted))
            case "deliver" | "lost" | "closed" | "expire" | "deadline":
                assert line is not None
                host, process, task = self.at(*line.ends[two])
                tell(self, host, process, task, hears(self, word, line, two, task))
            case "resume":
                self._resume(*self.in_(one, two))
            case "recover":
                recover(self, *self.in_(one, two))
            case "restart":
                self.start_process(one)
            case "wake" | "freeze":
                _, process = self.in_(one, two)
                process.frozen = word == "freeze"
            case "kill":
                self.kill(one, two)
            case "takeover":
                endpoint = self.hosts[one].endpoint
                assert endpoint is not None
                endpoint.beside, endpoint.stale = True, self.hosts[one].history
                self.start_process(one)
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
        here = self.own(host)
        process, holder = here.endpoint, next(each for each in here.holders if each.stage is Stage.RUNS)
        assert process is not None
        self.locks(here, process)
        attach(self, holder, process)
        task = Task(process.next_number, "source", self.makers.source(holder), holder.image)
        process.tasks.append(task)
        process.tries = 0
        self._open(here, process, task)

    def _resume(self, here: Host, process: Process) -> None:
        """The source takes its session up again, or gives up: then the guest stays where it runs."""
        kept = process.kept[b""]
        process.kept = others_kept(process)
        if "turned-away" in self.hosts[1 - here.place].armed:
            self.own(1 - here.place).armed -= {"turned-away"}
        process.refused = None if self.makers.clocked else source_view(self, here)
        holder = here.holder(kept.image)
        process.tries += self.makers.clocked
        if holder is None or not holder.lives or process.tries > RESUMES_MAX:
            return
        self.locks(here, process)
        task = Task(process.next_number, "source", self.makers.resumed(holder, kept), holder.image)
        process.tasks.append(task)
        keep(self, here, task)
        self._open(here, process, task)

    def _open(self, here: Host, process: Process, task: Task) -> None:
        """A source dials, and hears so if nobody is there."""
        connect(self, here, process, task)
        tell(self, here, process, task, Start())
        if not task.line and task in process.tasks:
            tell(self, here, process, task, Lost())

    def start_process(self, number: int, *, beside: bool = False) -> Process:
        """A new process, which knows nothing."""
        host = self.hosts[number]
        process = Process(self.next_process(number, beside=beside), beside=beside)
        host.processes.insert(len(host.processes) if beside else 0, process)  # the endpoint comes first
        return process

    def next_process(self, number: int, *, beside: bool) -> int:
        """A number that no process ever had, on either host."""
        host = self.hosts[number]
        host.starts += 1
        return 2 * host.starts + number

    def kill(self, number: int, process: int) -> None:
        """A process dies with all that it knew. What it has asked the store for may land all the same."""
        host, dead = self.in_(number, process)
        for claim in dead.claims():
            if self.store is not None:
                self.store.strays(claim.epoch, claim.runner)
        host.processes.remove(dead)
        if host.lock == process:
            host.lock = 0
        for line in self.lines:
            for end in (0, 1):
                if line.ends[end][:2] == (number, process) and not line.gone[end]:
                    line.leaves(end, crashed=True)
                    forget(self, line)
        controller_gone(self, host, process)
