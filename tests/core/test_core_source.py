"""The source's machine against a scripted destination."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_support import (
    ALL_FEATURES,
    EPOCH,
    GUEST,
    HERE,
    ID,
    IMAGE,
    PAGE,
    REGION,
    SECTION,
    SESSION,
    THERE,
    TOKEN,
    VERDICT,
    AskingRig,
    SourceRig,
    StoreRig,
    code_of,
    rolled_back,
)

from sterna.core import events as e
from sterna.core import sending
from sterna.core.events import Outcome
from sterna.core.policy import PolicySettings
from sterna.core.records import Granted, SessionRecord, Side, Voided
from sterna.core.source import SourceConfig, SourceMachine
from sterna.core.tables import SourceState
from sterna.errors import GuestError, LocalProtocolError
from sterna.memory.bitmap import PageBitmap
from sterna.memory.pages import RegionPages
from sterna.memory.regions import RegionTable
from sterna.registry import (
    Encoding,
    ErrorCode,
    Feature,
    FrameType,
    Limit,
    Mode,
    Owner,
    Phase,
    Style,
    Transfer,
)
from sterna.wire import records as r

S = SourceState
WRONG = b"\xee" * 16


# ---- opening ----


def test_hello_says_who_and_what():
    """[CON-7] [HEL-7] [PRE-1]"""
    rig = SourceRig(agent="me")
    assert rig.drain() == []  # the preface alone
    rig.machine.start(rig.now)
    (hello,) = rig.drain()
    assert (hello.mode, hello.guest, hello.epoch, hello.runner, hello.agent) == (
        Mode.OPEN,
        ID,
        EPOCH,
        HERE,
        "me",
    )
    assert hello.limits[Limit.CONTROL_BYTES] > 0
    rig.pass_time(2.0)
    assert rig.drain() == []


def test_a_session_is_started_once():
    rig = SourceRig()
    for state in (S.GREETING, S.COLLECTING, S.CLOSED):
        rig.until(state)
        said = len(rig.heard)
        with pytest.raises(LocalProtocolError, match=r"start\(\)"):
            rig.machine.start(rig.now)
        assert rig.machine.state is state
        assert len(rig.heard) == said


@pytest.mark.parametrize(
    "changes",
    [{"agent": "x" * 256}, {"guest_id": b"short"}, {"epoch": (1 << 64) - 2}, {"epoch": -1}],
    ids=str,
)
def test_a_configuration_that_fits_no_hello(changes):
    """[HEL-8] [TXT-4] Nothing has changed: the guest runs on, no session was begun."""
    fields = {"guest": GUEST, "guest_id": ID, "epoch": EPOCH} | changes
    pages = RegionPages(RegionTable(GUEST.regions), {0: memoryview(bytearray(IMAGE))})
    machine = SourceMachine(SourceConfig(**fields), pages, 0.0)
    with pytest.raises(LocalProtocolError):
        machine.start(0.0)
    assert machine.state is S.IDLE
    assert [bytes(each) for each in machine.poll_transmit(0.0)] == [machine._outbox.writer.preface()]
    assert not machine.poll_transmit(0.0)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version": 7 << 16}, ErrorCode.UNSOLICITED),  # [NEG-2]
        ({"features": (*ALL_FEATURES, r.FeatureChoice(Feature.BITMAP))}, ErrorCode.UNSOLICITED),  # [NEG-5]
        ({"features": ALL_FEATURES[1:]}, ErrorCode.MISSING_FEATURE),  # [NEG-6]
        (
            {"features": tuple(replace(each, parameter=each.parameter + 1) for each in ALL_FEATURES)},
            ErrorCode.UNSOLICITED,  # [NEG-8]
        ),
        ({"session": bytes(16)}, ErrorCode.BAD_VALUE),  # [WEL-4]
        ({"generation": 1}, ErrorCode.BAD_VALUE),  # [WEL-4]
        ({"complete_round": 1}, ErrorCode.BAD_VALUE),  # [WEL-4]
        ({"held_frames": 1}, ErrorCode.BAD_VALUE),  # [WEL-4]
        ({"limits": {Limit.CONTROL_BYTES: 65535}}, ErrorCode.LIMIT_MISMATCH),  # [LIM-7]
        ({"limits": {Limit.BATCH_RUNS: 0}}, ErrorCode.LIMIT_MISMATCH),  # [LIM-7]
        ({"limits": {Limit.BULK_BYTES: 4095}}, ErrorCode.LIMIT_MISMATCH),  # [LIM-6]
        ({"limits": {Limit.REGIONS: 0}}, ErrorCode.LIMIT_MISMATCH),  # [LIM-6]
        ({"limits": {Limit.MEMORY_BYTES: 4 * PAGE - 1}}, ErrorCode.LIMIT_MISMATCH),  # [LIM-6]
        ({"limits": {Limit.STATE_BYTES: 4095}}, ErrorCode.LIMIT_MISMATCH),  # [LIM-6]
    ],
    ids=str,
)
def test_a_welcome_that_does_not_fit(changes, code):
    """Refused in the handshake [CON-66]; the guest has not been touched."""
    rig = SourceRig().until(S.GREETING)
    rig.say(rig.welcome(**changes))
    assert code_of(rig) is code
    assert rig.heard[-1].phase == Phase.HANDSHAKE
    assert not [each for each in rig.heard if isinstance(each, r.Guest)]
    rolled_back(rig, code)


def test_a_description_longer_than_the_peer_takes():
    """[LIM-6]"""
    features = tuple(f"{number:0250d}" for number in range(1000))
    rig = SourceRig(guest=replace(GUEST, cpu_features=features)).until(S.GREETING)
    rig.say(rig.welcome(limits={Limit.CONTROL_BYTES: 65536}))
    assert code_of(rig) is ErrorCode.LIMIT_MISMATCH
    rolled_back(rig, ErrorCode.LIMIT_MISMATCH)


def test_a_description_that_no_frame_carries():
    """A guest whose regions overlap is this side's own mistake, and is told as such."""
    guest = replace(GUEST, regions=(REGION, replace(REGION, id=1, address=PAGE)))
    rig = SourceRig(bytes(4 * PAGE), guest=guest).until(S.GREETING)
    rig.say(rig.welcome())
    assert code_of(rig) is ErrorCode.BAD_REGION
    assert (rig.heard[-1].frame, rig.heard[-1].sequence) == (0, 0)  # [ABT-2] no frame of the peer's
    rolled_back(rig, ErrorCode.BAD_REGION)


