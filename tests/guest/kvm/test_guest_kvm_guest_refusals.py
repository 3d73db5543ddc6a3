"""States and guests that a destination refuses, over the whole protocol: the guest runs on at the source."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import trio
from test_guest_kvm_guest import HERE, MEMORY, room, source

from holder_support import serving
from sterna.core.events import Outcome, Result
from sterna.errors import GuestError
from sterna.guest.api import GuestDescription, StateSection
from sterna.guest.holder_backend import HeldState
from sterna.guest.holder_client import HolderConnection, connect_holder
from sterna.guest.holder_engine import HolderEngine
from sterna.guest.holder_guests import HolderDestinationGuest, HolderSourceGuest
from sterna.guest.kvm import features
from sterna.guest.kvm.guest import KvmGuest
from sterna.linux.kvm import Kvm
from sterna.net.destination import Destination
from sterna.net.memory import memory_transport_pair
from sterna.net.source import Source
from sterna.registry import Architecture, ErrorCode, StateKind

pytestmark = [pytest.mark.needs("kvm"), pytest.mark.slow]

Sections = tuple[StateSection, ...]
Change = Callable[[Sections], Sections]


class Changing(HolderSourceGuest):
    """Says something else of itself than what is so."""

    change: Change
    features: tuple[str, ...] = ()

    @property
    def description(self) -> GuestDescription:
        found = super().description
        return replace(found, cpu_features=(*found.cpu_features, *self.features))

    async def save_state(self) -> Sequence[StateSection]:
        return self.change(tuple(await super().save_state()))


def of(kind: StateKind, change: Callable[[bytes], bytes]) -> Change:
    """The section of this kind of the last vCPU is changed."""
    return lambda sections: tuple(
        replace(one, data=change(one.data)) if (one.kind, one.vcpu) == (kind, 1) else one for one in sections
    )


def put(offset: int, data: bytes) -> Callable[[bytes], bytes]:
    return lambda whole: whole[:offset] + data + whole[offset + len(data) :]


def with_msr(index: int, value: int) -> Callable[[bytes], bytes]:
    """One of the registers that are there has another value."""

    def change(data: bytes) -> bytes:
        entries = {index: value for index, _, value in struct.iter_unpack("<IIQ", data[8:])}
        assert index in entries
        entries[index] = value
        return data[:8] + b"".join(struct.pack("<IIQ", *(one, 0, entries[one])) for one in sorted(entries))

    return change


def also_matrices(data: bytes) -> bytes:
    """Another answer of CPUID, which says that there is a matrix unit (leaf 7, bit 24 of edx)."""
    (count,) = struct.unpack_from("<I", data)
    return struct.pack("<II", count + 1, 0) + data[8:] + struct.pack("<8I", 7, 0, 1, 0, 0, 0, 1 << 24, 0)


async def attempt(guest: HolderSourceGuest, there: HolderConnection) -> list[Result]:
    status = await guest.connection.status()
    near, far = memory_transport_pair()
    results: list[Result] = []

    async def receive() -> None:
        results.append(await Destination(lambda _: HolderDestinationGuest(there), far).run())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        results.append(await Source(guest, near, epoch=status.epoch, runner=status.runner).run())
    return results


@contextlib.asynccontextmanager
async def two_holders(directory: Path):
    here = source()
    here.run(1, HERE)
    with (
        serving(directory / "a", HolderEngine(here, state=HeldState.RUNNING, epoch=1, runner=HERE)),
        serving(directory / "b", HolderEngine(room())),
    ):
        async with await connect_holder(directory / "a") as a, await connect_holder(directory / "b") as b:
            yield a, b


async def runs_on(connection: HolderConnection) -> None:
    status = await connection.status()
    assert status.state == "running"
    before = status.figure("writes")
    with trio.fail_after(30):
        while (await connection.status()).figure("writes") <= before:
            pass
    audit = await connection.audit()
    assert audit["errors"] == audit["errors_while_running"] == 0
    assert audit["pages_checked"] == MEMORY // 4096


BAD: dict[str, tuple[Change, ErrorCode]] = {
    "a wrong length": (of(StateKind.X86_SYSTEM, lambda data: data[:-8]), ErrorCode.STATE_REJECTED),
    "another architecture": (
        lambda sections: (*sections[:-1], replace(sections[-1], architecture=Architecture.RISCV64)),
        ErrorCode.UNKNOWN_STATE,
    ),
    "a register that no host has": (
        of(StateKind.X86_MSRS, lambda data: struct.pack("<II", 1, 0) + struct.pack("<IIQ", 0xDEAD0000, 0, 1)),
        ErrorCode.STATE_REJECTED,
    ),
    "a value that no host takes": (
        of(StateKind.X86_MSRS, with_msr(0xC0000082, 1 << 62)),  # where a system call goes: not canonical
        ErrorCode.STATE_REJECTED,
    ),
    "a vCPU more": (
        lambda sections: (*sections, *(replace(one, vcpu=2) for one in sections if one.vcpu == 1)),
        ErrorCode.GUEST_FAILED,  # the source does not send it; what a destination says: [STA-9]
    ),
    "a vCPU less": (
        lambda sections: tuple(one for one in sections if one.vcpu != 1),
        ErrorCode.STATE_REJECTED,
    ),
    "an address that is not canonical": (
        of(StateKind.X86_REGISTERS, put(128, struct.pack("<Q", 1 << 50))),
        ErrorCode.STATE_REJECTED,
    ),
    "a segment that begins nowhere": (
        of(StateKind.X86_SYSTEM, put(4 * 24, struct.pack("<Q", 1 << 47))),
        ErrorCode.STATE_REJECTED,
    ),
    "features that were not announced": (of(StateKind.X86_CPUID, also_matrices), ErrorCode.STATE_REJECTED),
    "a counter that would run over": (
        of(StateKind.X86_TSC, put(0, struct.pack("<Q", (1 << 64) - 1))),
        ErrorCode.STATE_REJECTED,
    ),
    "control registers that contradict each other": (
        of(StateKind.X86_SYSTEM, put(224 + 24, bytes(8))),  # long mode without CR4.PAE
        ErrorCode.STATE_REJECTED,
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_state_is_refused_and_the_guest_runs_on_where_it_was(name: str, tmp_path: Path) -> None:
    """[XCP-1] [XCP-2] [XCP-3] [XCP-5] [XCP-6] [XCP-9] [XCP-11] [XCP-12] Then the holder takes a good one."""
    change, code = BAD[name]
    async with two_holders(tmp_path) as (here, there):
        guest = await Changing.open(here)
        assert isinstance(guest, Changing)
        guest.change = change
        for result in await attempt(guest, there):
            assert (result.outcome, result.code) == (Outcome.ROLLED_BACK, code), result
        assert (await there.status()).state == "empty"
        await runs_on(here)
        results = await attempt(await HolderSourceGuest.open(here), there)
        assert [result.outcome for result in results] == [Outcome.COMPLETED] * 2
        await runs_on(there)


async def test_a_guest_that_uses_what_is_missing_is_refused_before_memory_moves(tmp_path: Path) -> None:
    """[XCP-4] [XCP-14] With the list of what is missing."""
    async with two_holders(tmp_path) as (here, there):
        guest = await Changing.open(here)
        assert isinstance(guest, Changing)
        guest.features = ("tachyons", "avx1024", "xstate_9_2688_8", "msr_0xdead0000")
        results = await attempt(guest, there)
        assert {result.code for result in results} == {ErrorCode.CPU_FEATURES}
        assert {result.rounds for result in results} == {()}
        lacking = "missing here: avx1024, msr_0xdead0000, tachyons, xstate_9_2688_8"
        assert any(lacking in str(result.error) for result in results), results
        await runs_on(here)


@pytest.mark.parametrize("lacking", ["processors", "addresses", "memory"])
async def test_a_guest_that_is_too_large_is_refused_before_memory_moves(
    lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_holders(tmp_path) as (here, there):
        guest = await HolderSourceGuest.open(here)
        if lacking == "processors":
            monkeypatch.setattr(Kvm, "vcpus_max", 1)
        elif lacking == "addresses":
            monkeypatch.setattr(features, "address_bits", lambda cpuid: 32)
        else:
            monkeypatch.setattr(KvmGuest, "_make", no_memory)
        results = await attempt(guest, there)
        code = ErrorCode.FULL if lacking == "memory" else ErrorCode.REFUSED
        assert {result.code for result in results} == {code}
        assert {result.rounds for result in results} == {()}
        await runs_on(here)


def no_memory(self: KvmGuest, description: GuestDescription) -> NoReturn:
    raise GuestError("so many bytes are not available", ErrorCode.FULL)
