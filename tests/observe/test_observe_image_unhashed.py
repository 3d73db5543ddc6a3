"""Sessions without hashes are followed like any other, and said to be such."""

from __future__ import annotations

from observe_support import Tape, migration
from sterna.cli.reading import UNHASHED, session_fields, session_lines
from sterna.core.destination import DestinationConfig, DestinationMachine
from sterna.core.negotiate import BASE_FEATURES, offer
from sterna.observe.follow import Follower
from sterna.registry import Feature, FrameType, Sender
from sterna.testing.pair import Pair
from sterna.wire.records import PageRange, Pages

BARE = {Feature.UNHASHED: 0}


def unhashed(*, damage: tuple[int, ...] = ()) -> Tape:
    """A migration without hashes."""

    def prepare(pair: Pair) -> None:
        config = DestinationConfig(features=BASE_FEATURES | BARE.keys())
        pair.destination = DestinationMachine(config, pair.now)

    return migration(prepare=prepare, damage=damage, features=offer(more=BARE))


def test_a_session_without_hashes() -> None:
    """[MEM-20] [MEM-21] Its digests are compared; damage is content, and no reader calls it wrong."""
    for tape in (unhashed(), unhashed(damage=(1,))):
        follower = tape.follow()
        assert follower.fault is None
        assert not follower.trouble
        assert follower.summary.rejected == 0
        assert not follower.summary.hashed
        assert session_fields(1, follower)["hashed"] is False
        assert f"  {UNHASHED}" in list(session_lines(1, follower))
    assert migration().follow().summary.hashed


def test_what_one_side_alone_tells() -> None:
    """A source offers both, and what was selected has passed elsewhere: no page is called damaged for it."""
    for tape, hashed in ((unhashed(), None), (migration(), True)):
        follower = Follower(alone=True)
        units = [unit for unit in tape if unit.sender is Sender.SOURCE]
        frames = [frame for unit in units for frame in follower.feed(Sender.SOURCE, unit.raw, 0)]
        assert follower.summary.hashed is hashed
        assert follower.summary.pages
        assert not any(getattr(frame, "damaged", ()) for frame in frames)
    assert Follower().summary.hashed is None


def test_a_hash_where_there_is_none() -> None:
    """[PGS-25]"""
    tape = unhashed()
    table = tape.record(FrameType.PAGES)
    assert isinstance(table, Pages)
    fault = tape.changed(FrameType.PAGES, hashes=table.hashes + 1).follow().fault
    assert fault is not None
    assert fault.clause == "PGS-25"


def test_a_page_is_rejected_where_nobody_finds_one() -> None:
    """[RAK-6]"""
    rejected = (PageRange(0, 0, 1),)
    fault = unhashed().changed(FrameType.ROUND_ACK, rejected=rejected).follow().fault
    assert fault is not None
    assert fault.clause == "RAK-6"
