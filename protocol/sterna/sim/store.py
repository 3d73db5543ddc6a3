"""The lease store: slots that are written once, and claims that are still on their way to it."""

from __future__ import annotations

from sterna.core.verdict import Slot, Store
from sterna.wire.records import Runner


class SlotStore:
    """Slot 1, 2, 3, ... of one guest [ONE-1] [ONE-2].

    Attributes:
        slots: the runner in each slot that is filled, slot 1 first.
        astray: claims whose sender has given up waiting, or has died: they land at any time, or never.
        answers: whether it can be reached.
    """

    __slots__ = ("answers", "astray", "slots")

    def __init__(self, slots: tuple[Runner, ...] = ()) -> None:
        self.slots = slots
        self.astray: tuple[tuple[int, Runner], ...] = ()
        self.answers = True

    def copy(self) -> SlotStore:
        """One that goes its own way."""
        other = SlotStore(self.slots)
        other.astray, other.answers = self.astray, self.answers
        return other

    def key(self) -> tuple[object, ...]:
        """Equal for stores that behave alike."""
        return (self.slots, frozenset(self.astray), self.answers)

    def read(self, epoch: int) -> Runner | None:
        """The runner in a slot; None if it is empty."""
        return self.slots[epoch - 1] if 1 <= epoch <= len(self.slots) else None

    def claim(self, epoch: int, runner: Runner) -> Runner | None:
        """Fill a slot if it is the next one; what it holds then, None if it is empty still."""
        if epoch == len(self.slots) + 1:
            self.slots = (*self.slots, runner)
        return self.read(epoch)

    def strays(self, epoch: int, runner: Runner) -> None:
        """A claim goes astray. One that is on its way twice is the same as one."""
        if (epoch, runner) not in self.astray:
            self.astray = (*self.astray, (epoch, runner))

    def lands(self, number: int) -> None:
        """A claim that went astray reaches the store after all. Nobody waits for the answer."""
        epoch, runner = self.astray[number]
        self.astray = self.astray[:number] + self.astray[number + 1 :]
        self.claim(epoch, runner)

    def newest(self) -> Slot | None:
        """The last slot that is filled; None if none is."""
        return Slot(len(self.slots), self.slots[-1]) if self.slots else None

    def facts(self, epoch: int) -> Store:
        """What a reader learns about a session of epoch n, with n + 1 given."""
        return Store(answers=True, next=self.read(epoch), after=self.read(epoch + 1))
