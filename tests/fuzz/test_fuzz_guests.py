"""Scribbles are written, tracked, and told from damage."""

from __future__ import annotations

import numpy as np

from sterna.guest.workload import PAGE_BYTES, WorkloadParameters
from sterna.testing.pair import run_now
from sterna_fuzz.guests import ScribblingGuest, damaged


def guest(zero_pages=2):
    parameters = WorkloadParameters(1, 6, 6 - zero_pages, block_pages=1, zero_pages=zero_pages)
    made = ScribblingGuest(parameters, region_pages=(4, 2))
    run_now(made.start_tracking())
    return made


def dirty(made):
    return {
        (region, page)
        for region, pages in run_now(made.collect_dirty()).items()
        for page in range(pages.bits)
        if pages.has(np.array([page]))[0]
    }


def test_scribbles_are_written_and_tracked():
    made = guest()
    made.scribble(1, 7)
    assert set(made.machine.memory[4 * PAGE_BYTES : 5 * PAGE_BYTES]) == {7}
    made.workload.write(1)
    assert dirty(made) == {(1, 0), *dirty_of_one_write(made)}
    assert dirty(made) == set()


def dirty_of_one_write(made):
    starts, counts = made.workload.schedule.runs(0, 1)
    assert counts.tolist() == [1]
    return {(0, int(starts[0]))}


def test_there_is_nothing_to_scribble_on_without_zero_pages_or_time():
    made = guest(zero_pages=0)
    made.scribble(0, 7)
    run_now(made.pause())
    paused = guest()
    run_now(paused.pause())
    paused.scribble(0, 7)
    assert dirty(made) == dirty(paused) == set()


def test_damage_is_told_from_scribbles():
    made = guest()
    made.scribble(0, 7)
    assert not damaged(made.workload)
    made.machine.memory[0] ^= 1
    assert damaged(made.workload)
