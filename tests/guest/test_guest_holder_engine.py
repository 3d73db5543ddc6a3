from __future__ import annotations

import os
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_guest_holder_backend import DESCRIPTION, PAGES, STATE, FakeHeld

import clauses
from sterna.errors import GuestError
from sterna.guest import holder_fields as fields_of
from sterna.guest.holder_backend import HeldState
from sterna.guest.holder_connection import ATTACH_WITHIN_S
from sterna.guest.holder_engine import OPERATIONS, RESERVED_OPERATIONS, HolderEngine, Party
from sterna.guest.holder_frames import FRAME_BYTES, FRAME_DESCRIPTORS, Frame
from sterna.guest.stale_pages import NOTES_BYTES, NOTES_BYTES_A_PAGE, notes_limit
from sterna.linux.memfd import MemoryFile, has_fixed_size
from sterna.registry import ErrorCode

S = HeldState
RUNNER = {"host": "here", "id": "ab" * 16}
NEXT = {"epoch": 5, "runner": RUNNER}  # of a guest that runs under epoch 4
IMAGE = "1a" * 16
GUEST = {"description": fields_of.description_to_json(DESCRIPTION), "image": IMAGE}
TABLE, STATE_DATA = fields_of.sections_to_json(STATE)
# For every operation a request that is right wherever it is legal.
GOOD: dict[str, dict[str, Any]] = {
    "throttle": {"share": 0.5},
    "grant": {"epoch": 5},
    "revoke": {"epoch": 5},
    "reserve": GUEST,
    "load_state": {"sections": TABLE},
    "run": NEXT,
    "expect": {"bitmaps": []},
}
FILES = {"load_state": STATE_DATA, "expect": bytes(24)}  # what comes along
WAYS: dict[HeldState, tuple[str, ...]] = {
    S.RUNNING: (),
    S.PAUSED: ("pause",),
    S.GRANTED: ("pause", "grant"),
    S.RELEASED: ("pause", "grant", "release"),
    S.EMPTY: (),
    S.RESERVED: ("reserve",),
    S.LOADED: ("reserve", "load_state"),
}


class Rig:
    """An engine with a fake guest and one attached party."""

    def __init__(self, state: HeldState = S.RUNNING, *, epoch: int | None = None) -> None:
        empty = state in {S.EMPTY, S.RESERVED, S.LOADED}
        self.guest = FakeHeld(with_guest=not empty)
        self.engine = HolderEngine(self.guest, state=S.EMPTY if empty else S.RUNNING, epoch=0 if empty else 4)
        self.party = self.attach()
        for operation in WAYS[state]:
            self.ask(operation)
        assert self.engine.state is state
        if epoch is not None:
            self.party = self.attach(epoch=epoch)
        self.guest.calls.clear()

    def attach(self, **fields: Any) -> Party:
        party = Party()
        self.engine.attach(Frame({"version": 1, "role": "controller", **fields}), party)
        return party

    def ask(self, operation: str, fields: dict[str, Any] | None = None, party: Party | None = None) -> Any:
        file = MemoryFile.of_bytes("test", FILES[operation]) if operation in FILES else None
        descriptors = () if file is None else (file.fileno(),)
        try:
            frame = Frame(GOOD.get(operation, {}) if fields is None else fields, descriptors)
            answer = self.engine.request(operation, frame, party or self.party)
        finally:
            if file is not None:
                file.close()
        for descriptor in answer.closing:
            os.close(descriptor)
        return answer.fields

    def refused(self, operation: str, *arguments: Any) -> ErrorCode:
        before = (self.engine.state, self.engine.epoch, self.engine.granted_epoch, list(self.guest.calls))
        with pytest.raises(GuestError) as caught:
            self.ask(operation, *arguments)
        after = (self.engine.state, self.engine.epoch, self.engine.granted_epoch, list(self.guest.calls))
        assert before == after  # [HOL-10]
        return caught.value.code

    def close(self) -> None:
        self.engine.close()


