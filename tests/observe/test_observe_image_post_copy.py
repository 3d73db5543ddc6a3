"""Recordings of sessions in which pages follow the guest: judged as right, and what was altered is found."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from observe_support import PARAMETERS, D, S, Tape, migration
from sterna.core.policy import PolicySettings
from sterna.guest.simulated import SimulatedSourceGuest
from sterna.observe.budget import Budget
from sterna.observe.follow import Follower
from sterna.observe.outcome import Ended
from sterna.registry import Encoding, ErrorCode, Feature, FrameType, Limit, Style
from sterna.testing.pair import Pair
from sterna.wire import make_runs
from sterna.wire import records as r

F, E = FrameType, ErrorCode


@cache
def tape(switchover: str, damage: tuple[int, ...] = ()) -> Tape:
    """A migration of the simulated guest, which is stopped by missing pages and goes on."""

    def meddle(pair: Pair) -> None:
        pair.destination_guest.rate_bytes_s = 2_000_000
        if pair.destination_guest.machine is not None:
            pair.destination_guest.machine.rate_bytes_s = 2_000_000
            pair.destination_guest.advance(0.02)

    policy = PolicySettings(switchover=switchover, max_rounds=2)
    guest = SimulatedSourceGuest(PARAMETERS, rate_bytes_s=2_000_000)
    return migration(damage=damage, meddle=meddle, guest=guest, policy=policy)


@pytest.mark.parametrize("switchover", ["bitmap", "post-copy"])
def test_an_honest_session_is_right(switchover):
    """[PCY-1] [PCY-7] [PCY-8] [MEM-16] Frames, digests and the end."""
    follower = tape(switchover).follow()
    assert (follower.fault, follower.trouble) == (None, "")
    assert follower.outcome().ended is Ended.COMPLETED
    kinds = [unit.type for unit in tape(switchover)]
    assert F.DIRTY_BITMAP in kinds
    assert F.PAGE_REQUEST in kinds
    assert kinds.index(F.PAGES) > kinds.index(F.RUNNING) or switchover == "bitmap"


def test_pages_that_were_damaged_are_sent_again():
    """[MEM-5] Which of two arrivals counts, an observer knows as the destination does."""
    whole = tape("post-copy")
    damaged = tape("post-copy", (0, 1))
    assert len([unit for unit in damaged if unit.type == F.PAGES]) > len(
        [unit for unit in whole if unit.type == F.PAGES]
    )
    follower = damaged.follow()
    assert (follower.fault, follower.trouble) == (None, "")
    assert follower.outcome().ended is Ended.COMPLETED


def zero_part(of: Tape) -> Tape:
    """A zero run that is a part of its group comes as well."""
    runs = make_runs([(1, 2, Encoding.ZERO)], 12)
    table = r.Pages(1, of.record(F.PAGES).round, 0, runs, np.empty(0, dtype=np.uint64))
    return of.inserted(of.where(F.PAGES), S, table)


def without_bitmap(of: Tape) -> Tape:
    return of.without(F.DIRTY_BITMAP)


def early_complete(of: Tape) -> Tape:
    """COMPLETE with SEAL's digest comes directly behind RUNNING."""
    digest = of.record(F.SEAL).digest
    complete = replace(of.record(F.COMPLETE), digest=digest)
    return of.inserted(of.where(F.RUNNING) + 1, D, complete)


POST, BITMAP = tape("post-copy"), tape("bitmap")
ALTERED = {
    "another round": (
        lambda: POST.changed(F.PAGES, 0, round=1), "PCY-8", E.BAD_ROUND, S,
    ),
    "a bitmap is missing": (lambda: without_bitmap(POST), "MEM-15", E.DIGEST_MISMATCH, S),
    "a bitmap twice": (
        lambda: POST.inserted(POST.where(F.DIRTY_BITMAP), S, POST.record(F.DIRTY_BITMAP)),
        "BMP-8", E.OVERLAPPING_RUNS, S,
    ),
    "a bitmap behind state": (lambda: POST.swapped(F.DIRTY_BITMAP, F.STATE), "PCY-1", E.UNEXPECTED_FRAME, S),
    "a bitmap in stop-and-copy": (
        lambda: BITMAP.changed(F.SWITCHOVER, style=Style.STOP_AND_COPY), "PCY-21", E.UNEXPECTED_FRAME, S,
    ),
    "post-copy after rounds": (
        lambda: BITMAP.changed(F.SWITCHOVER, style=Style.POST_COPY), "SWI-1", E.NOT_SELECTED, S,
    ),
    "a request of nothing that is copied": (
        lambda: POST.changed(F.PAGE_REQUEST, region=9), "FRM-18", E.OUTSIDE_REGION, D,
    ),
    "complete too early": (lambda: early_complete(POST), "CON-57", None, D),
    "another digest at the end": (
        lambda: POST.changed(F.COMPLETE, digest=POST.record(F.SEAL).digest), "CMP-1", E.MEMORY_MISMATCH, D,
    ),
    "a part of a group": (lambda: zero_part(POST), "PCY-7", E.BAD_VALUE, S),
    "batches without room for a group": (
        lambda: POST.changed(F.WELCOME, limits={Limit.BULK_BYTES: 8192}), "PCY-20", E.LIMIT_MISMATCH, D,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ALTERED)
def test_what_was_altered_is_found(name):
    """The clause of each row."""
    alter, clause, code, sender = ALTERED[name]
    fault = alter().follow().fault
    assert fault is not None
    assert (fault.clause, fault.code, fault.sender) == (clause, code, sender), fault


def test_rounds_before_a_post_copy_switchover():
    """[PCY-4]"""
    features = tuple(
        r.FeatureOffer(each.id, each.required and each.id != Feature.BITMAP, each.parameter)
        for each in BITMAP.record(F.HELLO).features
    )
    both = (*features, r.FeatureOffer(Feature.POST_COPY, required=False, parameter=0))
    choices = (*BITMAP.record(F.WELCOME).features, r.FeatureChoice(Feature.POST_COPY))
    altered = BITMAP.changed(F.HELLO, features=both).changed(F.WELCOME, features=choices)
    assert altered.follow().fault is None
    fault = altered.changed(F.SWITCHOVER, style=Style.POST_COPY).follow().fault
    assert (fault.clause, fault.code) == ("PCY-4", E.BAD_ROUND)


def test_what_is_stale_counts_against_the_budget():
    pages = sum(region.pages for region in POST.record(F.GUEST).regions)
    found = {
        POST.follow(Follower(budget=Budget(size))).trouble for size in range(pages * 10, pages * 100, 99)
    }
    assert any("pages that follow the guest" in trouble for trouble in found)
