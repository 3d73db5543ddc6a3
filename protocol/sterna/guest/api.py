"""What a guest is to an endpoint: two small structural interfaces, one a side.

An endpoint calls these from one trio task, one call at a time. Any `GuestError` (and any other exception)
ends the migration as far as the phase allows, and what is called afterwards only undoes it: at the source
`revoke_grant` if a grant was ordered, `stop_tracking`, `throttle(0.0)` and `resume`, at the destination
`discard`. One exception does not end it: a `prepare` that failed may be called again. Times are seconds,
rates bytes a second, sizes bytes.

The source's laws, which `sterna.testing.check_guest` checks:

1. `collect_dirty` returns every page written since the previous collect (or since `start_tracking`) and
   clears what it returns in one step: a write is in this answer or in the next, never in neither.
   Answering more is legal, "all" included; correctness never hangs on precision.
2. `pause` returns when no vCPU runs and no guest I/O is in flight. Memory does not change until `resume`.
3. `save_state` is called while paused, and has no side effects: `resume` afterwards runs on unharmed. Until
   then it gives equal sections, in the same order, however often it is called.
4. `mark_granted` is durable before it returns: from then on nothing makes the guest run here again but
   `revoke_grant` of the same endpoint, a claim that is won, or an operator. If it fails, the endpoint does
   not know whether the mark was set, and revokes it all the same.

The destination's:

5. `load_state` makes the guest ready but runs nothing. It raises `GuestError` for what it does not accept,
   with `UNKNOWN_STATE` for an architecture, kind or version that it does not know, or with `STATE_REJECTED`,
   and is then as before. It may be called again, for a new attempt: the newest state counts.
6. `run` is called at most once, and only after the epoch has been claimed.
7. `discard` frees everything; legal at any moment before `run`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

from sterna.memory.bitmap import PageBitmap
from sterna.registry import Architecture
from sterna.wire.records import NO_VCPU, Disk, Guest, Nic, Region, Runner, StateSection

__all__ = ["NO_VCPU", "DestinationGuest", "GuestDescription", "SourceGuest", "StateSection"]


@dataclass(frozen=True, slots=True)
class GuestDescription:
    """Everything that the destination must know before a byte of memory moves (frame GUEST).

    Attributes:
        id: 16 bytes, the same on every host for the guest's life.
        state_bytes: the most that all state sections together will have.
        expected_state_bytes: about what they will have, which the policy reckons with; None is the most. It
            may change, and stays at the source.
    """

    id: bytes
    name: str
    regions: tuple[Region, ...]
    architecture: int = Architecture.SYNTHETIC
    vcpus: int = 1
    state_bytes: int = 1 << 20
    cpu_features: tuple[str, ...] = ()
    nics: tuple[Nic, ...] = ()
    disks: tuple[Disk, ...] = ()
    expected_state_bytes: int | None = field(default=None, compare=False)

    def to_record(self) -> Guest:
        """The GUEST frame that says this; the id travels in HELLO."""
        return Guest(
            self.name,
            self.architecture,
            self.vcpus,
            self.state_bytes,
            self.regions,
            self.cpu_features,
            self.nics,
            self.disks,
        )

    @classmethod
    def from_record(cls, record: Guest, guest_id: bytes) -> Self:
        """The description in a GUEST frame, with the id from HELLO."""
        return cls(
            guest_id,
            record.name,
            record.regions,
            record.architecture,
            record.vcpus,
            record.state_bytes,
            record.cpu_features,
            record.nics,
            record.disks,
        )


class SourceGuest(Protocol):
    """A guest that runs here and is to be sent away."""

    @property
    def description(self) -> GuestDescription:
        """The guest, constant for a migration."""
        ...

    @property
    def tracker(self) -> str:
        """Name of the dirty tracking in use, for people."""
        ...

    def memory(self, region: int) -> memoryview:
        """The region's live bytes, readable at any moment."""
        ...

    async def start_tracking(self) -> None:
        """Begin to follow writes; everything written from the return on will be reported."""
        ...

    async def collect_dirty(self) -> Mapping[int, PageBitmap]:
        """Pages written since the last collect, by region id, and forget them. May answer all."""
        ...

    async def stop_tracking(self) -> None:
        """End of tracking; legal when none was started."""
        ...

    async def pause(self) -> None:
        """Stop the guest. Returns when nothing of it runs; legal when paused."""
        ...

    async def resume(self) -> None:
        """Run on from where `pause` stopped it; legal when running."""
        ...

    async def throttle(self, share: float) -> None:
        """Take away this share of the guest's running time, 0.0 (full speed) to 0.99."""
        ...

    async def save_state(self) -> Sequence[StateSection]:
        """All CPU and device state of the paused guest, equal each time while it stays paused.

        No two sections agree in architecture, vcpu, kind, version and instance.
        """
        ...

    async def mark_granted(self, epoch: int) -> None:
        """Record durably that `epoch` has been granted to the destination."""
        ...

    async def revoke_grant(self, epoch: int) -> None:
        """Take the mark of `mark_granted` off again, paused as before; legal when there is none.

        Only for the caller that set it and knows that no byte of HANDOVER has left [ONE-19].
        """
        ...

    async def release(self) -> None:
        """The guest has left for good: free its image."""
        ...


class DestinationGuest(Protocol):
    """Room for a guest that is on its way here."""

    async def reserve(self, description: GuestDescription) -> None:
        """Check and allocate everything that the description asks for.

        Raises:
            GuestError: with FULL, REFUSED, ARCHITECTURE, CPU_FEATURES, PAGE_SIZE or REGION_KIND.
        """
        ...

    def memory(self, region: int) -> memoryview:
        """The reserved region's bytes, writable, reading as zeros until written."""
        ...

    async def prepare(self) -> None:
        """Get ready for a switchover: whatever may be slow or fail and needs no memory content.

        May be called again, after it failed as after it succeeded.
        """
        ...

    async def load_state(self, sections: Sequence[StateSection]) -> None:
        """Take the state; the guest could run from here on, but does not.

        Called again with the state of a new attempt if the one before was taken back.

        Raises:
            GuestError: STATE_REJECTED or UNKNOWN_STATE, and nothing has changed.
        """
        ...

    async def run(self, epoch: int, runner: Runner) -> None:
        """First instruction. Returns when the guest runs."""
        ...

    async def discard(self) -> None:
        """Free everything; the guest never ran here."""
        ...