LEGAL = {
    "describe": "reserved loaded running paused granted",
    "memory": "reserved loaded running paused granted",
    "track_start": "running paused",
    "track_collect": "running paused",
    "track_stop": "empty reserved loaded running paused granted released",
    "pause": "running paused",
    "resume": "running paused",
    "throttle": "running paused",
    "save_state": "paused",
    "grant": "paused granted",
    "revoke": "paused granted",
    "reserve": "empty",
    "prepare": "reserved loaded",
    "load_state": "reserved loaded",
    "run": "loaded granted",
    "expect": "reserved loaded",
    "faults": "reserved loaded running paused granted",
    "installed": "reserved loaded running paused granted",
    "notes": "reserved loaded running paused granted",
    "discard": "reserved loaded",
    "release": "granted released",
    "status": "empty reserved loaded running paused granted released",
    "audit": "loaded running paused granted",
    "shutdown": "empty reserved loaded running paused granted released",
}


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("operation", LEGAL)
def test_every_operation_in_every_state(operation: str, state: HeldState) -> None:
    """[HOL-17]: the table of spec/holder.md, section 5."""
    rig = Rig(state)
    if state in LEGAL[operation].split():
        assert isinstance(rig.ask(operation), dict)
    else:
        late = state in {S.GRANTED, S.RELEASED}
        assert rig.refused(operation) is (ErrorCode.TOO_LATE if late else ErrorCode.UNEXPECTED_FRAME)
    rig.close()


def test_the_table_is_complete() -> None:
    assert LEGAL.keys() == OPERATIONS.keys()
    assert not OPERATIONS.keys() & RESERVED_OPERATIONS


ROOT = Path(__file__).parents[2]
HOLDER_MD = (ROOT / "spec" / "holder.md").read_text()


def test_the_document_has_the_same_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w*) \| ([^|]*) \|", HOLDER_MD, re.MULTILINE)
    table = {name: (right, states.strip()) for name, right, states in rows if name not in set(S)}
    assert table.keys() - {"attach", "detach"} == OPERATIONS.keys()
    everywhere = {str(state) for state in S}
    for name, operation in OPERATIONS.items():
        right, words = table[name]
        assert right == ("any" if operation.observer else "run" if operation.run_right else "read"), name
        excepted = re.fullmatch(r"all but (.*)", words)
        stated = set(re.findall(r"\w+", excepted[1] if excepted else words))
        states = everywhere - stated if excepted else everywhere if words == "all" else stated
        assert states == {str(state) for state in operation.states}, name
    reserved = HOLDER_MD.partition("Reserved for later drafts")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", reserved.partition("UNSUPPORTED")[2])) == RESERVED_OPERATIONS


@pytest.mark.parametrize(
    ("clause", "words"),
    [
        ("HOL-2", f"within {ATTACH_WITHIN_S:.0f} seconds"),  # [HOL-2]
        ("HOL-4", f"above {FRAME_BYTES:,} ends".replace(",", " ")),  # [HOL-4]
        ("HOL-5", f"at most {FRAME_DESCRIPTORS}."),  # [HOL-5]
        ("HOL-6", f"more than {FRAME_DESCRIPTORS},"),  # [HOL-6]
        ("HOL-37", f"({fields_of.STATE_BYTES >> 20} MiB)"),  # [HOL-37]
        ("HOL-37", f"at most {fields_of.STATE_SECTIONS} sections"),  # [HOL-37]
        ("HOL-45", f"More than {NOTES_BYTES_A_PAGE} bytes a page and {NOTES_BYTES >> 20} MiB"),  # [HOL-45]
    ],
)
def test_the_document_has_the_same_numbers(clause: str, words: str) -> None:
    assert words in clauses.load("holder.md")[clause].text


READING = {"describe", "memory", "release", "status", "audit"}


@pytest.mark.parametrize("state", [S.RUNNING, S.GRANTED])
@pytest.mark.parametrize("operation", LEGAL)
def test_a_lower_epoch_may_read_and_never_run(operation: str, state: HeldState) -> None:
    """[HOL-13] [ONE-23]"""
    rig = Rig(state, epoch=4 if state is S.GRANTED else 3)
    assert not rig.party.may_run
    if operation not in READING:
        assert rig.refused(operation) is ErrorCode.STALE_EPOCH
    elif state in LEGAL[operation].split():
        rig.ask(operation)
    rig.close()


