"""What a guest is to an endpoint: two small structural interfaces, one a side.

An endpoint calls these from one trio task, one call at a time. Any `GuestError` (and any other exception)
ends the migration as far as the phase allows, and what is called afterwards only undoes it: at the source
`revoke_grant` if a grant was ordered, `stop_tracking`, `throttle(0.0)` and `resume`, at the destination
`discard`. There are two exceptions. A `prepare` that failed does not end it, and may be called again; and
`faults` waits in a task of its own, beside which the others are called. Times are seconds, rates bytes a
second, sizes bytes.

The source's laws, which `sterna.testing.check_guest` checks:

1. `collect_dirty` returns every page written since the previous collect (or since `start_tracking`) and
   clears what it returns in one step: a write is in this answer or in the next, never in neither.
   Answering more is legal, "all" included; correctness never hangs on precision. A guest that says which
   pages were never written (`KnowsUnwritten`) says so of none that holds anything but zeros.
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

Those of a guest that may run before all of its pages are there (`can_post_copy`):

8. From the return of `expect` on, every access of the guest to a stale page is held until that page was
   installed [PCY-5]. What is not stale waits for nobody but the endpoint's `faults`, if at all. Nothing else
   waits with it: the guest can be paused, and asked how it does, while an access is held.
9. Whatever the guest waits for comes out of `faults`. The endpoint verifies the pages, writes them through
   `memory`, which stays writable for stale pages until they are installed, and calls `installed`; that notes
   them as installed as durably as the guest itself is, and only then lets the guest go on [PCY-12]. No page
   is ever emptied on the way [PCY-6].
   A process forked from the endpoint may let the guest have single pages before (`PagesEarly`) [HOL-47].
10. While a stale page is not installed, the guest is not to be sent away: as a source it refuses
    `start_tracking`, `save_state` and `mark_granted` [ONE-41]. With the last one installed it is like any.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, Self, runtime_checkable

from sterna.errors import GuestError
from sterna.memory.bitmap import PageBitmap
from sterna.memory.merging import Claims
from sterna.registry import Architecture, ErrorCode
from sterna.wire.records import NO_VCPU, Disk, Guest, Nic, PageRange, Region, Runner, StateSection

__all__ = [
    "NO_VCPU",
    "DestinationGuest",
    "GuestDescription",
    "KnowsUnwritten",
    "PageRange",
    "SourceGuest",
    "StateSection",
    "WithoutPostCopy",
]

FAULT: Final = struct.Struct("<QQ")  # region and page that the guest waits for, as a pager tells its endpoint


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
        """Stop the guest. Returns when nothing of it runs; legal when paused.

        If it has storage locks, this drops them, or `mark_granted` does at the latest [SFX-6].
        """
        ...

    async def resume(self) -> None:
        """Run on from where `pause` stopped it; legal when running.

        Raises:
            GuestError: it cannot, or its storage locks are not to be had again; it stays paused [SFX-7].
        """
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


@runtime_checkable
class KnowsUnwritten(Protocol):
    """A `SourceGuest` that knows of memory that was never written. Whoever does not leave this out."""

    async def unwritten(self) -> Mapping[int, PageBitmap]:
        """Pages that read as zeros, by region id, as of any moment since `start_tracking` has returned.

        They go as zeros, and nobody reads them. Called once, directly after `start_tracking`, which makes
        it safe: what is written after the guest has looked is in an answer of `collect_dirty`. Regions
        without such pages may be left out; the fewer are told, the more are read, that is all.
        """
        ...


@runtime_checkable
class KeepsNotes(Protocol):
    """A `SourceGuest` that outlives its endpoint, and keeps notes for the next one as long as the image."""

    async def notes(self, size_bytes: int | None = None) -> memoryview:
        """As `DestinationGuest.notes`. Empty for a size that it was asked for: it cannot keep any."""
        ...


@runtime_checkable
class PreparesNotes(Protocol):
    """A `DestinationGuest` for which room for notes takes time, which its blackout need not wait for."""

    async def prepare_notes(self, size_bytes: int) -> memoryview:
        """The next `notes` will probably be asked for with this size, and then gives what this gives.

        What is written there before counts for nothing until then, and ends if that asks for no notes. Notes
        begin with 8 bytes that are not all zero: where these are zero, there are none.

        Empty if it cannot keep any.

        Raises:
            GuestError: FULL if they are too large.
        """
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

    async def take_storage(self) -> None:
        """Take its storage locks, and make certain that it is still there to be run [ONE-26].

        Called when the epoch is won, and the last thing before it is on record that the guest starts: what
        fails here makes it be handed back, what fails later may lose it.

        Raises:
            GuestError: they are not to be had, or the guest is gone.
        """
        ...

    async def run(self, epoch: int, runner: Runner) -> None:
        """First instruction. Returns when the guest runs."""
        ...

    async def discard(self) -> None:
        """Free everything; the guest never ran here."""
        ...

    @property
    def can_post_copy(self) -> bool:
        """Whether the guest may run before all of its pages are there. Known once it is reserved.

        Where it is false, `expect`, `faults` and `installed` raise `GuestError` with UNSUPPORTED; derive from
        `WithoutPostCopy` then.
        """
        ...

    async def expect(self, stale: Mapping[int, PageBitmap]) -> None:
        """Hold every access of the guest to these pages, by region id, until they are installed.

        After `prepare` and before `run`, whether the state was loaded or not; may be called again, the newest
        set counts, and an empty one takes it back. Regions that are not named have no stale page.

        It is called before the pause with pages that are likely to be stale, and in the blackout with those
        that are: then it is quick, the more so if they are among the former. It changes no content.

        Raises:
            GuestError: with BAD_VALUE for a region that is not copied or a bitmap of another size; the guest
                cannot do it, and is as before.
        """
        ...

    async def faults(self) -> Sequence[PageRange]:
        """Wait until the guest waits for pages that are not installed, and return them.

        In the order in which the guest came to wait, without repetitions, neighbours in one range; never
        empty. A page is told once, but may be told again, in particular to the next endpoint of a guest that
        outlives one. While nothing is waited for, and for ever after the last page was installed, it waits.
        It may be cancelled at any moment, and nothing is lost by that. One task at a time.
        """
        ...

    async def installed(self, region: int, first: int, count: int) -> None:
        """These pages were verified and written: note that durably, then let the guest go on.

        Pages that are installed already, or never were stale, do no harm. When it returns from the last stale
        page, nothing is held any more, and the guest can be migrated again.
        """
        ...

    async def missing(self) -> Mapping[int, PageBitmap]:
        """The stale pages that are not installed, by region id; regions without one may be left out."""
        ...

    async def notes(self, size_bytes: int | None = None) -> memoryview:
        """Writable memory of the endpoint's own that lives as long as the guest's does.

        An endpoint keeps there what the next one cannot find out any more, such as the entries of all pages
        [PCY-16].

        Args:
            size_bytes: for new notes of zeros, in the place of older ones; 0 to have none any more, and None
                for those that there are, which are empty (of 0 bytes) if there are none.

        Raises:
            GuestError: FULL if they are too large: more than 16 bytes a page and a MiB.
        """
        ...


@runtime_checkable
class OutlivingGuest(DestinationGuest, Protocol):
    """A guest that outlives the endpoint that took it in, and that the next one can go on with."""

    async def take_over(self) -> GuestDescription:
        """Instead of `reserve`: go on with the guest that runs here, and may lack pages.

        Raises:
            GuestError: there is none, or it is another one.
        """
        ...


@runtime_checkable
class PromptGuest(Protocol):
    """What a `DestinationGuest` that can post-copy may offer besides: the same without a wait.

    An endpoint looks here whenever pages have come, rather than when the tasks that wait in `faults` and
    `installed` get their turn: its guest's vCPUs wait as much less.
    """

    def waited_for(self) -> Sequence[PageRange]:
        """What `faults` would return at once; empty if it would wait.

        Raises:
            GuestError: as `faults`.
        """
        ...

    def let_go(self, region: int, first: int, count: int) -> bool:
        """Do as much of `installed` as needs no wait; false if that has to be called all the same.

        Raises:
            GuestError: as `installed`.
        """
        ...


class Pager(Protocol):
    """What a process forked from the endpoint does with a guest that waits for pages."""

    def fileno(self) -> int:
        """A descriptor that is readable when the guest waits."""
        ...

    def news(self) -> list[tuple[int, int]]:
        """Region and page of accesses that wait for what was not asked for; none if there are none.

        Raises:
            GuestError: the guest is gone.
        """
        ...

    def wanted(self, region: int, page: int) -> list[tuple[int, int]]:
        """What to ask for when the guest waits for a page.

        Runs, as first page and count, of one chunk; that page comes first. Each page is in one answer only.
        Empty: the page was asked for, or is the endpoint's to bring, who has to be told that the guest waits.
        """
        ...

    def install(self, region: int, page: int, data: memoryview, hash_: int) -> bool:
        """Write a page that was verified, and let the guest have it.

        False: it has it already, or the page is the endpoint's to bring, who has to be told if somebody waits
        for it (`is_missing`).

        Args:
            region: id of the page's region.
            page: its number there.
            data: its bytes.
            hash_: their XXH3-64; 0 if it is not known, and the page's group is not to be compared with it.

        Raises:
            GuestError: the guest is gone.
        """
        ...

    def is_missing(self, region: int, page: int) -> bool:
        """Whether an access to the page would wait."""
        ...


class EarlyRoom(Protocol):
    """A guest's pages that may come early, for as long as some are missing.

    Attributes:
        on_stuck: has to end the pager, which does not let the endpoint decide. Called by `claims`.
    """

    on_stuck: Callable[[], None]

    @property
    def claims(self) -> Claims:
        """For `sterna.memory.merging.Merging`, without which nothing may be received any more."""
        ...

    def descriptors(self) -> list[int]:
        """What a forked process has to keep open for `pager`."""
        ...

    def pager(self) -> Pager:
        """In the forked process: what it does from now on until it ends. There is one at a time.

        Raises:
            GuestError: BUSY, there is another one.
            OSError: it cannot be had.
        """
        ...

    def hear(self, descriptor: int) -> None:
        """`faults` tells what comes from this pipe as records of `FAULT`, and nothing of its own.

        The descriptor, which does not block, is the guest's from now on. When nobody can write there any
        more, or nonsense comes, it is as after `hear_kernel`; another pipe takes the place of one before
        likewise. Who writes records does so whole ones at once.
        """
        ...

    def any_unread(self) -> bool:
        """Whether the guest waits for what the pager has not read of yet."""
        ...

    def hear_kernel(self) -> None:
        """The pager has ended: `faults` tells anew of all that the guest waits for. Legal at any time."""
        ...


@runtime_checkable
class PagesEarly(Protocol):
    """A `DestinationGuest` that can have pages before they are installed."""

    def early_pages(self) -> EarlyRoom | None:
        """Where these are noted; None while no page is missing, or if it cannot.

        There is one from an `expect` on. It is no more when the last page was installed; what is called then
        does no harm.
        """
        ...


class WithoutPostCopy:
    """The part of `DestinationGuest` that a guest needs which runs only with all of its pages there."""

    @property
    def can_post_copy(self) -> bool:
        """It cannot."""
        return False

    async def expect(self, stale: Mapping[int, PageBitmap]) -> None:
        """Refused."""
        raise _unsupported()

    async def faults(self) -> Sequence[PageRange]:
        """Refused."""
        raise _unsupported()

    async def installed(self, region: int, first: int, count: int) -> None:
        """Refused."""
        raise _unsupported()

    async def missing(self) -> Mapping[int, PageBitmap]:
        """Nothing ever is."""
        return {}

    async def notes(self, size_bytes: int | None = None) -> memoryview:
        """Refused."""
        raise _unsupported()


def _unsupported() -> GuestError:
    return GuestError("this guest runs only when all of its pages are there", ErrorCode.UNSUPPORTED)
