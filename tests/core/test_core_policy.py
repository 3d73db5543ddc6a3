"""The pre-copy policy against a small numeric model of guest and link."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.core.policy import (
    DEFAULT_SETTINGS,
    NOTICEABLE_S,
    PAGES_SHARE,
    SOON_ROUNDS,
    UNMEASURED_BANDWIDTH_BYTES_S,
    Action,
    Decision,
    PolicySettings,
    RoundStats,
    decide,
    estimate_fixed_cost_s,
    with_store,
)
from sterna.errors import LocalProtocolError
from sterna.registry import ErrorCode

MIB = 1 << 20
GIB = 1 << 30
RTT_S = 0.001


def stats(
    bulk_bytes: int,
    seconds: float,
    dirty_bytes: int,
    *,
    receive_rate_bytes_s: float = 0.0,
    throttle: float = 0.0,
    number: int = 1,
) -> RoundStats:
    """A round of 4 KiB pages."""
    return RoundStats(
        round=number,
        pages=bulk_bytes >> 12,
        bulk_bytes=bulk_bytes,
        seconds=seconds,
        dirty_pages=dirty_bytes >> 12,
        dirty_bytes=dirty_bytes,
        receive_rate_bytes_s=receive_rate_bytes_s,
        throttle=throttle,
    )


@dataclass
class Model:
    """A guest that writes `hot_bytes` over and over at `writes_bytes_s`, behind a link; noise is a factor."""

    memory_bytes: int
    hot_bytes: int
    writes_bytes_s: float
    bandwidth_bytes_s: float
    rtt_s: float = RTT_S
    noise: float = 0.0
    seed: int = 1

    def run(self, settings: PolicySettings) -> tuple[list[RoundStats], list[Decision]]:
        """Rounds until the policy ends them; the history and the decision after each."""
        rng = random.Random(self.seed)
        history: list[RoundStats] = []
        decisions: list[Decision] = []
        bulk, throttle = self.memory_bytes, 0.0
        while True:
            decision = decide(history, bulk, 4096, self.rtt_s, settings)
            if history:
                decisions.append(decision)
            throttle = decision.throttle
            if decision.action in {Action.SWITCHOVER, Action.GIVE_UP}:
                return history, decisions
            rate = self.bandwidth_bytes_s * (1 + self.noise * rng.uniform(-1, 1))
            seconds = bulk / rate + self.rtt_s
            dirty = min(self.hot_bytes, int(self.writes_bytes_s * (1 - throttle) * seconds))
            sent = stats(
                bulk, seconds, dirty, receive_rate_bytes_s=rate, throttle=throttle, number=len(history) + 1
            )
            history.append(sent)
            bulk = dirty


def model_and_settings(draw: st.DrawFn, ratio: st.SearchStrategy[float]) -> tuple[Model, PolicySettings]:
    bandwidth = draw(st.floats(1e7, 1e10))
    memory = draw(st.integers(1, 1 << 38))
    model = Model(
        memory_bytes=memory,
        hot_bytes=draw(st.integers(1, memory)),
        writes_bytes_s=bandwidth * draw(ratio),
        bandwidth_bytes_s=bandwidth,
        rtt_s=draw(st.floats(0, 0.02)),
        noise=draw(st.sampled_from([0.0, 0.05])),
        seed=draw(st.integers(0, 1 << 32)),
    )
    return model, PolicySettings(fixed_cost_s=draw(st.floats(0, 0.05)))


@given(st.data())
def test_bandwidth_above_dirty_rate_ends_in_bounded_rounds(data: st.DataObject) -> None:
    """Invariant `converges`, for a guest that is slower than the link."""
    model, settings = model_and_settings(data.draw, st.floats(0, 0.9))
    history, decisions = model.run(settings)
    assert decisions[-1].action is Action.SWITCHOVER
    assert decisions[-1].predicted_downtime_s <= settings.allowed_downtime_s
    assert len(history) <= settings.max_rounds


@given(st.data())
def test_a_guest_half_as_fast_as_the_link_is_left_alone_and_soon_gone(data: st.DataObject) -> None:
    """Each round leaves the dirtied share of the one before; from the allowed downtime to where no round pays
    is a few halvings more."""
    model, settings = model_and_settings(data.draw, st.floats(0, 0.5))
    share = max(model.writes_bytes_s / model.bandwidth_bytes_s, 0.01)
    room_s = PAGES_SHARE * settings.allowed_downtime_s
    copies_s = max(model.memory_bytes / model.bandwidth_bytes_s / room_s, 1)
    history, decisions = model.run(settings)
    assert decisions[-1].action is Action.SWITCHOVER
    assert len(history) <= 2 + math.log(copies_s) / -math.log(share) + math.log2(room_s / NOTICEABLE_S)
    assert not any(entry.throttle for entry in history)


@given(st.data())
def test_a_guest_faster_than_the_link_converges_by_throttling(data: st.DataObject) -> None:
    model, settings = model_and_settings(data.draw, st.floats(1.2, 20))
    model.hot_bytes = model.memory_bytes
    history, decisions = model.run(settings)
    assert decisions[-1].action is Action.SWITCHOVER
    assert decisions[-1].predicted_downtime_s <= settings.allowed_downtime_s
    assert len(history) <= settings.max_rounds
    throttles = [entry.throttle for entry in history]
    assert throttles == sorted(throttles)


def test_throttling_goes_as_far_as_it_must_and_is_soon_over() -> None:
    """A guest of which pages are written several times in a round shows only step by step what it writes."""
    model = Model(GIB, GIB, writes_bytes_s=5e8, bandwidth_bytes_s=1e8)
    history, decisions = model.run(DEFAULT_SETTINGS)
    assert decisions[-1].action is Action.SWITCHOVER
    throttles = [entry.throttle for entry in history]
    assert throttles[: DEFAULT_SETTINGS.patience] == [0.0] * DEFAULT_SETTINGS.patience
    levels = sorted(set(throttles))
    assert 0.8 <= levels[-1] < 0.95  # a fifth of its time is what the link can follow
    assert 2 < len(levels) <= 4
    assert len(history) - throttles.index(levels[-1]) <= SOON_ROUNDS + 1


@given(
    max_rounds=st.integers(1, 40),
    ratio=st.floats(0, 1e4),
    throttle=st.sampled_from([0.0, 0.5, 0.99]),
    noise=st.floats(0, 0.99),
    on_exhausted=st.sampled_from(["abort", "switch"]),
    seed=st.integers(0, 1 << 32),
)
def test_never_more_than_max_rounds(
    *, max_rounds: int, ratio: float, throttle: float, noise: float, on_exhausted: str, seed: int
) -> None:
    settings = PolicySettings(max_rounds=max_rounds, max_throttle=throttle, on_exhausted=on_exhausted)  # type: ignore[arg-type]
    model = Model(GIB, GIB, 1e8 * ratio, 1e8, noise=noise, seed=seed)
    history, decisions = model.run(settings)
    assert len(history) <= max_rounds
    late = decisions[-1].predicted_downtime_s > settings.allowed_downtime_s
    assert decisions[-1].action is (Action.GIVE_UP if late and on_exhausted == "abort" else Action.SWITCHOVER)


# Every float and far more integer than a real statistic could be.
hostile = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-(1 << 70), 1 << 70),
    st.sampled_from([0, 0.0, 5e-324, 10**400]),
)
hostile_rounds = st.builds(
    RoundStats,
    round=st.integers(),
    pages=hostile,
    bulk_bytes=hostile,
    seconds=hostile,
    dirty_pages=hostile,
    dirty_bytes=hostile,
    rejected_pages=hostile,
    receive_rate_bytes_s=hostile,
    throttle=hostile,
)


@given(
    history=st.lists(hostile_rounds, max_size=40),
    remaining_bytes=hostile,
    state_bytes=hostile,
    rtt_s=hostile,
    throttle=st.sampled_from([0.0, 0.99]),
)
def test_no_statistic_breaks_the_arithmetic(
    history: list[RoundStats], remaining_bytes: int, state_bytes: int, rtt_s: float, throttle: float
) -> None:
    settings = PolicySettings(max_throttle=throttle)
    decision = decide(history, remaining_bytes, state_bytes, rtt_s, settings)
    numbers = [
        decision.throttle,
        decision.predicted_downtime_s,
        decision.bandwidth_bytes_s,
        decision.dirty_rate_bytes_s,
    ]
    assert all(math.isfinite(number) and number >= 0 for number in numbers)
    assert decision.bandwidth_bytes_s >= 1
    assert decision.throttle <= 0.99
    assert "nan" not in decision.verdict
    assert "inf" not in decision.verdict
    if len(history) >= settings.max_rounds:
        assert decision.action in {Action.SWITCHOVER, Action.GIVE_UP}


def test_a_round_of_nothing_in_no_time_switches_over() -> None:
    decision = decide([stats(0, 0.0, 0)], 0, 0, 0.0)
    assert decision.action is Action.SWITCHOVER
    assert decision.bandwidth_bytes_s == UNMEASURED_BANDWIDTH_BYTES_S
    assert decision.predicted_downtime_s == DEFAULT_SETTINGS.fixed_cost_s


def test_without_a_round_everything_is_copied_first() -> None:
    decision = decide([], GIB, 4096, RTT_S)
    assert decision.action is Action.CONTINUE
    assert decision.throttle == 0
    assert "nothing has been sent yet" in decision.verdict


def test_the_verdict_reads_as_an_operator_wants_it() -> None:
    settings = PolicySettings(fixed_cost_s=0.0015)
    left = int(12.4 * MIB)
    history = [stats(GIB, 0.52, left, receive_rate_bytes_s=2.1e9)]
    decision = decide(history, left, 0, RTT_S, replace(settings, worthwhile_gain=1.0))
    assert decision.action is Action.SWITCHOVER
    assert decision.verdict == (
        "12.4 MiB are left; at 2.1 GB/s and 3 ms of fixed cost the guest would stop for 9 ms "
        "(allowed 300 ms): switch over"
    )
    idle = [stats(GIB, 0.52, 0, receive_rate_bytes_s=2.1e9)]
    assert decide(idle, 0, 0, RTT_S, settings).verdict.startswith("nothing is left; at 2.1 GB/s and ")


def test_predicted_downtime_counts_everything() -> None:
    settings = PolicySettings(fixed_cost_s=0.05)
    history = [stats(1000 * MIB, 1000 * MIB / 1e8, 10_000_000, receive_rate_bytes_s=1e8)]
    decision = decide(history, 10_000_000, 1_000_000, 0.02, settings)
    # 0.1 s of pages, 10 ms of state, 50 ms of fixed cost, one and a half round trips
    assert decision.predicted_downtime_s == pytest.approx(0.1 + 0.01 + 0.05 + 0.03)


def test_a_cheap_round_that_halves_the_downtime_is_made() -> None:
    history = [stats(GIB, 10.0, 20 * MIB, receive_rate_bytes_s=GIB / 10)]
    decision = decide(history, 20 * MIB, 0, RTT_S)
    assert decision.action is Action.CONTINUE
    assert "another round should bring that to" in decision.verdict
    eager = decide(history, 20 * MIB, 0, RTT_S, PolicySettings(worthwhile_gain=1.0))
    assert eager.action is Action.SWITCHOVER


@pytest.mark.parametrize(
    ("left", "writes_bytes_s", "fixed_cost_s", "action"),
    [
        (MIB // 2, 1e7, 0.05, Action.SWITCHOVER),  # to a ninth, but the pages are not what takes long
        (MIB // 2, 1e7, 0.01, Action.CONTINUE),
        (MIB // 20, 1e6, 0.0, Action.SWITCHOVER),  # half a millisecond
        (8 * MIB, 1e7, 0.05, Action.CONTINUE),
        (8 * MIB, 8e7, 0.05, Action.SWITCHOVER),  # hardly less would be left
    ],
)
def test_a_round_is_worth_what_it_takes_off_the_pages(
    left: int, writes_bytes_s: float, fixed_cost_s: float, action: Action
) -> None:
    history = [stats(GIB, GIB / 1e8, int(writes_bytes_s * GIB / 1e8), receive_rate_bytes_s=1e8)]
    settings = PolicySettings(fixed_cost_s=fixed_cost_s)
    assert decide(history, left, 0, RTT_S, settings).action is action


@pytest.mark.parametrize(
    ("left", "action"),
    [(14 * MIB, Action.CONTINUE), (16 * MIB, Action.SWITCHOVER), (21 * MIB, Action.SWITCHOVER)],
)
def test_what_the_last_round_did_not_bring_is_not_expected_of_the_next(left: int, action: Action) -> None:
    """The receiver's rate, and rounds that do not take long, have it leave much less each time."""
    first = stats(GIB, 10.0, 20 * MIB, receive_rate_bytes_s=GIB / 10)
    second = stats(20 * MIB, 0.5, left, receive_rate_bytes_s=GIB / 10)
    assert decide([first], 20 * MIB, 0, RTT_S).action is Action.CONTINUE
    assert decide([first, second], left, 0, RTT_S, PolicySettings(patience=1)).action is action
    third = replace(second, bulk_bytes=left)
    assert decide([first, replace(second, dirty_bytes=20 * MIB), third], left, 0, RTT_S).action is action
    cut_short = replace(second, dirty_bytes=left // 2)  # by connections that were replaced
    history = [first, replace(first, dirty_bytes=MIB), cut_short]
    assert decide(history, left, 0, RTT_S).action is Action.CONTINUE


@pytest.mark.parametrize(("rounds", "throttle"), [(16, 0.0), (1, 0.3)])
def test_late_or_throttled_the_first_opportunity_is_taken(rounds: int, throttle: float) -> None:
    history = [stats(GIB, 10.0, 20 * MIB, receive_rate_bytes_s=GIB / 10, throttle=throttle)] * rounds
    assert decide(history, 20 * MIB, 0, RTT_S).action is Action.SWITCHOVER


def test_bandwidth_is_the_receivers_within_what_our_clock_proves() -> None:
    def bandwidth(claimed: float) -> float:
        return decide([stats(10**9, 10.0, 0, receive_rate_bytes_s=claimed)], 0, 0, 0.0).bandwidth_bytes_s

    assert bandwidth(1.5e8) == pytest.approx(1.5e8)
    assert bandwidth(0) == pytest.approx(1e8)  # it says nothing: our own clock
    assert bandwidth(1.0) == pytest.approx(1e8)  # all of it did arrive within ten seconds
    assert bandwidth(1e18) == pytest.approx(4e8)  # a peer's word, cut


def test_a_nearly_empty_round_is_no_slow_link() -> None:
    decision = decide([stats(4096, 0.03, 0)], 0, MIB, RTT_S)
    assert decision.bandwidth_bytes_s > 5e7
    assert decision.action is Action.SWITCHOVER


def test_the_wait_for_the_acknowledgement_carries_no_bytes() -> None:
    decision = decide([stats(10**7, 0.2, 0)], 0, 0, 0.1)
    assert decision.bandwidth_bytes_s == pytest.approx(1e8)


def test_a_short_odd_round_does_not_move_the_bandwidth() -> None:
    long = stats(10**9, 10.0, MIB, receive_rate_bytes_s=1e8)
    odd = stats(10**6, 0.1, MIB, receive_rate_bytes_s=1e7)
    before = decide([long], MIB, 0, RTT_S).bandwidth_bytes_s
    after = decide([long, odd], MIB, 0, RTT_S).bandwidth_bytes_s
    assert after == pytest.approx(before, rel=0.05)


def test_first_touch_of_memory_is_no_slow_link() -> None:
    first = stats(10**9, 1.0, 10**9, receive_rate_bytes_s=1e9)
    for seconds, bandwidth in ((0.2, 2e9), (0.1, 1.1e9)):  # too little is measured in the second one
        second = stats(int(2e9 * seconds), seconds, MIB, receive_rate_bytes_s=2e9)
        found = decide([first, second], MIB, 0, 0.0).bandwidth_bytes_s
        assert found == pytest.approx(bandwidth, rel=0.05)


def test_a_link_that_became_slow_is_noticed_at_once() -> None:
    fast = stats(10**10, 10.0, 10**9, receive_rate_bytes_s=1e9)
    slow = stats(10**9, 10.0, 10**8, receive_rate_bytes_s=1e8)
    assert decide([fast, slow], 10**8, 0, RTT_S).bandwidth_bytes_s == pytest.approx(1e8)


def steady(dirty_ratio: float, rounds: int, throttle: float = 0.0) -> list[RoundStats]:
    """Rounds of 10 s at 100 MB/s."""
    dirty = int(10**9 * dirty_ratio)
    return [stats(10**9, 10.0, dirty, receive_rate_bytes_s=1e8, throttle=throttle)] * rounds


def test_one_burst_of_writes_does_not_throttle() -> None:
    calm = steady(0.5, 3)
    decision = decide([*calm, *steady(3.0, 1)], 3 * 10**9, 0, RTT_S)
    assert decision.action is Action.CONTINUE
    assert "look at another round before slowing it down" in decision.verdict
    assert decide([*calm, *steady(3.0, 2)], 3 * 10**9, 0, RTT_S).action is Action.THROTTLE


def test_a_guest_that_converges_is_left_alone() -> None:
    decision = decide(steady(0.5, 2), 5 * 10**8, 0, RTT_S)
    assert decision.action is Action.CONTINUE
    assert "the guest writes 50 MB/s, which takes about 5 more rounds: go on" in decision.verdict


def test_one_more_round_is_said_in_words() -> None:
    assert "takes about one more round: go on" in decide(steady(0.05, 1), 5 * 10**7, 0, RTT_S).verdict


def test_late_patience_is_over() -> None:
    history = [*steady(0.5, 19), *steady(3.0, 1)]
    assert decide(history, 3 * 10**9, 0, RTT_S).action is Action.THROTTLE


def test_the_strongest_throttle_gets_a_fair_trial() -> None:
    decision = decide(steady(2.0, 3, throttle=0.99), 2 * 10**9, 0, RTT_S)
    assert decision.action is Action.CONTINUE
    assert "at the strongest throttle: go on" in decision.verdict
    decision = decide(steady(2.0, 4, throttle=0.99), 2 * 10**9, 0, RTT_S)
    assert decision.action is Action.GIVE_UP
    assert decision.throttle == 0
    assert decision.verdict.endswith("give up, the guest stays here")


def test_rounds_under_a_weaker_throttle_do_not_count_against_a_stronger_one() -> None:
    history = [*steady(2.0, 3, throttle=0.5), *steady(2.0, 1, throttle=0.99)]
    assert decide(history, 2 * 10**9, 0, RTT_S).action is Action.CONTINUE


def test_a_throttle_never_exceeds_its_maximum() -> None:
    settings = PolicySettings(max_throttle=0.4321987654, patience=1)
    history = steady(2.0, 2, throttle=0.4)
    decision = decide(history, 2 * 10**9, 0, RTT_S, settings)
    assert decision.action is Action.THROTTLE
    assert decision.throttle == 0.4321987654


def test_throttling_may_be_forbidden() -> None:
    settings = PolicySettings(max_throttle=0)
    decision = decide(steady(2.0, 10), 2 * 10**9, 0, RTT_S, settings)
    assert decision.action is Action.CONTINUE
    assert "it may not be slowed down" in decision.verdict


def test_exhausted_rounds_end_as_the_operator_asked() -> None:
    history = steady(2.0, 30)
    assert decide(history, 2 * 10**9, 0, RTT_S).action is Action.GIVE_UP
    decision = decide(history, 2 * 10**9, 0, RTT_S, PolicySettings(on_exhausted="switch"))
    assert decision.action is Action.SWITCHOVER
    assert decision.verdict.endswith("no round is left: switch over all the same")


def test_a_fixed_cost_above_the_allowed_downtime_throttles_nobody() -> None:
    decision = decide(steady(0.001, 5), 10**6, 0, RTT_S, PolicySettings(fixed_cost_s=0.4))
    assert decision.action is Action.CONTINUE
    assert decision.throttle == 0
    assert "the fixed cost alone is too much" in decision.verdict


@given(rtt_s=st.floats(0, 10))
def test_round_trips_keep_no_guest_from_moving(rtt_s: float) -> None:
    """What no round can change is foreseen, but decides nothing once the pages are few."""
    decision = decide(steady(0.001, 16), 10**6, 0, rtt_s)
    assert decision.action is Action.SWITCHOVER
    assert decision.predicted_downtime_s == pytest.approx(0.02 + 0.01 + 1.5 * rtt_s)
    late = decision.predicted_downtime_s > DEFAULT_SETTINGS.allowed_downtime_s
    assert ("that no round changes" in decision.verdict) == late


def test_round_trips_leave_a_share_of_the_downtime_to_the_pages() -> None:
    within = int(PAGES_SHARE * DEFAULT_SETTINGS.allowed_downtime_s * 1e8)
    for left, action in ((within, Action.SWITCHOVER), (2 * within, Action.CONTINUE)):
        assert decide(steady(0.1, 16), left, 0, 0.4).action is action


def test_a_slow_search_for_zero_pages_in_the_first_round_is_forgotten() -> None:
    first = stats(10**6, 100.0, 10**9, receive_rate_bytes_s=1e8)
    second = stats(10**9, 10.0, 10**8, receive_rate_bytes_s=1e8)
    decision = decide([first, second], 10**8, 0, RTT_S)
    assert decision.action is Action.CONTINUE
    assert "more round" in decision.verdict


@pytest.mark.parametrize(
    "change",
    [
        {"allowed_downtime_s": 0.0},
        {"allowed_downtime_s": math.nan},
        {"max_rounds": 0},
        {"max_rounds": 1001},
        {"max_throttle": 1.0},
        {"throttle_start": 0.0},
        {"throttle_step": 0.0},
        {"patience": 0},
        {"worthwhile_gain": 0.0},
        {"fixed_cost_s": -1.0},
        {"on_exhausted": "hope"},
        {"switchover": "magic"},
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(LocalProtocolError, match=next(iter(change))) as caught:
        PolicySettings(**change)  # type: ignore[arg-type]
    assert caught.value.code is ErrorCode.BAD_VALUE


def test_the_fixed_cost_grows_with_the_page_table() -> None:
    small, large = estimate_fixed_cost_s(1 << 16), estimate_fixed_cost_s(1 << 28)
    assert 0.01 <= small < 0.02
    assert 0.5 < large < 2
    assert estimate_fixed_cost_s(-5) == estimate_fixed_cost_s(0)


def test_the_fixed_cost_has_both_answers_of_the_lease_store() -> None:
    """[ONE-64] It is asked once more, and then for the claim."""
    settings = PolicySettings(fixed_cost_s=0.25)
    assert with_store(settings, 0.25).fixed_cost_s == pytest.approx(0.75)
    assert with_store(settings, -1.0) == settings
    assert with_store(settings, 1e9).fixed_cost_s == 3600  # and no setting out of its range


def test_packed_pages_are_counted_as_pages():
    """What is left is pages, too: a link that carries them at a third of their size is thrice as fast."""
    packed = RoundStats(1, 300, 100_000, 1.0, 0, 0, receive_rate_bytes_s=2e5, unpacked_bytes=300_000)
    assert packed.in_pages() == replace(packed, bulk_bytes=300_000, receive_rate_bytes_s=6e5)
    for plain in (replace(packed, unpacked_bytes=0), replace(packed, unpacked_bytes=100_000)):
        assert plain.in_pages() is plain
    assert replace(packed, bulk_bytes=0).in_pages().bulk_bytes == 300_000


def test_a_dirty_rate_is_by_the_time_in_which_the_guest_wrote():
    """And not by that of the round, where they differ; that counts where the time is not known."""
    known = replace(stats(100 * MIB, 0.1, 10 * MIB), written_s=0.2)
    for history, rate in (([known], 50 * MIB), ([replace(known, written_s=0.0)], 100 * MIB)):
        decision = decide(history, 10 * MIB, 0, RTT_S)
        assert decision.dirty_rate_bytes_s == pytest.approx(rate)
