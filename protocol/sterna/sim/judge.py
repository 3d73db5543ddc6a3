"""Who watches the guest: bookkeeping of its own, of every instruction that is executed anywhere.

The judge knows nothing of records, claims and messages but for two things that it looks up: what slot or
claim an epoch belongs to. All else it derives from instructions: each continues the image in which the one
before it was executed, or the guest has forked.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from sterna.core.history import History
from sterna.core.records import Claiming, Granted, HandBack, Start
from sterna.sim.holder import Holder, Stage
from sterna.sim.store import SlotStore


class Violation(Exception):  # noqa: N818 - not an error of the program
    """Something has happened that must never happen.

    Attributes:
        name: the invariant's.
        detail: what has happened.
        loss: whether the guest is lost by it, or is said to be and is not, or is and is not said to be.
    """

    def __init__(self, name: str, detail: str, loss: bool = False) -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name
        self.detail = detail
        self.loss = loss

    def __reduce__(self) -> tuple[type[Violation], tuple[str, str, bool]]:
        """It is told by one process to another."""
        return type(self), (self.name, self.detail, self.loss)


class Judge:
    """See above.

    Attributes:
        count: instructions that the guest has executed.
        epoch: under which it executed the last one.
        image: in which it did.
        killed: whether a holder was killed that had all of the guest.
    """

    __slots__ = ("count", "epoch", "image", "killed")

    def __init__(self, holder: Holder) -> None:
        self.count = holder.count
        self.epoch = holder.epoch
        self.image = (holder.host, holder.image)
        self.killed = False

    def copy(self) -> Judge:
        """One that goes its own way."""
        other = object.__new__(Judge)
        other.count, other.epoch, other.image, other.killed = self.count, self.epoch, self.image, self.killed
        return other

    def key(self) -> tuple[object, ...]:
        """Equal for judges that judge alike."""
        return (self.count, self.epoch, self.image, self.killed)

    def starts(
        self,
        holder: Holder,
        everybody: Iterable[Holder],
        store: SlotStore | None,
        claimed: Container[int],
    ) -> None:
        """A holder sets its guest running; `claimed`: epochs that the other host has claimed.

        Raises:
            Violation: it must not.
        """
        for other in everybody:
            if other is not holder and other.stage is Stage.RUNS:
                where = f"{holder.host} under epoch {holder.epoch}, {other.host} under epoch {other.epoch}"
                raise Violation("one-runner", f"it runs at {where}")
        if holder.count != self.count:
            older = f"with {holder.count} instructions, it has executed {self.count}"
            raise Violation("one-runner", f"an older image starts at {holder.host}: {older}")
        if not holder.intact:
            raise Violation("same-memory", f"memory at {holder.host} is not that of the pause")
        image = (holder.host, holder.image)
        if holder.epoch < self.epoch or (holder.epoch == self.epoch and image != self.image):
            raise Violation("one-runner", f"epoch {holder.epoch} at {holder.host} after epoch {self.epoch}")
        self._check_epoch(holder, store, claimed)

    def _check_epoch(self, holder: Holder, store: SlotStore | None, claimed: Container[int]) -> None:
        """The epoch is this host's own [ONE-9], or nobody else's [ONE-48]."""
        if store is not None:
            if store.read(holder.epoch) != holder.runner:
                raise Violation("one-runner", f"slot {holder.epoch} is not {holder.host}'s [ONE-9]")
        elif holder.epoch in claimed:
            raise Violation("one-runner", f"epoch {holder.epoch} was claimed by another host [ONE-48]")

    def executes(self, holder: Holder) -> None:
        """An instruction."""
        holder.count += 1
        self.count, self.epoch, self.image = holder.count, holder.epoch, (holder.host, holder.image)

    def kills(self, holder: Holder) -> None:
        """A holder is killed; that is nobody's fault."""
        self.killed |= holder.is_whole

    def frees(self, holder: Holder, everybody: Iterable[Holder]) -> None:
        """An endpoint lets an image go.

        Raises:
            Violation: it was the last one, or pages of it are missing, and no holder has been killed.
        """
        others = [each for each in everybody if each is not holder]
        if any(each.missing and each.paused_at == holder.count and each.lives for each in others):
            freed = f"pages are freed at {holder.host} that the guest has not got yet"
            raise Violation("one-runner", freed, loss=True)
        if not holder.is_whole or holder.count < self.count or self.killed:
            return
        if not any(each.is_whole and each.count == self.count for each in others):
            raise Violation("one-runner", f"the last image of the guest is freed at {holder.host}", loss=True)

    def has_left(self, records: Mapping[str, History]) -> bool:
        """Whether HANDOVER may have left, or has come, since the guest has run last; else it dies as any."""
        histories = records.values()
        started = (each.epoch for history in histories for each in history.each(Start))
        return any(_is_granted(each, self.epoch) for each in histories) or self.epoch in started

    def is_lost(self, everybody: Iterable[Holder], records: Mapping[str, History]) -> bool:
        """Whether no protocol could save the guest: no image is left, or the owner's was destroyed [ONE-42].

        The owner is who has started it last, or was to start it; nobody else while nobody else may claim.
        """
        holders = list(everybody)
        if not any(each.is_whole and each.count == self.count for each in holders):
            return self.killed
        killed = [each for each in holders if each.stage is Stage.KILLED]
        if any(_started(records[each.host], each.image) > self.epoch for each in killed):
            return True
        granted = any(_was_granted(each, self.epoch) for each in records.values())
        claimed = granted and any(_may_start(each, self.epoch) for each in records.values())
        return not claimed and any((each.host, each.image) == self.image for each in killed)


def _started(history: History, image: bytes) -> int:
    """The newest epoch that was started for this image, 0 if none was."""
    claims = [each for each in history.each(Claiming) if each.image == image]
    started = {each.epoch for each in history.each(Start)}
    return max((each.epoch for each in claims if each.epoch in started), default=0)


def _was_granted(history: History, epoch: int) -> bool:
    """Whether HANDOVER may have left. Without, a CLAIMING is there to be handed back [ONE-18] [ONE-44]."""
    return any(each.epoch > epoch for each in history.each(Granted))


def _is_granted(history: History, epoch: int) -> bool:
    """The same of a grant that is not void."""
    grants = (each.session for each in history.each(Granted) if each.epoch > epoch)
    return any(history.granted(each) or history.decision(each) for each in grants)


def _may_start(history: History, epoch: int) -> bool:
    """Whether a destination has claimed an epoch above this one and not handed it back."""
    claims = (each for each in history.each(Claiming) if each.epoch > epoch)
    return any(not isinstance(history.fate(each.epoch), HandBack) for each in claims)
