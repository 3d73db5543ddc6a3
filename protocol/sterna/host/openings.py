"""What was agreed on at a session's opening, for the endpoint that takes it up again after this one has died.

A file beside the guest's records, spec/records.md 2.1. No rule of ownership rests on it: it lets a
resumption be held to the opening, and its guest be made room for. So it may be missing, or damaged, and then
the session cannot be taken up by another process; it is replaced without ceremony, and dropped at the end.
"""

from __future__ import annotations

import hmac
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from sterna.core.reopening import Opening
from sterna.errors import LocalProtocolError, RecordError, SternaError
from sterna.host.durable import Files, OsFiles
from sterna.host.records_log import MODE, folder
from sterna.host.records_shelf import make_directory
from sterna.host.sealed import seal, unseal
from sterna.limits import Limits
from sterna.registry import FrameType
from sterna.wire import decode_body, encode_body
from sterna.wire.records import Guest, Hello, Runner, Welcome

SUFFIX: Final = ".opening"
VERSION: Final = 1

# Three bodies that keep to the limit of a control frame that every endpoint has, in hexadecimal digits.
OPENING_BYTES: Final = 2 * 3 * Limits().control_bytes + 4096


def encode_opening(opening: Opening, peer: str) -> bytes:
    """The file's one line.

    Raises:
        LocalProtocolError: no frame holds what is in it.
    """
    return seal(
        {
            "sterna_opening": VERSION,
            "peer": peer,
            "runner": {"host": opening.runner.host, "id": opening.runner.id.hex()},
            "hello": encode_body(opening.hello).hex(),
            "welcome": encode_body(opening.welcome).hex(),
            "guest": encode_body(opening.guest).hex(),
        }
    )


def decode_opening(line: bytes) -> tuple[Opening, str] | None:
    """The opening, and the peer's identity; None if the line is not what `encode_opening` makes."""
    found = unseal(line) or {}
    try:
        hello, welcome, guest = (
            decode_body(kind, bytes.fromhex(str(found[kind.name.lower()])))
            for kind in (FrameType.HELLO, FrameType.WELCOME, FrameType.GUEST)
        )
        said = found["runner"]
        runner = Runner(str(said["host"]), bytes.fromhex(str(said["id"]))) if isinstance(said, dict) else None
    except (SternaError, ValueError, LookupError):
        return None
    assert isinstance(hello, Hello)
    assert isinstance(welcome, Welcome)
    assert isinstance(guest, Guest)
    if runner is None:
        return None
    opening, peer = Opening(hello, welcome, guest, runner), str(found.get("peer"))
    return (opening, peer) if encode_opening(opening, peer) == line else None


class Openings:
    """The openings of all guests of a host: of each guest the newest one.

    Args:
        directory: of the records of all guests; None keeps nothing.
        files: for tests.
    """

    def __init__(self, directory: str | os.PathLike[str] | None, files: Files | None = None) -> None:
        self._directory = None if directory is None else Path(directory)
        self._files = files or OsFiles()
        self._turn = trio.Lock()

    async def put(self, opening: Opening, peer: str) -> None:
        """In the place of the guest's last one, of which nothing has come.

        Raises:
            RecordError: it cannot be written, or is too long.
        """
        try:
            line = encode_opening(opening, peer)
        except LocalProtocolError as error:  # the session's limits may be wider than those of a file
            raise RecordError(f"an opening that is too long: {error}") from error
        if self._directory is not None:
            async with self._turn:
                await trio.to_thread.run_sync(self._put, opening.hello.guest, line)

    async def find(self, hello: Hello, peer: str) -> Opening | None:
        """The opening of the session that a HELLO asks for, if it may ask for it [RES-3].

        Raises:
            RemoteProtocolError: BAD_TOKEN, NOT_SELECTED, LIMIT_MISMATCH: it does not fit the opening.
        """
        if self._directory is None:
            return None
        line = await trio.to_thread.run_sync(self._read, hello.guest)
        found = None if line is None else decode_opening(line)
        if found is None or found[1] != peer or found[0].welcome.session != hello.session:
            return None
        if not hmac.compare_digest(found[0].welcome.token, hello.token):
            return None
        found[0].ticket.check_hello(hello)
        return found[0]

    async def drop(self, guest: bytes, session: bytes) -> None:
        """Nobody takes this session up any more. What cannot be removed is replaced by the next opening."""
        if self._directory is not None:
            with trio.CancelScope(shield=True):
                async with self._turn:
                    await trio.to_thread.run_sync(self._drop, guest, session)

    def _path(self, guest: bytes) -> str:
        return f"{folder(os.fspath(self._directory or ''), guest)}{SUFFIX}"

    def _put(self, guest: bytes, line: bytes) -> None:
        path = self._path(guest)
        assert self._directory is not None
        make_directory(self._directory)
        self._remove(guest)
        try:
            self._files.create(path, line, MODE)
            self._files.sync_directory(os.path.dirname(path))
        except OSError as error:
            raise RecordError(f"{error.filename or path}: {error.strerror}") from error

    def _read(self, guest: bytes) -> bytes | None:
        try:
            return self._files.read(self._path(guest), OPENING_BYTES)
        except OSError:
            return None

    def _drop(self, guest: bytes, session: bytes) -> None:
        """Not if a newer session of the guest has put its own there."""
        line = self._read(guest)
        found = None if line is None else decode_opening(line)
        if found is None or found[0].welcome.session == session:
            self._remove(guest)

    def _remove(self, guest: bytes) -> None:
        with suppress(OSError):
            self._files.remove(self._path(guest))
