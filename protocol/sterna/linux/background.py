"""Work in a thread of its own that can be stopped, and then has let go of what it worked on."""

from __future__ import annotations

import threading
from collections.abc import Iterator


class Background:
    """Goes through a generator in a thread, until that ends or is stopped; it yields where it may be.

    Raises:
        RuntimeError: there can be no more threads.
    """

    def __init__(self, steps: Iterator[None], name: str) -> None:
        self._steps = steps
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._steps = iter(())
            raise

    def stop(self) -> None:
        """Nothing is done after this, and nothing is held. Legal twice."""
        self._stopped = True
        self.join()

    def join(self) -> None:
        """Wait until it has come to its end."""
        self._thread.join()

    def _work(self) -> None:
        steps, self._steps = self._steps, iter(())
        for _ in steps:
            if self._stopped:
                return
