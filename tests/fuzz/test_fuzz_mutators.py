"""Every mutator changes something, and what its row says is so."""

from __future__ import annotations

import pytest

from sterna_fuzz.conversations import SOURCE, conversation
from sterna_fuzz.mutators import EDGES, MUTATORS, Step
from sterna_fuzz.plans import Plan, spoil
from sterna_fuzz.streams import read

INVARIANTS = {
    "one-runner", "same-memory", "no-stale-page", "bounded", "coded-refusal", "chunking", "round-trip",
    "skips-unknown", "converges", "rollback",
}  # fmt: skip
STEPS = [(at, where, value) for at in (1, 4, 7) for where in (0, 37, 1001) for value in (0, 1, 5, 77)]


def found(name):
    """What the steps of one mutator lead to: with the data, whether it is as its row says, and the end."""
    regions = conversation("dirty").regions
    for numbers in STEPS:
        spoilt = spoil(Plan("dirty", SOURCE, (Step(name, *numbers),)))
        yield spoilt, read([spoilt.data], regions).ending


def test_there_are_many():
    assert len(MUTATORS) >= 40
    assert {each.attacks for each in MUTATORS.values()} <= INVARIANTS
    assert all(name == each.name for name, each in MUTATORS.items())
    assert len({each.text for each in MUTATORS.values()}) == len(MUTATORS)


@pytest.mark.parametrize("name", MUTATORS)
def test_a_mutator_changes_what_is_sent(name):
    honest = b"".join(conversation("dirty").frames[SOURCE])
    assert any(spoilt.data != honest for spoilt, _ in found(name))


@pytest.mark.parametrize("name", [name for name, each in MUTATORS.items() if each.ends])
def test_what_must_end_a_stream_does(name):
    """Lost connections and wrong directions are the machine's to name, not the reader's."""
    codes = {code.name.lower() for code in MUTATORS[name].ends}
    ends = [ending for spoilt, ending in found(name) if spoilt.as_said]
    if name in {"end_early", "mirror"}:
        assert set(ends) == {None}
    elif name != "count":
        assert ends
        assert all(ending is not None and ending.code in codes for ending in ends)


@pytest.mark.parametrize("name", [name for name, each in MUTATORS.items() if each.same])
def test_what_must_change_nothing_does_not(name):
    assert [ending for spoilt, ending in found(name) if spoilt.as_said] == [None] * len(STEPS)


def test_edges_are_where_limits_are():
    assert {0, 255, 256, 65536, 65537, 1 << 20, (1 << 20) + 1, (1 << 32) - 1, (1 << 64) - 1} <= set(EDGES)


@pytest.mark.parametrize("name", MUTATORS)
def test_mutators_stand_what_others_have_left(name):
    """Even where nothing but a preface, or a piece of a frame, is left."""
    for before in (Step("end_early"), Step("truncate", 0, 3), Step("garbage", 1, 1, 1), Step("drop", 0)):
        for numbers in STEPS[::5]:
            spoil(Plan("refused", SOURCE, (before, before, before, Step(name, *numbers))))
