"""net/demand.py: a demand connection is dialled and attached, given to a process, and closed."""

from __future__ import annotations

import os
import signal
import socket

import pytest
import trio
import trio.testing

from sterna.errors import SternaError, TransportError
from sterna.net import demand
from sterna.net.demand import DemandConnection, open_demand
from sterna.net.memory import memory_transport_pair
from sterna.net.tcp import TcpTransport
from sterna.net.transport import Transport
from sterna.registry import GREASE_FIRST, ErrorCode, FrameType, Phase
from sterna.wire import FrameReader, FrameReceived, FrameWriter, unchecked
from sterna.wire.records import Abort, Attach, Attached, Record
from sterna.wire.single import encode_page, encode_request

ATTACH = Attach(b"s" * 16, b"t" * 32, 2, 0)
STREAM = 3


def tcp_transports() -> tuple[TcpTransport, TcpTransport]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    for each in (here, there):
        each.setblocking(False)
    return TcpTransport(here), TcpTransport(there)


async def _dial(answer: list[bytes], heard: list[Record]) -> Transport:
    """A connection at whose other end somebody reads one frame, and answers."""
    near, far = memory_transport_pair()

    async def peer() -> None:
        reader = FrameReader(stream=STREAM)
        while not heard:
            event = reader.next_event()
            if event is None:
                reader.buffer_updated(await far.receive_into(reader.get_buffer()))
            elif isinstance(event, FrameReceived):
                heard.append(event.record)
        await far.send(answer)
        if not answer:
            await far.close()

    trio.lowlevel.spawn_system_task(peer)
    return near


def _frames(*records: Record, stream: int = STREAM) -> list[bytes]:
    writer = FrameWriter(stream=stream)
    return [writer.preface(), *(bytes(part) for record in records for part in writer.frame(record))]


async def _open(*records: Record, stream: int = STREAM) -> tuple[DemandConnection, list[Record]]:
    heard: list[Record] = []
    answer = _frames(*records, stream=stream) if records else []
    near = memory_transport_pair()[0]
    return await open_demand(lambda: _dial(answer, heard), near.peer, ATTACH), heard


async def test_it_begins_with_attach_and_is_there_with_attached() -> None:
    """[PCY-26]"""
    connection, heard = await _open(Attached(2, 0, 0))
    assert heard == [ATTACH]
    assert connection.stream == STREAM
    connection.close()
    connection.close()
    assert connection.ended.is_set()


@pytest.mark.parametrize("skipped", [False, True])
async def test_what_comes_behind_attached_is_left_to_the_process(*, skipped: bool) -> None:
    """[PCY-26] [PCY-28] [FRM-7] The guest may run there by the time that ATTACHED is read here."""
    near, far = tcp_transports()
    writer = FrameWriter(stream=STREAM)
    first = [unchecked.frame(GREASE_FIRST, b"1234", stream=STREAM)] if skipped else []
    writer.go_on_from(len(first))
    request = encode_request(STREAM, 1, 3, 5, 2)
    await far.send([writer.preface(), *first, *writer.frame(Attached(2, 0, 0)), request])

    async def dial() -> Transport:
        await trio.lowlevel.checkpoint()
        return near

    connection = await open_demand(dial, near.peer, ATTACH)
    buffer = bytearray(2 * len(request))
    assert bytes(buffer[: await near.receive_into(memoryview(buffer))]) == request
    connection.close()
    far.abort()


@pytest.mark.parametrize(
    "junk",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4,
        unchecked.preface() + unchecked.frame(FrameType.PAGES, bytes(24), bytes(4096), stream=STREAM),
        unchecked.preface() + encode_page(STREAM, 0, (1, 2), 0, 0, 4096, 0) + bytes(4096),
        unchecked.preface() + unchecked.frame(GREASE_FIRST, stream=STREAM, sequence=1),
        b"".join(
            [unchecked.preface()]
            + [unchecked.frame(GREASE_FIRST, stream=STREAM, sequence=number) for number in range(300)]
        ),
    ],
)
async def test_whatever_else_answers_ends_that_connection_with_a_code(junk: bytes) -> None:
    """[PCY-30]"""
    near, far = memory_transport_pair()
    await far.send([junk])
    await far.close()

    async def dial() -> Transport:
        await trio.lowlevel.checkpoint()
        return near

    with pytest.raises(SternaError):
        await open_demand(dial, near.peer, ATTACH)
    assert near.closed


@pytest.mark.parametrize(
    "answer",
    [
        Attached(2, 1, 0),
        Attached(1, 0, 0),
        Attached(2, 0, 1),
        Abort(ErrorCode.BAD_TOKEN, Phase.STREAMS, text="no"),
    ],
)
async def test_another_answer_is_none(answer: Record) -> None:
    """[ATT-6]"""
    with pytest.raises(SternaError):
        await _open(answer)


async def test_a_peer_that_closes_has_not_attached_it() -> None:
    with pytest.raises(TransportError):
        await _open()


async def test_a_peer_that_says_nothing_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    near, _ = memory_transport_pair()

    async def dial() -> Transport:
        await trio.lowlevel.checkpoint()
        return near

    with pytest.raises(TransportError) as failed:
        await open_demand(dial, near.peer, ATTACH)
    assert failed.value.code is ErrorCode.PHASE_DEADLINE
    assert trio.current_time() == demand.ATTACHED_WITHIN_S
    assert near.closed


async def test_a_process_has_it_and_nobody_else() -> None:
    here, there = tcp_transports()
    connection = DemandConnection(here, STREAM)
    assert 0 < connection.rtt_s < 1
    reading, writing = os.pipe()

    def job(sock: socket.socket, word: bytes) -> None:
        sock.setblocking(True)
        sock.sendall(word)
        os.write(writing, b"x")

    assert connection.serve(job, b"hello", keep=[writing])
    os.close(writing)
    assert connection.rtt_s == 0
    assert here.closed
    await connection.wait()
    buffer = bytearray(16)
    count = await there.receive_into(memoryview(buffer))
    assert bytes(buffer[:count]) == b"hello"
    assert await there.receive_into(memoryview(buffer)) == 0  # it had the last descriptor
    assert os.read(reading, 2) == b"x"
    os.close(reading)
    connection.close()
    there.abort()


async def test_a_process_that_hangs_ends_with_its_connection() -> None:
    here, there = tcp_transports()
    connection = DemandConnection(here, STREAM)
    assert connection.serve(lambda _: signal.pause())
    connection.kill()
    await connection.wait()
    connection.close()
    assert await there.receive_into(memoryview(bytearray(1))) == 0  # nobody else has it
    there.abort()


async def test_what_a_process_has_to_say_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    here, there = tcp_transports()
    connection = DemandConnection(here, STREAM)

    def job(_: socket.socket) -> None:
        raise TransportError(ErrorCode.CONNECTION_LOST, "the wire has been cut")

    assert connection.serve(job)
    await connection.wait()
    assert "the wire has been cut" in caplog.text
    connection.close()
    there.abort()


async def test_what_has_no_socket_cannot_be_served() -> None:
    near, _ = memory_transport_pair()
    connection = DemandConnection(near, STREAM)
    assert connection.rtt_s == 0
    assert not connection.serve(lambda _: None)
    connection.close()
    assert near.closed
