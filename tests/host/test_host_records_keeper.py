from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from records_support import CLAIM, EVERYTHING, GUEST, RECEIVING, SENDING
from sterna.core.history import RecordConflict
from sterna.core.records import Granted, HandBack, Start
from sterna.errors import RecordError
from sterna.host.durable import OsFiles
from sterna.host.records_keeper import open_records, peek, set_aside
from sterna.host.records_log import HEAD, RecordsMissing
from sterna.registry import ErrorCode
from sterna.wire.records import Runner


class Failing(OsFiles):
    """Writes that fail, with this error, while it is set."""

    def __init__(self) -> None:
        self.write_error = 0
        self.sync_error = 0
        self.syncs = ""  # that fail: of files with such names

    def write(self, path: str, offset: int, data: bytes) -> None:
        if self.write_error:
            super().write(path, offset, data[: len(data) // 2])
            raise OSError(self.write_error, os.strerror(self.write_error), path)
        super().write(path, offset, data)

    def sync(self, path: str) -> None:
        if self.sync_error and Path(path).name.startswith(self.syncs):
            raise OSError(self.sync_error, os.strerror(self.sync_error), path)
        super().sync(path)


async def test_records_outlive_their_keeper(tmp_path: Path) -> None:
    async with await open_records(tmp_path, GUEST, purpose="test") as records:
        for record in EVERYTHING:
            await records.append(record)
    async with await open_records(tmp_path, GUEST, purpose="test") as records:
        assert records.history.records == EVERYTHING


async def test_what_is_durable_already_needs_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a thread: the guest writes on while the switchover waits for it [ONE-61]."""
    async with await open_records(tmp_path, GUEST, purpose="test") as records:
        await records.append(SENDING)
        with monkeypatch.context() as patched:
            patched.setattr(records, "_append", None)
            await records.append(SENDING)
        with pytest.raises(RecordConflict):
            await records.append(replace(SENDING, epoch=SENDING.epoch + 1, token=b"2" * 16))
        await records.append(SENDING)  # and the turn is free


async def test_one_process_at_a_time(tmp_path: Path) -> None:
    """[LOG-7]"""
    async with await open_records(tmp_path, GUEST, purpose="migrate"):
        with pytest.raises(RecordError, match="'migrate'") as caught:
            await open_records(tmp_path, GUEST, purpose="serve")
        assert caught.value.code is ErrorCode.BUSY
        await (await open_records(tmp_path, GUEST[::-1], purpose="serve")).aclose()
    await (await open_records(tmp_path, GUEST, purpose="serve")).aclose()


async def test_nothing_is_written_without_the_lock(tmp_path: Path) -> None:
    """[LOG-7]"""
    records = await open_records(tmp_path, GUEST, purpose="migrate")
    await records.aclose()
    async with await open_records(tmp_path, GUEST, purpose="serve") as others:
        with pytest.raises(RecordError, match="open them again"):
            await records.append(SENDING)
        await records.aclose()  # again, and it takes no lock away
        with pytest.raises(RecordError, match="'serve'"):
            await open_records(tmp_path, GUEST, purpose="migrate")
        await others.append(RECEIVING)


async def test_two_tasks_decide_one_fate(tmp_path: Path) -> None:
    """[ONE-27, ONE-44]"""
    async with await open_records(tmp_path, GUEST, purpose="test") as records:
        await records.append(RECEIVING)
        await records.append(CLAIM)
        refused: list[str] = []

        async def decide(record: Start | HandBack) -> None:
            try:
                await records.append(record)
            except RecordConflict:
                refused.append(record.kind)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(decide, Start(2))
            nursery.start_soon(decide, HandBack(2))
        fate = records.history.fate(2)
        assert fate is not None
        assert [fate.kind, *refused] in (["start", "handback"], ["handback", "start"])


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EIO, "Input/output error; the disk has failed"),
        (errno.EROFS, "Read-only file system; .*kernel's log"),
        (errno.EDQUOT, "quota"),
        (errno.EMFILE, "look after that file system"),
    ],
)
async def test_what_cannot_be_written_is_coded(tmp_path: Path, number: int, advice: str) -> None:
    """RECORD_FAILED, and what to do; when the trouble is over, the same keeper goes on [ONE-18, ONE-25]."""
    files = Failing()
    async with await open_records(tmp_path, GUEST, purpose="test", files=files) as records:
        await records.append(SENDING)
        files.write_error = number
        for _ in range(2):
            with pytest.raises(RecordError, match=advice) as caught:
                await records.append(Granted(b"1" * 16, 2))
            assert caught.value.code is ErrorCode.RECORD_FAILED
        assert records.history.records == (SENDING,)
        files.write_error = 0
        await records.append(Granted(b"1" * 16, 2))
    assert (await peek(tmp_path, GUEST)).records == (SENDING, Granted(b"1" * 16, 2))


async def test_a_record_that_failed_may_be_there(tmp_path: Path) -> None:
    """Its sync failed: START may be on the disk, so HANDBACK is refused until one has looked [ONE-27]."""
    files = Failing()
    async with await open_records(tmp_path, GUEST, purpose="test", files=files) as records:
        await records.append(RECEIVING)
        await records.append(CLAIM)
        files.sync_error, files.syncs = errno.EIO, "log-"
        with pytest.raises(RecordError):
            await records.append(Start(2))
        assert records.history.fate(2) is None
        files.sync_error = 0
        with pytest.raises(RecordConflict) as caught:
            await records.append(HandBack(2))
        assert caught.value.existing == Start(2)
        assert records.history.fate(2) == Start(2)


async def test_what_is_held_becomes_durable_with_the_next_record(tmp_path: Path) -> None:
    """[ONE-62] All tasks see it at once; on the disk it is never without what rests on it."""
    async with await open_records(tmp_path, GUEST, purpose="test") as records:
        await records.append(RECEIVING)
        for _ in range(2):
            await records.hold(CLAIM)
        assert records.history.records == (RECEIVING, CLAIM)
        assert (await peek(tmp_path, GUEST)).records == (RECEIVING,)
        with pytest.raises(RecordConflict):
            await records.hold(replace(CLAIM, image=b"2" * 16))
        await records.append(Start(2))
        assert records.history.records == (RECEIVING, CLAIM, Start(2))
    assert (await peek(tmp_path, GUEST)).records == (RECEIVING, CLAIM, Start(2))


async def test_what_is_held_outlives_a_failure(tmp_path: Path) -> None:
    """[ONE-62] START could not be written: HANDBACK rests on the same claim."""
    files = Failing()
    async with await open_records(tmp_path, GUEST, purpose="test", files=files) as records:
        await records.append(RECEIVING)
        await records.hold(CLAIM)
        files.write_error = errno.ENOSPC
        with pytest.raises(RecordError):
            await records.append(Start(2))
        assert records.history.records == (RECEIVING, CLAIM)
        files.write_error = 0
        await records.append(HandBack(2))
    assert (await peek(tmp_path, GUEST)).records == (RECEIVING, CLAIM, HandBack(2))


@pytest.mark.parametrize("more", [False, True])
async def test_nothing_that_is_held_is_lost_by_closing(tmp_path: Path, *, more: bool) -> None:
    held = [CLAIM, replace(CLAIM, runner=Runner("here", b"3" * 16), image=b"3" * 16)]
    async with await open_records(tmp_path, GUEST, purpose="test") as records:
        await records.append(RECEIVING)
        for each in held[: 1 + more]:
            await records.hold(each)
    assert (await peek(tmp_path, GUEST)).records == (RECEIVING, *held[: 1 + more])
    with pytest.raises(RecordError, match="closed"):
        await records.hold(CLAIM)


async def test_a_head_that_cannot_be_written_is_made_up_for(tmp_path: Path) -> None:
    """[LOG-3] What was reported is durable all the same."""
    files = Failing()
    async with await open_records(tmp_path, GUEST, purpose="test", files=files) as records:
        files.sync_error, files.syncs = errno.EIO, HEAD
        await records.append(RECEIVING)
        with pytest.raises(RecordError):
            await records.append(CLAIM)
        files.sync_error = 0
        await records.append(CLAIM)
        assert records.history.records == (RECEIVING, CLAIM)


async def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="No such file or directory; make the directory"):
        await open_records(tmp_path / "missing", GUEST, purpose="test")
    (tmp_path / GUEST.hex()).touch()
    with pytest.raises(RecordError, match=r"File exists|Not a directory"):
        await open_records(tmp_path, GUEST, purpose="test")
    with pytest.raises(RecordError):
        await peek(tmp_path, GUEST)


async def test_an_append_is_not_cut_short(tmp_path: Path) -> None:
    began, goes_on = threading.Event(), threading.Event()

    class Slow(OsFiles):
        slow = False

        def sync(self, path: str) -> None:
            if self.slow:
                began.set()
                goes_on.wait()
            super().sync(path)

    files = Slow()
    async with await open_records(tmp_path, GUEST, purpose="test", files=files) as records:
        files.slow = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(records.append, SENDING)
            await trio.to_thread.run_sync(began.wait)
            nursery.cancel_scope.cancel()
            goes_on.set()
        assert records.history.records == (SENDING,)


async def test_looking_while_somebody_writes(tmp_path: Path) -> None:
    assert (await peek(tmp_path, GUEST)).records == ()
    async with await open_records(tmp_path, GUEST, purpose="test") as records:
        async with trio.open_nursery() as nursery:

            async def write() -> None:
                for record in EVERYTHING:
                    await records.append(record)
                nursery.cancel_scope.cancel()

            async def look() -> None:
                while True:
                    found = (await peek(tmp_path, GUEST)).records
                    assert found == EVERYTHING[: len(found)]

            nursery.start_soon(write)
            nursery.start_soon(look)
        assert (await peek(tmp_path, GUEST)).records == EVERYTHING


async def test_lost_records_are_nobodys(tmp_path: Path) -> None:
    """[ONE-57]"""
    async with await open_records(tmp_path, GUEST, purpose="test") as records:
        await records.append(SENDING)
    for path in (tmp_path / GUEST.hex()).glob("log-*"):
        path.unlink()
    for _ in range(2):
        with pytest.raises(RecordsMissing, match="found out elsewhere"):
            await open_records(tmp_path, GUEST, purpose="test")
        with pytest.raises(RecordsMissing):
            await peek(tmp_path, GUEST)


async def test_an_operator_sets_lost_records_aside(tmp_path: Path) -> None:
    """Nothing is thrown away, and nobody else is writing [LOG-6, LOG-7]."""
    async with await open_records(tmp_path, GUEST, purpose="serve") as records:
        await records.append(SENDING)
        with pytest.raises(RecordError, match="'serve'"):
            await set_aside(tmp_path, GUEST, purpose="operator")
    (tmp_path / GUEST.hex() / "head").write_bytes(b"")
    with pytest.raises(RecordsMissing):
        await open_records(tmp_path, GUEST, purpose="serve")
    moved = await set_aside(tmp_path, GUEST, purpose="operator")
    assert [Path(path).name.split("-", 2)[2][:4] for path in moved] == ["head", "log-"]
    assert SENDING.address in await trio.Path(moved[1]).read_text()
    async with await open_records(tmp_path, GUEST, purpose="serve") as records:
        assert records.history.records == ()
    assert all([await trio.Path(path).exists() for path in moved])
    with pytest.raises(RecordError, match="No such file"):
        await set_aside(tmp_path, GUEST[::-1], purpose="operator")
