from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_guest_holder_server import serving

from descriptors_support import nothing_stays_open
from sterna.errors import GuestError
from sterna.guest import process
from sterna.guest.api import DestinationGuest, GuestDescription, SourceGuest, StateSection
from sterna.guest.holder_backend import HeldState
from sterna.guest.holder_client import HolderConnection, connect_holder
from sterna.guest.holder_engine import HolderEngine
from sterna.guest.holder_guests import HolderDestinationGuest, HolderSourceGuest
from sterna.guest.journal import boottime_ns
from sterna.guest.late_pages import why_no_late_pages
from sterna.guest.process import ProcessGuest, ProcessSettings, describe
from sterna.guest.process_runner import WorkloadRunner
from sterna.guest.schedule import PAGE_BYTES, WorkloadParameters
from sterna.guest.workload import STATE_BYTES, STATE_VERSIONS
from sterna.memory.bitmap import PageBitmap
from sterna.registry import Architecture, ErrorCode, RegionKind, StateKind
from sterna.testing import check_guest
from sterna.wire.records import Disk, Nic, Region, Runner

MIB = 1 << 20
MEMORY = 4 * MIB
RATE = 32 * MIB
GUEST_ID = bytes(range(16))
HERE, THERE = Runner("here", b"h" * 16), Runner("there", b"t" * 16)
WITHIN_S = 30.0
TRACKERS = [pytest.param("userfaultfd", marks=pytest.mark.needs("pagemap_scan")), "compare"]


def description(**changes: object) -> GuestDescription:
    guest = describe("test", GUEST_ID, MEMORY)
    return GuestDescription(**{name: getattr(guest, name) for name in guest.__slots__} | changes)


def source(
    tracker: str = "compare", journal: Path | None = None, *, heads_only: bool = False
) -> ProcessGuest:
    path = None if journal is None else str(journal)
    guest = ProcessGuest(ProcessSettings(RATE, tracker, journal=path))
    parameters = WorkloadParameters.for_memory(MEMORY, MIB, seed=9, cold_every=4, heads_only=heads_only)
    guest.create(description(), parameters)
    return guest


def room(tracker: str = "compare", limit: int = 0, journal: Path | None = None) -> ProcessGuest:
    path = None if journal is None else str(journal)
    return ProcessGuest(ProcessSettings(RATE, tracker, limit, path))


def figure(guest: ProcessGuest, name: str) -> int | float:
    value = guest.status()[name]
    assert isinstance(value, int | float)
    return value


def wait_for_writes(guest: ProcessGuest, above: int = 0) -> None:
    """The workload tells when it has written; poll its count with a bound in steps, not in luck."""
    done = threading.Event()
    for _ in range(int(WITHIN_S / 0.001)):
        if figure(guest, "writes") > above:
            return
        done.wait(0.001)
    raise AssertionError("the workload does not write")


@contextlib.contextmanager
def closing(*guests: ProcessGuest) -> Iterator[None]:
    try:
        yield
    finally:
        for guest in guests:
            guest.close()


