from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from test_guest_holder_backend import FakeHeld
from test_guest_holder_server import attach_when_free, serving

from sterna.errors import GuestError
from sterna.guest import holder_client
from sterna.guest.holder_backend import HeldState
from sterna.guest.holder_client import HolderConnection, HolderStatus, connect_holder
from sterna.guest.holder_engine import HolderEngine
from sterna.guest.holder_frames import FrameReader, JsonObject, encode_frame
from sterna.linux.memfd import MemoryFile
from sterna.registry import ErrorCode
from sterna.wire.records import NO_RUNNER


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[HolderEngine]:
    engine = HolderEngine(FakeHeld(), state=HeldState.RUNNING, epoch=4)
    with serving(tmp_path / "holder", engine):
        yield engine


@pytest.fixture
def path(tmp_path: Path, engine: HolderEngine) -> Path:
    return tmp_path / "holder"


async def test_attach_ask_and_close(path: Path, engine: HolderEngine) -> None:
    async with await connect_holder(path) as connection:
        assert connection.may_run
        assert connection.kind == "fake"
        assert connection.attached == HolderStatus(
            "running", 4, 0, NO_RUNNER, "told", False, {}, engine.image, True
        )
        status = await connection.status()
        assert status.figure("figure") == 42
        assert status.figure("word") == status.figure("none") == 0
        assert await connection.audit() == {"errors": 0}
        async with await connect_holder(path, role="observer") as observer:
            assert not observer.may_run
            with pytest.raises(GuestError) as caught:
                await observer.call("pause")
            assert caught.value.code is ErrorCode.NOT_AUTHORISED
    await connection.aclose()


async def test_a_second_controller_is_refused(path: Path) -> None:
    async with await connect_holder(path, epoch=4):
        with pytest.raises(GuestError) as caught:
            await connect_holder(path)
        assert caught.value.code is ErrorCode.BUSY


async def test_detach_and_shutdown(path: Path, engine: HolderEngine) -> None:
    connection = await connect_holder(path)
    await connection.call("pause")
    await connection.detach()
    connection = await connect_holder(path)
    assert connection.attached.state == "running"
    await connection.shutdown()
    assert engine.ending


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="no holder at"):
        await connect_holder(tmp_path / "none")


Answerer = Callable[[JsonObject], list[bytes]]


@contextlib.asynccontextmanager
async def scripted(answer: Answerer) -> AsyncIterator[HolderConnection]:
    """A connection to a holder that answers as told."""
    ours, theirs = trio.socket.socketpair(socket.AF_UNIX)

    async def hold() -> None:
        reader = FrameReader()
        while data := await theirs.recv(4096):
            reader.receive(data)
            while (frame := reader.next_frame()) is not None:
                for part in answer(frame.fields):
                    await theirs.send(part)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold)
        async with HolderConnection(ours) as connection:
            yield connection
        nursery.cancel_scope.cancel()
    theirs.close()


def ok(request: JsonObject, **fields: object) -> bytes:
    return encode_frame({"id": request["id"], "ok": fields})


async def test_a_cancelled_request_leaves_the_connection_usable(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its answer comes too late and is dropped; its descriptors are closed."""
    held: list[JsonObject] = []

    def answer(request: JsonObject) -> list[bytes]:
        held.append(request)
        if request["op"] == "slow":
            return []
        return [ok(one, of=one["op"]) for one in held]

    async with scripted(answer) as connection:
        with trio.move_on_after(1) as scope:
            await connection.call("slow")
        assert scope.cancelled_caught
        assert (await connection.call("next")).fields == {"of": "next"}


async def test_what_goes_along_is_asked_once_and_answered_in_its_turn() -> None:
    """In another turn it is asked for anew; what was answered before is dropped."""
    asked: list[object] = []

    def answer(request: JsonObject) -> list[bytes]:
        asked.append(request["op"])
        return [ok(request, of=len(asked))]

    async with scripted(answer) as connection:
        for operation in ("one", "two", "three"):
            along = ("two", "three") if operation == "one" else ()
            await connection.call(operation, along=along)
            assert connection.has_along("two") is (operation == "one")
        assert asked == ["one", "two", "three"]
        await connection.call("one", along=("two", "three"))
        assert (await connection.call("three")).fields == {"of": 7}
        assert (await connection.call("two", {"x": 1})).fields == {"of": 8}
        assert asked[3:] == ["one", "two", "three", "three", "two"]


async def test_nothing_else_is_done_for_a_moment_while_a_guest_stands_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(holder_client, "AT_ONCE_S", 30.0)
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    ours.setblocking(False)

    def hold() -> None:
        reader = FrameReader()
        reader.receive(theirs.recv(4096))
        frame = reader.next_frame()
        assert frame is not None
        theirs.sendall(ok(frame.fields, done=True))

    holder = threading.Thread(target=hold)
    holder.start()
    async with HolderConnection(trio.socket.from_stdlib_socket(ours)) as connection:
        assert (await connection.call("grant", promptly=True)).fields == {"done": True}
    holder.join()
    theirs.close()


async def test_a_holder_that_takes_longer_is_waited_for_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a task here, which has its turn only then."""
    monkeypatch.setattr(holder_client, "AT_ONCE_S", 0.001)
    async with scripted(lambda request: [ok(request, done=True)]) as connection:
        assert (await connection.call("grant", promptly=True)).fields == {"done": True}


async def test_a_request_cancelled_half_way_is_completed_first() -> None:
    """The peer does not read, so some of the frame is not sent; it goes before the next request."""
    ours, theirs = trio.socket.socketpair(socket.AF_UNIX)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    file = MemoryFile("passed", 4096)
    async with HolderConnection(ours) as connection:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.call, "big", {"x": "y" * 500_000}, (file.fileno(),))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        file.close()
        seen: list[tuple[object, int]] = []

        async def hold() -> None:
            reader = FrameReader()
            while len(seen) < 2:
                data, ancillary, _, _ = await theirs.recvmsg(65536, 1024)
                reader.receive(data, [memoryview(raw).cast("i")[0] for _, _, raw in ancillary])
                while (frame := reader.next_frame()) is not None:
                    seen.append((frame.fields["op"], len(frame.descriptors)))
                    frame.close()
                    await theirs.send(ok(frame.fields))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)
            await connection.call("next")
    assert seen == [("big", 1), ("next", 0)]
    theirs.close()