@pytest.mark.parametrize("state", [S.GREETING, S.DESCRIBING])
def test_a_refusal(state):
    """[CON-9] [CON-16] [REF-2] [REF-3]"""
    rig = SourceRig().until(state)
    said = len(rig.heard)
    items = ("avx512f", "amx_tile")
    rig.say(r.Refuse(ErrorCode.CPU_FEATURES, 7000, items, "not here"))
    assert rig.drain() == rig.heard[said:] == []
    result = rolled_back(rig, ErrorCode.CPU_FEATURES, by_peer=True)
    assert (result.retry_after_ms, result.items) == (7000, items)
    assert "avx512f" in str(result.error)


def test_a_refusal_with_an_unknown_code():
    """[REF-3]"""
    rig = SourceRig().until(S.GREETING)
    rig.say(r.Refuse(0xEEEE))
    assert rolled_back(rig, ErrorCode.INTERNAL, by_peer=True).error.wire_code == 0xEEEE


@pytest.mark.parametrize(
    ("accept", "code"),
    [
        (r.Accept(4 * PAGE, data_streams=1), ErrorCode.NOT_SELECTED),  # [ACC-3]
        (r.Accept(4 * PAGE - 1), ErrorCode.BAD_VALUE),  # [CON-17]
    ],
)
def test_an_accept_that_does_not_fit(accept, code):
    rig = SourceRig().until(S.DESCRIBING)
    rig.say(accept)
    assert code_of(rig) is code
    assert rig.heard[-1].phase == Phase.DESCRIBE
    rolled_back(rig, code)


def test_only_copied_regions_need_room():
    """[CON-17]"""
    shared = r.Region(1, 1 << 40, 1 << 30, transfer=Transfer.SHARED)
    rig = SourceRig(guest=replace(GUEST, regions=(REGION, shared))).until(S.DESCRIBING)
    rig.say(r.Accept(4 * PAGE))
    assert rig.machine.state is S.ARMING


# ---- rounds ----


def test_nothing_is_read_before_writes_are_followed():
    """[CON-19] [CON-28]"""
    rig = SourceRig().until(S.ARMING)
    assert rig.drain() == []
    rig.memory[0] = 0x77  # written before tracking began: must be in what is sent
    rig.do(e.StartTracking)
    rig.drain()
    assert rig.bulk[0][0] == 0x77


