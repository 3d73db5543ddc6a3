from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kvm_support import Small, small_machine
from sterna.errors import GuestError
from sterna.guest.kvm.features import TSC
from sterna.guest.kvm.sections import MachineState, VcpuState, from_sections, to_sections
from sterna.guest.kvm.state import compared, load, save
from sterna.linux.kvm import Machine
from sterna.linux.kvm_vcpu import REGISTERS, Vcpu
from sterna.registry import ErrorCode

pytestmark = pytest.mark.needs("kvm")

PAT = 0x277


@pytest.fixture
def small() -> Iterator[Small]:
    with small_machine() as made:
        made.write(0x200000)
        made.vcpu.finish_access()
        yield made


@pytest.fixture
def there() -> Iterator[Small]:
    """Another machine, which has not run."""
    with small_machine() as made:
        yield made


def saved(small: Small) -> MachineState:
    return save(small.machine, [small.vcpu], [small.kvm.supported_cpuid()], small.kvm.msr_indices())


def changed(state: MachineState, **changes: object) -> MachineState:
    return replace(state, vcpus=(replace(state.vcpus[0], **changes),))


def refused(small: Small, state: MachineState) -> str:
    with pytest.raises(GuestError) as caught:
        load(state, small.machine, [small.vcpu])
    assert caught.value.code is ErrorCode.STATE_REJECTED
    return str(caught.value)


def test_a_state_is_the_same_on_another_machine_and_through_its_sections(small: Small, there: Small) -> None:
    state = from_sections(to_sections(saved(small)), 1)
    assert load(state, there.machine, [there.vcpu]) == len(list(compared(state.vcpus[0])))
    assert list(compared(saved(there).vcpus[0])) == list(compared(state.vcpus[0]))
    assert saved(there).clock_ns >= state.clock_ns


def test_every_part_is_compared(small: Small) -> None:
    """A change of any part shows in what is compared; so one that a kernel does not take is found. [XCP-3]"""
    state = saved(small).vcpus[0]
    before = list(compared(state))
    flipped: dict[str, object] = {
        "registers": REGISTERS.pack(*(1 << number for number in range(18))),
        "system": bytes(one ^ 1 for one in state.system),
        "xsave": bytes(one ^ 1 for one in state.xsave),
        "xcr": ((0, 3),),
        "debug": bytes(range(48)),
        "msrs": ((PAT, 1),),
        "events": bytes(range(64)),
        "mp_state": 3,
    }
    for name, value in flipped.items():
        assert list(compared(replace(state, **{name: value}))) != before, name
    names = [name for name, _ in before]
    assert len(set(names)) == len(names)


