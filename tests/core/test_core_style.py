"""Which style of switchover comes, and when."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from sterna.core.policy import Action, PolicySettings, RoundStats, decide
from sterna.core.style import FETCHED_S, decide_style
from sterna.registry import Style

MIB, GIB = 1 << 20, 1 << 30
RATE = 1e9
RTT_S = 0.001
STOP, BITMAP, POST_COPY = Style.STOP_AND_COPY, Style.BITMAP, Style.POST_COPY
BOTH = {BITMAP, POST_COPY}


def rounds(*sizes: int, throttle: float = 0.0) -> list[RoundStats]:
    """Rounds that send these bytes at `RATE`; each finds dirty what the next one sends."""
    return [
        RoundStats(
            round=number,
            pages=size >> 12,
            bulk_bytes=size,
            seconds=size / RATE,
            dirty_pages=dirty >> 12,
            dirty_bytes=dirty,
            receive_rate_bytes_s=RATE,
            throttle=throttle,
        )
        for number, (size, dirty) in enumerate(pairwise(sizes), 1)
    ]


# A guest that writes as fast as the link carries, and one that writes next to nothing.
HOT = rounds(GIB, 256 * MIB, 256 * MIB, 256 * MIB, 256 * MIB)
CALM = rounds(GIB, 40 * MIB, 1 * MIB, 8192)


def settings(switchover: str, **more: object) -> PolicySettings:
    return PolicySettings(switchover=switchover, allowed_downtime_s=0.05, **more)  # type: ignore[arg-type]


def test_stop_and_copy_is_the_policy_s() -> None:
    for history, left in ((HOT, 256 * MIB), (CALM, 8192), ([], GIB)):
        decision = decide_style(history, left, 4096, RTT_S, settings("stop-and-copy"), styles=BOTH)
        assert decision == decide(history, left, 4096, RTT_S, settings("stop-and-copy"))
        assert decision.style is STOP


def test_post_copy_sends_no_round() -> None:
    """[PCY-4]"""
    decision = decide_style([], GIB, 4096, RTT_S, settings("post-copy"), styles={POST_COPY})
    assert (decision.action, decision.style, decision.throttle) == (Action.SWITCHOVER, POST_COPY, 0)
    assert decision.predicted_downtime_s < 0.05
    assert decision.verdict == (
        "nothing has been sent yet, and nothing is to be: switch over, the guest stops for 22 ms and 1 GiB "
        "follow while it runs there"
    )


@pytest.mark.parametrize(("switchover", "left"), [("post-copy", GIB), ("bitmap", 256 * MIB)])
def test_what_was_not_selected_is_not_done(switchover, left) -> None:
    """[NEG-7]"""
    history = [] if switchover == "post-copy" else HOT
    decision = decide_style(history, left, 4096, RTT_S, settings(switchover))
    assert decision == decide(history, left, 4096, RTT_S, settings(switchover))


def test_post_copy_that_comes_back_after_rounds_goes_on_in_rounds() -> None:
    decision = decide_style(CALM, 8192, 4096, RTT_S, settings("post-copy"), styles=BOTH)
    assert decision.style is STOP


def test_bitmap_copies_everything_first() -> None:
    decision = decide_style([], GIB, 4096, RTT_S, settings("bitmap"), styles={BITMAP})
    assert decision.action is Action.CONTINUE


def test_bitmap_makes_rounds_as_long_as_they_help() -> None:
    decision = decide_style(CALM[:1], 40 * MIB, 4096, RTT_S, settings("bitmap"), styles={BITMAP})
    assert decision.action is Action.CONTINUE
    assert "another round should bring that to" in decision.verdict
    patient = replace(settings("bitmap"), allowed_downtime_s=10)  # it does not matter
    assert decide_style(CALM[:1], 40 * MIB, 4096, RTT_S, patient, styles={BITMAP}).action is Action.CONTINUE
    within = int(FETCHED_S * RATE)
    for left, action in ((within // 2, Action.SWITCHOVER), (within * 2, Action.CONTINUE)):
        assert decide_style(CALM[:1], left, 4096, RTT_S, patient, styles={BITMAP}).action is action
    few = settings("bitmap", max_rounds=1)
    assert decide_style(CALM[:1], 40 * MIB, 4096, RTT_S, few, styles={BITMAP}).action is Action.SWITCHOVER


@pytest.mark.parametrize(("left", "goes_on"), [(70 * MIB, True), (90 * MIB, False)])
def test_bitmap_makes_none_more_behind_one_that_has_not_helped(left: int, goes_on: bool) -> None:
    """Its time was waiting for the most part, which no rate shows."""
    history = [
        *rounds(GIB, 100 * MIB),
        replace(rounds(100 * MIB, left)[0], round=2, seconds=400 * MIB / RATE),
    ]
    decision = decide_style(history, left, 4096, RTT_S, settings("bitmap", patience=1), styles={BITMAP})
    assert (decision.action is Action.CONTINUE) is goes_on
    patient = decide_style(history, left, 4096, RTT_S, settings("bitmap"), styles={BITMAP})
    assert patient.action is Action.CONTINUE


def test_bitmap_switches_over_at_any_rate_without_slowing_the_guest_down() -> None:
    """[CON-36]"""
    decision = decide_style(HOT, 256 * MIB, 4096, RTT_S, settings("bitmap"), styles={BITMAP})
    assert (decision.action, decision.style, decision.throttle) == (Action.SWITCHOVER, BITMAP, 0)
    assert decision.predicted_downtime_s < 0.05
    assert decision.verdict == (
        "256 MiB are left, the guest writes 1 GB/s: switch over, the guest stops for 22 ms and 256 MiB "
        "follow while it runs there"
    )
    calm = decide_style(CALM, 8192, 4096, RTT_S, settings("bitmap"), styles={BITMAP})
    assert (calm.action, calm.style) == (Action.SWITCHOVER, BITMAP)


def test_auto_is_stop_and_copy_where_that_meets_the_downtime() -> None:
    decision = decide_style(CALM, 8192, 4096, RTT_S, settings("auto"), styles={BITMAP})
    assert (decision.action, decision.style) == (Action.SWITCHOVER, STOP)
    first = decide_style([], GIB, 4096, RTT_S, settings("auto"), styles={BITMAP})
    assert first.action is Action.CONTINUE


@pytest.mark.parametrize(
    ("history", "more"),
    [
        (HOT, {}),  # the guest would be slowed down
        (HOT, {"max_throttle": 0.0, "max_rounds": 4}),  # the rounds are used up
        (
            HOT,
            {"max_throttle": 0.0, "max_rounds": 4, "on_exhausted": "switch"},
        ),  # the downtime would be missed
    ],
    ids=["throttle", "give-up", "switch"],
)
def test_auto_takes_the_bitmap_where_the_downtime_is_out_of_reach(history, more) -> None:
    """[CON-36]"""
    wanted = settings("auto", **more)
    decision = decide_style(history, 256 * MIB, 4096, RTT_S, wanted, styles={BITMAP})
    assert (decision.action, decision.style, decision.throttle) == (Action.SWITCHOVER, BITMAP, 0)
    assert "would stop for 290 ms (allowed 50 ms)" in decision.verdict
    assert decision.verdict.endswith(
        ": switch over, the guest stops for 22 ms and 256 MiB follow while it runs there"
    )
    without = decide_style(history, 256 * MIB, 4096, RTT_S, wanted)
    assert without.style is STOP
    assert without.verdict.endswith("(the destination does not take a switchover by bitmap)")