@pytest.mark.parametrize("tracker", TRACKERS)
@pytest.mark.parametrize("heads_only", [False, True])
def test_a_migration_by_hand(tracker: str, heads_only: bool, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    left, right = source(tracker, journal, heads_only=heads_only), room(tracker, journal=journal)
    with closing(left, right):
        assert left.tracker == tracker
        assert right.tracker == "none"
        left.run(1, HERE)
        right.reserve(left.description)
        here, there = left.memory()[0].map(), right.memory()[0].map()
        left.start_tracking()
        there.array[:] = here.array
        wait_for_writes(left, int(figure(left, "writes")))
        left.pause()
        assert left.status()["paused"] is True
        for start, count in zip(*left.collect()[0].runs(), strict=True):
            run = slice(start * PAGE_BYTES, (start + count) * PAGE_BYTES)
            there.array[run] = here.array[run]
        assert (there.array == here.array).all()
        right.prepare()
        (state,) = left.save_state()
        assert state.version == STATE_VERSIONS[heads_only]
        right.load_state((state,))
        left.mark_granted(2)
        right.run(2, THERE)
        count = figure(left, "writes")
        wait_for_writes(right, int(count))
        blackout_ns = figure(right, "first_write_ns") - figure(left, "last_write_ns")
        assert 0 < blackout_ns < boottime_ns()
        audit = right.audit()
        assert (audit["errors"], audit["errors_while_running"]) == (0, 0)
        assert audit["pages_checked"] == MEMORY // PAGE_BYTES
        assert audit["writes"] == audit["generations"] > count
        wait_for_writes(right, audit["writes"])  # an audit only holds it up
        left.release()
        assert left.status()["writes"] == count
        assert not here.array.any()
        here.close()
        there.close()
    check_journal(journal)


def check_journal(path: Path) -> None:
    """No fork: counts grow, epochs do not fall, an epoch has one runner."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    events = [line[4] for line in lines]
    assert [event for event in events if event != "beat"] == ["run", "pause", "granted", "run", "end"]
    running = [line for line in lines if line[4] in {"run", "resume", "beat"}]
    counts = [line[0] for line in running]
    assert counts == sorted(set(counts))
    assert [line[1] for line in lines] == sorted(line[1] for line in lines)
    assert {(line[1], line[2]) for line in lines} == {
        (1, f"here:{HERE.id.hex()}"),
        (2, f"there:{THERE.id.hex()}"),
    }
    assert [line[3] for line in lines] == sorted(line[3] for line in lines)


def test_one_that_is_stopped_before_its_first_write_leaves_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its count is that of the last epoch's last line, and the same count under two epochs is a fork."""
    journal = tmp_path / "journal"
    left, right = source(journal=journal), room(journal=journal)
    with closing(left, right):
        left.run(1, HERE)
        wait_for_writes(left)
        right.reserve(left.description)
        left.pause()
        there, here = right.memory()[0].map(), left.memory()[0].map()
        there.array[:] = here.array
        right.load_state(left.save_state())
        left.mark_granted(2)
        with monkeypatch.context() as patch:
            patch.setattr(WorkloadRunner, "_set", lambda *_: None)  # its thread does not hear of it
            right.run(2, THERE)
        right.pause()
        right.mark_granted(3)
        right.revoke_grant(3)
        right.resume()
        wait_for_writes(right, int(figure(left, "writes")))
        there.close()
        here.close()
    check_journal(journal)


def test_a_run_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[HOL-10]: above all, a granted guest stays one, and writes no end."""
    journal = tmp_path / "journal"
    guest = source(journal=journal)

    def fail(_: WorkloadRunner) -> None:
        raise GuestError("the workload failed")

    with closing(guest):
        guest.run(1, HERE)
        wait_for_writes(guest)
        guest.pause()
        guest.mark_granted(2)
        with monkeypatch.context() as patch:
            patch.setattr(WorkloadRunner, "_check", fail)
            with pytest.raises(GuestError, match="failed"):
                guest.run(2, THERE)
        assert guest.status()["paused"] is True
    assert json.loads(journal.read_text().splitlines()[-1])[4] == "granted"


def test_without_a_thread_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = room()

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(process.GuestMemory, "start_populating", refuse)
    with closing(guest), nothing_stays_open():
        try:
            guest.reserve(description())
        except GuestError as error:
            assert error.code is ErrorCode.FULL  # noqa: PT017 - its traceback must not keep the mapping
        assert guest.tracker == "none"


def workloads() -> int:
    return sum(thread.name == "the workload" for thread in threading.enumerate())


def test_the_thread_is_there_before_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether there is one to be had must not show when nobody can take the guest back any more."""
    before, guest = workloads(), room()
    with closing(guest):
        guest.reserve(description())
        with monkeypatch.context() as patch:
            patch.setattr(
                threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("no thread"))
            )
            with pytest.raises(GuestError, match="no thread") as caught:
                guest.prepare()
            assert caught.value.code is ErrorCode.FULL
        guest.prepare()
        guest.prepare()
        assert workloads() == before + 1
        guest.discard()
        assert workloads() == before
        guest.reserve(description())
        guest.prepare()
    assert workloads() == before


