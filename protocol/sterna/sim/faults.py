"""What goes wrong in a world: which of it can go wrong now, and letting it.

A fault is a step like any other, only that nothing leads to it. Drivers choose which, when and how many.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypeAlias

from sterna.registry import ErrorCode
from sterna.sim.holder import Stage
from sterna.sim.holding import destroy
from sterna.sim.hosts import Hold, Host, Process, Reach, TakeLocks, Task, Write
from sterna.sim.machines import Trouble
from sterna.sim.recovering import open_session_of
from sterna.sim.tasks import effect, lands

if TYPE_CHECKING:
    from sterna.sim.world import World

Step: TypeAlias = tuple[str, int, int, int]


class Fault(StrEnum):
    """A kind of fault."""

    CUT = "cut"
    TORN = "torn"
    DEADLINE = "deadline"
    SOURCE_KILLED = "source-killed"
    DESTINATION_KILLED = "destination-killed"
    SOURCE_FROZEN = "source-frozen"
    DESTINATION_FROZEN = "destination-frozen"
    FROZEN_KILLED = "frozen-killed"
    SOURCE_HOLDER_KILLED = "source-holder-killed"
    DESTINATION_HOLDER_KILLED = "destination-holder-killed"
    RECORD_FAILS = "record-fails"
    RECORD_LIES = "record-lies"
    RECORD_SLOW = "record-slow"
    MARK_FAILS = "mark-fails"
    LOCKS_REFUSED = "locks-refused"
    NOT_READY = "not-ready"
    REPLY_LOST = "reply-lost"
    CLAIM_LATE = "claim-late"
    CLAIM_DOUBLED = "claim-doubled"
    STORE_OUT = "store-out"
    BESIDE = "beside"
    OPENED_ANEW = "opened-anew"

    @property
    def text(self) -> str:
        """In words."""
        return _TEXTS[self]


_TEXTS: Final = {
    Fault.CUT: "the connection is cut, and what is on its way is lost",
    Fault.TORN: "the connection is cut behind a group, and the one that left with it is lost",
    Fault.DEADLINE: "one end gives the connection up; what it has sent still arrives",
    Fault.SOURCE_KILLED: "the source's endpoint is killed",
    Fault.DESTINATION_KILLED: "the destination's endpoint is killed",
    Fault.SOURCE_FROZEN: "the source's endpoint is frozen, and woken late",
    Fault.DESTINATION_FROZEN: "the destination's endpoint is frozen, and woken late",
    Fault.FROZEN_KILLED: "an endpoint is frozen, and killed while it is",
    Fault.SOURCE_HOLDER_KILLED: "the holder that has the source's guest is killed",
    Fault.DESTINATION_HOLDER_KILLED: "the holder that has the destination's guest is killed",
    Fault.RECORD_FAILS: "a record cannot be written",
    Fault.RECORD_LIES: "a record is durable although writing it failed",
    Fault.RECORD_SLOW: "writing a record takes longer than the peer's deadlines",
    Fault.MARK_FAILS: "the holder cannot be marked",
    Fault.LOCKS_REFUSED: "storage locks are not to be had",
    Fault.NOT_READY: "a destination fails to prepare",
    Fault.REPLY_LOST: "a claim reaches the store, its answer is lost",
    Fault.CLAIM_LATE: "a claim reaches the store late or never; its sender has repeated it meanwhile",
    Fault.CLAIM_DOUBLED: "a claim reaches the store twice",
    Fault.STORE_OUT: "the store is out of reach for a while",
    Fault.BESIDE: "a question comes to a second process of the host",
    Fault.OPENED_ANEW: "a source whose session has ended opens another one at once",
}

# Which of its sides a fault is about.
_SIDES: Final = {
    Fault.SOURCE_KILLED: 0, Fault.SOURCE_FROZEN: 0, Fault.SOURCE_HOLDER_KILLED: 0, Fault.OPENED_ANEW: 0,
    Fault.DESTINATION_KILLED: 1, Fault.DESTINATION_FROZEN: 1, Fault.DESTINATION_HOLDER_KILLED: 1,
    Fault.BESIDE: 1,
}  # fmt: skip


def possible(world: World, fault: Fault, source: int) -> list[Step]:
    """The steps by which a fault can happen now.

    Args:
        world: where.
        fault: which.
        source: the host that is the source of the migration under way.
    """
    at = (step for host in (source, 1 - source) for step in possible_at(world, fault, source, host))
    return [*possible_between(world, fault), *at]


def possible_between(world: World, fault: Fault) -> Iterator[Step]:
    """Those that befall a connection or the store."""
    match fault:
        case Fault.CUT:
            yield from (("cut", line.number, 0, 0) for line in world.lines if not line.broken)
        case Fault.TORN:
            for line in world.lines:
                for end in (0, 1):
                    if line.pipes[end] and len(line.pipes[end][0]) > 1:
                        yield ("torn", line.number, end, 0)
        case Fault.DEADLINE:
            yield from _deadlines(world)
        case Fault.STORE_OUT if world.store is not None and world.store.answers:
            yield ("store-out", 0, 0, 0)
        case _:
            pass


def possible_at(world: World, fault: Fault, source: int, host: int) -> Iterator[Step]:
    """Those that befall this host."""
    match fault:
        case Fault.CUT | Fault.TORN | Fault.DEADLINE | Fault.STORE_OUT:
            return
        case _ if host != source ^ _SIDES.get(fault, host ^ source):
            return
        case Fault.SOURCE_KILLED | Fault.DESTINATION_KILLED:
            yield from _processes(world, "kill", host)
        case Fault.SOURCE_FROZEN | Fault.DESTINATION_FROZEN | Fault.FROZEN_KILLED:
            yield from _processes(world, "freeze", host)
        case Fault.SOURCE_HOLDER_KILLED | Fault.DESTINATION_HOLDER_KILLED:
            for number, holder in enumerate(world.hosts[host].holders):
                if holder.lives:
                    yield ("destroy", host, number, 0)
        case Fault.BESIDE:
            here = world.hosts[source].endpoint
            asks = here is not None and all(task.kind == "recovery" for task in here.tasks)
            if asks and "beside" not in world.hosts[host].armed:
                yield ("beside", host, 0, 0)
        case Fault.OPENED_ANEW:
            if _may_open(world, host):
                yield ("open", host, 0, 0)
        case _:
            yield from _of_ops(world, fault, host)


def _may_open(world: World, number: int) -> bool:
    """Whether whoever works at a host can have its guest sent: it runs there, and nothing is under way."""
    host = world.hosts[number]
    endpoint = host.endpoint
    if endpoint is None or endpoint.frozen or endpoint.tasks or b"" in endpoint.kept:
        return False
    offers = any(each.stage is Stage.RUNS and not each.missing for each in host.holders)
    return offers and host.may_lock(endpoint) and open_session_of(host, endpoint) is None


def _deadlines(world: World) -> Iterator[Step]:
    for line in world.lines:
        for end in (0, 1):
            host, process, _ = line.ends[end]
            if not line.gone[end] and not line.broken and world.frozen(host, process) is False:
                yield ("deadline", line.number, end, 0)


def _processes(world: World, word: str, host: int) -> Iterator[Step]:
    endpoint = world.hosts[host].endpoint
    if endpoint is not None and not endpoint.frozen and endpoint.tasks:
        yield (word, host, endpoint.number, 0)


def _of_ops(world: World, fault: Fault, host: int) -> Iterator[Step]:
    for process in world.hosts[host].processes:
        for task in process.tasks:
            if task.op is not None and not task.landed and befalls(fault, task):
                yield (fault.value, host, process.number, task.number)


def befalls(fault: Fault, task: Task) -> bool:
    """Whether a fault may befall what a task has under way."""
    op = task.op
    match fault:
        case Fault.RECORD_FAILS | Fault.RECORD_LIES | Fault.RECORD_SLOW:
            return isinstance(op, Write)
        case Fault.MARK_FAILS:
            return isinstance(op, Hold) and op.verb == "mark"
        case Fault.NOT_READY:
            return isinstance(op, Hold) and op.verb == "prepare"
        case Fault.LOCKS_REFUSED:
            return isinstance(op, TakeLocks)
        case _:
            return isinstance(op, Reach) and op.verb == "claim"


def inject(world: World, step: Step) -> None:
    """Let a fault happen.

    Raises:
        Violation: something came of it that must never happen.
    """
    word, one, two, three = step
    match word:
        case "cut":
            line = world.line(one)
            assert line is not None
            line.cut()
        case "torn":
            line = world.line(one)
            assert line is not None
            line.tear(two)
        case "destroy":
            destroy(world, world.hosts[one].holders[two])
        case "store-out" | "store-back":
            assert world.store is not None
            world.store.answers = word == "store-back"
        case "beside":
            world.hosts[one].armed |= {"beside"}
        case "open":
            world.begin(one)
        case _:
            _befall(world, Fault(word), *world.at(one, two, three))


def _befall(world: World, fault: Fault, host: Host, process: Process, task: Task) -> None:
    op = task.op
    match fault:
        case Fault.REPLY_LOST:
            effect(world, host, process, task)
            return  # and is repeated
        case Fault.CLAIM_LATE | Fault.CLAIM_DOUBLED:
            assert isinstance(op, Reach)
            assert world.store is not None
            world.store.strays(op.epoch, op.runner)
            return
        case Fault.RECORD_SLOW:
            return  # whoever has a clock sees to that
        case Fault.RECORD_LIES:
            found = effect(world, host, process, task)
            task.answer = found if isinstance(found, Trouble) else Trouble(ErrorCode.RECORD_FAILED)
        case Fault.RECORD_FAILS:
            task.answer = Trouble(ErrorCode.RECORD_FAILED)
        case _:
            task.answer = Trouble(ErrorCode.GUEST_FAILED)
    lands(world, host, process, task)
