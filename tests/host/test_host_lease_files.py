from __future__ import annotations

import errno
import os
import random
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.core.verdict import Slot
from sterna.errors import ConfigError, StoreDamaged, StoreUnavailable
from sterna.host.durable import OsFiles
from sterna.host.lease_files import FileLeaseStore, create_file_store
from sterna.host.slots import encode_slot
from sterna.testing import Crashed, CrashFiles, Fault, FaultyStore, check_store
from sterna.wire.records import Runner

GUEST = bytes(range(16))
OURS, THEIRS = Runner("ours", b"o" * 16), Runner("theirs", b"t" * 16)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    create_file_store(tmp_path / "leases")
    return tmp_path / "leases"


def slot(root: Path, epoch: int) -> Path:
    return root / GUEST.hex() / f"{epoch:020}"


def claims(root: Path) -> list[Path]:
    """Claims that are being made, or were left."""
    return list(root.rglob("claim.*"))


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def move(old: Path, new: Path) -> None:
    old.rename(new)


class Disturbed(OsFiles):
    """The machine's files, with something that happens around link(2)."""

    def __init__(self, before: Callable[[], None] = lambda: None, after: Callable[[], None] = lambda: None):
        self.before = before
        self.after = after

    def link(self, old: str, new: str) -> None:
        self.before()
        super().link(old, new)
        self.after()


async def test_it_passes_the_check(root: Path) -> None:
    """[ONE-1, ONE-2, ONE-3, ONE-7]"""

    async def connect() -> FileLeaseStore:
        return FileLeaseStore(root, poll_s=0.01)

    await check_store(connect)


@pytest.mark.slow
async def test_processes_race_for_slots(root: Path) -> None:
    """[ONE-2, ONE-3, LEA-5]"""

    async def connect() -> FileLeaseStore:
        return FileLeaseStore(root, poll_s=0.01)

    claimant = [sys.executable, "-m", "sterna.testing.claimant", os.fspath(root)]
    await check_store(connect, claimant=claimant, processes=6)
    assert claims(root) == []


async def test_the_layout(root: Path) -> None:
    """A slot is one file, whole from the first moment, and nothing else stays [LEA-4, LEA-5]."""
    store = FileLeaseStore(root)
    await store.claim(GUEST, 1, OURS)
    await store.claim(GUEST, 2, THEIRS)
    assert slot(root, 1).read_bytes() == encode_slot(GUEST, 1, OURS)
    assert sorted(path.name for path in (root / GUEST.hex()).iterdir()) == [f"{1:020}", f"{2:020}"]


@pytest.mark.parametrize("fault", Fault)
async def test_faults_on_the_way(root: Path, fault: Fault) -> None:
    """[ONE-7, ONE-8]"""
    store = FileLeaseStore(root)
    faulty = FaultyStore(store, [fault], slow_s=0.0)
    try:
        named = await faulty.claim(GUEST, 1, OURS)
    except StoreUnavailable:
        named = await faulty.claim(GUEST, 1, OURS)
    assert named == OURS
    await faulty.land()
    assert await store.claim(GUEST, 1, THEIRS) == OURS


class Full(OsFiles):
    """A disk without room for the content of files; or one on which link(2) fails after it was made."""

    def __init__(self, *, at_link: bool) -> None:
        self.at_link = at_link

    def create(self, path: str, data: bytes, mode: int) -> None:
        super().create(path, data if self.at_link else b"", mode)
        if not self.at_link:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def link(self, old: str, new: str) -> None:
        super().link(old, new)
        raise OSError(errno.EIO, os.strerror(errno.EIO), new)


@pytest.mark.parametrize("at_link", [False, True])
async def test_a_claim_that_fails_leaves_no_file(root: Path, at_link: bool) -> None:
    """It is repeated every two seconds, for as long as it takes [ONE-7]."""
    with pytest.raises(StoreUnavailable):
        await FileLeaseStore(root, files=Full(at_link=at_link)).claim(GUEST, 1, OURS)
    assert claims(root) == []
    assert await FileLeaseStore(root).claim(GUEST, 1, THEIRS) == (OURS if at_link else THEIRS)


async def test_links_answer_is_not_believed(root: Path) -> None:
    """NFS: the reply to link() is lost, the repeated call says "exists", and the link was ours [LEA-5]."""

    def lost() -> None:
        raise FileExistsError(errno.EEXIST, "File exists")

    store = FileLeaseStore(root, files=Disturbed(after=lost))
    assert await store.claim(GUEST, 1, OURS) == OURS