def test_every_part_is_set(small: Small, there: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """[XCP-3] Of CPUID, the counter, and what is as after a reset, a comparison would not tell."""
    found: dict[str, object] = {}

    def watch(name: str) -> None:
        take = getattr(Vcpu, name)

        def set_part(self: Vcpu, value: object) -> None:
            found[name] = value
            take(self, value)

        monkeypatch.setattr(Vcpu, name, set_part)

    for name in ("cpuid", "extended_control", "events", "debug_registers", "mp_state", "msrs"):
        watch(f"set_{name}")
    state = saved(small)
    debug = struct.pack("<6Q", 0x1000, 0x2000, 0x3000, 0x4000, 0xFFFF0FF0, 0x400)
    state = changed(state, debug=debug, cpuid=state.vcpus[0].cpuid[:-1])
    load(state, there.machine, [there.vcpu])
    wanted = state.vcpus[0]
    assert found == {
        "set_cpuid": wanted.cpuid,
        "set_extended_control": wanted.xcr,
        "set_events": wanted.events,
        "set_debug_registers": debug + bytes(80),
        "set_mp_state": wanted.mp_state,
        "set_msrs": [(TSC, wanted.tsc ^ 1 << 62), (TSC, wanted.tsc)],
    }
    assert there.vcpu.debug_registers()[:48] == debug


def test_a_value_that_a_kernel_does_not_take_is_refused(
    small: Small, there: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[XCP-3] A kernel that quietly leaves a register as it was."""
    state = saved(small)
    monkeypatch.setattr(type(small.vcpu), "set_registers", lambda self, data: None)
    text = refused(there, state)
    assert "vCPU 0: rax does not take 0x200000" in text


def test_counters_that_are_set_far_from_what_they_were(
    small: Small, there: Small, monkeypatch: pytest.MonkeyPatch
) -> None:  # [XCP-10]
    """Kernels take the first one for synchronised with what it was, if it is near; the others should be."""
    set_msrs: list[object] = []
    monkeypatch.setattr(Vcpu, "set_msrs", lambda self, values: set_msrs.append(list(values)))
    (one,) = saved(small).vcpus
    load(replace(saved(small), vcpus=(one, replace(one, tsc=one.tsc + 5))), there.machine, [there.vcpu] * 2)
    assert set_msrs[1::2] == [[(TSC, one.tsc ^ 1 << 62), (TSC, one.tsc)], [(TSC, one.tsc + 5)]]


def test_answers_of_cpuid_that_a_kernel_does_not_take(small: Small, there: Small) -> None:  # [XCP-3]
    cpuid = tuple(one for one in small.kvm.supported_cpuid() if one.leaf < 0x80000000)
    there.vcpu.set_cpuid(cpuid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Vcpu, "set_cpuid", lambda self, entries: None)
        assert "vCPU 0: CPUID has no answer for leaf 0x80000000" in refused(there, saved(small))


def test_model_specific_registers(small: Small, there: Small) -> None:  # [XCP-8] [XCP-9]
    state = saved(small)
    values = dict(state.vcpus[0].msrs)
    assert set(values) == set(small.vcpu.msrs(small.kvm.msr_indices())) - {TSC}
    assert "MSR 0xdead0000 does not take 0x1" in refused(there, changed(state, msrs=((0xDEAD0000, 1),)))
    values[PAT] = 0x0007040600070400
    load(changed(state, msrs=tuple(sorted(values.items()))), there.machine, [there.vcpu])
    assert there.vcpu.msrs([PAT]) == {PAT: 0x0007040600070400}


def test_areas_of_other_sizes(small: Small, there: Small) -> None:  # [XCP-7]
    state = saved(small)
    area = bytearray(state.vcpus[0].xsave)
    area[160:168], area[512] = b"12345678", 3
    load(changed(state, xsave=bytes(area) + bytes(64)), there.machine, [there.vcpu])
    load(changed(state, xsave=bytes(area[:576])), there.machine, [there.vcpu])
    assert there.vcpu.xsave()[160:168] == b"12345678"
    assert "larger than it is here" in refused(there, changed(state, xsave=bytes(area) + b"\1"))


def test_system_registers_that_no_processor_has(small: Small, there: Small) -> None:
    state = saved(small)
    system = bytearray(state.vcpus[0].system)
    struct.pack_into("<Q", system, 224 + 24, (1 << 64) - 1)  # CR4
    assert "KVM_SET_SREGS2: Invalid argument" in refused(there, changed(state, system=bytes(system)))


def test_the_clock_goes_on_from_what_was_sent(small: Small, there: Small) -> None:  # [XCP-10] [CON-49]
    state = replace(saved(small), clock_ns=10**15)
    load(state, there.machine, [there.vcpu])
    assert 10**15 <= there.machine.clock_ns() < 10**15 + 60 * 10**9


@pytest.mark.parametrize("found_ns", [4_999_999_999, 5_000_000_000 + 60 * 10**9])
def test_a_clock_that_does_not_go_on_from_there(
    found_ns: int, small: Small, there: Small, monkeypatch: pytest.MonkeyPatch
) -> None:  # [XCP-10]
    state = replace(saved(small), clock_ns=5_000_000_000)
    monkeypatch.setattr(Machine, "clock_ns", lambda self: found_ns)
    assert f"the clock is at {found_ns} ns" in refused(there, state)


def test_frequencies(small: Small, there: Small, monkeypatch: pytest.MonkeyPatch) -> None:  # [XCP-10]
    """Where the counter can be scaled, the kernel is asked to; what it then says is compared."""
    state = saved(small)
    khz = state.vcpus[0].tsc_khz
    asked: list[int] = []
    monkeypatch.setattr(type(small.vcpu), "set_tsc_khz", lambda self, khz: asked.append(khz))
    there.machine.scales_tsc = True
    load(changed(state, tsc_khz=khz + khz // 5000), there.machine, [there.vcpu])
    assert asked == []
    assert f"a counter of {khz * 2} kHz, and it has {khz}" in refused(there, changed(state, tsc_khz=khz * 2))
    assert asked == [khz * 2]
    monkeypatch.undo()
    assert "KVM_SET_TSC_KHZ" in refused(there, changed(state, tsc_khz=(1 << 32) - 1))


def test_a_frequency_where_the_counter_cannot_be_scaled(small: Small, there: Small) -> None:  # [XCP-10]
    """Kernels take a higher one all the same, and say that it is what the counter has."""
    state = saved(small)
    there.machine.scales_tsc = False
    for khz in (state.vcpus[0].tsc_khz * 2, state.vcpus[0].tsc_khz // 2, (1 << 32) - 1):
        assert f"a counter of {khz} kHz" in refused(there, changed(state, tsc_khz=khz))
    load(state, there.machine, [there.vcpu])


def test_nothing_that_counts_on_is_compared() -> None:
    fields = {
        "registers": bytes(144),
        "system": bytes(320),
        "xsave": b"",
        "debug": bytes(48),
        "events": bytes(64),
    }
    state = VcpuState(cpuid=(), xcr=(), msrs=(), mp_state=0, tsc=5, tsc_khz=7, **fields)  # type: ignore[arg-type]
    assert list(compared(state)) == list(compared(replace(state, tsc=6)))
