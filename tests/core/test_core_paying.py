"""What pays at which rate of the link."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.core.paying import (
    BELIEVED_MOST_S,
    BELIEVED_S,
    DENSEST,
    FASTEST_BYTES_S,
    GAIN,
    LEVELS,
    PACKING_GAIN,
    PROMISING,
    TRIAL_SHARE,
    Paying,
)

MIB = 1 << 20
SHARES = {-5: 0.6, 2: 0.4, 5: 0.35}
RATES = {-5: 800e6, 2: 400e6, 5: 200e6}
LATER = BELIEVED_S + 0.1


def known(shares: dict[int, float] = SHARES, rates: dict[int, float] = RATES, **wanted: float) -> Paying:
    """What each level packs a second, and to which share."""
    paying = Paying(**wanted)
    for level in LEVELS:
        paying.packed(level, MIB, int(MIB * shares[level]), MIB / rates[level], 0.0)
    return paying


def pass_by(paying: Paying, rate: float, now: float, share: float = 1.0) -> None:
    """A second of it."""
    paying.passed(int(rate), int(rate * share), 1.0, now)


@pytest.mark.parametrize(
    ("link", "level"), [(50e6, 5), (110e6, 2), (300e6, -5), (700e6, None), (2e9, None), (10e9, None)]
)
def test_the_slower_the_link_the_more_packing_pays(link, level):
    """That level by which most pages pass."""
    paying = known()
    assert paying.level is None  # nothing is known of the link
    pass_by(paying, link, 1.0)
    assert paying.link_bytes_s == link
    assert paying.level == level


def test_random_memory_never_pays():
    paying = known(dict.fromkeys(LEVELS, 1.0), dict.fromkeys(LEVELS, 1e12))
    pass_by(paying, 1000, 1.0)
    assert paying.level is None


def test_more_workers_pack_more():
    for workers, level in ((1, 2), (4, 5)):
        paying = known(workers=workers)
        pass_by(paying, 200e6, 1.0)
        assert paying.level == level


def test_a_cap_is_known_from_the_start():
    """The link is measured all the same: it may be slower."""
    paying = known(cap_bytes_s=110e6)
    paying.packed(2, MIB, int(MIB * 0.4), MIB / 400e6, 0.0, trial=True)
    assert (paying.link_bytes_s, paying.level) == (110e6, 2)
    paying = known(cap_bytes_s=110e6)
    pass_by(paying, 50e6, 1.0)
    assert (paying.link_bytes_s, paying.level) == (50e6, 5)


def test_small_gains_change_nothing():
    """Two that are as good do not take turns."""
    paying = known({-5: 0.5, 2: 0.5, 5: 0.49}, dict.fromkeys(LEVELS, 1e9))
    pass_by(paying, 100e6, 1.0)
    first = paying.level
    assert first is not None
    for second in range(2, 9):
        pass_by(paying, 200e6 * (1 + GAIN / 4 * (-1) ** second), second, 0.5)
        assert paying.level == first


def test_pages_as_they_are_are_left_for_more_than_a_small_gain():
    """Packers take of the machine, and who sends and receives may miss it."""
    paying = known()
    pass_by(paying, RATES[-5] / (1 + PACKING_GAIN) * 1.01, 1.0)
    assert paying.level is None
    paying = known()
    pass_by(paying, RATES[-5] / (1 + PACKING_GAIN) * 0.99, 1.0)
    assert paying.level == -5


def test_a_disappointment_is_not_repeated_soon():
    """Batches take longer to pack than one did: the machine has other work. It is left longer each time."""
    paying = known()
    pass_by(paying, 110e6, 0.0)
    now, pauses = 0.0, []
    for _ in range(6):
        assert paying.level == 2
        pass_by(paying, 60e6, now + 0.1, 0.4)
        if paying.level == 2:
            pass_by(paying, 60e6, now + 0.2, 0.4)
        assert paying.level in {None, -5, 5}
        since = now
        while paying.level != 2:
            now += 0.5
            rate = 110e6 if paying.level is None else 60e6
            pass_by(paying, rate, now, 1.0)
        pauses.append(now - since)
    assert pauses == sorted(pauses)
    assert 2 * pauses[0] < pauses[-1] <= BELIEVED_MOST_S + 1


def test_the_bare_link_is_looked_at_when_the_packer_is_what_others_wait_for():
    """It may have become faster since it was seen."""
    paying = known()
    pass_by(paying, 300e6, 0.0)
    assert paying.level == -5
    for second in (0.5, 1.0, LATER):
        pass_by(paying, 400e6, second, 0.1)  # of the link's bytes a second 40e6
    assert paying.level is None


@pytest.mark.parametrize("cap", [math.inf, 300e6])
def test_the_bare_link_is_not_looked_at_when_it_is_full(cap):
    """Or is known by its cap."""
    paying = known(cap_bytes_s=cap)
    pass_by(paying, 300e6, 0.0)
    assert paying.level == -5
    for second in range(1, 20):
        share = 0.6 if cap == math.inf else 0.1
        pass_by(paying, 500e6, second, share)
        assert paying.level == -5


@pytest.mark.parametrize("cap", [math.inf, 10e9])
def test_the_bare_link_is_looked_at_when_it_has_to_be_faster_than_is_known(cap):
    """More goes over it packed than it was seen to carry: what was measured first was no link's doing."""
    paying = known(cap_bytes_s=cap)
    pass_by(paying, 20e6, 0.0)
    assert paying.level == 5
    pass_by(paying, RATES[5], 1.0, SHARES[5])
    assert paying.level == 5
    pass_by(paying, RATES[5], LATER, SHARES[5])
    assert paying.level is None
    pass_by(paying, 10e9, LATER + 1)
    assert paying.level is None


