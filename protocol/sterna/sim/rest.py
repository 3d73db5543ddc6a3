"""What must be so when everything that went wrong is over, and nothing is left to be done."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from sterna.core.records import SessionRecord, Side
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
    running = [each for each in world.holders() if each.stage is Stage.RUNS]
    lost = [host.name for host in world.hosts if host.settled is not None and host.settled.lost]
    histories = {host.name: host.history for host in world.hosts}
    if running:
        if lost:
            raise Violation(
                "one-runner", f"{lost[0]} says that the guest is lost, and it runs at {running[0].host}"
            )
        _check_pages(world, running[0])
        _check_taken_up(world)
        return End.RUNS
    if world.judge.is_lost(world.holders(), histories):
        return End.LOST
    if lost:
        raise Violation("one-runner", f"{lost[0]} says that the guest is lost, and its image is there")
    if world.store is None and any(_waits_for_question(host) for host in world.hosts):
        return End.UNDECIDED
    said = "; ".join(f"{host.name}: {_told(host)}" for host in world.hosts)
    raise Violation("one-runner", f"nobody runs the guest, and its image is there. {said}")


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


def _told(host: Host) -> str:
    return "nothing" if host.settled is None else host.settled.judgement.why


def _waits_for_question(host: Host) -> bool:
    """Whether a later controller at a destination waits for the source, whose image is gone [ONE-58]."""
    for session in host.history.each(SessionRecord):
        epoch = session.epoch + 1
        if session.side is Side.DESTINATION and host.history.claiming(epoch) and not host.history.fate(epoch):
            return True
    return False