@pytest.mark.parametrize("operation", [*LEGAL, "detach", "nonsense"])
def test_observers_look(operation: str) -> None:
    """[HOL-16]"""
    rig = Rig()
    party = rig.attach(role="observer", epoch=99)
    assert not party.may_run
    if operation in {"describe", "status"}:
        rig.ask(operation, None, party)
    else:
        code = rig.refused(operation, None, party)
        assert code in {ErrorCode.NOT_AUTHORISED, ErrorCode.UNSUPPORTED}
    rig.close()


@pytest.mark.parametrize("operation", [*sorted(RESERVED_OPERATIONS), "attach", "nonsense", ""])
def test_unknown_operations(operation: str) -> None:
    """[HOL-12]"""
    rig = Rig()
    assert rig.refused(operation) is ErrorCode.UNSUPPORTED
    rig.close()


def test_attaching() -> None:
    """[HOL-12] [HOL-13]"""
    rig = Rig()
    party = Party()
    answer = rig.engine.attach(Frame({"version": 1, "role": "controller"}), party).fields
    assert answer == {
        "version": 1,
        "kind": "fake",
        "rights": "run",
        "state": "running",
        "epoch": 4,
        "granted_epoch": 0,
        "runner": {"host": "", "id": "00" * 16},
        "image": rig.engine.image.hex(),
        "tracker": "told",
        "tracking": False,
        "post_copy": True,
        "missing": 0,
    }
    with pytest.raises(GuestError) as caught:
        rig.attach(version=2)
    assert caught.value.code is ErrorCode.NO_COMMON_VERSION
    for fields in ({"version": "1"}, {"role": "king"}, {"role": 1}, {"epoch": -1}, {"epoch": None}):
        with pytest.raises(GuestError) as caught:
            rig.attach(**fields)
        assert caught.value.code is ErrorCode.BAD_VALUE
    assert rig.attach(epoch=4).may_run
    assert rig.attach(epoch=5).may_run
    rig.close()


def test_who_states_no_epoch_may_not_run_a_granted_guest() -> None:
    """[HOL-13] [HOL-19]"""
    rig = Rig(S.GRANTED)
    assert not rig.attach().may_run
    assert not rig.attach(epoch=4).may_run
    assert rig.attach(epoch=5).may_run
    rig.close()


@pytest.mark.parametrize("state", S)
def test_when_the_controller_is_gone(state: HeldState) -> None:
    """[HOL-18] [HOL-19] [HOL-20] [HOL-21] [ONE-22]"""
    rig = Rig()
    if state in {S.RUNNING, S.PAUSED, S.GRANTED}:
        rig.ask("track_start")
        rig.ask("throttle", {"share": 0.9})
        for operation in WAYS[state]:
            rig.ask(operation)
    else:
        rig.close()
        rig = Rig(state)
    rig.guest.calls.clear()
    rig.engine.controller_gone()
    assert ("resume" in rig.guest.calls) == (state is S.PAUSED)
    assert "run" not in rig.guest.calls
    assert rig.engine.state is (S.RUNNING if state is S.PAUSED else state)
    assert rig.guest.share == 0.0
    assert not rig.ask("status")["tracking"]
    assert rig.ask("status")["granted_epoch"] == (5 if state in {S.GRANTED, S.RELEASED} else 0)
    if state in {S.RUNNING, S.PAUSED, S.GRANTED}:
        assert rig.guest.running is (state is not S.GRANTED)
        assert "stop_tracking" in rig.guest.calls
        rig.engine.state = S.RUNNING
        assert rig.ask("track_collect") == {"all": True}  # [HOL-35]
    rig.close()


@pytest.mark.parametrize("broken", ["stop_tracking", "throttle"])
def test_a_guest_runs_on_though_something_else_fails(broken: str) -> None:
    """[HOL-18]"""
    rig = Rig(S.PAUSED)
    rig.guest.broken[broken] = OSError("no")
    with pytest.raises(OSError, match="no"):
        rig.engine.controller_gone()
    assert rig.guest.running
    assert rig.engine.state is S.RUNNING
    assert {"stop_tracking", "throttle", "resume"} <= set(rig.guest.calls)
    rig.close()


