"""What a KVM guest looks like from outside: its description, and which descriptions it can have."""

from __future__ import annotations

from typing import Final

from sterna.errors import GuestError
from sterna.guest.api import GuestDescription
from sterna.guest.kvm import features
from sterna.guest.kvm.layout import MEMORY_MAX, VCPUS_MAX, regions
from sterna.guest.schedule import PAGE_BYTES
from sterna.linux.kvm import Kvm
from sterna.registry import Architecture, ErrorCode

STATE_BYTES: Final = 128 << 10  # of a vCPU; with everything that a processor has today it is about 25 KiB
_EXPECTED_STATE_BYTES: Final = 16 << 10


def check_description(description: GuestDescription) -> None:
    """Whether a KVM guest can be like this.

    Raises:
        GuestError: it cannot; the code says what is wrong.
    """
    if description.architecture != Architecture.X86_64:
        raise GuestError(f"architecture {description.architecture}", ErrorCode.ARCHITECTURE)
    if not 1 <= description.vcpus <= VCPUS_MAX:
        raise GuestError(f"{description.vcpus} vCPUs, at most {VCPUS_MAX} are possible", ErrorCode.REFUSED)
    if description.disks or description.nics:
        raise GuestError("a guest without disks and network interfaces only", ErrorCode.REFUSED)
    if len(description.regions) != 2 or description.regions[0].size_bytes > MEMORY_MAX:
        raise GuestError(f"two regions, the first of at most {MEMORY_MAX} bytes", ErrorCode.REFUSED)
    if description.regions[0].size_bytes % PAGE_BYTES:
        raise GuestError(f"memory that is not whole pages of {PAGE_BYTES} bytes", ErrorCode.REFUSED)
    for found, right in zip(description.regions, regions(description.regions[0].size_bytes), strict=True):
        if (found.kind, found.transfer) != (right.kind, right.transfer):
            raise GuestError("regions that are not copied RAM", ErrorCode.REGION_KIND)
        if found.granule_log2 != right.granule_log2:
            raise GuestError(f"granule 2**{found.granule_log2}", ErrorCode.PAGE_SIZE)
        if found != right:
            raise GuestError(f"region {found.id} is not where it should be", ErrorCode.REFUSED)


def check_host(description: GuestDescription) -> None:
    """Whether this host's processors can be those of the guest.

    Raises:
        CapabilityMissing: there is no KVM.
        GuestError: with CPU_FEATURES and a list of what is missing; or REFUSED.
    """
    with Kvm() as kvm:
        try:
            offered, cpuid, most = features.of_host(kvm), kvm.supported_cpuid(), kvm.vcpus_max
        except OSError as error:
            raise GuestError(f"KVM does not say what it can: {error.strerror}", ErrorCode.REFUSED) from error
    if lacking := features.missing(description.cpu_features, offered):
        raise GuestError(f"CPU features that are missing here: {', '.join(lacking)}", ErrorCode.CPU_FEATURES)
    if description.vcpus > most:
        raise GuestError(f"{description.vcpus} vCPUs, this kernel has at most {most}", ErrorCode.REFUSED)
    bits = features.address_bits(cpuid)
    end = max(region.address + region.size_bytes for region in description.regions)
    if end > 1 << bits:
        raise GuestError(f"memory up to {end:#x}, addresses have {bits} bits here", ErrorCode.REFUSED)


def describe(name: str, guest_id: bytes, memory_bytes: int, vcpus: int) -> GuestDescription:
    """The description of a new KVM guest, with all that the processors of this host can do.

    Raises:
        CapabilityMissing: there is no KVM.
        GuestError: REFUSED, more than there can be.
    """
    with Kvm() as kvm:
        found = features.of_host(kvm)
    description = GuestDescription(
        id=guest_id,
        name=name,
        regions=regions(memory_bytes),
        architecture=Architecture.X86_64,
        vcpus=vcpus,
        state_bytes=STATE_BYTES * vcpus,
        cpu_features=found,
        expected_state_bytes=_EXPECTED_STATE_BYTES * vcpus,
    )
    check_description(description)
    return description