def test_a_page_is_sent_in_the_version_of_the_moment():
    """Pages wait as pages, not as copies."""
    rig = SourceRig(batch_bytes=PAGE).until(S.ROUND)
    first = rig.machine.poll_transmit(rig.now)
    assert len(first) == 1  # ROUND
    rig.memory[0] = 0x55
    buffers = rig.machine.poll_transmit(rig.now)
    assert bytes(buffers[1])[:1] == b"\x55"


def test_a_round_in_batches():
    """[CON-20] [CON-21] [RND-3] [STR-8]"""
    rig = SourceRig(batch_bytes=PAGE).until(S.ACKING)
    opening, *pages, end = rig.heard[3:]
    assert opening == r.Round(1, 1, 4)
    assert [table.page_count for table in pages] == [1, 1, 1, 1]
    assert end == r.RoundEnd(1, 1, 4, 2 * PAGE, ((0, 7),))
    assert b"".join(bytes(bulk) for bulk in rig.bulk) == IMAGE[: 2 * PAGE]


def test_zero_pages_where_the_encoding_was_not_selected():
    """[NEG-7] [PGS-9]"""
    rig = SourceRig().until(S.GREETING)
    rig.say(rig.welcome(features=tuple(each for each in ALL_FEATURES if each.id != Feature.ENCODING_ZERO)))
    rig.say(r.Accept(4 * PAGE))
    rig.do(e.StartTracking)
    rig.drain()
    (table,) = (each for each in rig.heard if isinstance(each, r.Pages))
    assert set(table.runs["encoding"].tolist()) == {Encoding.RAW}
    assert bytes(rig.bulk[0]) == IMAGE


def test_memory_that_cannot_be_read():
    class Broken:
        def encode(self, region, starts, counts, *, zeros=True, hashed=True):
            raise GuestError("the holder is gone")

    rig = SourceRig()
    rig.machine._memory._pages = Broken()
    rig.until(S.ROUND)
    rig.drain()
    assert code_of(rig) is ErrorCode.GUEST_FAILED
    rolled_back(rig, ErrorCode.GUEST_FAILED)


# ---- preparing ----


def test_the_guest_runs_until_the_destination_is_ready():
    """[CON-39] [CON-37] [SWI-2]"""
    rig = SourceRig().until(S.PREPARING)
    assert rig.heard[-1].style is Style.STOP_AND_COPY
    assert rig.wishes == []
    rig.say(r.Ready(1))
    assert rig.wishes == [e.Pause]


@pytest.mark.parametrize("attempt", [0, 2])
@pytest.mark.parametrize(
    "frame", [r.Ready, lambda attempt: r.NotReady(attempt, 1)], ids=["ready", "not_ready"]
)
def test_an_answer_to_another_attempt(frame, attempt):
    """[SWI-3] [CON-22] [CON-25]"""
    rig = SourceRig().until(S.PREPARING)
    rig.say(frame(attempt))
    assert code_of(rig) is ErrorCode.BAD_ATTEMPT


# ---- blackout ----


def test_the_order_of_the_blackout():
    """[CON-44] [CON-45] [CON-48] [MEM-12] [STR-8]"""
    rig = SourceRig(guest=replace(GUEST, state_bytes=1 << 20)).until(S.FREEZING)
    said = len(rig.heard)
    assert [type(each) for each in rig.asked[-1:]] == [e.Pause]
    assert rig.wishes == [e.CollectDirty, e.SaveState]
    assert next(iter(rig.machine._requests)).last
    rig.do(e.CollectDirty, rig.dirty(1))
    rig.do(e.SaveState, (SECTION, replace(SECTION, instance=1, data=bytes(70_000))))
    rig.drain()
    told = rig.heard[said:]
    assert [type(each) for each in told] == [r.Round, r.Pages, r.RoundEnd, *[r.State] * 4, r.Seal]
    assert told[0] == r.Round(1, 2, 1)
    seal = told[-1]
    assert (seal.state_sections, seal.state_bytes) == (2, 70_000 + len(SECTION.data))
    assert seal.last_sequences == told[2].last_sequences
    assert seal.digest == rig.machine.digest
    (last,) = (event for event in rig.events(e.RoundFinished) if event.stats.round == 2)
    assert (last.stats.pages, last.stats.dirty_pages) == (1, 0)


def test_a_blackout_without_a_dirty_page():
    """[CON-45] [STR-8]"""
    rig = SourceRig().until(S.FREEZING)
    rig.do(e.CollectDirty, rig.clean())
    rig.do(e.SaveState, ())
    opening, end, seal = rig.drain()
    assert opening == r.Round(1, 2, 0)
    assert end == r.RoundEnd(1, 2, 0, 0, ())
    assert (seal.state_sections, seal.state_bytes, seal.last_sequences) == (0, 0, ())