def test_tracking_ends_with_the_controller_though_a_collect_has_failed() -> None:
    """[HOL-18]"""
    rig = Rig()
    rig.ask("track_start")
    rig.guest.broken["collect"] = GuestError("the kernel says no")
    with pytest.raises(GuestError):
        rig.ask("track_collect")
    rig.guest.calls.clear()
    rig.engine.controller_gone()
    assert "stop_tracking" in rig.guest.calls
    rig.close()


def test_granting_and_revoking() -> None:
    """[HOL-26]"""
    rig = Rig(S.PAUSED)
    assert rig.refused("grant", {"epoch": 4}) is ErrorCode.BAD_EPOCH
    assert rig.refused("grant", {"epoch": 6}) is ErrorCode.BAD_EPOCH
    rig.ask("revoke")  # nothing was granted
    rig.ask("grant")
    rig.ask("grant")
    assert rig.guest.calls == ["mark_granted"]
    assert rig.refused("grant", {"epoch": 6}) is ErrorCode.BAD_EPOCH
    assert rig.refused("revoke", {"epoch": 6}) is ErrorCode.NOT_AUTHORISED
    assert rig.refused("revoke", None, rig.attach(epoch=5)) is ErrorCode.NOT_AUTHORISED
    rig.ask("revoke")
    assert rig.engine.state is S.PAUSED
    assert rig.guest.calls == ["mark_granted", "revoke_grant"]
    rig.ask("resume")
    rig.close()


def test_a_granted_guest_is_won_back_only_with_its_epoch() -> None:
    """[HOL-29]"""
    rig = Rig(S.GRANTED)
    assert rig.refused("run", {"epoch": 4, "runner": RUNNER}) is ErrorCode.STALE_EPOCH
    rig.ask("run", {"epoch": 6, "runner": RUNNER})
    status = rig.ask("status")
    assert (status["state"], status["epoch"], status["granted_epoch"]) == ("running", 6, 0)
    assert status["runner"] == RUNNER
    assert status["guest"] == {"figure": 42, "word": "text"}
    rig.close()


def test_collecting_fills_the_shared_bitmaps() -> None:
    """[HOL-34]"""
    rig = Rig()
    assert rig.ask("track_collect") == {"all": True}
    places = rig.ask("track_start")["bitmaps"]
    assert [(place["region"], place["bits"]) for place in places] == [(3, PAGES), (5, 2)]
    rig.guest.dirty = {0, 64, PAGES - 1}
    answer = rig.ask("track_collect")
    assert (answer["all"], answer["pages"]) == (False, 3)
    assert rig.ask("track_collect")["pages"] == 0
    rig.ask("track_stop")
    assert rig.ask("track_collect") == {"all": True}
    rig.close()


def test_bitmaps_change_in_a_collect_and_at_no_other_time() -> None:
    """[HOL-36] Whatever the guest writes and whatever is asked meanwhile."""
    rig = Rig()
    rig.ask("track_start")
    bitmaps = rig.engine._bitmaps
    assert bitmaps is not None

    def content() -> bytes:
        return os.pread(bitmaps.file.fileno(), bitmaps.file.size_bytes, 0)

    rig.guest.dirty = {0, 64}
    rig.ask("track_collect")
    before = content()
    rig.guest.dirty = {1, 2, 3}
    for operation in ("status", "describe", "memory", "throttle", "audit", "pause", "save_state", "resume"):
        rig.ask(operation)
        assert content() == before, operation
    assert rig.refused("reserve") is ErrorCode.UNEXPECTED_FRAME
    rig.attach(role="observer")
    assert content() == before
    rig.ask("track_collect")
    assert content() != before
    rig.close()


def test_what_a_failed_collect_had_cleared_is_reported_as_all() -> None:
    """[HOL-34]"""
    rig = Rig()
    rig.ask("track_start")
    rig.guest.broken["collect"] = GuestError("the kernel says no")
    with pytest.raises(GuestError):
        rig.ask("track_collect")
    rig.guest.broken.clear()
    assert rig.ask("track_collect") == {"all": True}
    rig.close()


