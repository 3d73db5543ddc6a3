"""What pays at which rate of the link."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.core.paying import GAIN, LEVELS, LINK_AGE_S, TRIAL_SHARE, Paying

MIB = 1 << 20


def known(shares: dict[int, float], rates: dict[int, float], **wanted: float) -> Paying:
    """What each level packs a second, and to which share."""
    paying = Paying(**wanted)
    for level in LEVELS:
        paying.tried(level, MIB, int(MIB * shares[level]), MIB / rates[level], 0.0)
    return paying


TYPICAL = {-5: 0.6, 1: 0.4, 3: 0.35}
RATES = {-5: 800e6, 1: 400e6, 3: 200e6}


@pytest.mark.parametrize(
    ("link", "level"), [(50e6, 3), (110e6, 1), (300e6, -5), (700e6, -5), (2e9, None), (10e9, None)]
)
def test_the_slower_the_link_the_more_packing_pays(link, level):
    """A level pays whose pages take less time than those of the others."""
    paying = known(TYPICAL, RATES)
    assert paying.level is None  # nothing is known of the link
    paying.carried(int(link), 1.0, 1.0)
    assert paying.link_bytes_s == link
    assert paying.level == level


def test_random_memory_never_pays():
    paying = known(dict.fromkeys(LEVELS, 1.0), dict.fromkeys(LEVELS, 1e12))
    paying.carried(1000, 1.0, 1.0)
    assert paying.level is None


def test_more_workers_pack_more():
    for workers, level in ((1, 1), (4, 3)):
        paying = known(TYPICAL, RATES, workers=workers)
        paying.carried(int(200e6), 1.0, 1.0)
        assert paying.level == level


def test_a_cap_is_known_from_the_start():
    """The link is measured all the same: it may be slower."""
    paying = known(TYPICAL, RATES, cap_bytes_s=110e6)
    assert paying.link_bytes_s == 110e6
    assert paying.level == 1
    paying.carried(int(50e6), 1.0, 1.0)
    assert paying.level == 3


def test_small_gains_change_nothing():
    """Two that are as good do not take turns."""
    paying = known({-5: 0.5, 1: 0.5, 3: 0.49}, dict.fromkeys(LEVELS, 1e9))
    paying.carried(int(100e6), 1.0, 1.0)
    first = paying.level
    assert paying.seconds_a_byte(first) * (1 - GAIN) <= min(map(paying.seconds_a_byte, LEVELS))
    for level in LEVELS:
        paying.tried(level, MIB, int(MIB * (0.5 if level != first else 0.51)), 0.001, 2.0)
        assert paying.level == first


def test_what_is_new_counts_more():
    """The link slows down, memory turns out to be another."""
    paying = known(TYPICAL, RATES)
    paying.carried(int(2e9), 1.0, 1.0)
    for second in range(2, 8):
        paying.carried(int(50e6), 1.0, second)
    assert paying.link_bytes_s == pytest.approx(50e6, rel=0.05)
    assert paying.level == 3
    for _ in range(100):
        paying.tried(3, MIB, MIB, MIB / 200e6, 9.0, trial=False)
    assert paying.level == 1


def test_trials_take_a_small_share_of_the_time():
    """However long one takes."""
    paying, now = Paying(), 0.0
    spent = 0.0
    for _ in range(50):
        assert paying.is_trial_due(now)
        level = paying.trial()
        paying.tried(level, MIB, MIB, 0.003, now)
        spent += 0.003
        assert not paying.is_trial_due(now + 0.29)
        now += 0.003 / TRIAL_SHARE
    assert spent <= now * TRIAL_SHARE * 1.001
    paying.tried(1, MIB, MIB, 0.003, now + 5, trial=False)
    assert paying.is_trial_due(now)


def test_every_level_has_its_turn():
    """First those of which nothing is known, then those that are not in use."""
    paying = Paying()
    tried = []
    for _ in range(len(LEVELS)):
        tried.append(paying.trial())
        paying.tried(tried[-1], MIB, MIB // 2, 0.001, 0.0)
    assert sorted(tried) == sorted(LEVELS)
    paying.carried(int(100e6), 1.0, 1.0)
    assert paying.level is not None
    assert {paying.trial() for _ in range(10)} == set(LEVELS) - {paying.level}


def test_the_link_is_doubted_when_it_was_not_seen_for_long():
    paying = Paying()
    assert paying.doubts_link(0.0)
    paying.carried(MIB, 0.1, 10.0)
    assert not paying.doubts_link(10.0 + LINK_AGE_S)
    assert paying.doubts_link(10.1 + LINK_AGE_S)
    assert not Paying(cap_bytes_s=1e6).doubts_link(0.0)


def test_of_what_is_unknown_nothing_is_expected():
    paying = Paying()
    assert paying.link_bytes_s == math.inf
    assert paying.seconds_a_byte(None) == 0.0
    assert paying.seconds_a_byte(1) == math.inf


@given(
    st.lists(st.tuples(st.sampled_from(LEVELS), st.floats(0.01, 1), st.floats(1e6, 1e10)), min_size=1),
    st.floats(1e6, 1e11),
)
def test_what_was_chosen_is_never_much_worse_than_the_bytes_as_they_are(trials, link):
    """By what is known."""
    paying = Paying()
    for number, (level, share, rate) in enumerate(trials):
        paying.tried(level, MIB, int(MIB * share), MIB / rate, number)
        paying.carried(int(link), 1.0, number)
        assert paying.seconds_a_byte(paying.level) * (1 - GAIN) <= paying.seconds_a_byte(None) * (1 + 1e-9)
