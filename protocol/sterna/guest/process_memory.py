"""A process guest's memory: the file, the holder's mapping of it, and who follows writes to it."""

from __future__ import annotations

import contextlib
import threading
from typing import Final

from sterna.guest.tracker import choose_tracker
from sterna.linux.memfd import MemoryFile

_STEP_BYTES: Final = 16 << 20


class GuestMemory:
    """Memory of a fixed size, zero at first.

    Attributes:
        file: what is passed to endpoints.
        map: where the guest itself reads and writes.
        tracker: follows writes through `map`.
        tracker_reason: why it is not a better one; empty if it is the best.
    """

    def __init__(self, size_bytes: int, tracker: str) -> None:
        with contextlib.ExitStack() as stack:
            self.file = MemoryFile("sterna-guest", size_bytes)
            stack.callback(self.file.close)
            self.map = self.file.map()
            stack.callback(self.map.close)
            self.map.advise_huge_pages()
            self.tracker, self.tracker_reason = choose_tracker(self.map, tracker)
            stack.pop_all()
        self._cancelled = False
        self._failure: MemoryError | None = None
        self._populating: threading.Thread | None = None

    def start_populating(self) -> None:
        """Have all pages allocated and mapped in a thread: first touch costs more than the copy."""
        self._populating = threading.Thread(target=self._populate, name="populate", daemon=True)
        self._populating.start()

    def wait_populated(self) -> None:
        """Return when every page is there.

        Raises:
            MemoryError: there is not enough memory.
        """
        if self._populating is not None:
            self._populating.join()
        failure, self._failure = self._failure, None
        if failure is not None:
            self.start_populating()  # whoever asks again may find that others have given memory back
            raise failure

    def free(self) -> None:
        """Give all pages back, also those that another process still maps."""
        self._cancelled = True
        if self._populating is not None:
            self._populating.join()
        self.tracker.stop()
        self.map.free_pages()
        self.map.close()
        self.file.close()

    def _populate(self) -> None:
        try:
            for offset in range(0, self.map.size_bytes, _STEP_BYTES):
                if self._cancelled:
                    return
                self.map.populate(offset, min(_STEP_BYTES, self.map.size_bytes - offset))
        except MemoryError as error:
            self._failure = error
