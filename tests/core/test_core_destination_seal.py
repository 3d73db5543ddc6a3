"""The digest of the execution state: what the source seals, and what the destination makes of it."""

from dataclasses import replace

import pytest
from core_support import GUEST, SECTION, DestinationRig, SourceRig, code_of

from sterna.core import events as e
from sterna.core.tables import DestinationState, SourceState
from sterna.registry import ErrorCode
from sterna.wire import records as r
from sterna.wire.integrity import state_digest

LONG = replace(SECTION, data=bytes(range(256)) * 300, instance=1)  # several fragments
EMPTY = replace(SECTION, data=b"", instance=2)
SECTIONS = (LONG, EMPTY, SECTION)
BYTES = len(LONG.data) + len(SECTION.data)


def roomy(rig: type) -> SourceRig | DestinationRig:
    """A rig whose guest may have so much state."""
    return rig(guest=replace(GUEST, state_bytes=BYTES))


def test_the_source_seals_the_sections_as_they_were_saved():
    """[MEM-18] [MEM-19] Names and bytes, in the order in which they are sent."""
    rig = roomy(SourceRig).until(SourceState.BLACKOUT)
    rig.do(e.SaveState, SECTIONS)
    seal = rig.last()
    assert isinstance(seal, r.Seal)
    assert seal.state_digest == state_digest(SECTIONS)
    assert (seal.state_sections, seal.state_bytes) == (3, BYTES)


def frozen() -> DestinationRig:
    """A destination that has the memory, and waits for the state."""
    rig = roomy(DestinationRig).until(DestinationState.BLACKOUT)
    rig.finish_round()
    return rig


def test_the_destination_loads_what_was_sealed():
    """[MEM-19]"""
    rig = frozen()
    rig.state(*SECTIONS)
    rig.say(rig.seal(state_sections=3, state_bytes=BYTES, state_digest=state_digest(SECTIONS)))
    assert rig.take(e.LoadState).sections == SECTIONS


@pytest.mark.parametrize(
    "arrived",
    [
        (SECTION, EMPTY, LONG),
        (LONG, EMPTY, replace(SECTION, data=b"registerS")),
        (LONG, EMPTY, replace(SECTION, version=2)),
        (LONG, replace(EMPTY, instance=3), SECTION),
    ],
)
def test_another_state_is_not_loaded(arrived):
    """[MEM-19] [CON-50] [SEA-4] Counts and checksums of all frames are right, and the memory is."""
    rig = frozen()
    rig.state(*arrived)
    rig.say(rig.seal(state_sections=3, state_bytes=BYTES, state_digest=state_digest(SECTIONS)))
    assert code_of(rig) is ErrorCode.DIGEST_MISMATCH
    assert rig.wishes == [e.Discard]
    assert rig.machine.digest == b""
    rig.do(e.Discard)
    assert rig.machine.result.error.clause == "MEM-19"


def test_memory_is_compared_before_the_state():
    """[CON-50]"""
    rig = frozen()
    rig.state(SECTION)
    rig.say(rig.seal(digest=bytes(16), state_digest=bytes(16)))
    rig.do(e.Discard)
    assert rig.machine.result.error.clause == "MEM-15"
