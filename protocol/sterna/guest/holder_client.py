"""The endpoint's side of the holder protocol, for trio.

A connection has one request under way at a time. Cancelling one does not break it: what was not yet sent
goes first at the next request, and an answer that nobody waits for any more is dropped by its number. That
matters, because the endpoint resumes the guest over the same connection after a deadline has cut a request
off. Whether the holder has done what was cancelled is for the caller to consider.

Where it is known what will be asked next, that may go along with a request: then the holder has done it when
it is asked for, and its answer is there. Each way through the kernel, with two processes to wake, is time for
which a guest stands still.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import trio

from sterna.errors import GuestError
from sterna.guest import holder_fields as fields_of
from sterna.guest.holder_frames import (
    FRAME_DESCRIPTORS,
    VERSION,
    Frame,
    FrameReader,
    JsonObject,
    encode_frame,
)
from sterna.registry import ErrorCode
from sterna.wire.records import NO_ID, NO_RUNNER, Runner

ANSWER_WITHIN_S: Final = 30.0  # operations take milliseconds; this only ends the wait for a stopped holder
SLOW_ANSWER_WITHIN_S: Final = 600.0  # first touch of all memory, or an audit of it
AT_ONCE_S: Final = 0.002  # more than most operations take; a peer does not notice that nobody has answered
_READ_BYTES: Final = 1 << 16
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(FRAME_DESCRIPTORS * 4)
_CODES: Final = {code.name.lower(): code for code in ErrorCode}
_NOBODY_THERE: Final = frozenset({errno.ENOENT, errno.ECONNREFUSED})  # what connect says where none listens


class HolderSilent(GuestError):  # noqa: N818 - it names what is wrong
    """The holder does not answer, and may be there all the same: nothing follows for its guest."""


@dataclass(frozen=True, slots=True)
class HolderStatus:
    """Where a held guest is, and the figures that its kind of guest gives.

    Attributes:
        state: empty, reserved, loaded, running, paused, granted or released.
        epoch: under which it last ran there; 0 if it never did.
        granted_epoch: that was granted to another host; 0 if none.
        post_copy: whether it can run before all of its pages are there.
        missing: stale pages that were not installed.
        guest: the guest's own figures, by name; for the process guest see spec/holder.md, section 7.
        image: the id of what is kept there, zeros for nothing [HOL-46].
    """

    state: str
    epoch: int
    granted_epoch: int
    runner: Runner
    tracker: str
    tracking: bool
    guest: JsonObject
    image: bytes = NO_ID
    post_copy: bool = False
    missing: int = 0

    def figure(self, name: str) -> int | float:
        """A number among the guest's figures; 0 if it has none of this name."""
        value = self.guest.get(name, 0)
        return value if isinstance(value, int | float) else 0