@pytest.mark.parametrize("operation", ["pause", "track_start", "throttle"])
def test_a_guest_that_fails_is_as_before(operation: str) -> None:
    rig = Rig()
    name = {"track_start": "start_tracking"}.get(operation, operation)
    rig.guest.broken[name] = GuestError("no")
    with pytest.raises(GuestError, match="no"):
        rig.ask(operation)
    assert rig.engine.state is S.RUNNING
    rig.guest.broken.clear()
    rig.ask(operation)
    rig.close()


def test_memory_is_writable_only_before_it_ran() -> None:
    """[HOL-33]"""
    for state in (S.RUNNING, S.PAUSED, S.GRANTED, S.RESERVED, S.LOADED):
        rig = Rig(state)
        answer = rig.engine.request("memory", Frame({}), rig.party)
        assert answer.fields["writable"] is (state in {S.RESERVED, S.LOADED})
        assert answer.fields["regions"] == [
            {"region": 3, "bytes": PAGES * 4096},
            {"region": 5, "bytes": 2 * 4096},
        ]
        for descriptor in answer.descriptors:
            flags = os.get_blocking(descriptor)  # it is open
            assert flags in {True, False}
            if not answer.fields["writable"]:
                with pytest.raises(OSError, match="Bad file descriptor"):
                    os.pwrite(descriptor, b"x", 0)
        for descriptor in answer.closing:
            os.close(descriptor)
        rig.close()


@pytest.mark.parametrize("size_bytes", [fields_of.STATE_BYTES, fields_of.STATE_BYTES + 1])
def test_state_files_have_a_limit(size_bytes: int) -> None:
    """[HOL-37] Of what is larger not a byte is read."""
    rig = Rig(S.RESERVED)
    file = MemoryFile("state", size_bytes)
    tracemalloc.start()
    try:
        with pytest.raises(GuestError) as caught:
            rig.engine.request("load_state", Frame({"sections": []}, (file.fileno(),)), rig.party)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Of the right size it is read, and what is in it is no state.
    is_read = size_bytes == fields_of.STATE_BYTES
    assert caught.value.code is (ErrorCode.STATE_REJECTED if is_read else ErrorCode.BAD_VALUE)
    assert (peak >= size_bytes) == is_read
    file.close()
    rig.close()


def test_state_comes_out_as_it_went_in() -> None:
    """[HOL-28] [HOL-37]"""
    rig = Rig(S.PAUSED)
    answer = rig.engine.request("save_state", Frame({}), rig.party)
    assert answer.fields == {"sections": TABLE, "bytes": len(STATE_DATA)}
    assert os.pread(answer.descriptors[0], 100, 0) == STATE_DATA
    os.close(answer.closing[0])
    rig.close()
    rig = Rig(S.RESERVED)
    reader, writer = os.pipe()
    for descriptors in ((), (reader, writer), (reader,)):
        with pytest.raises(GuestError) as caught:
            rig.engine.request("load_state", Frame(GOOD["load_state"], descriptors), rig.party)
        assert caught.value.code is ErrorCode.BAD_VALUE
    os.close(reader)
    os.close(writer)
    with pytest.raises(GuestError) as caught:
        rig.ask("load_state", {"sections": TABLE[:1]})
    assert caught.value.code is ErrorCode.STATE_REJECTED
    assert rig.engine.state is S.RESERVED
    rig.ask("load_state")
    rig.ask("load_state")
    rig.close()


def test_discarding_and_releasing_end_a_guest() -> None:
    """[HOL-30]"""
    rig = Rig(S.LOADED)
    rig.ask("discard")
    assert rig.engine.state is S.EMPTY
    rig.ask("reserve")
    rig.close()
    rig = Rig(S.PAUSED)
    rig.ask("track_start")
    rig.ask("grant")
    rig.ask("release")
    rig.ask("release")
    assert rig.guest.calls.count("release") == 1
    assert rig.engine.state is S.RELEASED
    rig.close()


