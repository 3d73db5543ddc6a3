"""Recovery in a world: `next_act` of the core, act by act, with what a host knows.

What there is to be seen is looked at anew before every act. What the peer has said and what the store has
named are kept for as long as one recovery goes on; the store is read again after every claim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from sterna.core.records import SessionRecord, Side
from sterna.core.recovery import (
    AskPeer,
    ClaimSlot,
    FreeRoom,
    Image,
    Note,
    ReadStore,
    RunHere,
    RunOn,
    Settled,
    Situation,
    next_act,
)
from sterna.core.verdict import Facts, Store
from sterna.sim.defects import Defect
from sterna.sim.holder import Stage
from sterna.sim.hosts import Hold, Host, Op, Reach, Task, Write
from sterna.sim.plans import spare_runner

if TYPE_CHECKING:
    from sterna.sim.world import World

_IMAGES = {
    Stage.ROOM: Image.ROOM,
    Stage.READY: Image.READY,
    Stage.RUNS: Image.RUNS,
    Stage.STOPPED: Image.STOPPED,
    Stage.FREED: Image.GONE,
    Stage.KILLED: Image.GONE,
}


@dataclass(frozen=True, slots=True)
class Question:
    """The peer is to be asked about a session."""

    session: SessionRecord


Next: TypeAlias = Op | Question | Settled


def situation_of(world: World, host: Host, task: Task) -> Situation:
    """What recovery goes by, beside the records."""
    holder = host.holder(task.image)
    store = None if world.store is None else task.store or Store(answers=False)
    mark = 0 if holder is None or not holder.lives else holder.mark
    facts = Facts(host.name, store, mark, task.peer)
    if holder is None:
        return Situation(facts)
    return Situation(facts, _IMAGES[holder.stage], holder.image, holder.epoch, task.complete)


def next_of(world: World, host: Host, task: Task) -> Next:
    """What recovery does next, or that it has come to its end."""
    situation = situation_of(world, host, task)
    act = next_act(host.history, task.session, situation, spare_runner(host, task.session))
    session = host.history.session(task.session)
    assert session is not None
    match act:
        case Note(record):
            return Write(record)
        case ClaimSlot(epoch, runner):
            if Defect.ABSENT_IS_LOST in world.defects and session.side is Side.SOURCE:
                return Hold("run", task.image, epoch, runner)
            return Reach("claim", epoch, runner)
        case ReadStore():
            return Reach("read", session.epoch + 1)
        case AskPeer(asked):
            return _freed_early(world, session, task, host) or Question(asked)
        case RunHere(epoch, runner):
            reused = Defect.EPOCH_REUSED in world.defects and epoch == session.epoch + 2
            return Hold("run", task.image, epoch - reused, runner)
        case RunOn():
            return Hold("resume", task.image)
        case FreeRoom():
            return Hold("discard", task.image)
        case Settled():
            return act


def _freed_early(world: World, session: SessionRecord, task: Task, host: Host) -> Op | None:
    """What a source does that frees its image as soon as its claim is lost."""
    holder = host.holder(task.image)
    broken = Defect.FREED_ON_LOST_CLAIM in world.defects and task.store is not None
    if broken and task.store is not None and task.store.next is not None and holder is not None:
        return Hold("release", task.image) if holder.lives and session.side is Side.SOURCE else None
    return None