def test_pages_do_not_wait_for_the_state():
    """[CON-54] Nor does SEAL go out before it."""
    rig = SourceRig().until(S.BLACKOUT)
    assert [type(each) for each in rig.drain()] == [r.Round, r.Pages, r.RoundEnd]
    assert rig.drain() == []
    rig.do(e.SaveState, (SECTION,))
    assert [type(each) for each in rig.drain()] == [r.State, r.Seal]


def test_heartbeats_pass_between_pieces_of_the_state():
    """[CON-79] [PNG-1] A large state on a slow link must not end the session for PINGs without answer."""
    rig = SourceRig(guest=replace(GUEST, state_bytes=1 << 20)).until(S.FREEZING)
    rig.do(e.CollectDirty, rig.clean())
    rig.do(e.SaveState, (replace(SECTION, data=bytes(1 << 20)),))
    order = []
    for number in range(40):
        if number % 2:
            rig.say(r.Ping(number))
        buffers = rig.machine.poll_transmit(rig.now)
        data = b"".join(bytes(buffer) for buffer in buffers)
        rig.machine.transmitted(len(data), rig.now)
        order.append(FrameType(int.from_bytes(data[:2], "little")))
    assert rig.machine.state is S.BLACKOUT
    assert order.count(FrameType.PONG) >= 15
    assert order.count(FrameType.STATE) >= 15


def test_a_peer_that_pings_as_often_as_it_is_answered_does_not_hold_up_the_blackout():
    """[CON-79] It comes to owe more than it may, while the guest stands still."""
    rig = SourceRig(guest=replace(GUEST, state_bytes=1 << 22)).until(S.FREEZING)
    rig.do(e.CollectDirty, rig.clean())
    rig.do(e.SaveState, (replace(SECTION, data=bytes(1 << 22)),))
    for number in range(100):
        rig.say(r.Ping(number))
        rig.machine.transmitted(sum(map(len, rig.machine.poll_transmit(rig.now))), rig.now)
    rolled_back(rig, ErrorCode.LIMIT_RATE)


@pytest.mark.parametrize(
    ("sections", "code"),
    [
        ((replace(SECTION, data=bytes(4097)),), ErrorCode.LIMIT_MISMATCH),
        ((SECTION, SECTION), ErrorCode.GUEST_FAILED),
        ((replace(SECTION, version=1 << 32),), ErrorCode.MALFORMED),
    ],
    ids=["too much", "twice", "no frame carries it"],
)
def test_a_state_that_cannot_be_sent(sections, code):
    """[LIM-6] [STA-1] Everything before HANDOVER sets the guest running again [CON-62]."""
    rig = SourceRig().until(S.FREEZING)
    rig.do(e.CollectDirty, rig.clean())
    rig.do(e.SaveState, sections)
    assert code_of(rig) is code
    rolled_back(rig, code)


def test_more_sections_than_the_peer_takes():
    """[STA-7] [LIM-6]"""
    rig = SourceRig().until(S.GREETING)
    rig.say(rig.welcome(limits={Limit.STATE_SECTIONS: 1}))
    rig._done += 1
    rig.until(S.FREEZING)
    rig.do(e.CollectDirty, rig.clean())
    rig.do(e.SaveState, (SECTION, replace(SECTION, instance=1)))
    rolled_back(rig, ErrorCode.LIMIT_MISMATCH)


@pytest.mark.parametrize(
    ("kind", "state", "answer"),
    [
        (e.CollectDirty, S.COLLECTING, [PageBitmap(4)]),
        (e.CollectDirty, S.FREEZING, None),
        (e.SaveState, S.BLACKOUT, None),
        (e.SaveState, S.BLACKOUT, (SECTION, b"registers")),
        (e.SaveState, S.BLACKOUT, {SECTION}),
    ],
    ids=str,
)
def test_an_answer_of_the_wrong_type(kind, state, answer):
    """Misuse: nothing has changed, and the right answer can still be given."""
    rig = SourceRig().until(state)
    request = rig.take(kind)
    for _ in range(2):
        with pytest.raises(LocalProtocolError, match=kind.__name__):
            rig.machine.complete(request, answer, rig.now)
        assert rig.machine.state is state
    rig.machine.complete(request, rig.clean() if kind is e.CollectDirty else (SECTION,), rig.now)


