"""How a source gets its connection back: the same host, dialled again until it answers or time is up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import trio

from sterna.errors import SternaError, TransportError
from sterna.net.pauses import Pauses
from sterna.net.transport import Peer, Transport
from sterna.registry import ErrorCode

Reconnect: TypeAlias = Callable[[], Awaitable[Transport]]

# Most cuts are over in a moment, and who waits longer should not be hammered at.
FIRST_WAIT_S: Final = 0.1
LONGEST_WAIT_S: Final = 3.0

# A link that is lost so often moves no guest, however quickly it comes back.
RESUMPTIONS_MAX: Final = 100


async def redial(reconnect: Reconnect, peer: Peer, within_s: float, *, after_s: float = 0.0) -> Transport:
    """Dial until the host answers that was there before.

    Args:
        reconnect: dials, once.
        peer: who was at the other end. The session's token is for nobody else [RES-1] [SEC-5].
        within_s: how long to go on.
        after_s: of it, how long to leave the host alone first, because it has said so [REF-2].

    Raises:
        TransportError: CONNECTION_LOST; the cause is why the last call was in vain.
    """
    last: SternaError | None = None
    pauses = Pauses(FIRST_WAIT_S, LONGEST_WAIT_S)
    with trio.move_on_after(max(within_s, 0.0)):
        await trio.sleep(after_s)
        while True:
            try:
                return await _dial(reconnect, peer)
            except SternaError as error:
                last = error
            await pauses.next()
    why = "" if last is None else f": {last}"
    lost = TransportError(ErrorCode.CONNECTION_LOST, f"no connection again within {within_s:.0f} s{why}")
    raise lost from last


async def _dial(reconnect: Reconnect, peer: Peer) -> Transport:
    transport = await reconnect()
    if transport.peer.identity == peer.identity:
        return transport
    transport.abort()
    raise TransportError(
        ErrorCode.PEER_NOT_LISTED, f"{transport.peer} answers, and the session is with {peer}"
    )


async def dial_more(reconnect: Reconnect, peer: Peer, count: int) -> list[Transport]:
    """So many connections more to the same host, dialled at the same time.

    Raises:
        SternaError: one of them could not be made; the others are closed.
    """
    transports: list[Transport] = []
    errors: list[SternaError] = []

    async def dial(nursery: trio.Nursery) -> None:
        try:
            transports.append(await _dial(reconnect, peer))
        except SternaError as error:
            errors.append(error)
            nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(dial, nursery)
    except BaseException:
        _abort(transports)
        raise
    if errors:
        _abort(transports)
        raise errors[0]
    return transports


def _abort(transports: list[Transport]) -> None:
    for transport in transports:
        transport.abort()
