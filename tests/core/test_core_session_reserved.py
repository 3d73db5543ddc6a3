"""What draft 1 reserves is not offered, not selected, not sent, and refused by its code [NEG-10] [CON-5].

The lists are the registry's: whatever is implemented one day leaves them, and needs tests of its own then.
Reserved frames in every state: test_core_session.py, `test_frames_that_the_state_does_not_allow`.
"""

from __future__ import annotations

import numpy as np
import pytest
from core_support import ALL_FEATURES, SESSION, DestinationRig, SourceRig

from sterna.core import events as e
from sterna.core.negotiate import offer
from sterna.core.tables import DestinationState, SourceState
from sterna.registry import (
    IMPLEMENTED_ENCODINGS,
    IMPLEMENTED_FEATURES,
    IMPLEMENTED_FRAMES,
    IMPLEMENTED_MODES,
    OPTIONAL_FRAMES,
    Encoding,
    ErrorCode,
    Feature,
    FrameType,
    Mode,
    Style,
)
from sterna.wire import make_runs
from sterna.wire import records as r

FEATURES = sorted(set(Feature) - IMPLEMENTED_FEATURES)
FRAMES = sorted(set(FrameType) - IMPLEMENTED_FRAMES)
MODES = sorted(set(Mode) - IMPLEMENTED_MODES)
STYLES = sorted(set(Style) - {Style.STOP_AND_COPY})  # implemented, but selected by nobody here
ENCODINGS = sorted(set(Encoding) - IMPLEMENTED_ENCODINGS)


def each(members):
    """Parametrize by what is reserved, by its name."""
    return pytest.mark.parametrize("reserved", members, ids=lambda member: member.name.lower())


def test_something_of_everything_is_reserved():
    """Otherwise the tests below would test nothing and not say so."""
    assert all((FEATURES, FRAMES, MODES, STYLES, ENCODINGS))


@each(FEATURES)
def test_a_feature_is_not_offered(reserved):
    """[NEG-10]"""
    rig = SourceRig().until(SourceState.GREETING)
    assert reserved not in {feature.id for feature in rig.heard[0].features}


@each(FEATURES)
def test_a_feature_is_not_selected(reserved):
    """[NEG-10] [NEG-11] And nothing else is different for it."""
    rig = DestinationRig()
    rig.say(rig.hello(features=(*offer(), r.FeatureOffer(reserved, required=False, parameter=1))))
    rig.do(e.Admit, rig.answer(e.Admit(rig.hello())))
    assert rig.last().features == ALL_FEATURES


@each(FEATURES)
def test_a_feature_that_the_peer_requires_is_missing(reserved):
    """[NEG-4]"""
    rig = DestinationRig()
    rig.say(rig.hello(features=(*offer(), r.FeatureOffer(reserved, required=True, parameter=1))))
    assert rig.last().code == ErrorCode.MISSING_FEATURE


@each(FEATURES)
def test_a_feature_that_the_peer_selects_was_not_offered(reserved):
    """[NEG-5]"""
    rig = SourceRig().until(SourceState.GREETING)
    rig.say(rig.welcome(features=(*ALL_FEATURES, r.FeatureChoice(reserved))))
    assert rig.last().code == ErrorCode.UNSOLICITED


def test_no_frame_is_ever_sent():
    """[NEG-7] [NEG-10] Nor a style or an encoding, nor are data connections asked for [STR-1]."""
    source = SourceRig().until(SourceState.CLOSED)
    destination = DestinationRig().until(DestinationState.CLOSED)
    said = source.heard + destination.heard
    elsewhere = {FrameType.REFUSE, FrameType.NOT_READY, FrameType.ABORT, FrameType.PONG, FrameType.PROGRESS}
    assert {record.type for record in said} >= IMPLEMENTED_FRAMES - OPTIONAL_FRAMES - elsewhere
    assert not {record.type for record in said} & set(FRAMES)
    assert {record.style for record in said if isinstance(record, r.Switchover)} == {Style.STOP_AND_COPY}
    assert [record.data_streams for record in said if isinstance(record, r.Accept)] == [0]
    encodings = {
        number for record in said if isinstance(record, r.Pages) for number in record.runs["encoding"]
    }
    assert encodings == {Encoding.RAW, Encoding.ZERO}


@each(MODES)
def test_a_mode_is_refused(reserved):
    """[CON-10]"""
    rig = DestinationRig()
    rig.say(rig.hello(mode=reserved, session=SESSION if reserved is not Mode.STORED else bytes(16)))
    refusal = rig.last()
    assert isinstance(refusal, r.Refuse)
    assert refusal.code == ErrorCode.UNSUPPORTED
    assert e.Admit not in rig.wishes


@each(STYLES)
def test_a_style_is_not_begun(reserved):
    """[SWI-1] [NEG-7]"""
    rig = DestinationRig().until(DestinationState.STANDBY)
    rig.say(r.Switchover(1, reserved))
    assert rig.last().code == ErrorCode.NOT_SELECTED
    assert e.Prepare not in rig.wishes


@each(ENCODINGS)
def test_an_encoding_is_not_decoded(reserved):
    """[PGS-9] [NEG-7]"""
    rig = DestinationRig().until(DestinationState.RECEIVING)
    before = bytes(rig.memory[0])
    runs = make_runs([(0, 1, Encoding.ZERO)], 12)
    runs["encoding"] = reserved
    rig.say(r.Pages(1, 1, 0, runs, np.empty(0, dtype=np.uint64)))
    assert rig.last().code == ErrorCode.NOT_SELECTED
    assert bytes(rig.memory[0]) == before