def test_loaded_with_another_digest():
    """[CON-53] [MEM-14]"""
    rig = SourceRig().until(S.SEALED)
    rig.say(r.Loaded(1, WRONG))
    assert code_of(rig) is ErrorCode.DIGEST_MISMATCH
    assert rolled_back(rig, ErrorCode.DIGEST_MISMATCH).phase is Phase.BLACKOUT
    assert e.MarkGranted not in [type(each) for each in rig.asked]


# ---- granting ----


@pytest.mark.parametrize(("make", "then"), [(SourceRig, e.Pause), (StoreRig, e.ProbeStore)])
def test_the_session_is_on_record_before_the_pause(make, then):
    """[ONE-18] [ONE-53] [ONE-65] Whoever has to ask must know whom; with a store, it has answered by then."""
    rig = make().until(S.COLLECTING)
    rig.do(e.CollectDirty, rig.clean())
    assert isinstance(rig.last(), r.Switchover)
    rig.say(r.Ready(1))
    assert rig.wishes[:2] == [e.Persist, then]
    record = rig.take(e.Persist).record
    assert record == SessionRecord(SESSION, EPOCH, Side.SOURCE, TOKEN, "", store=make is StoreRig)


@pytest.mark.parametrize("kind", [e.Persist, e.ProbeStore])
def test_no_pause_without_record_and_store(kind):
    """[CON-62] The guest has not been paused, and runs on."""
    rig = StoreRig().until(S.COLLECTING)
    rig.do(e.CollectDirty, rig.clean())
    rig.say(r.Ready(1))
    if kind is e.ProbeStore:
        rig.do(e.Persist)
        assert (probe := next(iter(rig.machine._requests))).epoch == EPOCH
        assert probe.runner == HERE
    rig.break_(kind, GuestError("no", ErrorCode.RECORD_FAILED))
    rolled_back(rig, ErrorCode.RECORD_FAILED)
    assert e.Pause not in [type(each) for each in rig.asked]


def test_the_store_is_asked_once_more_before_the_mark():
    """[ONE-64] The answer of before the pause is old by then. Until it has come nothing is granted."""
    rig = StoreRig().until(S.SEALED)
    before = len(rig.asked)
    rig.loaded()
    probe = rig.take(e.ProbeStore)
    assert (probe.epoch, probe.runner, probe.last) == (EPOCH, HERE, True)
    assert rig.wishes == []
    rig.machine.complete(probe, None, rig.now)
    assert rig.take(e.MarkGranted).epoch == EPOCH + 1
    assert [type(each) for each in rig.asked[before:]] == [e.ProbeStore, e.MarkGranted]
    assert [each.last for each in rig.asked if isinstance(each, e.ProbeStore)] == [False, True]


def test_without_the_store_s_answer_nothing_is_granted():
    """[ONE-64] [CON-62] The guest runs on here, and no question is open: it was never marked."""
    rig = StoreRig().until(S.CONFIRMING)
    rig.break_(e.ProbeStore, GuestError("no answer", ErrorCode.NOT_READY))
    assert rig.take(e.RollBack).voided is None
    assert e.MarkGranted not in [type(each) for each in rig.asked]
    assert isinstance(rig.last(), r.Abort)
    assert rig.last().code == ErrorCode.NOT_READY


def test_an_answer_of_the_store_that_comes_too_late():
    """[CON-62] The peer has gone meanwhile: nothing is granted on the strength of it."""
    rig = StoreRig().until(S.CONFIRMING)
    probe = rig.take(e.ProbeStore)
    rig.machine.connection_lost(None, rig.now)
    rig.machine.complete(probe, None, rig.now)
    assert rig.wishes == [e.RollBack]


def test_without_a_store_nobody_is_asked():
    rig = SourceRig().until(S.GRANTING)
    assert e.ProbeStore not in [type(each) for each in rig.asked]


def test_the_order_of_granting():
    """[ONE-17] [ONE-18] Mark, record, HANDOVER; each done before the next."""
    rig = SourceRig().until(S.SEALED)
    said = len(rig.heard)
    rig.loaded()
    mark = rig.take(e.MarkGranted)
    assert mark.epoch == EPOCH + 1
    assert rig.wishes == []
    rig.machine.complete(mark, None, rig.now)
    record = rig.take(e.Persist)
    assert record.record == Granted(SESSION, EPOCH + 1)
    assert rig.drain() == rig.heard[said:] == []
    rig.machine.complete(record, None, rig.now)
    assert rig.drain() == [r.Handover(1, EPOCH)]


