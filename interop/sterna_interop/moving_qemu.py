"""QEMU's way of moving a memory, in the best that it can do on the machine: see `sterna_interop.qemu`."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from sterna_interop.memories import Memories, path_of
from sterna_interop.moving import Moved, watching
from sterna_interop.qemu import Machine, Settings, free_port


class QemuMoves:
    """A way: two machines over the memory files, started anew for each turn."""

    def __init__(self, memories: Memories, directory: Path, settings: Settings) -> None:
        self._memories = memories
        self._directory = directory
        self._settings = settings

    def move(self, *, watched: bool = False) -> Moved:
        """See `Way.move`.

        Raises:
            GuestError: QEMU fails, or not all has arrived.
        """
        memories = self._memories
        memories.clear()
        with ExitStack() as stack:
            source, destination = (
                stack.enter_context(
                    Machine(
                        self._directory, name, path_of(file), memories.size, self._settings, source=at_source
                    )
                )
                for name, file, at_source in (
                    ("source", memories.backed_source, True),
                    ("destination", memories.destination, False),
                )
            )
            uri = f"tcp:127.0.0.1:{free_port()}"
            destination.ask("migrate-incoming", uri=uri)
            peaks = stack.enter_context(watching((source.pid, destination.pid))) if watched else None
            cpu_s = source.cpu_s(), destination.cpu_s()
            begin = time.perf_counter()
            source.ask("migrate", uri=uri)
            destination.until("MIGRATION", status="completed")
            seconds = time.perf_counter() - begin
            source.until("MIGRATION", status="completed")
            spent = source.cpu_s() - cpu_s[0], destination.cpu_s() - cpu_s[1]
            peak_bytes = (0, 0) if peaks is None else peaks()
        memories.check()
        return Moved(seconds, spent, peak_bytes)
