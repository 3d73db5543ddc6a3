"""What a holder holds: the interface between the protocol engine and a kind of guest.

The engine (`sterna.guest.holder_server`) knows the protocol: who may ask for what and when. A backend knows
its guest: how to stop it, what its state is. The process guest is one backend, a micro-VM is another.

A backend's laws. Every method is called from the engine's thread, one at a time, and only in the states
that it names; it is quick (a second at most, `reserve`, `prepare` and `audit` excepted) and raises
`GuestError`, or nothing. After an exception the guest is as it was before the call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import StrEnum

from sterna.errors import GuestError
from sterna.guest.api import GuestDescription, StateSection
from sterna.guest.holder_frames import JsonObject
from sterna.guest.late_pages import LatePages
from sterna.linux.memfd import MemoryFile
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode
from sterna.wire.records import Runner


class HeldState(StrEnum):
    """Where a held guest is in its life: spec/holder.md, section 4."""

    EMPTY = "empty"
    RESERVED = "reserved"
    LOADED = "loaded"
    RUNNING = "running"
    PAUSED = "paused"
    GRANTED = "granted"
    RELEASED = "released"


class HeldGuest(ABC):
    """A guest, or room for one, inside of a holder."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """What kind of guest this is, for people."""

    @property
    @abstractmethod
    def tracker(self) -> str:
        """Name of the dirty tracking in use, for people; legal in every state."""

    @property
    @abstractmethod
    def description(self) -> GuestDescription:
        """The guest. In every state but EMPTY and RELEASED."""

    @abstractmethod
    def memory(self) -> Mapping[int, MemoryFile]:
        """The memory of every copied region, by region id. In every state but EMPTY and RELEASED."""

    @abstractmethod
    def start_tracking(self) -> None:
        """Follow writes from the return on. RUNNING or PAUSED."""

    @abstractmethod
    def collect(self) -> Mapping[int, PageBitmap]:
        """Pages written since the last collect or the start, by region id. RUNNING or PAUSED, tracking."""

    @abstractmethod
    def stop_tracking(self) -> None:
        """End of tracking; legal when there is none. Every state."""

    @abstractmethod
    def pause(self) -> None:
        """Stop the guest; returns when nothing of it runs. RUNNING."""

    @abstractmethod
    def resume(self) -> None:
        """Run on. PAUSED."""

    @abstractmethod
    def throttle(self, share: float) -> None:
        """Take away this share of the running time. RUNNING, PAUSED or GRANTED."""

    @abstractmethod
    def save_state(self) -> Sequence[StateSection]:
        """The state of the stopped guest, without side effects. PAUSED."""

    @abstractmethod
    def mark_granted(self, epoch: int) -> None:
        """The guest has been granted to another host under `epoch`. PAUSED."""

    @abstractmethod
    def revoke_grant(self, epoch: int) -> None:
        """The grant never left this host; the guest stays stopped. GRANTED."""

    @abstractmethod
    def reserve(self, description: GuestDescription) -> None:
        """Make room for this guest. EMPTY."""

    @abstractmethod
    def prepare(self) -> None:
        """Do what is slow before the guest's switchover. RESERVED or LOADED."""

    @abstractmethod
    def load_state(self, sections: Sequence[StateSection]) -> None:
        """Take the state; nothing runs yet. RESERVED or LOADED."""

    @abstractmethod
    def run(self, epoch: int, runner: Runner) -> None:
        """First instruction under this epoch. LOADED, or stopped (GRANTED) and won back.

        Accesses to stale pages are held by then.
        """

    @property
    def can_post_copy(self) -> bool:
        """Whether the guest may run before all of its pages are there. Every state."""
        return False

    def expect(self, stale: Mapping[int, PageBitmap]) -> None:
        """Hold accesses to these pages when it runs, the newest set counts. RESERVED or LOADED."""
        raise GuestError("this guest runs only when all of its pages are there", ErrorCode.UNSUPPORTED)

    @property
    def late_pages(self) -> LatePages | None:
        """What holds accesses to stale pages; None if nothing does, or not any more. Every state."""
        return None

    def complete(self) -> None:
        """No stale page is missing: hold nothing any more. Every state."""
        if self.late_pages is not None:
            self.late_pages.end()

    @abstractmethod
    def discard(self) -> None:
        """Free everything of a guest that never ran here. RESERVED or LOADED."""

    @abstractmethod
    def release(self) -> None:
        """Free the image of a guest that has left. GRANTED."""

    @abstractmethod
    def status(self) -> JsonObject:
        """Figures for people and judges. Every state."""

    @abstractmethod
    def audit(self) -> JsonObject:
        """Check the guest's memory from inside. In every state but EMPTY, RESERVED and RELEASED."""

    @abstractmethod
    def close(self) -> None:
        """End the guest, wherever it is. The holder ends."""
