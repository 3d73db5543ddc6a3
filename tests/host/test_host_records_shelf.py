"""A process's records: locked once a guest, shared, and free again with the last who has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from records_support import GUEST, ONE, RECEIVING
from sterna.core.history import RecordConflict
from sterna.core.records import Claiming, HandBack, Start
from sterna.errors import RecordError
from sterna.host.records_shelf import RecordsShelf
from sterna.registry import ErrorCode
from sterna.wire.records import Runner

OTHER = b"\xee" * 16


async def test_all_of_a_process_share_one_keeper(tmp_path: Path) -> None:
    """[ONE-27] Of START and HANDBACK whichever comes first makes the other fail, whoever wants them."""
    shelf = RecordsShelf(tmp_path / "a" / "b", "a test")
    async with shelf.opened(GUEST) as one, shelf.opened(GUEST) as two:
        assert one is two is not None
        await one.append(RECEIVING)
        await one.append(Claiming(ONE, 2, Runner("here", ONE), ONE))
        await two.append(HandBack(2))
        with pytest.raises(RecordConflict):
            await one.append(Start(2))
    assert shelf.guests() == [GUEST]


async def test_the_lock_goes_with_the_last_who_has_them(tmp_path: Path) -> None:
    """[LOG-7]"""
    shelf, other = RecordsShelf(tmp_path, "a test"), RecordsShelf(tmp_path)
    async with shelf.opened(GUEST):
        async with shelf.opened(GUEST):
            pass
        with pytest.raises(RecordError, match="a test") as caught:
            await other.take(GUEST)
        assert caught.value.code is ErrorCode.BUSY
        async with other.opened(OTHER):
            pass
    async with other.opened(GUEST) as keeper:
        assert keeper is not None


async def test_who_only_asks_makes_nothing(tmp_path: Path) -> None:
    shelf = RecordsShelf(tmp_path / "records")
    assert await shelf.take(GUEST, make=False) is None
    assert shelf.guests() == []
    assert not (tmp_path / "records").exists()
    memory = RecordsShelf()
    assert await memory.take(GUEST, make=False) is None
    async with memory.opened(GUEST) as keeper:
        assert keeper is not None
        await keeper.append(RECEIVING)
    async with memory.opened(GUEST, make=False) as keeper:
        assert keeper is not None
        assert keeper.history.records == (RECEIVING,)
    assert memory.guests() == [GUEST]


async def test_what_is_no_guest_s_is_passed_over(tmp_path: Path) -> None:
    for name in ("lost+found", "00" * 15, "AA" * 16, GUEST.hex()):
        (tmp_path / name).mkdir()
    assert RecordsShelf(tmp_path).guests() == [GUEST]


async def test_a_directory_that_cannot_be_made_or_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shelf = RecordsShelf(tmp_path / "file" / "records")
    with pytest.raises(RecordError, match="give another --records"):
        await shelf.take(GUEST)
    with pytest.raises(RecordError):
        RecordsShelf(tmp_path / "file").guests()


async def test_records_that_cannot_be_looked_at_are_not_none(tmp_path: Path) -> None:
    """As in the directory of another user; here it has a name that no file system takes."""
    with pytest.raises(RecordError, match="say --records"):
        await RecordsShelf(tmp_path / ("x" * 300)).take(GUEST, make=False)
    (tmp_path / "file").write_text("")
    assert await RecordsShelf(tmp_path / "file" / "records").take(GUEST, make=False) is None


async def test_one_process_takes_guests_in(tmp_path: Path) -> None:
    """[LOG-7] The other one is told what to do; without a directory there is nothing to share."""
    directory = tmp_path / "records"
    one, other = RecordsShelf(directory, "sterna serve"), RecordsShelf(directory, "sterna serve")
    async with one.alone():
        with pytest.raises(RecordError, match="takes guests in with these records; end it, or") as caught:
            async with other.alone():
                pass
        assert caught.value.code is ErrorCode.BUSY
        assert other.guests() == []
    async with other.alone(), RecordsShelf().alone(), RecordsShelf().alone():
        pass
    (directory / "serve.lock").unlink()
    (directory / "serve.lock").symlink_to(directory / "elsewhere")
    with pytest.raises(RecordError, match=r"serve\.lock"):
        async with one.alone():
            pass
