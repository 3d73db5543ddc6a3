"""The demand connection of a session, and the process that serves it: the endpoint's view [13.3].

A guest that waits for a page waits for an event loop at each end, with all that these do besides. So where
both sides can, single pages go over one connection more, of which a forked process at each end has the care
(`sterna.net.answering`, `sterna.net.asking`). It makes a page come sooner and nothing else: the session goes
on as if there were none, with it or without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final

import trio

from sterna.errors import RemoteProtocolError, TransportError
from sterna.linux.forked import Forked
from sterna.net.redial import Reconnect, dial_more
from sterna.net.transport import Peer, Transport
from sterna.registry import ErrorCode
from sterna.wire import FrameReader, FrameReceived, FrameWriter
from sterna.wire.records import Attach, Attached

_log = logging.getLogger(__name__)

ATTACHED_WITHIN_S: Final = 10.0


class DemandConnection:
    """One, attached and idle. Whoever has it closes it.

    Attributes:
        stream: its number.
        ended: set when it is closed.
    """

    def __init__(self, transport: Transport, stream: int) -> None:
        self.stream = stream
        self.ended = trio.Event()
        self._transport = transport
        self._process: Forked | None = None

    @property
    def rtt_s(self) -> float:
        """Round trip of the link in seconds; 0 if it is not known, or a process has the connection."""
        return 0.0 if self._transport.closed else self._transport.rtt_s or 0.0

    def serve(self, job: Callable[..., None], *arguments: object, keep: Iterable[int] = ()) -> bool:
        """Fork a process that does `job(socket, *arguments)`.

        False: the connection cannot be given away, or there is no room for a process. Then nobody serves it,
        and it can only be closed [PCY-30].

        Args:
            job: what it does; see `sterna.linux.forked`.
            arguments: for it.
            keep: descriptors that it needs besides.
        """
        sock = self._transport.detach()
        if sock is None:
            return False
        with sock:
            try:
                self._process = Forked(lambda: job(sock, *arguments), (sock.fileno(), *keep))
            except OSError as error:
                _log.warning("pages do not come early, there is no process for them: %s", error)
                return False
        return True

    async def wait(self) -> None:
        """Wait until the process has ended by itself."""
        assert self._process is not None
        if words := await self._process.wait():
            _log.warning("pages do not come early any more: %s", words)

    def kill(self) -> None:
        """The process lets go of what it holds, without a wait for it."""
        if self._process is not None:
            self._process.kill_soon()

    def close(self) -> None:
        """Nothing of it goes on when this returns. Legal twice."""
        if self._process is not None:
            self._process.kill()
        self._transport.abort()
        self.ended.set()


async def open_demand(reconnect: Reconnect, peer: Peer, attach: Attach) -> DemandConnection:
    """Dial the same host once more and attach [PCY-26].

    Raises:
        SternaError: it cannot be had, or the peer does not want it.
    """
    (transport,) = await dial_more(reconnect, peer, 1)
    try:
        stream = attach.index + 1
        writer = FrameWriter(stream=stream)
        with trio.fail_after(ATTACHED_WITHIN_S):
            await transport.send([writer.preface(), *writer.frame(attach)])
            await _attached(transport, attach)
    except trio.TooSlowError:
        transport.abort()
        raise TransportError(ErrorCode.PHASE_DEADLINE, "no ATTACHED on the demand connection") from None
    except BaseException:
        transport.abort()
        raise
    return DemandConnection(transport, stream)


async def _attached(transport: Transport, attach: Attach) -> None:
    """Read to the end of ATTACHED, and no further: what is behind it is for the process."""
    reader, answer = FrameReader(stream=attach.index + 1), Attached(attach.index, attach.generation, 0)
    writer, came = FrameWriter(stream=attach.index + 1), 0
    expected = sum(len(bytes(part)) for part in (writer.preface(), *writer.frame(answer)))
    while True:
        event = reader.next_event()
        if event is None:
            place = reader.get_buffer()[: max(expected - came, 1)]  # more if frames are to be skipped
            count = await transport.receive_into(place)
            came += count
            if not count:
                raise TransportError(ErrorCode.CONNECTION_LOST, "the peer has closed the demand connection")
            reader.buffer_updated(count)
        elif isinstance(event, FrameReceived):
            if event.record != answer:
                raise RemoteProtocolError(ErrorCode.UNEXPECTED_FRAME, "no ATTACHED", clause="PCY-26")
            return
