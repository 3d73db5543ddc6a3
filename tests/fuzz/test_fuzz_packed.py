"""What a destination makes of pages in every way to pack them."""

from __future__ import annotations

import pytest

from sterna_fuzz.conversations import SOURCE, conversation
from sterna_fuzz.mutators import Step
from sterna_fuzz.packed import WAYS
from sterna_fuzz.peers import check, hear, word
from sterna_fuzz.plans import Plan, spoil

NAMES = tuple(WAYS)
MALFORMED = {
    "bomb", "bomb stated", "short", "size missing", "two frames", "trailing", "torn", "skippable", "no frame",
    "window", "dictionary", "hashes alone", "change without hashes", "change bomb",
}  # fmt: skip
# Pages that are rejected, or are not what is sealed: the recorded source does not send them again.
LOST = {"other content", "change of nothing", "change of itself"}


def ending(script: str, name: str) -> str:
    """How the session ends when the first batch is packed like that."""
    plan = Plan(script, SOURCE, (Step("pack", 0, 0, NAMES.index(name)),))
    spoilt = spoil(plan)
    assert spoilt.as_said
    heard = hear(plan, spoilt.parts)
    check(plan, heard)
    return word(heard)


@pytest.mark.parametrize("name", NAMES)
def test_each_way_ends_as_it_must(name):
    """[PGS-11] [PGS-16] [PGS-17] [PGS-19] [PGS-20] And honest ones move the guest."""
    found = ending("packed", name)
    if name in MALFORMED:
        assert found == "malformed"
    elif name in LOST:
        assert found == "digest_mismatch"
    elif name in {"empty", "large"}:
        assert found == "bad_value"
    else:
        assert found == "completed"


@pytest.mark.parametrize("name", ["honest", "bomb", "change of zeros"])
def test_who_has_not_selected_it_takes_none(name):
    """[PGS-9]"""
    assert ending("dirty", name) == "not_selected"


def test_the_recording_itself_is_not_packed():
    assert conversation("packed").completed