async def test_somebody_else_is_a_moment_quicker(root: Path) -> None:
    """[ONE-2, LEA-5]"""

    def quicker() -> None:
        other = OsFiles()
        other.create(f"{root}/quick", encode_slot(GUEST, 1, THEIRS), 0o600)
        other.link(f"{root}/quick", os.fspath(slot(root, 1)))

    store = FileLeaseStore(root, files=Disturbed(before=quicker))
    assert await store.claim(GUEST, 1, OURS) == THEIRS


async def test_a_claimant_dies_before_its_link(root: Path) -> None:
    """What it leaves fills nothing, and the next winner removes it [LEA-7]."""

    def die() -> None:
        raise Crashed

    dead = FileLeaseStore(root, files=Disturbed(before=die))
    with pytest.raises(Crashed):
        await dead.claim(GUEST, 1, OURS)
    store = FileLeaseStore(root)
    assert await store.read(GUEST, 1) is None
    assert len(claims(root)) == 1
    assert await store.claim(GUEST, 1, THEIRS) == THEIRS
    assert claims(root) == []


async def test_a_claim_lands_after_its_claimant_has_given_up(root: Path) -> None:
    """The call hangs in the storage, its caller gives up, and the link is made later all the same [ONE-8]."""
    hangs, landed = threading.Event(), threading.Event()
    files = Disturbed(before=lambda: (hangs.wait(), None)[1], after=landed.set)
    slow = FileLeaseStore(root, within_s=0.3, files=files)
    with pytest.raises(StoreUnavailable, match=r"no answer for 0\.3 s"):
        await slow.claim(GUEST, 1, OURS)
    store = FileLeaseStore(root)
    assert await store.read(GUEST, 1) is None
    hangs.set()
    await trio.to_thread.run_sync(landed.wait)
    assert await store.claim(GUEST, 1, THEIRS) == OURS


async def test_a_late_claim_finds_the_slot_filled(root: Path) -> None:
    """Its file may even have been removed by the winner: it still learns whose the slot is [LEA-7]."""
    hangs, began = threading.Event(), threading.Event()

    def wait() -> None:
        began.set()
        hangs.wait()

    late = FileLeaseStore(root, files=Disturbed(before=wait))
    answers: list[Runner | None] = []

    async def claim() -> None:
        answers.append(await late.claim(GUEST, 1, OURS))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(claim)
        await trio.to_thread.run_sync(began.wait)
        assert await FileLeaseStore(root).claim(GUEST, 1, THEIRS) == THEIRS
        assert claims(root) == []
        hangs.set()
    assert answers == [THEIRS]


async def test_a_claim_whose_file_was_removed_is_made_again(root: Path) -> None:
    def tidy() -> None:
        for path in claims(root):
            path.unlink()

    with pytest.raises(StoreUnavailable, match="removed by somebody else"):
        await FileLeaseStore(root, files=Disturbed(before=tidy)).claim(GUEST, 1, OURS)
    assert await FileLeaseStore(root).claim(GUEST, 1, OURS) == OURS


async def test_a_reader_syncs_before_it_names(root: Path) -> None:
    """It may be quicker than the claimant, whose link a crash could still take back [ONE-3, LEA-6]."""
    synced: list[str] = []

    class Watched(OsFiles):
        def sync_directory(self, path: str) -> None:
            synced.append(path)
            super().sync_directory(path)

    await FileLeaseStore(root).claim(GUEST, 1, OURS)
    assert await FileLeaseStore(root, files=Watched()).read(GUEST, 1) == OURS
    assert synced == [f"{root}/{GUEST.hex()}", f"{root}"]

    class Failing(OsFiles):
        def sync_directory(self, path: str) -> None:
            raise OSError(errno.EIO, "Input/output error", path)

    with pytest.raises(StoreUnavailable, match="Input/output error"):
        await FileLeaseStore(root, files=Failing()).read(GUEST, 1)


async def test_a_mount_point_without_its_mount_is_no_store(tmp_path: Path) -> None:
    """An empty directory must not become a second store [LEA-3]."""
    store = FileLeaseStore(tmp_path)
    for call in (store.claim(GUEST, 1, OURS), store.read(GUEST, 1), store.newest(GUEST)):
        with pytest.raises(StoreUnavailable, match="mount it, or make one"):
            await call
    assert names(tmp_path) == []


