"""What must be so when everything that went wrong is over, and nothing is left to be done."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from sterna.core.records import SessionRecord, Side
from sterna.registry import Owner
from sterna.sim.holder import Holder, Stage
from sterna.sim.hosts import NAMES
from sterna.sim.judge import Violation

if TYPE_CHECKING:
    from sterna.sim.hosts import Host
    from sterna.sim.world import World


class End(StrEnum):
    """Where a guest is in the end."""

    RUNS = "runs"
    LOST = "guest_lost"
    UNDECIDED = "undecided"


def check_rest(world: World) -> End:
    """One runs, or it is coded why not.

    Raises:
        Violation: neither.
    """
    running = world.running()
    says = [host.name for host in world.hosts if host.settled is not None and host.settled.lost]
    if running is not None and not _waits_for_ever(world, running):
        if says and not _is_unrecorded(world, running):
            detail = f"{says[0]} says that the guest is lost, and it runs at {running.host}"
            raise Violation("one-runner", detail, loss=True)
        _check_pages(world, running)
        _check_taken_up(world)
        return End.RUNS
    histories = {host.name: host.history for host in world.hosts}
    if running is None and not world.judge.is_lost(world.holders(), histories):
        return _undecided(world, says)
    if says or not world.judge.has_left(histories):
        return End.LOST
    if any(_leaves_it_open(host) for host in world.hosts):
        return End.UNDECIDED
    raise Violation("one-runner", f"the guest is lost, and nobody says so. {_all_told(world)}", loss=True)


def _undecided(world: World, says: list[str]) -> End:
    """Nobody runs the guest, of which there is an image that could be run.

    Raises:
        Violation: for no good reason, or it is said to be lost.
    """
    if says:
        detail = f"{says[0]} says that the guest is lost, and its image is there"
        raise Violation("one-runner", detail, loss=True)
    if world.store is None and any(_waits_for_question(host) for host in world.hosts):
        return End.UNDECIDED
    detail = f"nobody runs the guest, and its image is there. {_all_told(world)}"
    raise Violation("one-runner", detail, loss=True)


def _is_unrecorded(world: World, running: Holder) -> bool:
    """Whether the guest has come with all of its pages, and that could not be recorded.

    Then a VERDICT cannot tell it from one that lacks some; the destination's operator knows [ONE-42].
    """
    there = NAMES.index(running.host)
    owes = world.hosts[1 - there].history.owes_pages(running.image)
    return owes and world.hosts[there].history.complete(running.image) is None


def _waits_for_ever(world: World, running: Holder) -> bool:
    """Whether a guest lacks pages that nobody has any more: its source's holder was killed [ONE-42]."""
    others = world.hosts[1 - NAMES.index(running.host)].holders
    return bool(running.missing) and not any(each.stage is Stage.STOPPED and each.mark for each in others)


def _check_pages(world: World, running: Holder) -> None:
    """Nobody waits for pages that are there, and that he could be sent [RES-13] [ONE-38].

    Where there is a clock, a source may have given up.

    Raises:
        Violation: the guest does.
    """
    if world.makers.clocked:
        return
    there = NAMES.index(running.host)
    kept = any(running.image in each.kept for each in world.hosts[there].processes)
    waits = running.missing and (kept or world.makers.keeps)
    served = any(each.stage is Stage.STOPPED and each.mark for each in world.hosts[1 - there].holders)
    if waits and served:
        raise Violation("one-runner", f"the guest waits at {running.host} for pages that its source has")


def _check_taken_up(world: World) -> None:
    """A session that both sides keep goes on [RES-18]; where there is a clock, a source may have given up.

    Raises:
        Violation: nobody takes it up.
    """
    endpoints = [host.endpoint for host in world.hosts]
    kept = all(each is not None and each.kept for each in endpoints)
    if kept and not world.makers.clocked:
        raise Violation("converges", "both sides keep a session, and nobody takes it up")


def _leaves_it_open(host: Host) -> bool:
    """Whether a source whose image is gone cannot know what its destination does, and tells an operator."""
    return host.settled is not None and host.settled.judgement.owner is Owner.UNDECIDED


def _all_told(world: World) -> str:
    return "; ".join(f"{host.name}: {_told(host)}" for host in world.hosts)


def _told(host: Host) -> str:
    return "nothing" if host.settled is None else host.settled.judgement.why


def _waits_for_question(host: Host) -> bool:
    """Whether a later controller at a destination waits for the source, whose image is gone [ONE-58]."""
    for session in host.history.each(SessionRecord):
        epoch = session.epoch + 1
        if session.side is Side.DESTINATION and host.history.claiming(epoch) and not host.history.fate(epoch):
            return True
    return False
