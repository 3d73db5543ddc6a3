"""Histories of sessions that have agreed on more, by hand."""

from __future__ import annotations

import pytest

from sterna.core.events import Outcome
from sterna.core.tables import SourceState
from sterna.guest.workload import PAGE_BYTES
from sterna.memory.pages import RegionPages
from sterna.registry import Feature
from sterna_fuzz.conversations import DESTINATION, SOURCE
from sterna_fuzz.packers import WAYS_OF_RUNS, Harm, harm_of
from sterna_fuzz.variants import PackedHistory, UnhashedHistory
from sterna_fuzz.worlds import Setting


def history(ending="flow", *, packs=False, damages=False, **changes):
    made = UnhashedHistory()
    made.begin(setting=Setting(**changes), ending=ending, packs=packs, damages=damages)
    return made


def completed(made):
    made.teardown()
    assert list(made.reached()) == ["completed", "completed", "handed over"]


def test_pages_travel_packed():
    made = PackedHistory()
    made.begin(setting=Setting(), ending="flow", changes=True)
    made.pack(way="honest")
    made.reach(state=SourceState.MOVED, pages=1)
    assert made.world.packs.way == ""
    completed(made)


@pytest.mark.parametrize("packs", [False, True])
def test_pages_go_without_hashes(packs):
    """[MEM-20] [MEM-21]"""
    made = history(packs=packs)
    made.live(steps=40, pages=2)
    completed(made)
    assert Feature.UNHASHED in made.world.sides[DESTINATION].monitor.features
    assert not made.world.altered
    assert not made.world.source.result.verified


def test_a_page_that_is_torn_is_written_to_and_comes_again():
    made = history(pages=20, zero_pages=0)
    made.reach(state=SourceState.ROUND, pages=0)
    while sum(map(len, made.world.sides[SOURCE].taken)) < PAGE_BYTES:
        made.flow(steps=1)
    made.write(pages=3)
    completed(made)


def test_damage_is_content():
    """[MEM-20] [RAK-6] Nobody finds it, and it is not looked for."""
    made = history(damages=True)
    made.damage(steps=0)
    assert made.world.damaged
    assert made.world.altered
    completed(made)
    assert made.world.room.machine.memory.tobytes() != made.world.image


def test_bits_may_flip_anywhere():
    made = history("cut", damages=True)
    made.corrupt(name=SOURCE, at=8 * PAGE_BYTES, pages=True)
    assert made.world.altered
    made.teardown()


def test_what_would_be_rejected_is_packed_only_where_damage_is_meant():
    for way in sorted(WAYS_OF_RUNS):
        for damages in (False, True):
            made = history(packs=True, damages=damages)
            made.pack(way=way)
            assert (made.world.packs.way == way) == (damages or harm_of(way) is not Harm.REJECTED)


def test_other_memory_is_noticed_where_nothing_has_changed():
    made = history()
    made.reach(state=SourceState.MOVED, pages=0)
    made.world.image = b"another"
    made.world.room.machine.memory[0] ^= 1
    with pytest.raises(AssertionError, match="memory at the destination is damaged"):
        made.teardown()


def test_who_calls_it_verified_is_noticed():
    """[MEM-21]"""
    made = history()
    made.reach(state=SourceState.CLOSED, pages=0)
    assert made.world.source.result.outcome is Outcome.COMPLETED
    made.holds()
    object.__setattr__(made.world.source.result, "verified", True)
    with pytest.raises(AssertionError, match="counts as verified"):
        made.holds()


def test_who_compares_hashes_is_noticed(monkeypatch):
    """[MEM-20]"""
    commit = RegionPages.commit

    def comparing(self, table, *, hashed):
        assert not hashed
        return commit(self, table)

    monkeypatch.setattr(RegionPages, "commit", comparing)
    with pytest.raises(AssertionError, match=r"rejected \[RAK-6\]"):
        history().teardown()