async def test_another_store_in_its_place(root: Path, tmp_path: Path) -> None:
    """[LEA-3]"""
    store = FileLeaseStore(root)
    await store.claim(GUEST, 1, OURS)
    move(root, tmp_path / "elsewhere")
    create_file_store(root)
    with pytest.raises(StoreDamaged, match="another lease store than before"):
        await store.read(GUEST, 1)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"sterna_store": 2, "id": ""}', "[" * 200, "x" * 9999])
async def test_a_marker_that_is_none(root: Path, text: str) -> None:
    (root / "store").write_text(text)
    with pytest.raises(StoreDamaged, match="is not what"):
        await FileLeaseStore(root).read(GUEST, 1)
    with pytest.raises(ConfigError, match="is not what"):
        create_file_store(root)


async def test_the_newest_slot(root: Path) -> None:
    store = FileLeaseStore(root)
    assert await store.newest(GUEST) is None
    for epoch in range(1, 6):
        await store.claim(GUEST, epoch, Runner("h", bytes([epoch]) * 16))
        assert await store.newest(GUEST) == Slot(epoch, Runner("h", bytes([epoch]) * 16))


async def test_a_listing_may_be_old(root: Path) -> None:
    """NFS keeps listings for a while; slots are looked up by name behind the last one."""

    class Old(OsFiles):
        def names(self, path: str, most: int) -> list[str] | None:
            return [name for name in super().names(path, most) or () if name < f"{2:020}"]

    for epoch in (1, 2, 3):
        await FileLeaseStore(root).claim(GUEST, epoch, OURS)
    assert await FileLeaseStore(root, files=Old()).newest(GUEST) == Slot(3, OURS)


@pytest.mark.parametrize("gone", [1, 2])
async def test_an_emptied_slot_is_noticed(root: Path, gone: int) -> None:
    """[ONE-1]"""
    store = FileLeaseStore(root)
    for epoch in (1, 2, 3):
        await store.claim(GUEST, epoch, OURS)
    slot(root, gone).unlink()
    with pytest.raises(StoreDamaged, match=f"slot {gone} of guest .* is gone"):
        await store.newest(GUEST)


async def test_an_emptied_slot_is_not_filled_again(root: Path) -> None:
    """It would get a second runner, and both might run the guest [ONE-3]."""
    store = FileLeaseStore(root)
    for epoch in (1, 2, 3):
        await store.claim(GUEST, epoch, Runner("ours", bytes([epoch]) * 16))
    slot(root, 2).unlink()
    with pytest.raises(StoreDamaged, match=r"slot 2 of .* is gone"):
        await store.claim(GUEST, 2, THEIRS)
    assert not slot(root, 2).exists()
    assert claims(root) == []


async def test_slots_that_are_filled_meanwhile_are_no_hole(root: Path) -> None:
    """Two claimants are quicker, one with this slot and one with the next."""

    class Slow(OsFiles):
        def create(self, path: str, data: bytes, mode: int) -> None:
            super().create(path, data, mode)
            for epoch in (1, 2):
                slot(root, epoch).write_bytes(encode_slot(GUEST, epoch, THEIRS))

    assert await FileLeaseStore(root, files=Slow()).claim(GUEST, 1, OURS) == THEIRS


async def test_a_name_far_ahead_is_not_counted_up_to(root: Path) -> None:
    store = FileLeaseStore(root)
    await store.claim(GUEST, 1, OURS)
    slot(root, 10**18).write_text("planted")
    with pytest.raises(StoreDamaged, match="is gone"):
        await store.newest(GUEST)