async def test_unsent_descriptors_are_closed_with_the_connection() -> None:
    ours, theirs = trio.socket.socketpair(socket.AF_UNIX)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    file = MemoryFile("passed", 4096)
    connection = HolderConnection(ours)
    for _ in range(2):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.call, "big", {"x": "y" * 500_000}, (file.fileno(),))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
    await connection.aclose()
    theirs.close()
    names = []
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            names.append(os.readlink(f"/proc/self/fd/{entry}"))
    assert sum("memfd:passed" in name for name in names) == 1
    file.close()


async def test_one_request_at_a_time() -> None:
    async with scripted(lambda _: []) as connection, trio.open_nursery() as nursery:
        nursery.start_soon(connection.call, "one")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await connection.call("two")
        nursery.cancel_scope.cancel()


async def test_a_silent_holder(autojump_clock: trio.testing.MockClock) -> None:
    async with scripted(lambda _: []) as connection:
        with pytest.raises(GuestError, match="no answer from the holder within 30 s"):
            await connection.call("status")


@pytest.mark.parametrize(
    ("answer", "said", "code"),
    [
        (b"\x02\0\0\0[]", "not a JSON object", ErrorCode.MALFORMED),
        (b"\xff\xff\xff\xff", "bytes", ErrorCode.LIMIT_CONTROL),
        (encode_frame({"id": None, "error": {"code": "malformed", "text": "?"}}), r"\?", ErrorCode.MALFORMED),
        (encode_frame({"id": 1}), "makes no sense", ErrorCode.GUEST_FAILED),
        (encode_frame({"id": 1, "ok": 5}), "makes no sense", ErrorCode.GUEST_FAILED),
        (encode_frame({"id": 1, "error": {}}), "pause", ErrorCode.GUEST_FAILED),
        (encode_frame({"id": 1, "error": {"code": "no_such", "text": "x"}}), "x", ErrorCode.GUEST_FAILED),
        (encode_frame({"id": 1, "error": {"code": 5}}), "code", ErrorCode.BAD_VALUE),
    ],
    ids=range(8),
)
async def test_answers_that_make_no_sense(answer: bytes, said: str, code: ErrorCode) -> None:
    async with scripted(lambda _: [answer]) as connection:
        with pytest.raises(GuestError, match=said) as caught:
            await connection.call("pause")
    assert caught.value.code is code


async def test_a_holder_that_goes_away() -> None:
    ours, theirs = trio.socket.socketpair(socket.AF_UNIX)
    theirs.close()
    async with HolderConnection(ours) as connection:
        with pytest.raises(GuestError, match=r"gone|closed"):
            await connection.call("status")
    ours, theirs = trio.socket.socketpair(socket.AF_UNIX)

    async def hang_up() -> None:
        await theirs.recv(100)
        theirs.shutdown(socket.SHUT_WR)

    async with HolderConnection(ours) as connection, trio.open_nursery() as nursery:
        nursery.start_soon(hang_up)
        with pytest.raises(GuestError, match="closed the connection"):
            await connection.call("status")
    theirs.close()


async def test_who_is_turned_away_hears_why() -> None:
    """The holder says it and closes, without having read a request."""
    ours, theirs = trio.socket.socketpair(socket.AF_UNIX)
    await theirs.send(encode_frame({"id": None, "error": {"code": "busy", "text": "no connection for you"}}))
    theirs.close()
    async with HolderConnection(ours) as connection:
        with pytest.raises(GuestError, match="no connection for you") as caught:
            await connection.attach("controller", None)
    assert caught.value.code is ErrorCode.BUSY


async def test_closing_lets_a_paused_guest_run_on(path: Path) -> None:
    """[HOL-18]"""
    async with await connect_holder(path) as connection:
        await connection.call("pause")
    peer = await trio.to_thread.run_sync(attach_when_free, path)
    assert peer.ask("status")["state"] == "running"
    peer.close()
