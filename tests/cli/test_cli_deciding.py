"""Who owns a guest that was handed over, while its session may go on. With real processes: tests/e2e."""

from __future__ import annotations

import pytest
import trio

from sterna.cli.deciding import Deciding, interruptible
from sterna.cli.endpoint import Ending
from sterna.core.events import Outcome, Result
from sterna.core.records import SessionRecord, Side
from sterna.core.serving import AfterStats
from sterna.core.verdict import Judgement, Step
from sterna.host.recovery import Recovered
from sterna.registry import Owner
from sterna.wire.records import NO_RUNNER, Verdict

SESSION = SessionRecord(b"s" * 16, 1, Side.SOURCE, b"t" * 32, "host-b")
BACK = Verdict(Owner.SOURCE, 2, NO_RUNNER, handed_back=True)


class Finding:
    """A recovery that finds these owners, one after the other; None for nothing to find."""

    def __init__(self, *owners: Owner | None) -> None:
        self.owners = list(owners)
        self.told: list[Verdict | None] = []
        self.mapped: list[bool] = []
        self.step = Step.NONE
        self.stopped = False
        self.image, self.lost = True, False

    async def has_image(self) -> bool:
        return self.image

    def anew(self, verdict: Verdict | None = None, *, mapped: bool = False) -> Finding:
        self.told.append(verdict)
        self.mapped.append(mapped)
        return self

    def stop(self) -> None:
        self.stopped = True

    async def run(self) -> Recovered | None:
        await trio.lowlevel.checkpoint()
        owner = self.owners.pop(0)
        judgement = None if owner is None else Judgement(owner, "so it is", "ONE-43", self.step)
        return None if judgement is None else Recovered(SESSION, judgement, self.lost)


def ending() -> Ending:
    return Ending(trio.CancelScope())


@pytest.mark.parametrize("owner", [Owner.DESTINATION, Owner.SOURCE, Owner.UNDECIDED, None])
async def test_the_destination_is_the_only_one_that_is_served_on(owner: Owner | None) -> None:
    deciding = Deciding(Finding(owner), ending())
    result = Result(Outcome.UNDECIDED)
    assert await deciding.is_elsewhere(result) is (owner is Owner.DESTINATION)
    if owner is not None:
        found = await deciding.in_the_end(result)
        assert found is not None
        assert found.judgement.owner is owner


async def test_nobody_is_asked_where_the_end_is_known() -> None:
    finding = Finding()
    assert await Deciding(finding, ending()).in_the_end(Result(Outcome.COMPLETED)) is None
    assert finding.told == []


async def test_whoever_has_not_asked_yet_asks_in_the_end() -> None:
    found = await Deciding(Finding(Owner.SOURCE), ending()).in_the_end(Result(Outcome.UNDECIDED))
    assert found is not None
    assert found.judgement.owner is Owner.SOURCE


async def test_a_guest_that_was_handed_back_instead_is_the_source_s() -> None:
    """[ONE-37] Its slot had named the destination, which then never ran it."""
    finding = Finding(Owner.DESTINATION, Owner.SOURCE)
    deciding = Deciding(finding, ending())
    assert await deciding.is_elsewhere(Result(Outcome.UNDECIDED))
    found = await deciding.in_the_end(Result(Outcome.MOVED, verdict=BACK))
    assert found is not None
    assert found.judgement.owner is Owner.SOURCE
    assert finding.told == [None, BACK]


async def test_pages_whose_image_is_gone_are_there_while_their_process_serves_them() -> None:
    """[ONE-42] Then they go with it, and it asks whether all of them have come."""
    finding = Finding(Owner.DESTINATION, Owner.DESTINATION)
    finding.image, finding.lost = False, True
    deciding = Deciding(finding, ending())
    assert await deciding.is_elsewhere(Result(Outcome.UNDECIDED))
    served = await deciding.in_the_end(Result(Outcome.COMPLETED))
    assert served is not None
    assert not served.lost
    left = await deciding.in_the_end(Result(Outcome.MOVED, after=AfterStats(stale=3, pushed=2)))
    assert left is not None
    assert left.lost


@pytest.mark.parametrize(("image", "lost"), [(False, True), (True, False)])
async def test_pages_that_nobody_has_come_for_go_with_this_process(image: bool, lost: bool) -> None:
    """[ONE-42] While it waited for a claim they were there. It ends, and they go."""
    finding = Finding(Owner.UNDECIDED, Owner.UNDECIDED)
    finding.image, finding.step = image, Step.CLAIM_NEXT
    deciding = Deciding(finding, ending())
    assert not await deciding.is_elsewhere(Result(Outcome.UNDECIDED))
    finding.lost = True
    found = await deciding.in_the_end(Result(Outcome.UNDECIDED))
    assert found is not None
    assert found.lost is lost
    assert finding.mapped == [True, False][: len(finding.mapped)]


@pytest.mark.parametrize(
    ("image", "after"),
    [
        (True, AfterStats(stale=3, pushed=2)),
        (False, AfterStats(stale=3, pushed=3, seconds=0.5)),
        (False, None),
    ],
)
async def test_nobody_is_asked_for_pages_that_are_there(image: bool, after: AfterStats | None) -> None:
    finding = Finding()
    finding.image = image
    assert await Deciding(finding, ending()).in_the_end(Result(Outcome.MOVED, after=after)) is None
    assert finding.told == []


async def test_the_wish_to_end_ends_the_waiting_alone() -> None:
    finding, end = Finding(Owner.UNDECIDED), ending()
    before = end.ask = lambda _: None

    async def wish() -> None:
        assert end.ask is not None
        end.ask("enough")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(interruptible, finding, end)
        nursery.start_soon(wish)
    if not finding.stopped:  # trio shuffles: it was quicker
        assert finding.owners == []
    assert end.late is finding.stopped
    assert end.ask is before


async def test_a_wish_that_came_when_the_guest_might_have_left_is_remembered() -> None:
    """[CON-72] Whoever wishes once more interrupts."""
    finding, end = Finding(Owner.SOURCE), ending()
    end.late = True
    recovered = await interruptible(finding, end)
    assert recovered is not None
    assert recovered.judgement.owner is Owner.SOURCE
    assert finding.stopped
    assert end.ask is None