class HolderConnection:
    """An attached connection to a holder. Close it, or use it as an async context manager.

    Attributes:
        attached: the status at the time of attaching, without the guest's figures.
        may_run: whether the holder lets this side change anything.
    """

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._socket = sock
        self._reader = FrameReader()
        self._unsent: list[tuple[bytes, tuple[int, ...]]] = []
        self._number = 0
        self._along: deque[tuple[str, int]] = deque()  # what was sent along and not asked for yet
        self._busy = False
        self.may_run = False
        self.kind = ""
        self.attached = HolderStatus("empty", 0, 0, NO_RUNNER, "", False, {})

    async def attach(self, role: str, epoch: int | None) -> None:
        """The first operation; `connect_holder` does it."""
        fields: JsonObject = {"version": VERSION, "role": role}
        if epoch is not None:
            fields["epoch"] = epoch
        answer = (await self.call("attach", fields)).fields
        self.may_run = answer.get("rights") == "run"
        self.kind = fields_of.text(answer, "kind")
        self.attached = _status(answer)

    async def call(
        self,
        operation: str,
        fields: JsonObject | None = None,
        descriptors: tuple[int, ...] = (),
        *,
        along: Sequence[str] = (),
        within_s: float = ANSWER_WITHIN_S,
        promptly: bool = False,
    ) -> Frame:
        """One request and its answer. The caller owns the answer's descriptors; the request's stay his.

        Args:
            operation: what is asked for.
            fields: of the request.
            descriptors: that go with it.
            along: operations without fields that go with it, for the calls that follow. If others follow, the
                holder has done them all the same, and what it has answered is lost.
            within_s: seconds, after which there is no answer.
            promptly: the guest stands still for this, or is about to: nothing else is done here until the
                answer has come, or for `AT_ONCE_S`.

        Raises:
            HolderSilent: no answer in time.
            GuestError: the holder refused, answered nonsense, or is gone.
        """
        if self._busy:
            raise trio.BusyResourceError("one request at a time")
        self._busy = True
        try:
            with trio.fail_after(within_s):
                return await self._exchange(operation, fields or {}, descriptors, along, promptly=promptly)
        except trio.TooSlowError as error:
            raise HolderSilent(f"{operation}: no answer from the holder within {within_s:g} s") from error
        except OSError as error:
            raise GuestError(f"{operation}: the holder is gone: {error.strerror}") from error
        finally:
            self._busy = False

    def has_along(self, operation: str) -> bool:
        """Whether this one has gone along, and is the next to be asked for."""
        return bool(self._along) and self._along[0][0] == operation

    @property
    def is_over(self) -> bool:
        """Whether either side has closed the connection, or the holder has ended."""
        if self._socket.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    async def status(self) -> HolderStatus:
        """Where the guest is and how it does."""
        return _status((await self.call("status")).fields)

    async def audit(self) -> JsonObject:
        """The guest's check of its own memory, from inside."""
        answer = await self.call("audit", within_s=SLOW_ANSWER_WITHIN_S)
        return fields_of.an_object(answer.fields, "audit")

    async def detach(self) -> None:
        """Give up control: this process has, or will use, no mapping of the guest's memory any more."""
        await self.call("detach")
        await self.aclose()

    async def shutdown(self) -> None:
        """End the holder, and its guest with it."""
        await self.call("shutdown")
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection. A paused guest that was not granted runs on then. Legal twice."""
        self._socket.close()
        self._reader.close()
        for _, descriptors in self._unsent:
            for descriptor in descriptors:
                os.close(descriptor)
        self._unsent.clear()
        await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _exchange(
        self,
        operation: str,
        fields: JsonObject,
        descriptors: tuple[int, ...],
        along: Sequence[str],
        *,
        promptly: bool,
    ) -> Frame:
        if self.has_along(operation) and not fields:
            _, number = self._along.popleft()
        else:
            self._along.clear()
            number, data = self._encoded(operation, fields, descriptors)
            for each in along:
                more, behind = self._encoded(each, {}, ())
                self._along.append((each, more))
                data += behind
            # Copies: a cancelled request is sent later all the same, for half a frame cannot be taken back.
            self._unsent.append((data, tuple(os.dup(descriptor) for descriptor in descriptors)))
        # A holder that turns us away does not read before it closes; what it said is still there.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await self._send()
        while True:
            frame = await self._next_frame(promptly=promptly)
            if frame.fields.get("id") == number:
                break
            frame.close()
            if frame.fields.get("id") is None:
                raise _refusal(operation, frame.fields)
        answer = frame.fields.get("ok")
        if not isinstance(answer, dict):
            frame.close()
            raise _refusal(operation, frame.fields)
        return Frame(answer, frame.descriptors)

    def _encoded(self, operation: str, fields: JsonObject, descriptors: tuple[int, ...]) -> tuple[int, bytes]:
        """A request's number, and its bytes."""
        self._number += 1
        return self._number, encode_frame({"id": self._number, "op": operation, **fields}, descriptors)

    async def _send(self) -> None:
        while self._unsent:
            data, descriptors = self._unsent[0]
            ancillary = []
            if descriptors:
                packed = b"".join(one.to_bytes(4, "little") for one in descriptors)
                ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, packed))
            sent = await self._socket.sendmsg([data], ancillary)
            for descriptor in descriptors:
                os.close(descriptor)
            if sent < len(data):
                self._unsent[0] = (data[sent:], ())
            else:
                del self._unsent[0]

    async def _next_frame(self, *, promptly: bool) -> Frame:
        while True:
            frame = self._reader.next_frame()
            if frame is not None:
                return frame
            if promptly:
                self._comes_at_once()
            data, ancillary, flags, _ = await self._socket.recvmsg(
                _READ_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
            for level, kind, raw in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    whole = len(raw) - len(raw) % 4
                    self._reader.receive(b"", memoryview(raw)[:whole].cast("i").tolist())
            self._reader.receive(data)
            if not data or flags & socket.MSG_CTRUNC:
                raise GuestError("the holder has closed the connection")

    def _comes_at_once(self) -> None:
        """Wait for the holder as a thread waits: to be woken by an event loop takes as long as it takes."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        poll.poll(AT_ONCE_S * 1e3)


def _refusal(operation: str, fields: JsonObject) -> GuestError:
    error = fields.get("error")
    if not isinstance(error, dict):
        return GuestError(f"{operation}: the holder's answer makes no sense")
    code = _CODES.get(fields_of.text(error, "code", ""), ErrorCode.GUEST_FAILED)
    return GuestError(f"{operation}: {fields_of.text(error, 'text', '')}", code)


def _status(fields: JsonObject) -> HolderStatus:
    guest = fields.get("guest", {})
    return HolderStatus(
        state=fields_of.text(fields, "state"),
        epoch=fields_of.integer(fields, "epoch"),
        granted_epoch=fields_of.integer(fields, "granted_epoch"),
        runner=fields_of.runner_from_json(fields_of.an_object(fields, "runner")),
        tracker=fields_of.text(fields, "tracker"),
        tracking=fields.get("tracking") is True,
        guest=guest if isinstance(guest, dict) else {},
        image=fields_of.hex_bytes(fields, "image", len(NO_ID)),
        post_copy=fields.get("post_copy") is True,
        missing=fields_of.integer(fields, "missing") if "missing" in fields else 0,
    )


async def connect_holder(
    path: str | os.PathLike[str], *, role: str = "controller", epoch: int | None = None
) -> HolderConnection:
    """Connect to a holder's socket and attach.

    Args:
        path: the socket.
        role: ``controller``, of which there is one at a time, or ``observer``.
        epoch: the newest epoch that this side knows of; None if it knows of none.

    Raises:
        HolderSilent: somebody may be there, and does not answer.
        GuestError: with BUSY while another controller lives; or there is no holder.
    """
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await sock.connect(os.fspath(path))
    except OSError as error:
        sock.close()
        kind = GuestError if error.errno in _NOBODY_THERE else HolderSilent
        raise kind(f"no holder at {os.fspath(path)}: {error.strerror or error}") from error
    connection = HolderConnection(sock)
    try:
        await connection.attach(role, epoch)
    except BaseException:
        with trio.CancelScope(shield=True):
            await connection.aclose()
        raise
    return connection
