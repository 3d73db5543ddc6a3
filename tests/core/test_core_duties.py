"""Every request becomes the call that it is named for, in the order that undoing a grant needs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sterna.core import events as e
from sterna.core.duties import NoRecords, pages_of, reserve, serve_destination, serve_source
from sterna.core.records import Granted, Start, Voided
from sterna.errors import GuestError
from sterna.guest.api import GuestDescription
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode, Mode, Owner, StateKind, Style, Transfer
from sterna.testing.pair import run_now
from sterna.wire.records import NO_ID, Hello, Region, Runner, StateSection, Verdict

PAGE = 4096
RUNNER = Runner("here", b"\1" * 16)
SESSION = b"\3" * 16
HELLO = Hello(Mode.VERDICT, (1,), (), {}, NO_ID, 6, RUNNER, session=SESSION)
VERDICT = Verdict(Owner.SOURCE, 7, RUNNER)
SECTION = StateSection(StateKind.WORKLOAD, 1, b"registers")
DESCRIPTION = GuestDescription(b"\2" * 16, "guest", (Region(3, 0, PAGE),))


class Recorder:
    """Guest of both roles and host in one: notes every call, and answers with what it is told to."""

    def __init__(self, **answers) -> None:
        self.calls = []
        self.answers = answers
        self.views = {3: memoryview(bytearray(PAGE))}

    def memory(self, region):
        return self.views[region]

    async def unwritten(self):
        self.calls.append(("unwritten",))
        return self.answers.get("unwritten")

    def __getattr__(self, name):
        async def call(*arguments):
            self.calls.append((name, *arguments))
            return self.answers.get(name)

        return call


DIRTY, UNWRITTEN = {3: "bitmap"}, {3: "zeros"}
SOURCE = [
    (e.StartTracking(), [("start_tracking",), ("unwritten",)], UNWRITTEN),
    (e.CollectDirty(last=True), [("collect_dirty",)], DIRTY),
    (e.Throttle(0.25), [("throttle", 0.25)], None),
    (e.Pause(), [("pause",)], None),
    (e.SaveState(), [("save_state",)], [SECTION]),
    (e.MarkGranted(7), [("mark_granted", 7)], None),
    (e.Persist(Granted(SESSION, 7)), [("persist", Granted(SESSION, 7))], None),
    (e.ProbeStore(6, RUNNER), [("probe", 6, RUNNER)], None),
    (e.RollBack(), [("stop_tracking",), ("throttle", 0.0), ("resume",)], None),
    (e.ReleaseImage(), [("release",)], None),
]
DESTINATION = [
    (e.Prepare(Style.STOP_AND_COPY), [("prepare",)], None),
    (e.Prepare(Style.BITMAP, {0: PageBitmap(4)}), [("prepare",), ("expect", {0: PageBitmap(4)})], None),
    (e.Prepare(Style.BITMAP, notes_bytes=7), [("prepare",), ("prepare_notes", 7)], None),
    (e.LoadState((SECTION,)), [("load_state", (SECTION,))], None),
    (e.Persist(Start(7)), [("persist", Start(7))], None),
    (e.ProbeStore(6, RUNNER), [("probe", 6, RUNNER)], None),
    (e.Claim(7, RUNNER), [("claim", 7, RUNNER)], RUNNER),
    (e.TakeStorage(), [("take_storage",)], None),
    (e.AnswerVerdict(HELLO), [("verdict", HELLO)], VERDICT),
    (e.RunGuest(7, RUNNER), [("run", 7, RUNNER)], None),
    (e.Discard(), [("discard",)], None),
]
ALL = [each for each, *_ in SOURCE + DESTINATION]


def name(value: object) -> str:
    return type(value).__name__


@pytest.mark.parametrize(("request_", "calls", "answer"), SOURCE, ids=name)
def test_requests_of_a_source(request_, calls, answer):
    both = Recorder(
        collect_dirty=DIRTY, save_state=[SECTION], stop_tracking="of no interest", unwritten=UNWRITTEN
    )
    assert run_now(serve_source(both, both, request_)) == answer
    assert both.calls == calls


@pytest.mark.parametrize(("request_", "calls", "answer"), DESTINATION, ids=name)
def test_requests_of_a_destination(request_, calls, answer):
    both = Recorder(claim=RUNNER, run="of no interest", verdict=VERDICT)
    both.can_post_copy = True
    assert run_now(serve_destination(both, both, request_)) == answer
    assert both.calls == calls


@pytest.mark.parametrize("size_bytes", [0, 7])
def test_where_notes_will_be_kept_is_told(size_bytes):
    """[PCY-16] They are written there when they are complete, and by whom it was told."""
    both = Recorder(prepare_notes=memoryview(bytearray(size_bytes)))
    both.can_post_copy = True
    answer = run_now(serve_destination(both, both, e.Prepare(Style.BITMAP, notes_bytes=7)))
    assert answer == (both.answers["prepare_notes"] if size_bytes else None)
    both.calls.clear()
    stale = {0: PageBitmap.full(4)}
    notes = SimpleNamespace(size_bytes=7)  # whose `move_to` would be missed
    run_now(serve_destination(both, both, e.Expect(stale, notes, ahead=True)))
    assert both.calls == [("expect", stale), ("notes", 7)]


def test_what_a_guest_cannot_is_not_asked_of_it():
    """[PCY-5] To take back what was never asked for is nothing; to wait for pages is refused in time.

    Where it can, and nothing is stale, the notes of an attempt before go with what was expected [PCY-16].
    """
    both = Recorder()
    both.can_post_copy = False
    run_now(serve_destination(both, both, e.Expect({}, None)))
    assert both.calls == []
    with pytest.raises(GuestError) as error:
        run_now(serve_destination(both, both, e.Prepare(Style.BITMAP)))
    assert error.value.code is ErrorCode.UNSUPPORTED
    both.can_post_copy = True
    run_now(serve_destination(both, both, e.Expect({}, None)))
    assert both.calls == [("expect", {}), ("notes", 0)]


def test_the_mark_of_a_void_grant_goes_and_the_guest_runs_last():
    """[ONE-19]"""
    both = Recorder()
    run_now(serve_source(both, both, e.RollBack(Voided(SESSION, 7))))
    assert both.calls == [
        ("revoke_grant", 7),
        ("stop_tracking",),
        ("throttle", 0.0),
        ("resume",),
    ]


@pytest.mark.parametrize(
    ("serve", "own"),
    [(serve_source, SOURCE), (serve_destination, DESTINATION)],
    ids=["source", "destination"],
)
def test_requests_of_the_other_role_and_of_the_driver_are_refused(serve, own):
    own_types = {type(each) for each, *_ in own}
    others = [each for each in ALL if type(each) not in own_types]
    for request in [*others, e.Admit(HELLO), e.Reserve(DESCRIPTION.to_record())]:
        both = Recorder()
        with pytest.raises(GuestError, match=f"{name(request)} is not for a"):
            run_now(serve(both, both, request))
        assert both.calls == []


def test_without_records_every_claim_is_won():
    records = NoRecords()
    assert run_now(records.persist(Start(1))) is None
    assert run_now(records.probe(1, RUNNER)) is None
    assert run_now(records.claim(1, RUNNER)) is RUNNER


def test_without_records_nothing_is_known_of_any_session():
    """[ONE-46]"""
    verdict = run_now(NoRecords().verdict(HELLO))
    assert verdict == Verdict(Owner.UNDECIDED, HELLO.epoch, HELLO.runner)


def test_room_is_memory_of_the_regions_that_are_copied():
    shared = Region(4, 1 << 40, PAGE, transfer=Transfer.SHARED)
    description = GuestDescription(b"\2" * 16, "guest", (*DESCRIPTION.regions, shared))
    guest = Recorder()
    pages = run_now(reserve(guest, description))
    assert guest.calls == [("reserve", description)]
    assert pages.is_writable
    guest.views[3][:4] = b"data"
    assert bytes(pages.encode(3, [0], [1]).buffers[0][:4]) == b"data"


def test_memory_that_nothing_can_be_written_to_is_no_room():
    guest = Recorder()
    guest.views[3] = memoryview(bytes(PAGE))
    with pytest.raises(GuestError, match="read-only"):
        run_now(reserve(guest, DESCRIPTION))
    assert not pages_of(guest, DESCRIPTION).is_writable  # good enough for a source
