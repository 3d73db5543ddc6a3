"""What owns a file descriptor: given back once, whoever asks first."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self


class Descriptor:
    """Owns a descriptor. A context manager that closes it; subclasses say what else that ends."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """The descriptor; -1 when closed."""
        return self._fd

    def close(self) -> None:
        """Give the descriptor back. Legal twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
