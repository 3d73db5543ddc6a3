"""What is left of a session is the same for whoever takes it up, and is told apart by all that matters."""

from __future__ import annotations

import pytest
from sim_support import ALPHA, BETA, go, parted, stands, world_of

from sterna.core.tables import DestinationState, SourceState
from sterna.sim.holder import PAGE_BYTES
from sterna.sim.kept import Fresh, Left, value_of

ROUND_ONE = {"source": SourceState.ACKING, "destination": DestinationState.STANDBY}
SEALED = {"source": SourceState.SEALED, "destination": DestinationState.LOADED}
APART = {"source": SourceState.MOVED, "destination": DestinationState.FETCHING}


def lefts(world):
    """What they have left, source first."""
    return [left for host in world.hosts for left in host.endpoint.kept.values()]


def test_a_machine_that_is_left_is_made_again_for_each_who_asks():
    """[RES-13] What one does with it, another one does not see."""
    world = parted(APART, ("cut", 1, 0, 0), switchover="post-copy")
    for left in lefts(world):
        one, other = left.again(), left.again()
        assert one.carry is not other.carry
        assert one.carry.ticket == other.carry.ticket
        assert left == Left(None, left.image, left.value)
    assert one.notes == other.notes != b""
    assert one.notes is not other.notes, "the entries of pages lie there [PCY-16]"
    assert one.opening == other.opening
    holder = world.hosts[ALPHA].holders[0]
    assert isinstance(holder.notes, bytes), "so that nothing writes there but a machine"


@pytest.mark.parametrize("switchover", ["stop-and-copy", "post-copy"])
def test_a_copy_is_what_the_machine_would_leave_again(switchover):
    """And what is in it stands together as it does there."""
    until = SEALED if switchover == "stop-and-copy" else APART
    source, destination = lefts(parted(until, ("cut", 1, 0, 0), switchover=switchover))
    for left in (source, destination):
        left.again()
        copy = left.again()
        assert value_of(copy) == left.value == value_of(left.machine.again().kept(left.image))
    copy = source.again()
    assert copy.still is copy.carry.memory._pages.holder
    copy.notes[:] = bytes(len(copy.notes))
    assert value_of(copy) != source.value == value_of(source.again())


def test_machines_that_have_left_the_same_are_one():
    """What has come of the blackout is the same, whether its state was loaded or not [RES-8]."""
    cut = ("cut", 1, 0, 0)
    before = lefts(parted(SEALED | {"destination": DestinationState.LOADING}, cut))
    for one, other in zip(before, lefts(parted(SEALED, cut)), strict=True):
        assert one.machine is not other.machine
        assert (one, hash(one)) == (other, hash(other))


def test_machines_that_have_left_something_else_are_not():
    """[RES-6] Rounds and pages count, in whatever object they are."""
    cut, torn = ("cut", 1, 0, 0), ("torn", 1, BETA, 0)
    none = lefts(parted(ROUND_ONE, cut))
    some = lefts(parted(ROUND_ONE, torn, ("deliver", 1, BETA, 0)))
    assert none[0] == some[0], "nobody has told the source"
    assert none[1] != some[1]
    kept = none[1].again()
    assert value_of(kept) == none[1].value
    kept.room[PAGE_BYTES] ^= 1
    assert value_of(kept) != none[1].value


@pytest.mark.parametrize("holds", [False, True])
def test_a_destination_that_has_nothing_left_says_so(holds):
    """[RES-7] And a broken one does not."""
    world = world_of(resume=True, clocked=False)
    world.begin(ALPHA)
    go(world, stands(**SEALED))
    (opening,) = world.hosts[BETA].openings.values()
    fresh = Fresh(b"s" * 16, opening, holds)
    assert fresh == Fresh(b"s" * 16, None, holds)
    kept = fresh.again()
    assert kept.carry.holdings.complete == holds
    assert (kept.carry.ticket.session, kept.opening) == (opening.welcome.session, opening)
    assert not any(kept.room)