@pytest.mark.parametrize("state", [S.GRANTING, S.RECORDING])
@pytest.mark.parametrize("how", ["fails", "lost", "cancelled"])
def test_a_grant_that_has_not_left_is_taken_back(state, how):
    """[ONE-19] First it is void by its record; then the mark goes and the guest runs again."""
    rig = SourceRig().until(state)
    request = rig.take()
    if how == "fails":
        rig.machine.fail(request, GuestError("disk full", ErrorCode.RECORD_FAILED), rig.now)
    else:
        if how == "lost":
            rig.machine.connection_lost(None, rig.now)
        else:
            rig.machine.cancel(rig.now)
        assert rig.machine.result is None
        rig.machine.complete(request, None, rig.now)
    assert not [each for each in rig.drain() if isinstance(each, r.Handover)]
    voiding = rig.take(e.Persist)
    assert voiding.record == Voided(SESSION, EPOCH + 1)
    assert rig.wishes == []
    rig.machine.complete(voiding, None, rig.now)
    undo = rig.take(e.RollBack)
    assert undo.voided == voiding.record
    rig.machine.complete(undo, None, rig.now)
    result = rig.machine.result
    assert result.outcome is Outcome.ROLLED_BACK
    assert (result.code is ErrorCode.RECORD_FAILED) == (how == "fails")


@pytest.mark.parametrize("state", [S.GRANTING, S.RECORDING])
def test_a_grant_that_cannot_be_voided(state):
    """[ONE-19] [ONE-20] It counts as having left: the guest stays paused, and is in the records' hands."""
    rig = SourceRig().until(state)
    rig.machine.connection_lost(None, rig.now)
    rig.break_(e.Persist, GuestError("disk full", ErrorCode.RECORD_FAILED))
    result = rig.machine.result
    assert (result.outcome, result.code) == (Outcome.UNDECIDED, ErrorCode.RECORD_FAILED)
    assert rig.machine.state is S.UNDECIDED
    assert rig.wishes == []


@pytest.mark.parametrize("state", [S.PAUSING, S.FREEZING, S.SEALED])
def test_before_the_grant_there_is_nothing_to_take_back(state):
    rig = SourceRig().until(state)
    rig.machine.cancel(rig.now)
    assert rig.take(e.RollBack).voided is None


def test_a_guest_that_cannot_be_set_running_again():
    """[SFX-7] The source owns it, and it stands still: somebody has to look."""
    rig = SourceRig().until(S.SEALED)
    rig.machine.cancel(rig.now)
    rig.break_(e.RollBack, GuestError("no storage locks"))
    result = rig.machine.result
    assert (result.outcome, result.code) == (Outcome.GUEST_FAILED, ErrorCode.GUEST_FAILED)
    assert "locks" in str(result.error)
    assert result.epoch == EPOCH


# ---- after HANDOVER ----


def test_handed_over_and_lost():
    """[ONE-20] [ONE-43] [ONE-47] The guest stays paused; nothing is asked for."""
    rig = SourceRig().until(S.HANDED_OVER)
    rig.machine.connection_lost(None, rig.now)
    result = rig.machine.result
    assert (result.outcome, result.code, result.epoch) == (
        Outcome.UNDECIDED,
        ErrorCode.CONNECTION_LOST,
        EPOCH,
    )
    assert rig.wishes == []
    assert result.digest == b""


def test_a_guest_that_is_handed_back():
    """[ONE-37] It stays paused: only the claim of n + 2 makes it run again, and that is the recovery's."""
    rig = SourceRig().until(S.HANDED_OVER)
    rig.say(r.HandBack(EPOCH + 1, THERE))
    result = rig.machine.result
    assert (result.outcome, result.code) == (Outcome.UNDECIDED, ErrorCode.UNDECIDED)
    assert (result.epoch, result.session, result.phase) == (EPOCH, SESSION, Phase.COMMIT)
    assert not result.by_peer
    assert result.verdict == r.Verdict(Owner.SOURCE, EPOCH + 1, THERE, handed_back=True)
    assert (rig.wishes, rig.drain()) == ([], [])
    rig.machine.connection_lost(None, rig.now)
    assert rig.machine.result is result


@pytest.mark.parametrize("epoch", [EPOCH, EPOCH + 2])
def test_handback_of_another_epoch(epoch):
    """[HND-2] [ONE-37] It permits nothing."""
    rig = SourceRig().until(S.HANDED_OVER)
    rig.say(r.HandBack(epoch, THERE))
    assert code_of(rig) is ErrorCode.BAD_EPOCH
    result = rig.machine.result
    assert (result.outcome, result.verdict) == (Outcome.UNDECIDED, None)


