"""A machine that is recalled is a machine: told the same, it says the same, in every order of asking."""

from __future__ import annotations

import pytest
from sim_support import ALPHA, BETA, go, stands, world_of

from sterna.core.events import Admission, Admit, Reserve
from sterna.core.history import RecordConflict
from sterna.core.records import Complete as DurableComplete
from sterna.core.records import Start as StartRecord
from sterna.core.tables import DestinationState, SourceState
from sterna.errors import GuestError, RecordError, StoreUnavailable
from sterna.limits import HEADER_BYTES
from sterna.registry import ErrorCode, FrameType
from sterna.sim.holder import PAGE_BYTES, Holder, Stage
from sterna.sim.judge import Violation
from sterna.sim.machines import Ask, Data, Done, Failed, Lost, Start, Tick, Trouble
from sterna.sim.makers import LiveMakers, RecallingMakers, Shape
from sterna.wire.header import decode_header
from sterna.wire.records import Runner

RUNNER = Runner("alpha", b"r" * 16)
ADMISSION = Admission(b"s" * 16, bytes(32), Runner("beta", b"b" * 16))


def frames(data):
    """The headers of frames that stand one behind the other."""
    while data:
        header = decode_header(data[:HEADER_BYTES])
        yield header
        data = data[HEADER_BYTES + header.body_bytes + header.bulk_bytes :]


def holder():
    made = Holder("alpha", b"i" * 16, Stage.RUNS)
    made.count, made.epoch, made.runner = 5, 1, RUNNER
    return made


def test_live_and_recalled_say_the_same():
    live, recalled = LiveMakers(Shape(), lambda: 0.0), RecallingMakers(Shape())
    first, second = live.source(holder()), recalled.source(holder())
    first, second = first.told(Start(), 0.0), second.told(Start(), 0.0)
    assert first.said == second.said != ()
    (hello,) = first.said
    first, second = live.destination("beta"), recalled.destination("beta")
    first, second = first.told(Data(hello), 0.0), second.told(Data(hello), 0.0)
    assert [type(each) for each in first.asked] == [type(each) for each in second.asked] == [Admit]
    admitted = second.told(Done(ADMISSION), 0.0)
    assert first.told(Done(ADMISSION), 0.0).said == admitted.said
    refused = second.told(Failed(Trouble(ErrorCode.BUSY)), 0.0)
    assert refused.said != admitted.said
    assert admitted.state is DestinationState.WELCOMED
    assert second.told(Done(ADMISSION), 0.0) is admitted, "known already"
    assert second.state is DestinationState.ADMITTING, "it has not changed"
    assert second.key() != admitted.key() != refused.key()


def test_a_turn_is_taken_by_a_machine_that_is_told_everything_again():
    makers = RecallingMakers(Shape(store=False))
    greeting = makers.source(holder()).told(Start(), 0.0)
    lost, closed = greeting.told(Lost(), 0.0), greeting.told(Lost(closed=True), 0.0)
    assert lost.state is SourceState.ROLLING_BACK
    assert closed is lost, "how it was lost is the same to it"
    refused = greeting.told(Data(b"nonsense"), 0.0)
    assert refused.state is SourceState.ROLLING_BACK
    assert refused.key() != lost.key()
    assert makers.machines == 4
    assert makers.source(holder()).told(Start(), 0.0) is greeting
    other = holder()
    other.count = 6
    assert makers.source(other).told(Start(), 0.0) is not greeting


def test_a_question():
    asker = LiveMakers(Shape(), lambda: 0.0).asker("alpha", 1, RUNNER).told(Ask(b"s" * 16, bytes(32)), 0.0)
    assert asker.state is SourceState.ASKING
    assert asker.result is None
    assert asker.timer is not None
    assert asker.key() == asker.key()
    assert asker.told(Tick(), 1000.0).told(Tick(), 2000.0).state is SourceState.UNANSWERED


def test_each_group_of_pages_may_be_the_last_that_arrives():
    """[RES-6] In a round, too: what was applied of it is told apart."""
    world = world_of(store=False, clocked=False)
    world.begin(ALPHA)
    go(world, stands(source=SourceState.ACKING, destination=DestinationState.STANDBY))
    (line,) = world.lines
    (round_one,) = line.pipes[BETA]
    types = [[frame.type for frame in frames(piece)] for piece in round_one]
    pages = FrameType.PAGES
    assert types == [[FrameType.ROUND, pages], *[[pages]] * 3, [FrameType.ROUND_END]]


def test_a_room_is_made_for_each_machine():
    makers = RecallingMakers(Shape(store=False))
    source = makers.source(holder())
    source = source.told(Start(), 0.0)
    admitting = makers.destination("beta").told(Data(*source.said), 0.0)
    destination = admitting.told(Done(ADMISSION), 0.0)
    described = source.told(Data(b"".join(admitting.said + destination.said)), 0.0)
    reserving = destination.told(Data(*described.said), 0.0)
    assert isinstance(reserving.asked[0], Reserve)
    assert len(reserving.told(Done(), 0.0).room) > 0
    assert len(reserving.room) == 0


def test_a_page_that_is_the_guests_is_written_by_nobody_else():
    """[PCY-12]"""
    world = world_of(resume=True, switchover="post-copy")
    world.begin(ALPHA)
    go(world, lambda world: DurableComplete in {type(each) for each in world.hosts[BETA].history.records})
    (task,) = world.hosts[BETA].endpoint.tasks
    task.machine.told(Tick(), 0.0)
    task.machine.room[PAGE_BYTES] = 1
    with pytest.raises(Violation, match="an endpoint writes to a page that the guest has by now"):
        task.machine.told(Tick(), 0.0)


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        (Trouble(ErrorCode.RECORD_FAILED), RecordError),
        (Trouble(ErrorCode.RECORD_FAILED, StartRecord(2)), RecordConflict),
        (Trouble(ErrorCode.UNDECIDED), StoreUnavailable),
        (Trouble(ErrorCode.GUEST_FAILED), GuestError),
    ],
)
def test_troubles_are_errors(trouble, kind):
    assert isinstance(trouble.error(), kind)