def test_an_image_is_told_by_its_id_for_as_long_as_it_is_kept() -> None:
    """[HOL-46]"""
    nothing = "00" * 16
    rig = Rig(S.EMPTY)
    assert rig.ask("status")["image"] == nothing
    for operation in ("reserve", "load_state", "run", "pause", "grant"):
        rig.ask(operation, {"epoch": 6} if operation == "grant" else None)
        assert rig.ask("status")["image"] == IMAGE, operation
    rig.ask("release")
    assert rig.ask("status")["image"] == nothing
    rig.close()
    rig = Rig(S.LOADED)
    rig.ask("discard")
    assert rig.ask("status")["image"] == nothing
    rig.close()


def test_a_guest_that_begins_its_life_in_a_holder_has_a_random_image() -> None:
    """[HOL-46]"""
    one, two = Rig(), Rig()
    found = {bytes.fromhex(rig.ask("status")["image"]) for rig in (one, two)}
    assert len(found | {bytes(16)}) == 3
    one.close()
    two.close()


@pytest.mark.parametrize("image", [None, "", "1a" * 15, "1A" * 16, "00" * 16, 7])
def test_what_is_no_id_of_an_image_reserves_nothing(image: object) -> None:
    """[HOL-10] [HOL-11]"""
    rig = Rig(S.EMPTY)
    assert rig.refused("reserve", {**GUEST, "image": image}) is ErrorCode.BAD_VALUE
    assert rig.ask("status")["image"] == "00" * 16
    rig.close()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=2) | st.dictionaries(st.text(max_size=4), children, max_size=2)
    ),
    max_leaves=4,
)
NAMES = ["epoch", "share", "runner", "description", "sections", "id", "bitmaps", "bytes"]


@given(
    st.sampled_from(S),
    st.sampled_from([*LEGAL, "nonsense"]),
    st.dictionaries(st.sampled_from(NAMES), ANYTHING),
)
def test_any_request_leaves_the_guest_running(state: HeldState, operation: str, fields: dict) -> None:
    """[HOL-10] [HOL-22]"""
    rig = Rig(state)
    epoch = rig.engine.epoch
    code = outcome(rig, operation, fields)
    if code is not None:
        assert rig.engine.state is state
    if "run" not in rig.guest.calls:
        assert rig.engine.epoch == epoch
    if state is S.RUNNING and operation != "pause":
        assert rig.guest.running
    rig.close()


def outcome(rig: Rig, operation: str, fields: dict) -> ErrorCode | None:
    try:
        rig.ask(operation, fields)
    except GuestError as error:
        return error.code
    return None


class Lacking:
    """Stands for what holds accesses to pages, of which so many are missing."""

    def __init__(self, missing: int) -> None:
        self.left = missing
        self.ended = 0

    def missing(self) -> int:
        return self.left

    def end(self) -> None:
        self.ended += 1


def test_stale_pages_are_named_by_bitmaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """[HOL-38] Two words of region 3, one of region 5, as `track_start` lays them out."""
    rig = Rig(S.RESERVED)
    layout = {"bitmaps": [{"region": 3, "offset": 0, "bits": PAGES}, {"region": 5, "offset": 16, "bits": 2}]}
    words = [1 << 63, 0b100001, 0b10]
    monkeypatch.setitem(FILES, "expect", b"".join(word.to_bytes(8, "little") for word in words))
    assert rig.ask("expect", layout) == {"missing": 0}  # the fake holds nothing
    assert {number: bitmap.runs()[0].tolist() for number, bitmap in rig.guest.stale.items()} == {
        3: [63, 69],  # and the one after 63
        5: [1],
    }
    rig.guest.calls.clear()
    for bad in (
        {"bitmaps": [{"region": 3, "offset": 0, "bits": PAGES - 1}]},  # bit 69 is beyond its end
        {"bitmaps": [{"region": 3, "offset": 16, "bits": PAGES}]},
        {"bitmaps": [{"region": 3, "offset": 4, "bits": 8}]},
        {"bitmaps": [{"region": 5, "offset": 16, "bits": 2}] * 2},
        {"bitmaps": 5},
    ):
        assert rig.refused("expect", bad) is ErrorCode.BAD_VALUE
    for size in (0, 7, 23, 25, 32):  # no words, no whole words, more than all of the guest's pages take
        monkeypatch.setitem(FILES, "expect", bytes(size))
        assert rig.refused("expect", layout) is ErrorCode.BAD_VALUE
    rig.close()


