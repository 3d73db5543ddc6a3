"""How a source comes to a session. WELCOME frame by frame: test_core_source.py; resumption: its own tests."""

from __future__ import annotations

from core_support import ServingRig, SourceRig, code_of

from sterna.core.style import offer_for
from sterna.core.tables import SourceState as S
from sterna.registry import ErrorCode, Feature, Limit


def offered(switchover: str) -> dict[int, bool]:
    rig = SourceRig(features=offer_for(switchover)).until(S.GREETING)
    return {each.id: each.required for each in rig.heard[0].features}


def test_a_style_is_offered_where_the_operator_wants_it():
    """[NEG-10] And required where nothing else will do."""
    styles = {Feature.BITMAP, Feature.POST_COPY}
    assert not offered("stop-and-copy").keys() & styles
    assert [offered("bitmap").get(each) for each in sorted(styles)] == [True, None]
    assert [offered("post-copy").get(each) for each in sorted(styles)] == [None, True]
    assert [offered("auto").get(each) for each in sorted(styles)] == [False, None]
    both = {each.id: each for each in offer_for("auto", {Feature.POST_COPY: 0}, {Feature.POST_COPY})}
    assert (both[Feature.BITMAP].required, both[Feature.POST_COPY].required) == (False, True)


def test_groups_must_fit_the_destination_s_batches():
    """[PCY-20]"""
    small = {Limit.BULK_BYTES: 65535}
    rig = ServingRig().until(S.GREETING)
    rig.say(rig.welcome(limits=small))
    assert code_of(rig) is ErrorCode.LIMIT_MISMATCH
    SourceRig().until(S.GREETING).say(
        SourceRig().welcome(limits=small)
    )  # without such a style it does not matter
