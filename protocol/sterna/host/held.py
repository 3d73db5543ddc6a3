"""Held guests as the command line's endpoints use them.

A destination does not know when a guest will come, and may listen for days: it attaches to its holder only
when there is something to reserve, and lets go of it when the session is over, so that another controller
(the next migration of the guest, above all) finds it free.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from sterna.errors import GuestError
from sterna.guest.api import EarlyRoom, GuestDescription, PageRange, StateSection
from sterna.guest.holder_client import HolderConnection, HolderStatus
from sterna.guest.holder_guests import HolderDestinationGuest, HolderSourceGuest
from sterna.host.evidence import DESTINATION_IMAGE, SOURCE_IMAGE, Evidence, ImageCopy
from sterna.host.recovery import attach_to
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode
from sterna.wire.records import Runner

Keeps = Callable[[bytes], Awaitable[bool]]

_BEGUN: Final = frozenset({"reserved", "loaded"})
ROOM: Final = frozenset({"empty", "reserved", "loaded"})  # states of a holder in which no guest has run


class DepartingGuest(HolderSourceGuest):
    """A held guest that is sent away, with its image kept if somebody wants it.

    Attributes:
        evidence: where to keep the image, None for not at all.
    """

    evidence: Evidence | None = None

    async def release(self) -> None:
        """The image has been frozen since the pause, and is free after this."""
        if self.evidence is not None:
            await self.evidence.keep_image(SOURCE_IMAGE, self.description, self.memory)
        await super().release()


class ArrivingGuest:
    """A `DestinationGuest` in a holder to which nobody is attached yet.

    Args:
        path: the holder's socket.
        authorise: called before anything is reserved; raises to refuse.
        evidence: where to keep the image, None for not at all.
        image: the id that the holder will know it by; None for a random one.
        keeps: whether an image that has not run is that of a session which is not decided; nothing is
            reserved in its place.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        authorise: Callable[[GuestDescription], None],
        evidence: Evidence | None = None,
        *,
        image: bytes | None = None,
        keeps: Keeps | None = None,
    ) -> None:
        self._path = path
        self._authorise = authorise
        self._evidence = evidence
        self._image = image
        self._keeps = keeps
        self._copy: ImageCopy | None = None
        self._connection: HolderConnection | None = None
        self._guest: HolderDestinationGuest | None = None

    async def reserve(self, description: GuestDescription) -> None:
        """Attach, then reserve.

        Raises:
            SternaError: the peer may not send this guest; there is no holder, or it has no room.
        """
        self._authorise(description)
        if self._evidence is not None:
            # Here and not in `prepare`, after which the guest would have had time to write a lot.
            await self._reserve_copy(description, self._evidence)
        self._connection = connection = await attach_to(self._path, lambda status: status.epoch)
        state = connection.attached.state
        if state in _BEGUN and self._keeps is not None and await self._keeps(connection.attached.image):
            text = "the guest of a session that is not decided is kept there"
            raise GuestError(f"{os.fspath(self._path)}: {text}", ErrorCode.BUSY)
        if state not in ROOM:
            text = f"the holder at {os.fspath(self._path)} has a guest already: it is {state}"
            raise GuestError(text, ErrorCode.REFUSED)
        guest = HolderDestinationGuest(connection, self._image)
        await guest.reserve(description)
        self._guest = guest

    async def take_over(self) -> GuestDescription:
        """Attach to the guest that runs in the holder, and may lack pages: its last endpoint has died.

        Raises:
            GuestError: there is no holder, it has no such guest, or the last endpoint lives.
        """
        self._connection = connection = await attach_to(self._path, lambda status: status.epoch)
        state, image = connection.attached.state, connection.attached.image
        if state == "loaded" and image == self._image:
            text = f"the guest in the holder at {os.fspath(self._path)} is started first"
            raise GuestError(text, ErrorCode.BUSY)
        if state in ROOM or self._image not in {None, image}:
            text = f"the holder at {os.fspath(self._path)} does not run this session's guest: it is {state}"
            raise GuestError(text, ErrorCode.REFUSED)
        self._guest = await HolderDestinationGuest.take_over(connection)
        assert self._guest.description is not None
        return self._guest.description

    async def _reserve_copy(self, description: GuestDescription, evidence: Evidence) -> None:
        copy = ImageCopy(description)
        try:
            await copy.reserve()
        except MemoryError:
            evidence.failures.append(f"{evidence.path(DESTINATION_IMAGE)}: no memory for a copy")
        else:
            self._copy = copy

    def memory(self, region: int) -> memoryview:
        """The guest's memory to be."""
        return self._here.memory(region)

    async def prepare(self) -> None:
        """Every page is there when this returns."""
        await self._here.prepare()

    async def load_state(self, sections: Sequence[StateSection]) -> None:
        """Then copy the image: what is in memory now is what the first instruction will find."""
        await self._here.load_state(sections)
        if self._copy is not None:
            await self._copy.take(self.memory)

    async def take_storage(self) -> None:
        """Whether the holder still has it."""
        await self._here.take_storage()

    async def run(self, epoch: int, runner: Runner) -> None:
        """First instruction."""
        await self._here.run(epoch, runner)

    @property
    def can_post_copy(self) -> bool:
        """What the holder says; false before it was asked."""
        return self._guest is not None and self._guest.can_post_copy

    async def expect(self, stale: Mapping[int, PageBitmap]) -> None:
        """There is no moment at which all of the image is here before the guest writes: no copy of it."""
        if self._evidence is not None and self._copy is not None and any(map(PageBitmap.any, stale.values())):
            path = self._evidence.path(DESTINATION_IMAGE)
            self._evidence.failures.append(f"{path}: the guest ran before all of its pages were here")
            self._copy = None
        await self._here.expect(stale)

    async def faults(self) -> Sequence[PageRange]:
        """What the guest waits for."""
        return await self._here.faults()

    async def installed(self, region: int, first: int, count: int) -> None:
        """Let the guest go on."""
        await self._here.installed(region, first, count)

    def waited_for(self) -> Sequence[PageRange]:
        """What the guest waits for by now."""
        return () if self._guest is None else self._guest.waited_for()

    def let_go(self, region: int, first: int, count: int) -> bool:
        """Let the guest go on, at once if possible."""
        return self._here.let_go(region, first, count)

    def early_pages(self) -> EarlyRoom | None:
        """The holder's room for pages that come early."""
        return None if self._guest is None else self._guest.early_pages()

    async def missing(self) -> Mapping[int, PageBitmap]:
        """What is not here yet."""
        return await self._here.missing()

    async def prepare_notes(self, size_bytes: int) -> memoryview:
        """Where the holder keeps them."""
        return await self._here.prepare_notes(size_bytes)

    async def notes(self, size_bytes: int | None = None) -> memoryview:
        """Kept by the holder."""
        return await self._here.notes(size_bytes)

    async def discard(self) -> None:
        """Free everything; legal when nothing was reserved."""
        if self._guest is not None:
            await self._guest.discard()

    async def status(self) -> HolderStatus | None:
        """How the guest does; None if the holder does not answer."""
        if self._connection is None:
            return None
        try:
            return await self._connection.status()
        except GuestError:
            return None

    async def leave(self) -> None:
        """Give up control, and write the evidence. The guest goes on as it is."""
        if self._evidence is not None and self._copy is not None:
            await self._evidence.keep_copy(DESTINATION_IMAGE, self._copy)
        connection, self._connection = self._connection, None
        guest, self._guest = self._guest, None
        if guest is not None:
            guest.close()
        if connection is None:
            return
        try:
            await connection.detach()
        except GuestError:
            await connection.aclose()

    @property
    def _here(self) -> HolderDestinationGuest:
        if self._guest is None:
            raise GuestError("the guest's holder is not attached")
        return self._guest