@pytest.mark.parametrize(
    "record", [r.HandBack(EPOCH + 1, THERE), r.Verdict(Owner.SOURCE, EPOCH)], ids=["handback", "verdict"]
)
@pytest.mark.parametrize("state", [S.SEALED, S.HANDED_OVER, S.MOVED], ids=lambda state: state.name)
def test_words_about_the_owner_that_nobody_has_asked_for(state, record):
    """[CON-3] [ONE-37] HANDBACK answers HANDOVER, VERDICT a HELLO, and nothing else."""
    if (state, record.type) == (S.HANDED_OVER, FrameType.HANDBACK):
        return
    rig = SourceRig().until(state)
    rig.say(record)
    assert code_of(rig) is ErrorCode.UNEXPECTED_FRAME
    assert e.ReleaseImage not in rig.wishes


# ---- asking ----


def test_a_question():
    """[ONE-60] [CON-7] About a session that was, in the opening's own words; the guest is not touched."""
    rig = AskingRig()
    rig.ask()
    (hello,) = rig.drain()
    assert (hello.mode, hello.session, hello.token) == (Mode.VERDICT, SESSION, TOKEN)
    assert (hello.guest, hello.epoch, hello.runner) == (ID, EPOCH, HERE)
    rig.say(VERDICT)
    result = rig.machine.result
    assert (result.outcome, result.code, result.verdict) == (Outcome.ANSWERED, None, VERDICT)
    assert (rig.wishes, rig.asked, rig.drain()) == ([], [], [])
    rig.machine.connection_lost(None, rig.now)  # [CON-69] does not apply
    assert rig.machine.result is result


def test_a_question_that_is_refused():
    """[ONE-60] [REF-3] It may be put again."""
    rig = AskingRig().until(S.ASKING)
    rig.say(r.Refuse(ErrorCode.BUSY, 700))
    result = rig.machine.result
    assert (result.outcome, result.code, result.retry_after_ms) == (Outcome.UNDECIDED, ErrorCode.BUSY, 700)
    assert (result.verdict, rig.wishes) == (None, [])


@pytest.mark.parametrize(
    "answer",
    [
        r.Verdict(9, EPOCH),
        r.Verdict(0, EPOCH, complete=True, handed_back=True),
        r.Verdict(0, EPOCH, digest=WRONG),
    ],
)
def test_an_answer_that_makes_no_sense(answer):
    """[VER-1] [VER-2] It is not believed."""
    rig = AskingRig().until(S.ASKING)
    rig.say(answer)
    assert code_of(rig) is ErrorCode.BAD_VALUE
    result = rig.machine.result
    assert (result.outcome, result.verdict) == (Outcome.UNDECIDED, None)


def test_a_question_is_not_put_in_a_session():
    for state in (S.GREETING, S.HANDED_OVER):
        rig = SourceRig().until(state)
        with pytest.raises(LocalProtocolError):
            rig.machine.ask(SESSION, TOKEN, rig.now)
        assert rig.machine.state is state


def test_an_opening_that_comes_too_late():
    """[ONE-14] Who owns the guest is in the result; it runs on here as before."""
    rig = SourceRig().until(S.GREETING)
    rig.say(VERDICT)
    assert rig.drain() == []
    result = rolled_back(rig, ErrorCode.STALE_EPOCH, by_peer=True)
    assert result.verdict == VERDICT


def test_moved_and_lost():
    """[CON-64] [CMP-2] [ONE-38] The guest runs there; the image is kept."""
    rig = SourceRig().until(S.MOVED)
    rig.machine.connection_lost(None, rig.now)
    result = rig.machine.result
    assert (result.outcome, result.code) == (Outcome.MOVED, ErrorCode.CONNECTION_LOST)
    assert result.digest == rig.machine.digest
    assert rig.wishes == []


@pytest.mark.parametrize("freed", [True, False])
@pytest.mark.parametrize("linked", [True, False])
def test_release(freed, linked):
    """[CMP-5] [PNG-4] [CON-70] Freed or given up, told or not."""
    rig = SourceRig().until(S.RELEASING)
    request = rig.take(e.ReleaseImage)
    if not linked:
        rig.machine.connection_lost(None, rig.now)
        assert rig.machine.result is None
    if freed:
        rig.machine.complete(request, None, rig.now)
    else:
        rig.machine.fail(request, GuestError("no"), rig.now)
    if linked:
        assert rig.drain() == [r.Release(EPOCH + 1), r.Bye()]
        assert rig.machine.state is S.CLOSING
        rig.say(r.Bye())
    result = rig.machine.result
    assert (result.outcome, result.code, result.epoch) == (Outcome.COMPLETED, None, EPOCH + 1)
    assert result.digest == rig.machine.digest


