"""The holder's listening socket: it appears under its path at once, and takes no other's place.

The socket is made under another name and gets its own when connecting works and its mode is right. A path
where another holder answers is not taken: its guest would run on and could be reached no more. A socket of
one that was killed is replaced; anything else there is left alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import stat
from pathlib import Path
from typing import Final

from sterna.errors import GuestError

_PATH_BYTES: Final = 107  # of sockaddr_un, without the zero: who wants to connect has to spell it


class Listener:
    """Listens at `path`; only this user can connect.

    Raises:
        GuestError: it cannot be made there.
    """

    def __init__(self, path: Path, backlog: int) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # To have one to give up when there are no descriptors left: see `accept`.
        self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._identity = self._appear(backlog)
        except OSError as error:
            self._close_descriptors()
            raise GuestError(f"cannot listen on {path}: {error.strerror or error}") from error

    def fileno(self) -> int:
        """The descriptor, readable when somebody connects."""
        return self.socket.fileno()

    def accept(self) -> socket.socket | None:
        """Who has connected; None if nobody has, or if there are no descriptors left."""
        try:
            return self.socket.accept()[0]
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                self._turn_away()
            return None

    def close(self) -> None:
        """Stop listening; the path goes if it is still ours."""
        with contextlib.suppress(OSError):
            if _identity_of(self.path) == self._identity:
                self.path.unlink()
        self._close_descriptors()

    def _turn_away(self) -> None:
        # Who is not accepted stays at the head of the queue, and we would be told of him again and again.
        os.close(self._spare)
        with contextlib.suppress(OSError):
            self.socket.accept()[0].close()
        self._spare = -1
        with contextlib.suppress(OSError):
            self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def _appear(self, backlog: int) -> tuple[int, int]:
        if len(os.fsencode(self.path)) > _PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, f"more than {_PATH_BYTES} bytes")
        temporary = self.path.with_name(f".{secrets.token_hex(4)}")
        self.socket.bind(str(temporary))
        try:
            temporary.chmod(0o600)
            self.socket.listen(backlog)
            self.socket.setblocking(False)
            identity = _identity_of(temporary)
            try:
                os.link(temporary, self.path)
            except FileExistsError:
                _check_abandoned(self.path)
                temporary.rename(self.path)
        finally:
            temporary.unlink(missing_ok=True)
        return identity

    def _close_descriptors(self) -> None:
        self.socket.close()
        spare, self._spare = self._spare, -1
        if spare >= 0:
            os.close(spare)


def _identity_of(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _check_abandoned(path: Path) -> None:
    """Whether what is at `path` may be replaced: a socket at which nobody listens."""
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise FileExistsError(errno.EEXIST, "there is something else")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full queue answers too
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise FileExistsError(errno.EEXIST, "another process listens there")