def test_pause_is_complete_and_resume_runs_on() -> None:
    """[HOL-24] [HOL-25] [SFX-1] [SFX-13] While it stands still nothing writes its memory, saving included."""
    guest = source()
    with closing(guest):
        guest.run(1, HERE)
        wait_for_writes(guest)
        guest.throttle(0.5)
        guest.pause()
        view = guest.memory()[0].map()
        before = bytes(view.view)
        state = guest.save_state()
        assert guest.save_state() == state
        assert bytes(view.view) == before
        first = figure(guest, "first_write_ns")
        count = int(figure(guest, "writes"))
        guest.resume()
        wait_for_writes(guest, count)
        guest.pause()
        assert figure(guest, "first_write_ns") > first
        guest.mark_granted(2)
        guest.revoke_grant(2)
        assert guest.audit()["errors"] == 0
        assert guest.status()["paused"] is True
        view.close()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"architecture": Architecture.X86_64}, ErrorCode.ARCHITECTURE),
        ({"cpu_features": ("avx512",)}, ErrorCode.CPU_FEATURES),
        ({"vcpus": 2}, ErrorCode.REFUSED),
        ({"regions": ()}, ErrorCode.REFUSED),
        ({"regions": (Region(0, 0, MIB), Region(1, MIB, MIB))}, ErrorCode.REFUSED),
        ({"disks": (Disk("d", "i", 1),)}, ErrorCode.REFUSED),
        ({"nics": (Nic("n", bytes(6)),)}, ErrorCode.REFUSED),
        ({"state_bytes": STATE_BYTES - 1}, ErrorCode.REFUSED),
        ({"regions": (Region(0, 0, MIB, kind=RegionKind.ROM),)}, ErrorCode.REGION_KIND),
        ({"regions": (Region(0, 0, MIB, granule_log2=16),)}, ErrorCode.PAGE_SIZE),
        ({"regions": (Region(1, 0, MIB),)}, ErrorCode.REFUSED),
        ({"regions": (Region(0, 0, MIB + 1),)}, ErrorCode.REFUSED),
        ({"regions": (Region(0, 0, MEMORY + PAGE_BYTES),)}, ErrorCode.FULL),
        ({"regions": (Region(0, 0, 1 << 52),)}, ErrorCode.FULL),
    ],
)
def test_guests_that_are_not_taken(changes: dict[str, object], code: ErrorCode) -> None:
    """[HOL-27] [CON-14] [CON-15] [SFX-5] [SEC-13] All it asks for is held against what there is."""
    guest = room(limit=MEMORY)
    with closing(guest):
        with pytest.raises(GuestError) as caught:
            guest.reserve(description(**changes))
        assert caught.value.code is code
        guest.reserve(description())
        guest.discard()
        guest.reserve(description())


def test_a_room_that_is_there_beforehand_is_for_the_first_guest_that_fits_it() -> None:
    """Every page of it, and its file is the one that the guest gets."""
    guest = room()
    with closing(guest):
        guest.make_room(MEMORY)
        made = guest._room
        assert made is not None
        assert os.fstat(made.file.fileno()).st_blocks * 512 == MEMORY
        guest.reserve(description())
        assert guest._image is made
        guest.discard()
        guest.reserve(description())
        assert guest._image is not made


def test_a_room_of_another_size_is_given_back() -> None:
    guest = room()
    with closing(guest):
        guest.make_room(2 * MEMORY)
        guest.reserve(description())
        assert guest._image is not None
        assert guest._image.map.size_bytes == MEMORY
        assert guest._room is None


def test_no_memory_for_a_room() -> None:
    guest = ProcessGuest(ProcessSettings(tracker="compare"), lambda: MEMORY - 1)
    with closing(guest), pytest.raises(GuestError) as caught:
        guest.make_room(MEMORY)
    assert caught.value.code is ErrorCode.FULL