def test_after_bye_nothing_is_said():
    """[PNG-3] No PONG, no heartbeat, no ABORT."""
    rig = SourceRig().until(S.CLOSING)
    said = len(rig.heard)
    rig.say(r.Ping(1))
    rig.pass_time(3.0)
    rig.say_bytes(b"nonsense" * 10)
    rig.pass_time(10.0)
    assert rig.heard[said:] == []
    assert rig.machine.result.outcome is Outcome.COMPLETED


def test_the_blackout_is_timed():
    """From the order to pause to the word that the guest runs."""
    rig = SourceRig().until(S.PREPARING)
    rig.now += 1.0
    rig.until(S.HANDED_OVER)
    rig.now += 0.25
    rig.until(S.CLOSED)
    assert rig.machine.result.blackout_s == 0.25


def test_progress_tells_how_far_it_is():
    """[CON-80] [CON-81] Rounds and bytes never run backwards."""
    rig = SourceRig(policy=PolicySettings(allowed_downtime_s=0.001, max_rounds=4), batch_bytes=PAGE)
    rig.until(S.ACKING)
    rig.pass_time(1.1)
    rig.say(rig.ack())
    rig.do(e.CollectDirty, rig.dirty(1))
    rig.pass_time(1.1)
    told = [each for each in rig.heard if isinstance(each, r.Progress)]
    assert [each.round for each in told] == sorted(each.round for each in told)
    assert [each.bulk_bytes for each in told] == sorted(each.bulk_bytes for each in told)
    assert told[-1].pages_total == 4
    assert told[-1].bulk_bytes in {2 * PAGE, 3 * PAGE}


def test_progress_no_oftener_than_agreed():
    """[PRG-1] [CON-76] Between two of them a PING shows that this side lives."""
    deadlines = replace(SourceRig().machine._config.deadlines, heartbeat_s=0.25, silence_s=100.0)
    rig = SourceRig(deadlines=deadlines).until(S.ACKING)
    start = len(rig.heard)
    for _ in range(8):
        rig.pass_time(0.5)
        pings = [each for each in rig.heard if isinstance(each, r.Ping)]
        rig.say(*(r.Pong(each.id) for each in pings if each.id in rig.machine._heartbeat._asked))
    told = [type(each) for each in rig.heard[start:]]
    assert 3 <= told.count(r.Progress) <= 5
    assert told.count(r.Ping) >= 8


def test_session_opened_is_told():
    rig = SourceRig().until(S.DESCRIBING)
    (opened,) = rig.events(e.SessionOpened)
    assert (opened.session, opened.peer_agent) == (SESSION, "rig")


def test_what_is_written_anew_before_its_turn_is_left_out_of_the_round(monkeypatch):
    """[CON-28] [CON-29] [CON-34] It is in the next one, and so is what was sent and then written."""
    monkeypatch.setattr(sending, "LOOK_BYTES", 2 * PAGE)
    policy = PolicySettings(allowed_downtime_s=0.001)
    rig = SourceRig(b"\x11" * 4 * PAGE, batch_bytes=PAGE, policy=policy).until(S.ROUND)
    rig.drain(units=3)  # ROUND and two pages
    look = rig.take(e.CollectDirty)
    assert look.early
    rig.machine.complete(look, rig.dirty(0, 3), rig.now)
    assert rig.machine.state is S.ROUND
    rig.drain()
    tables = [each for each in rig.heard if isinstance(each, r.Pages)]
    assert [int(run["first"]) for table in tables for run in table.runs] == [0, 1, 2]
    assert (rig.heard[-1].type, rig.heard[-1].pages) == (FrameType.ROUND_END, 3)
    rig.say(rig.ack())
    look = rig.take(e.CollectDirty)
    assert not look.early
    rig.machine.complete(look, rig.clean(), rig.now)
    (stats,) = (event.stats for event in rig.events(e.RoundFinished))
    assert (stats.pages, stats.dirty_pages) == (3, 2)
    rig.drain()
    assert [(int(run["first"])) for run in rig.heard[-3].runs] == [0]


def test_a_look_that_fails_ends_the_session(monkeypatch):
    monkeypatch.setattr(sending, "LOOK_BYTES", PAGE)
    rig = SourceRig(b"\x11" * 4 * PAGE, batch_bytes=PAGE).until(S.ROUND)
    for _ in range(2):
        rig.machine.poll_transmit(rig.now)
    rig.break_(e.CollectDirty)
    rolled_back(rig, ErrorCode.GUEST_FAILED)
