"""The image of a guest, as its frames tell it. Each check is shown whole in test_observe_follow."""

from __future__ import annotations

import numpy as np
import pytest

from sterna.errors import RemoteProtocolError
from sterna.limits import Limits
from sterna.observe.budget import Budget, TooMuchError
from sterna.observe.direction import Frame
from sterna.observe.image import FRAGMENT_KEPT_BYTES, PAGE_KEPT_BYTES, Image
from sterna.registry import Encoding, FrameType
from sterna.wire import Header, make_runs
from sterna.wire.records import Guest, PageRange, Pages, Region, Round, RoundAck, RoundEnd, State

REGIONS = (Region(1, 0, 8 * 4096), Region(2, 1 << 30, 4 * 4096))
GUEST = Guest("guest", 0, 1, 4096, REGIONS)


def image(guest: Guest = GUEST, budget_bytes: int = 12 * PAGE_KEPT_BYTES) -> Image:
    made = Image(guest, Limits(), Budget(budget_bytes).share())
    made.begin(Round(1, 1, 12), last=False)
    return made


def zeros(region: int, first: int, count: int, damaged: tuple[PageRange, ...] = ()) -> tuple[Pages, Frame]:
    runs = make_runs([(first, count, Encoding.ZERO)], 12)
    table = Pages(1, 1, region, runs, np.array([], dtype="<u8"))
    return table, Frame(0, Header(FrameType.PAGES, 0, 5, 56, 0, 0), table, damaged)


def test_pages_are_counted_over_all_regions() -> None:
    made = image()
    made.take(*zeros(1, 0, 8))
    made.take(*zeros(2, 0, 4))
    made.end(RoundEnd(1, 1, 12, 0, ((0, 5),)), Limits())
    made.acknowledge(RoundAck(1, 1, 12, 0))
    assert made.pages == 12


@pytest.mark.parametrize("second", [(1, 0, 8), (1, 7, 1), (1, 2, 3)])
def test_a_page_goes_once_in_a_round(second: tuple[int, int, int]) -> None:
    """[CON-27] Found at once, although the round's pages would still fit the guest."""
    made = image()
    made.take(*zeros(1, 0, 8))
    with pytest.raises(RemoteProtocolError, match="CON-27"):
        made.take(*zeros(*second))


def test_a_new_round_may_send_them_again() -> None:
    made = image()
    made.take(*zeros(1, 0, 8))
    made.begin(Round(1, 2, 8), last=False)
    table, frame = zeros(1, 0, 8)
    made.take(Pages(1, 2, 1, table.runs, table.hashes), frame)


def test_too_many_damaged_pages() -> None:
    """[RAK-5] More ranges than the source takes in a ROUND_ACK."""
    made = image()
    made.take(*zeros(1, 0, 8, (PageRange(1, 0, 1), PageRange(1, 4, 1))))
    with pytest.raises(RemoteProtocolError, match="RAK-5"):
        made.end(RoundEnd(1, 1, 8, 0, ((0, 5),)), Limits(rejected_runs=1))


def test_exactly_the_damaged_pages_are_rejected() -> None:
    """[CON-35]"""
    made = image()
    damaged = (PageRange(1, 0, 1),)
    made.take(*zeros(1, 0, 8, damaged))
    made.end(RoundEnd(1, 1, 8, 0, ((0, 5),)), Limits())
    made.acknowledge(RoundAck(1, 1, 7, 0, damaged))
    with pytest.raises(RemoteProtocolError, match="CON-35"):
        made.acknowledge(RoundAck(1, 1, 8, 0))


def test_what_is_more_than_the_reader_follows() -> None:
    """`bounded`"""
    with pytest.raises(TooMuchError, match="12 pages"):
        image(budget_bytes=12 * PAGE_KEPT_BYTES - 1)
    made = image(budget_bytes=12 * PAGE_KEPT_BYTES + FRAGMENT_KEPT_BYTES + 5)
    made.state(State(1, 0, 0, 2, 1, 0, 6, 0, False, b"12345"))
    assert made.state_bytes == 6
    with pytest.raises(TooMuchError, match="execution state"):
        made.state(State(1, 0, 0, 2, 1, 0, 6, 5, True, b"6"))