def test_a_host_without_enough_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    full = ProcessGuest(ProcessSettings(tracker="compare"), lambda: MEMORY - 1)
    with closing(full), pytest.raises(GuestError) as caught:
        full.reserve(description())
    assert caught.value.code is ErrorCode.FULL

    def refuse(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(process, "GuestMemory", refuse)
    guest = room()
    with closing(guest), pytest.raises(GuestError) as caught:
        guest.reserve(description())
    assert caught.value.code is ErrorCode.FULL


def test_memory_that_is_promised_and_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = room()

    def refuse(_: object) -> None:
        raise MemoryError("populating memory: Cannot allocate memory")

    with closing(guest):
        guest.reserve(description())
        monkeypatch.setattr(process.GuestMemory, "wait_populated", refuse)
        with pytest.raises(GuestError) as caught:
            guest.prepare()
        assert caught.value.code is ErrorCode.FULL


def test_no_memory_for_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise MemoryError

    guest = source()
    with closing(guest):
        monkeypatch.setattr("sterna.guest.tracker.CompareTracker.start", refuse)
        with pytest.raises(GuestError) as caught:
            guest.start_tracking()
        assert caught.value.code is ErrorCode.FULL


def test_a_machine_that_cannot_hold_accesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """[HOL-38] Whatever it is that the kernel lacks, the room is as before."""
    guest = room()
    why_no_late_pages.cache_clear()
    monkeypatch.setattr("sterna.linux.userfaultfd._WAYS", ())
    with closing(guest):
        assert not guest.can_post_copy
        guest.reserve(description())
        with pytest.raises(GuestError) as caught:
            guest.expect({0: PageBitmap.full(MEMORY // PAGE_BYTES)})
        assert caught.value.code is ErrorCode.UNSUPPORTED
        assert guest.late_pages is None
        guest.prepare()
    why_no_late_pages.cache_clear()


def test_an_owner_who_does_not_want_it() -> None:
    """[HOL-38]"""
    guest = ProcessGuest(ProcessSettings(RATE, "compare", post_copy=False))
    with closing(guest):
        assert not guest.can_post_copy
        guest.reserve(description())
        with pytest.raises(GuestError) as caught:
            guest.expect({0: PageBitmap.full(MEMORY // PAGE_BYTES)})
        assert caught.value.code is ErrorCode.UNSUPPORTED
        assert guest.late_pages is None


@pytest.mark.needs("minor_faults")
def test_pages_that_are_expected_in_vain() -> None:
    """[HOL-10] [HOL-38] Closed, discarded or taken back, nothing is held any more."""
    with nothing_stays_open():
        everything = {0: PageBitmap.full(MEMORY // PAGE_BYTES)}
        guest = room()
        with closing(guest):
            for _ in range(2):
                guest.reserve(description())
                guest.expect({})
                assert guest.late_pages is None
                guest.expect(everything)
                assert guest.late_pages is not None
                with pytest.raises(GuestError) as caught:
                    guest.expect({1: PageBitmap(1)})
                assert caught.value.code is ErrorCode.BAD_VALUE
                guest.expect({})
                assert guest.late_pages is None
                guest.expect(everything)
                del caught
                guest.discard()
            guest.reserve(description())
            guest.expect(everything)


def test_states_that_are_not_taken() -> None:
    """[HOL-28]"""
    left, right = source(), room()
    with closing(left, right):
        (good,) = left.save_state()
        unknown = (
            StateSection(StateKind.OPAQUE, good.version, good.data),
            StateSection(good.kind, 0, good.data),
            StateSection(good.kind, 3, good.data),
            StateSection(good.kind, good.version, good.data, architecture=Architecture.X86_64),
        )
        rejected: list[tuple[StateSection, ...]] = [
            (),
            (good, good),
            (StateSection(good.kind, good.version, good.data[:-1] + b"\0"),),
            (StateSection(good.kind, good.version, b""),),
            (StateSection(good.kind, good.version + 1, good.data),),  # it is not: that writes heads alone
        ]
        right.reserve(description())
        for sections, code in (
            *(((section,), ErrorCode.UNKNOWN_STATE) for section in unknown),
            *(((good, section), ErrorCode.UNKNOWN_STATE) for section in unknown),
            *((sections, ErrorCode.STATE_REJECTED) for sections in rejected),
        ):
            with pytest.raises(GuestError) as caught:
                right.load_state(sections)
            assert caught.value.code is code
        other = room()
        with closing(other):
            other.reserve(description(regions=(Region(0, 0, 2 * MEMORY),)))
            with pytest.raises(GuestError) as caught:
                other.load_state((good,))  # of a guest of another size
            assert caught.value.code is ErrorCode.STATE_REJECTED
        right.load_state((good,))


def test_a_wrong_page_is_found_by_the_guest_itself() -> None:
    left, right = source(), room()
    with closing(left, right):
        right.reserve(description())
        here, there = left.memory()[0].map(), right.memory()[0].map()
        there.array[:] = here.array
        there.array[7 * PAGE_BYTES + 100] ^= 1
        right.load_state(left.save_state())
        assert right.audit()["errors"] == 1
        here.close()
        there.close()


@pytest.mark.slow
@pytest.mark.parametrize("tracker", TRACKERS)
async def test_check_guest(tracker: str, tmp_path: Path) -> None:
    """The laws of `sterna.guest.api`, over the holder protocol, in real time."""
    with contextlib.ExitStack() as stack:
        connections: list[HolderConnection] = []

        async def connect(name: str, engine: HolderEngine) -> HolderConnection:
            stack.enter_context(serving(tmp_path / name, engine))
            connections.append(await connect_holder(tmp_path / name))
            return connections[-1]

        async def make_source() -> SourceGuest:
            guest = source(tracker)
            guest.run(1, HERE)
            engine = HolderEngine(guest, state=HeldState.RUNNING, epoch=1, runner=HERE)
            return await HolderSourceGuest.open(await connect(f"source{len(connections)}", engine))

        async def make_destination() -> DestinationGuest:
            name = f"destination{len(connections)}"
            return HolderDestinationGuest(await connect(name, HolderEngine(room(tracker))))

        async def audit(guest: SourceGuest | DestinationGuest) -> int:
            assert isinstance(guest, HolderSourceGuest | HolderDestinationGuest)
            found = await guest.connection.audit()
            assert isinstance(found["errors"], int)
            return found["errors"]

        try:
            await check_guest(make_source, make_destination, step_s=0.02, audit=audit)
        finally:
            for connection in connections:
                await connection.aclose()
