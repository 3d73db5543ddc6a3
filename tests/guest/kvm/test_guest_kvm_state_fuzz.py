"""Whatever arrives as the state of a guest: it is taken, or refused with one of two codes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sterna.errors import GuestError
from sterna.guest.kvm.machine import KvmMachine
from sterna.guest.kvm.sections import from_sections, to_sections
from sterna.guest.schedule import WorkloadParameters
from sterna.linux.kvm_vcpu import KICK
from sterna.registry import ErrorCode, StateKind

pytestmark = [pytest.mark.needs("kvm"), pytest.mark.slow]

MIB = 1 << 20
TAKEN_OR_REFUSED = {None, ErrorCode.STATE_REJECTED, ErrorCode.UNKNOWN_STATE}
BYTES = st.one_of(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]), st.integers(0, 255))


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[KvmMachine, KvmMachine]]:
    before = signal.signal(KICK, lambda number, frame: None)
    here, there = KvmMachine(MIB, 1), KvmMachine(MIB, 1)
    here.begin(WorkloadParameters.for_memory(MIB, MIB // 4))
    yield here, there
    here.close()
    there.close()
    signal.signal(KICK, before)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_changed_bytes(machines: tuple[KvmMachine, KvmMachine], data: st.DataObject) -> None:
    """No other exception, nothing that hangs, and a good state is taken afterwards; no page is touched."""
    here, there = machines
    good = to_sections(here.save())
    number = data.draw(st.integers(0, len(good) - 1))
    changed = bytearray(good[number].data)
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, min(len(changed) - 1, 700)))
        changed[place] = data.draw(BYTES)
    if data.draw(st.booleans()) and good[number].kind == StateKind.X86_MSRS:
        place = 8 + 16 * data.draw(st.integers(0, (len(changed) - 8) // 16 - 1)) + 8
        changed[place : place + 8] = data.draw(st.binary(min_size=8, max_size=8))
    sections = [*good]
    sections[number] = replace(good[number], data=bytes(changed))
    code = None
    try:
        there.load(from_sections(sections, 1))
    except GuestError as error:
        code = error.code
    assert code in TAKEN_OR_REFUSED
    there.load(from_sections(good, 1))
    assert not there.maps[0].array.any()
    assert not there.maps[1].array.any()