@pytest.mark.parametrize("failure", [None, OSError("the kernel leaves a page its entry")])
def test_no_guest_runs_before_all_accesses_are_held(failure: OSError | None) -> None:
    """[HOL-38] Whatever guest it is: what is done for that beside other requests is waited for."""
    rig = Rig(S.LOADED)

    class Taking(Lacking):
        def hold(self) -> None:
            rig.guest.calls.append("hold")
            if failure is not None:
                raise failure

    rig.guest.late = Taking(1)
    if failure is None:
        rig.ask("run")
        assert rig.guest.calls == ["hold", "run"]
    else:
        with pytest.raises(OSError, match="leaves a page"):
            rig.ask("run")
        assert rig.guest.calls == ["hold"]
        assert rig.engine.state is S.LOADED
    rig.close()


@pytest.mark.parametrize("operation", ["track_start", "save_state", "grant"])
def test_a_guest_with_missing_pages_is_not_sent_away(operation: str) -> None:
    """[HOL-43] [ONE-41]"""
    rig = Rig(S.PAUSED)
    rig.guest.late = Lacking(3)
    assert rig.ask("status")["missing"] == 3
    assert rig.refused(operation) is ErrorCode.NOT_READY
    rig.guest.late.left = 0
    rig.ask(operation)
    rig.close()


def test_its_memory_can_be_written_until_the_last_page_is_there() -> None:
    """[HOL-33]"""
    rig = Rig(S.RUNNING)
    assert rig.ask("memory")["writable"] is False
    rig.guest.late = Lacking(1)
    assert rig.ask("memory")["writable"] is True
    rig.close()


def test_holding_ends_with_the_last_page_or_with_the_controller() -> None:
    """[HOL-42]"""
    rig = Rig(S.RUNNING)
    rig.guest.late = late = Lacking(1)
    assert rig.ask("installed") == {"missing": 1}
    rig.engine.controller_gone()
    assert not late.ended
    late.left = 0
    rig.engine.controller_gone()
    assert late.ended == 1
    assert rig.ask("installed") == {"missing": 0}
    assert late.ended == 2
    rig.close()


def test_nothing_is_passed_when_nothing_is_expected() -> None:
    """[HOL-39]"""
    rig = Rig(S.RUNNING)
    answer = rig.engine.request("faults", Frame({}), rig.party)
    assert (answer.fields, answer.descriptors) == ({"regions": []}, ())
    rig.close()


def notes(rig: Rig, fields: dict[str, Any]) -> bytes | None:
    answer = rig.engine.request("notes", Frame(fields), rig.party)
    if not answer.descriptors:
        assert answer.fields == {"bytes": 0}
        return None
    (descriptor,) = answer.descriptors
    assert has_fixed_size(descriptor)
    os.pwrite(descriptor, b"x", 1)
    assert answer.fields == {"bytes": os.fstat(descriptor).st_size}
    return os.pread(descriptor, 100, 0)


@pytest.mark.parametrize("end", ["discard", "release"])
def test_notes_live_as_long_as_the_guest(end: str) -> None:
    """[HOL-45]"""
    rig = Rig(S.RESERVED if end == "discard" else S.GRANTED)
    assert notes(rig, {}) is None
    assert notes(rig, {"bytes": 4}) == b"\0x\0\0"
    rig.engine.controller_gone()
    assert notes(rig, {}) == b"\0x\0\0"
    assert notes(rig, {"bytes": 3}) == b"\0x\0"
    limit = notes_limit(DESCRIPTION.regions)
    assert rig.refused("notes", {"bytes": limit + 1}) is ErrorCode.FULL
    assert rig.refused("notes", {"bytes": "3"}) is ErrorCode.BAD_VALUE
    assert notes(rig, {}) == b"\0x\0"
    assert notes(rig, {"bytes": 0}) is None
    assert notes(rig, {"bytes": limit}) is not None
    rig.ask(end)
    assert rig.engine._notes is None
    rig.close()
