"""A source that lets its guest run at the destination before all of its pages are there, up to SEAL."""

from __future__ import annotations

from core_support import PAGE, SECTION, ServingRig, SourceRig

from sterna.core import events as e
from sterna.core.policy import PolicySettings
from sterna.core.style import offer_for
from sterna.core.tables import SourceState as S
from sterna.registry import BitmapEncoding, Style
from sterna.wire import records as r


def test_the_blackout_in_order():
    """[PCY-1] [PCY-2] [PCY-3] [PCY-8] ROUND without pages, the bitmap, the state, SEAL over what is held."""
    rig = ServingRig().until(S.SEALED)
    switchover = next(each for each in rig.heard if isinstance(each, r.Switchover))
    assert switchover.style is Style.BITMAP
    begin = rig.heard.index(r.Round(1, 2, 0))
    _, end, bitmap, state, seal = rig.heard[begin:]
    assert end == r.RoundEnd(1, 2, 0, 0)
    assert bitmap == r.DirtyBitmap(1, 0, 1, 2, BitmapEncoding.PLAIN, b"\x03")
    assert isinstance(state, r.State)
    assert isinstance(seal, r.Seal)
    held = SourceRig().until(S.SEALED).machine.digest
    assert seal.digest != held


def test_post_copy_makes_no_round():
    """[PCY-4]"""
    rig = SourceRig(policy=PolicySettings(switchover="post-copy"), features=offer_for("post-copy"))
    rig.start()
    choices = tuple(r.FeatureChoice(each.id, each.parameter) for each in offer_for("post-copy"))
    rig.say(rig.welcome(features=choices), r.Accept(4 * PAGE))
    rig.do(e.StartTracking)
    rig.do(e.Persist)
    assert rig.last() == r.Switchover(1, Style.POST_COPY, rig.heard[-1].predicted_downtime_us)
    assert not [each for each in rig.heard if isinstance(each, r.Round)]
    rig.say(r.Ready(1))
    rig.do(e.Pause)
    rig.do(e.CollectDirty, rig.clean())
    rig.do(e.SaveState, (SECTION,))
    rig.drain()
    (bitmap,) = [each for each in rig.heard if isinstance(each, r.DirtyBitmap)]
    assert (bitmap.first, bitmap.bits) == (0, 4)
    assert r.Round(1, 1, 0) in rig.heard
