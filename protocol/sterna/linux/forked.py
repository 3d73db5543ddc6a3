"""A process forked for one job: it keeps what that needs of its parent, and never outlives it.

Forked, not started anew, because the job goes on with what cannot be passed on: a TLS connection that has
made its handshake, and mappings of memory. Of all threads the child has the one that forked. So a job may use
nothing that another one may have locked: no event loop, no logging, no threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import warnings
from collections.abc import Callable, Iterable
from typing import Final

import trio

from sterna.linux.pidfd import Pidfd

_PR_SET_PDEATHSIG: Final = 1
_STANDARD: Final = (0, 1, 2)
_DESCRIPTORS_MAX: Final = os.sysconf("SC_OPEN_MAX")
_WORDS_BYTES: Final = 2048

_libc: Final = ctypes.CDLL(None)  # loaded here: a child may not wait for the loader's lock


class Forked:
    """The parent's end of it.

    Args:
        job: what the child does; it ends when this returns or raises.
        keep: descriptors that the job needs; the child closes all others but the standard ones.

    Raises:
        OSError: there is no room for a process more; nothing is left of it.
    """

    def __init__(self, job: Callable[[], None], keep: Iterable[int]) -> None:
        parent = os.getpid()
        self._hears, says = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        kept = sorted({*_STANDARD, says, *keep})
        # What the parent does at a signal the child must not do: it would end tasks that are not its own.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads: see above
                pid = os.fork()
            if not pid:
                _be_child(job, kept, says, parent, mask)
            self._process = _pidfd_of(pid)
        except OSError:
            os.close(self._hears)
            raise
        finally:
            os.close(says)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._words: str | None = None

    @property
    def pid(self) -> int:
        """Its process number, which may be another's when it has ended."""
        return self._process.pid

    async def wait(self) -> str:
        """Wait for its end: in words what its job has raised, empty if it was killed, or all was well."""
        if self._words is None:
            with contextlib.suppress(trio.ClosedResourceError):  # `kill` has seen its end meanwhile
                await trio.lowlevel.wait_readable(self._process)
        else:
            await trio.lowlevel.checkpoint()
        return self._reap()

    def kill(self) -> None:
        """It ends, whatever it does, and nothing of it goes on when this returns. Legal at any time."""
        self.kill_soon()
        self._reap()

    def kill_soon(self) -> None:
        """`kill` without a wait for its end."""
        if self._words is None:
            self._process.kill()

    def _reap(self) -> str:
        if self._words is None:
            try:
                os.waitpid(self._process.pid, 0)
            except ChildProcessError:  # somebody else collects the children of this process
                self._process.ended(timeout_s=1.0)
            trio.lowlevel.notify_closing(self._process)
            self._process.close()
            with contextlib.suppress(BlockingIOError):
                self._words = os.read(self._hears, _WORDS_BYTES).decode(errors="replace")
            self._words = self._words or ""
            os.close(self._hears)
        return self._words


def _pidfd_of(pid: int) -> Pidfd:
    """A child's, for without one its end cannot be waited for: then the child is ended at once.

    Raises:
        OSError: there is no descriptor more; the child is gone.
    """
    try:
        return Pidfd.open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)  # nobody but this process collects it, so the number is its own still
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        raise


def _be_child(
    job: Callable[[], None], kept: list[int], says: int, parent: int, mask: set[int | signal.Signals]
) -> None:
    """Does not return."""
    status = 1
    try:
        _leave(kept, parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        job()
        status = 0
    except BaseException as error:  # noqa: BLE001 - nothing of the parent's may go on here
        os.write(says, f"{type(error).__name__}: {error}".encode()[:_WORDS_BYTES])
    finally:
        os._exit(status)


def _leave(kept: list[int], parent: int) -> None:
    """Be nothing of the parent but its child."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it has died before it could be asked for
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.disable()  # what it would free is the parent's
    first = 0
    for descriptor in (*kept, _DESCRIPTORS_MAX):
        if first < descriptor:  # an empty range that begins with 0 would be all of them
            os.closerange(first, descriptor)
        first = descriptor + 1
