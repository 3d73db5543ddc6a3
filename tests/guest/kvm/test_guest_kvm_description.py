from __future__ import annotations

from dataclasses import replace

import pytest

from sterna.errors import GuestError
from sterna.guest.api import GuestDescription
from sterna.guest.kvm import features
from sterna.guest.kvm.description import check_description, check_host, describe
from sterna.linux.kvm import Kvm
from sterna.registry import Architecture, ErrorCode, RegionKind, Transfer

pytestmark = pytest.mark.needs("kvm")

MEMORY = 8 << 20
GUEST_ID = bytes(range(16))


def test_a_new_guest_can_do_what_the_host_can() -> None:  # [XCP-4]
    found = describe("test", GUEST_ID, MEMORY, 3)
    with Kvm() as kvm:
        assert found.cpu_features == features.of_host(kvm)
    assert (found.architecture, found.vcpus) == (Architecture.X86_64, 3)
    assert GuestDescription.from_record(found.to_record(), GUEST_ID) == found


@pytest.mark.parametrize(
    "name", ["tachyons", "xstate_9_2688_8", "msr_0xdead0000"], ids=["feature", "component", "register"]
)
def test_what_this_host_lacks_is_named(name: str) -> None:  # [XCP-4] [XCP-14]
    wanted = describe("test", GUEST_ID, MEMORY, 2)
    check_host(wanted)
    with pytest.raises(GuestError, match=f"missing here: {name}$") as caught:
        check_host(replace(wanted, cpu_features=(*wanted.cpu_features, name)))
    assert caught.value.code is ErrorCode.CPU_FEATURES


def test_processors_and_addresses_that_this_host_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = describe("test", GUEST_ID, MEMORY, 2)
    with monkeypatch.context() as patch:
        patch.setattr(Kvm, "vcpus_max", 1)
        with pytest.raises(GuestError, match="2 vCPUs, this kernel has at most 1") as caught:
            check_host(wanted)
        assert caught.value.code is ErrorCode.REFUSED
    monkeypatch.setattr(features, "address_bits", lambda cpuid: 32)
    with pytest.raises(GuestError, match="memory up to 0x100800000, addresses have 32 bits here") as caught:
        check_host(wanted)
    assert caught.value.code is ErrorCode.REFUSED


def test_a_kernel_that_does_not_say_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(kvm: Kvm) -> None:
        raise OSError(22, "Invalid argument")

    wanted = describe("test", GUEST_ID, MEMORY, 2)
    monkeypatch.setattr(features, "of_host", fail)
    with pytest.raises(GuestError, match="does not say what it can: Invalid argument") as caught:
        check_host(wanted)
    assert caught.value.code is ErrorCode.REFUSED


def test_more_vcpus_than_there_can_be() -> None:
    with pytest.raises(GuestError, match="at most 16"):
        describe("test", GUEST_ID, MEMORY, 17)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"kind": RegionKind.ROM}, ErrorCode.REGION_KIND),
        ({"transfer": Transfer.SHARED}, ErrorCode.REGION_KIND),
        ({"granule_log2": 13}, ErrorCode.PAGE_SIZE),
        ({"address": 0x2000}, ErrorCode.REFUSED),
        ({"size_bytes": 1 << 30}, ErrorCode.REFUSED),
    ],
)
def test_regions_that_are_not_a_guests(change: dict[str, object], code: ErrorCode) -> None:
    wanted = describe("test", GUEST_ID, MEMORY, 2)
    first, second = wanted.regions
    with pytest.raises(GuestError) as caught:
        check_description(replace(wanted, regions=(first, replace(second, **change))))  # type: ignore[arg-type]
    assert caught.value.code is code


def test_memory_that_is_not_whole_pages() -> None:
    wanted = describe("test", GUEST_ID, MEMORY, 2)
    first, second = wanted.regions
    with pytest.raises(GuestError, match="not whole pages") as caught:
        check_description(replace(wanted, regions=(replace(first, size_bytes=MEMORY - 1), second)))
    assert caught.value.code is ErrorCode.REFUSED