def test_the_bare_link_is_looked_at_now_and_then_also_if_it_seems_to_be_full():
    """That as much goes over it as it carried once may be chance."""
    paying = known()
    pass_by(paying, 70e6, 0.0)
    assert paying.level == 5
    pass_by(paying, RATES[5], BELIEVED_MOST_S, SHARES[5])
    assert paying.level == 5
    pass_by(paying, RATES[5], BELIEVED_MOST_S + 1, SHARES[5])
    assert paying.level is None


def test_a_link_that_slows_down():
    paying = known()
    pass_by(paying, 2e9, 0.0)
    assert paying.level is None
    for second in range(1, 12):
        pass_by(paying, 50e6, second)
        if paying.level is not None:
            break
    assert paying.level is not None


def test_trials_take_a_small_share_of_the_time():
    """However long one takes."""
    paying, now, spent = Paying(cap_bytes_s=100e6), 0.0, 0.0
    for _ in range(50):
        assert paying.is_trial_due(now)
        assert paying.sampled(MIB, MIB // 2, 0.003, now)
        spent += 0.003
        assert not paying.is_trial_due(now + 0.29)
        now += 0.003 / TRIAL_SHARE
    assert spent <= now * TRIAL_SHARE * 1.001
    paying.packed(2, MIB, MIB, 0.003, now + 5)
    assert paying.is_trial_due(now)  # that was no trial
    pass_by(paying, 100e6, now)
    paying.packed(2, 10 * MIB, 9 * MIB, 0.2, now, trial=True)  # of which the link was busy for a half
    assert not paying.is_trial_due(now + 9)
    assert paying.is_trial_due(now + 10)
    paying.packed(2, 10 * MIB, 9 * MIB, 0.05, now, trial=True)
    pass_by(paying, 100e6, now)  # by what was chosen meanwhile
    assert not paying.is_trial_due(now + 0.4)
    assert paying.is_trial_due(now + 0.6)


def test_samples_in_vain_are_taken_more_and_more_seldom():
    """Up to a bound: memory that did not compress may do so later. One that shrinks begins anew."""
    paying, now, waits = Paying(cap_bytes_s=100e6), 0.0, []
    for _ in range(9):
        assert not paying.sampled(MIB, MIB, 0.001, now)
        waits.append(next(step for step in range(1, 1000) if paying.is_trial_due(now + step * 0.1)))
        now += waits[-1] * 0.1
    assert waits == [2, 4, 8, 16, 32, 64, 64, 64, 64]
    assert paying.sampled(MIB, MIB // 2, 0.001, now)
    assert paying.is_trial_due(now + 0.1)


@pytest.mark.parametrize("workers", [1, 4])
def test_nothing_is_tried_where_no_packer_is_as_fast_as_the_link(workers):
    """Nor before that is known: a session may be over before a trial has paid for itself."""
    paying = Paying(workers)
    assert not paying.is_trial_due(0.0)
    pass_by(paying, FASTEST_BYTES_S * workers * 1.01, 1.0)
    assert not paying.is_trial_due(1.0)
    pass_by(paying, FASTEST_BYTES_S * workers * 0.9, 2.0)
    assert paying.is_trial_due(2.0)


def test_nothing_else_is_tried_before_what_was_chosen_is_measured():
    """It is what tells whether the trial has told the truth."""
    paying = known()
    pass_by(paying, 110e6, 1.0)
    assert paying.level == 2
    assert not paying.is_trial_due(1.0)
    pass_by(paying, 250e6, 2.0, SHARES[2])
    assert paying.level == 2
    assert paying.is_trial_due(2.0)


def test_a_packer_gets_as_little_of_a_busy_machine_as_who_sends():
    """The link is as fast as ever, but nobody is there to fill it."""
    paying = Paying()
    paying.passed(100_000_000, 100_000_000, 1.0, 1.0, 0.1)
    for level in LEVELS:
        paying.packed(level, MIB, int(MIB * SHARES[level]), MIB / RATES[level], 1.0, trial=True)
    assert paying.level is None
    paying.passed(100_000_000, 100_000_000, 1.0, 2.0, 0.9)
    assert paying.level is not None
    share = paying._machine_share
    pass_by(paying, 250e6, 3.0)  # where packers are busy, they take some of it
    assert paying._machine_share == share


def test_only_what_shrinks_is_tried_in_earnest():
    paying = Paying()
    assert not paying.sampled(MIB, int(MIB * PROMISING) + 1, 0.001, 0.0)
    assert paying.sampled(MIB, int(MIB * PROMISING) - 1, 0.001, 0.0)


def test_every_level_has_its_turn():
    """First those of which nothing is known, then those that are not in use."""
    paying, tried = Paying(), []
    for _ in range(len(LEVELS)):
        tried.append(paying.next_trial())
        paying.packed(tried[-1], MIB, MIB // 2, 0.001, 0.0)
    assert sorted(tried) == sorted(LEVELS)
    pass_by(paying, 100e6, 1.0)
    assert paying.level is not None
    assert {paying.next_trial() for _ in range(10)} == set(LEVELS) - {paying.level}


def test_of_what_is_unknown_nothing_is_expected():
    paying = Paying()
    assert paying.link_bytes_s == math.inf
    assert paying.expected_bytes_s(None, 0.0) == math.inf
    assert paying.expected_bytes_s(2, 0.0) == 0.0


@given(
    st.lists(
        st.tuples(st.sampled_from(LEVELS), st.floats(0.01, 1), st.floats(1e6, 1e10), st.floats(1e6, 1e10)),
        min_size=1,
        max_size=20,
    )
)
def test_what_was_chosen_is_never_expected_to_be_much_worse(steps):
    """Than the bytes as they are, by what is known, or these are to be measured again."""
    paying = Paying()
    for number, (level, share, rate, passes) in enumerate(steps):
        paying.packed(level, MIB, int(MIB * share), MIB / rate, number, trial=True)
        pass_by(paying, passes, number, share)
        bare = paying.expected_bytes_s(None, number)
        assert paying.level is None or paying.expected_bytes_s(paying.level, number) * (1 + GAIN) >= bare


@st.composite
def packers(draw) -> tuple[dict[int, float], dict[int, float]]:
    """What each level packs of some memory to which share, and how much of it a second."""
    share, rate = draw(st.floats(0.05, 1)), draw(st.floats(50e6, 2e9))
    shares, rates = {}, {}
    for level in LEVELS:
        shares[level], rates[level] = share, rate
        share, rate = share * draw(st.floats(0.8, 1)), rate * draw(st.floats(0.2, 0.9))
    return shares, rates


LINKS = st.floats(1e6, 10e9)


@given(st.data(), st.sampled_from([1, 2, 4]), st.just(math.inf) | LINKS)
def test_whatever_was_before_what_passes_is_soon_near_the_most_that_could(data, workers, cap):
    """No link, no memory and no packer leaves anything behind that keeps the rate low for good."""
    paying = Paying(workers, cap)
    most = min(cap, FASTEST_BYTES_S * workers * 0.99)  # on a faster one nothing is tried
    phases = [(data.draw(LINKS), 20, data.draw(packers())), (data.draw(st.floats(1e6, most)), 100, None)]
    now, packs, passed, best = 0.0, phases[0][2], [], {}
    for link, seconds, other in phases:
        bare = min(link, cap)
        shares, rates = packs = other or data.draw(st.just(packs) | packers())
        best = {None: bare} | {level: min(rates[level] * workers, bare / shares[level]) for level in LEVELS}
        for _ in range(seconds):
            now += 1.0
            level = paying.level
            passed.append(best[level])
            if level is not None:
                paying.packed(level, MIB, int(MIB * shares[level]), MIB / rates[level], now)
            pass_by(paying, best[level], now, 1.0 if level is None else shares[level])
            if paying.is_trial_due(now) and paying.sampled(MIB, int(MIB * shares[2]), MIB / rates[2], now):
                trial = paying.next_trial()
                paying.packed(trial, MIB, int(MIB * shares[trial]), MIB / rates[trial], now, trial=True)
    assert sum(passed[-20:]) / 20 >= 0.7 * max(best.values())


def packing_in_any_case(link_bytes_s: float) -> Paying:
    """After a second of it."""
    paying = known(least=2)
    assert paying.level == 2
    pass_by(paying, min(link_bytes_s / SHARES[2], RATES[2]), 1.0, SHARES[2])
    return paying


def test_what_is_packed_in_any_case_is_packed_as_densely_as_the_link_leaves_time_for():
    """Where the packer is slower than the link a higher level would be slower still."""
    assert packing_in_any_case(50e6).level == 5
    assert packing_in_any_case(300e6).level == 2


def test_what_is_packed_in_any_case_goes_back_when_the_link_is_faster_than_it_was():
    """It never goes below the least level, which is tried again like any other."""
    paying = packing_in_any_case(50e6)
    assert paying.link_bytes_s == 50e6
    assert {paying.next_trial() for _ in range(5)} == {2}
    pass_by(paying, RATES[5], 2.0, SHARES[5])
    for second in range(3, 100):
        pass_by(paying, RATES[5] / 4, second, SHARES[5] * 2)  # the machine has other work
        if paying.level == 2:
            return
    pytest.fail("it stays at the higher level")


def test_a_burst_is_not_what_the_link_carries():
    """What was seen once, after a stall, is forgotten when it does not come again."""
    paying = known(least=2)
    pass_by(paying, 250e6, 1.0, SHARES[2])
    pass_by(paying, 400e6, 2.0, SHARES[2])
    assert paying.link_bytes_s == pytest.approx(160e6)
    for second in range(3, 8):
        pass_by(paying, 250e6, second, SHARES[2])
    assert paying.link_bytes_s == pytest.approx(100e6)


# ---- time that is left over ----

STEPS = (*LEVELS, DENSEST)
ALL_SHARES = {**SHARES, DENSEST: 0.34}


def idle(link_bytes_s: float, rates: dict[int, float], **wanted: float) -> Paying:
    """Packing at level 2 pays, the link is full, and the denser levels have been tried just now."""
    paying = Paying(cap_bytes_s=link_bytes_s, **wanted)
    for level in (2, 5, DENSEST):
        paying.packed(level, MIB, int(MIB * ALL_SHARES[level]), MIB / rates[level], 1.0)
    paying.level = 2
    return paying


FAST = {2: 1000e6, 5: 500e6, DENSEST: 100e6}


def test_what_the_link_leaves_time_for_is_packed_more_densely():
    """A mebibyte takes 2 ms at level 5, 10 ms at the densest; 200 kB take the link 2 ms."""
    paying = idle(100e6, FAST)
    for waiting, level in ((0, 2), (190_000, 2), (230_000, 5), (1_000_000, 5), (1_100_000, DENSEST)):
        assert paying.level_of(MIB, waiting, 1.0) == level
        assert paying.level == 2


def test_there_is_one_step_beyond_what_keeps_up_with_the_link():
    """Of what waits two seconds, one batch may be denser than all can be."""
    paying = idle(300e6, FAST)  # at level 5 it is 175 MB/s that comes out of one packer
    assert paying.level_of(MIB, 300_000_000, 1.0) == 5
    assert idle(300e6, FAST, workers=2).level_of(MIB, 300_000_000, 1.0) == DENSEST
    assert idle(500e6, FAST).level_of(MIB, 300_000_000, 1.0) == 2  # nor does level 2 keep up


def test_what_was_not_seen_lately_is_taken_to_be_slow():
    """Some multiple of what the level before it takes now: the machine was busy then, or is now."""
    paying = idle(100e6, {**FAST, 5: 10e6})
    assert paying.level_of(MIB, 500_000, 1.5) == 2
    assert paying.level_of(MIB, 500_000, 2.5) == 5


def test_what_is_not_packed_or_of_a_link_that_is_not_known_stays_as_it_is():
    paying = idle(math.inf, FAST)
    assert paying.level_of(MIB, MIB, 1.0) == 2
    paying.level = None
    assert paying.level_of(MIB, MIB, 1.0) is None


def through_link(link_bytes_s: float, rates: dict[int, float], ahead: int = 4) -> tuple[float, list[int]]:
    """Two hundred mebibytes by one packer, with so many batches ahead: seconds, and the levels.

    In virtual time: the packer stops when enough waits, the link when nothing does.
    """
    paying = Paying(cap_bytes_s=link_bytes_s, least=2)
    packed_at = free_at = 0.0
    leaves: list[tuple[float, int]] = []
    levels = []
    for _ in range(200):
        if len(leaves) >= ahead:
            packed_at = max(packed_at, leaves[-ahead][0])
        waiting = sum(size for at, size in leaves if at > packed_at)
        level = paying.level_of(MIB, waiting, packed_at)
        assert level is not None
        seconds, size = MIB / rates[level], int(MIB * ALL_SHARES[level])
        packed_at += seconds
        paying.packed(level, MIB, size, seconds, packed_at)
        free_at = max(free_at, packed_at) + size / link_bytes_s
        leaves.append((free_at, size))
        levels.append(level)
    return free_at, levels


@pytest.mark.parametrize(
    ("link", "rates", "mostly"),
    [
        (100e6, FAST, 5),
        (30e6, FAST, DENSEST),
        (150e6, {2: 1000e6, 5: 300e6, DENSEST: 30e6}, 5),
        (150e6, {2: 500e6, 5: 150e6, DENSEST: 30e6}, 2),
        (150e6, {2: 200e6, 5: 50e6, DENSEST: 30e6}, 2),
    ],
)
def test_denser_batches_never_let_the_link_wait(link, rates, mostly):
    """Whatever the machine: it takes no longer than with the level that pays alone."""
    seconds, levels = through_link(link, rates)
    plainly_s = 200 * MIB * max(SHARES[2] / link, 1 / rates[2])
    assert seconds <= plainly_s * 1.02
    assert max(set(levels), key=levels.count) == mostly


def test_a_machine_with_other_work_gets_what_it_had():
    """Five times as slow from one batch to the next: the levels fall back, and the link waits once."""
    rates = dict(FAST)
    _, levels = through_link(100e6, rates)
    assert levels[-1] >= 5
    _, levels = through_link(100e6, {level: rate / 5 for level, rate in FAST.items()})
    assert levels.count(DENSEST) == 0
