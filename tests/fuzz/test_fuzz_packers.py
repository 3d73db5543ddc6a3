"""Batches are packed as an endpoint does it, and a run of one as nobody should."""

from __future__ import annotations

import pytest

from sterna.core.events import Outcome
from sterna.core.tables import SourceState
from sterna.guest.workload import PAGE_BYTES
from sterna.registry import Encoding, ErrorCode
from sterna_fuzz.conversations import SOURCE
from sterna_fuzz.packed import WAYS
from sterna_fuzz.packers import WAYS_OF_RUNS, Harm, Packs, harm_of
from sterna_fuzz.worlds import Setting, World

NAMES = sorted(WAYS_OF_RUNS)
# What has a page in it, and shrinks all the same.
LONG = {"dictionary", "window"}
# Of pages that were never sent it is a change of zeros, which is right.
COMPLETES = {"change of zeros"}


def moved(way="", **changes):
    """A world in which all went well but for this, and the batches that were packed in it."""
    world = World(Setting(pages=12, packs=True, **changes))
    packs, batches = world.packs, []
    packed = packs._packed

    def noted(job):
        batches.append(packed(job))
        return batches[-1]

    packs._packed, packs.way = noted, way
    world.source.start(world.now)
    for _ in range(40):
        world.write(2)
        world.flow(5)
    world.flow(4000)
    return world, batches


def encodings(batches):
    return {Encoding(each) for batch in batches for each in batch.runs["encoding"].tolist()}


def test_pages_travel_as_they_pack_best():
    world, batches = moved(rounds=5, batch_bytes=PAGE_BYTES)
    assert world.source.result.outcome is world.destination.result.outcome is Outcome.COMPLETED
    assert {Encoding.RAW, Encoding.ZSTD, Encoding.DELTA} <= encodings(batches)
    assert (world.damaged, world.spoilt, world.packs.harmed) == (False, False, {})
    assert Encoding.DELTA not in encodings(moved(rounds=5, changes=False)[1])


def test_a_job_is_taken_done_and_brought():
    world = World(Setting(pages=12, packs=True))
    world.source.start(world.now)
    while world.source.state is not SourceState.ROUND:
        world.flow(1)
    assert isinstance(world.packs, Packs)
    unsent = world.source.waiting_bytes(0)
    steps = 0
    while world.packs.step():
        steps += 1
        if world.source.waiting_bytes(0) > unsent:
            break
    assert steps >= 2
    assert world.source.waiting_bytes(0) > unsent


@pytest.mark.parametrize("name", NAMES)
def test_what_harm_it_does_is_known(name):
    """[PGS-16] [PGS-17] [PGS-19] [PGS-20]"""
    world, _ = moved(name, rounds=5, batch_bytes=PAGE_BYTES << (name in LONG))
    assert world.packs.way == ""
    here, there = world.source.result, world.destination.result
    ends = harm_of(name) is Harm.ENDS
    assert world.spoilt is ends
    assert world.damaged is (harm_of(name) is Harm.REJECTED)
    assert (there.code is ErrorCode.MALFORMED) is ends
    assert (here.outcome is Outcome.COMPLETED) is not ends
    rejected = sum(each.rejected_pages for each in here.rounds)
    assert (rejected > 0) is (harm_of(name) is Harm.REJECTED and name not in COMPLETES)


def test_what_cannot_be_packed_so_waits_for_the_next_batch():
    world = World(Setting(pages=12, packs=True, changes=False))
    world.packs.way = "change of zeros"
    world.source.start(world.now)
    world.flow(4000)
    assert world.packs.way == "change of zeros", "it was not selected"
    assert world.source.result.outcome is Outcome.COMPLETED
    assert not world.sides[SOURCE].taken


def test_no_way_is_of_what_no_source_of_ours_says():
    assert set(WAYS) - set(WAYS_OF_RUNS) == {"empty", "large", "other content"}
    assert {harm_of(name) for name in NAMES} == set(Harm)