async def test_too_many_names(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sterna.host.lease_files._NAMES_MAX", 3)
    store = FileLeaseStore(root)
    await store.claim(GUEST, 1, OURS)
    for name in ("x", "y"):
        (root / GUEST.hex() / name).touch()
    with pytest.raises(StoreDamaged, match="too many files"):
        await store.newest(GUEST)
    assert await store.claim(GUEST, 2, THEIRS) == THEIRS


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
async def test_what_is_no_file_is_no_slot(root: Path, kind: str) -> None:
    """[LEA-2] [LEA-6] Nobody is asked to try again, for nothing would change by that."""
    (root / GUEST.hex()).mkdir()
    place = slot(root, 1)
    match kind:
        case "link":
            place.symlink_to(root / "store")
        case "fifo":
            os.mkfifo(place)
        case _:
            place.mkdir()
    store = FileLeaseStore(root)
    for call in (store.claim(GUEST, 1, OURS), store.read(GUEST, 1), store.newest(GUEST)):
        with pytest.raises(StoreDamaged, match="is no plain file; somebody has to look"):
            await call


@pytest.mark.parametrize("text", [b"", b"planted", encode_slot(GUEST, 2, THEIRS), b"x" * 10_000])
async def test_what_is_planted_in_a_slot(root: Path, text: bytes) -> None:
    """[LEA-2]"""
    (root / GUEST.hex()).mkdir()
    slot(root, 1).write_bytes(text)
    store = FileLeaseStore(root)
    for call in (store.claim(GUEST, 1, OURS), store.claim(GUEST, 2, OURS), store.newest(GUEST)):
        with pytest.raises(StoreDamaged, match="somebody has to look"):
            await call
    assert slot(root, 1).read_bytes() == text


async def test_an_outage_before_and_after(root: Path, tmp_path: Path) -> None:
    """[ONE-8]"""
    store = FileLeaseStore(root)
    await store.claim(GUEST, 1, OURS)
    move(root, tmp_path / "away")
    with pytest.raises(StoreUnavailable, match="no lease store at"):
        await store.claim(GUEST, 2, OURS)
    move(tmp_path / "away", root)
    assert await store.claim(GUEST, 2, OURS) == OURS


async def test_a_watch_outlasts_an_outage(root: Path, tmp_path: Path) -> None:
    store = FileLeaseStore(root, poll_s=0.001)
    seen: list[Runner] = []

    async def watch() -> None:
        seen.append(await store.watch(GUEST, 1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        move(root, tmp_path / "away")
        with pytest.raises(StoreUnavailable):
            await store.read(GUEST, 1)
        move(tmp_path / "away", root)
        await store.claim(GUEST, 1, THEIRS)
    assert seen == [THEIRS]


def test_making_a_store(tmp_path: Path) -> None:
    root = tmp_path / "leases"
    first = create_file_store(root)
    assert create_file_store(root) == first
    assert [path.name for path in root.iterdir()] == ["store"]
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="not empty"):
        create_file_store(tmp_path)
    with pytest.raises(ConfigError, match="cannot make a lease store"):
        create_file_store(tmp_path / "file")
    with pytest.raises(ConfigError, match="No such file"):
        create_file_store(tmp_path / "a" / "b")


MARKER = b'{"sterna_store": 1, "id": "%s"}\n' % (b"0" * 32)
OPERATIONS = 60  # of three claims, and some more


async def claim_three(files: CrashFiles, host: str, named: dict[int, Runner]) -> None:
    """Claim three slots, and check what is named against all that was ever named."""
    store = FileLeaseStore("/leases", files=files)
    for epoch in (1, 2, 3):
        runner = await store.claim(GUEST, epoch, Runner(host, bytes([epoch]) * 16))
        assert runner is not None
        assert named.setdefault(epoch, runner) == runner
        newest = await store.newest(GUEST)
        assert newest is not None
        assert newest.epoch >= max(named)  # one that nobody was told of may be there
        assert named.setdefault(newest.epoch, newest.runner) == newest.runner


plans = st.lists(st.tuples(st.booleans(), st.integers(1, OPERATIONS)), max_size=5)


@pytest.mark.slow
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), plans=plans)
def test_whoever_was_named_is_named_after_any_crash(seed: int, plans: list[tuple[bool, int]]) -> None:
    """The machine that keeps the files crashes, or has errors, at any operation [ONE-3, LEA-6]."""
    files = CrashFiles(random.Random(seed))
    files.make_directory("/leases", 0o777)
    files.create("/leases/store", MARKER, 0o666)
    files.sync_directory("/leases")
    files.sync_directory("/")
    named: dict[int, Runner] = {}
    for number, (crash, operation) in enumerate(plans):
        files.plan(**{"crash_at" if crash else "fail_at": operation})
        with suppress(Crashed, StoreUnavailable):
            trio.run(claim_three, files, f"host{number}", named)
        files = files.restarted()
    trio.run(claim_three, files, "last", named)
    trio.run(claim_three, files.restarted(), "after all", named)
    assert len(named) == 3
