"""The frame reader: both doors, every cut, every refusal, and what it holds meanwhile."""

import gc
import tracemalloc
from dataclasses import replace
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.errors import LimitExceeded, LocalProtocolError, PeerMisbehaved, RemoteProtocolError
from sterna.limits import CHUNK_BYTES, HANDSHAKE_BODY_BYTES, HEADER_BYTES, UNKNOWN_FRAMES_IN_A_ROW, Limits
from sterna.registry import Encoding, ErrorCode, FrameType
from sterna.testing import strategies
from sterna.testing.strategies import BOUNDS, REGION
from sterna.wire import (
    FrameReader,
    FrameReceived,
    PagesAnnounced,
    PagesReceived,
    PrefaceReceived,
    UnknownFrame,
    encode_body,
    encode_frame,
    encode_grease,
    encode_preface,
    make_runs,
    unchecked,
)
from sterna.wire import records as r
from sterna.wire.framing import BULK_READ_BYTES, READ_AHEAD_BYTES

PING = unchecked.frame(FrameType.PING, bytes(8))


def reader(**options) -> FrameReader:
    """A reader in the middle of a session."""
    made = FrameReader(**options)
    made.set_limits(Limits())
    made.set_regions(BOUNDS.regions)
    return made


def greeted(**options) -> FrameReader:
    """The same behind its preface."""
    made = reader(**options)
    made.receive_data(encode_preface())
    assert made.next_event() == PrefaceReceived(1, 1)
    return made


class Owner:
    """What a core does with events, without judging them: keeps all, with the bulk bytes that came."""

    def __init__(self, made: FrameReader, cuts: tuple[int, ...] = ()) -> None:
        self.reader = made
        self.events: list[object] = []
        self.bulk = bytearray()
        self.cuts = cuts
        self.failure: tuple[object, ...] | None = None

    def drain(self) -> None:
        try:
            while (event := self.reader.next_event()) is not None:
                self.events.append(event)
                if isinstance(event, PagesAnnounced) and event.header.bulk_bytes:
                    self.reader.supply_bulk(self.targets(event.header.bulk_bytes))
                elif isinstance(event, PagesReceived):
                    self.events.append(bytes(self.bulk))
        except RemoteProtocolError as error:
            self.failure = (error.code, error.clause, error.offset, error.frame, error.detail)

    def targets(self, size: int) -> list[memoryview]:
        self.bulk = bytearray(size)
        marks = [0, *(cut for cut in self.cuts if cut < size), size]
        view = memoryview(self.bulk)
        return [view[start:end] for start, end in pairwise(marks)]

    def eof(self) -> None:
        try:
            self.reader.receive_eof()
        except RemoteProtocolError as error:
            self.failure = (error.code, error.clause, error.offset, error.frame, error.detail)


def feed(data: bytes, made: FrameReader | None = None, cuts: tuple[int, ...] = ()) -> Owner:
    owner = Owner(made or reader(), cuts)
    owner.reader.receive_data(data)
    owner.drain()
    return owner


def feed_pieces(pieces: list[bytes]) -> Owner:
    owner = Owner(reader())
    for piece in pieces:
        if owner.failure is None:
            owner.reader.receive_data(piece)
            owner.drain()
    return owner


def feed_buffers(pieces: list[bytes], read_ahead_bytes: int, scatter: bool, cuts: tuple[int, ...]) -> Owner:
    """As a socket would fill the buffers: at most so much, and at most what there is."""
    owner = Owner(reader(read_ahead_bytes=read_ahead_bytes), cuts)
    for piece in pieces:
        left = memoryview(piece)
        while left and owner.failure is None:
            buffers = owner.reader.get_buffers(4) if scatter else [owner.reader.get_buffer()]
            come = 0
            for buffer in buffers:
                part = left[: len(buffer)]
                buffer[: len(part)] = part
                left = left[len(part) :]
                come += len(part)
            owner.reader.buffer_updated(come)
            owner.drain()
    return owner


def refusal(data: bytes, made: FrameReader | None = None) -> PeerMisbehaved:
    """The error that a reader behind its preface ends with, for bytes one by one."""
    owner = Owner(made or greeted())
    for at in range(len(data)):
        if owner.failure is None:
            owner.reader.receive_data(data[at : at + 1])
            owner.drain()
    with pytest.raises(RemoteProtocolError) as caught:
        owner.reader.next_event()
    return caught.value


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """A preface and frames of any type, unknown ones among them, with their bulk parts."""
    units = [encode_preface()]
    for number in range(draw(st.integers(0, 6))):
        if draw(st.integers(0, 3)):
            record = draw(strategies.pages(most=5) | strategies.records())
            bulk_bytes = record.bulk_bytes if isinstance(record, r.Pages) else 0
            bulk = (bytes(range(251)) * (bulk_bytes // 251 + 1))[:bulk_bytes]
            units.append(b"".join(encode_frame(record, number, bulk=[bulk], bounds=BOUNDS)))
        else:
            units.append(encode_grease(*draw(strategies.grease()), number))
    return units


# --- chunking ------------------------------------------------------------------------------------


@given(streams(), st.data())
def test_cuts_do_not_matter(units, draw):
    """[FRM-13] The invariant chunking, through both doors; the stream may also be damaged."""
    data = b"".join(units)
    if draw.draw(st.booleans()):
        at = draw.draw(st.integers(0, len(data) - 1))
        data = data[:at] + bytes([data[at] ^ draw.draw(st.integers(1, 255))]) + data[at + 1 :]
    whole = feed(data)
    pieces = draw.draw(strategies.pieces(data))
    cuts = tuple(sorted(draw.draw(st.sets(st.integers(1, 1 << 17), max_size=5))))
    others = [
        feed(data, cuts=cuts),
        feed_pieces(pieces),
        feed_buffers(pieces, 64, False, cuts),
        feed_buffers([data], READ_AHEAD_BYTES, False, cuts),
        feed_buffers(pieces, 1000, True, cuts),
    ]
    if len(data) < 3000:
        others.append(feed_pieces([data[at : at + 1] for at in range(len(data))]))
    for other in others:
        assert other.events == whole.events
        assert other.failure == whole.failure
        assert other.reader.next_sequence == whole.reader.next_sequence
    if whole.failure is None:
        for other in (whole, *others):
            other.eof()
        assert len({str(other.failure) for other in (whole, *others)}) == 1


@given(streams())
def test_a_stream_is_read_as_it_was_written(units):
    owner = feed(b"".join(units))
    owner.eof()
    assert owner.failure is None
    assert owner.reader.next_sequence == len(units) - 1


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_give_events_or_one_coded_error(data, behind_preface):
    """The invariant coded-refusal."""
    owner = feed((encode_preface() if behind_preface else b"") + data)
    if owner.failure is None:
        owner.eof()


@given(streams(), st.data())
def test_a_stream_that_ends_early_is_truncated(units, draw):
    """[FRM-10] [PRE-7] Anywhere but between two frames and before the first byte."""
    data = b"".join(units)
    size = draw.draw(st.integers(0, len(data)))
    ends = {0, *accumulate(map(len, units))}
    owner = feed(data[:size])
    owner.eof()
    assert (owner.failure is None) == (size in ends)
    if owner.failure is not None:
        assert owner.failure[:2] == (ErrorCode.TRUNCATED, "PRE-7" if size < 16 else "FRM-10")


def test_every_cut_of_a_short_conversation():
    """[FRM-10] [PRE-7]"""
    table = r.Pages(1, 1, REGION.id, make_runs([(0, 1, Encoding.RAW)], 13), strategies.np.zeros(1, "<u8"))
    frames = [
        PING,
        unchecked.frame(0x7F01, b"grease", sequence=1),
        b"".join(encode_frame(table, 2, bulk=[bytes(8192)], bounds=BOUNDS)),
    ]
    data = encode_preface() + b"".join(frames)
    ends = {0, 16, 16 + len(frames[0]), 16 + len(frames[0]) + len(frames[1]), len(data)}
    for size in (*range(220), *range(len(data) - 3, len(data) + 1)):
        owner = feed(data[:size])
        assert owner.failure is None
        owner.eof()
        assert (owner.failure is None) == (size in ends)
        if owner.failure is not None:
            expected = "PRE-7" if size < 16 else "FRM-10"
            assert owner.failure[:2] == (ErrorCode.TRUNCATED, expected)


def test_the_end_behind_foreign_first_bytes():
    """[PRE-7] What can be no preface is not called a cut one."""
    for start, code in ((b"GE", ErrorCode.BAD_MAGIC), (b"\x89STE", ErrorCode.TRUNCATED)):
        owner = feed(start)
        assert owner.failure is None
        owner.eof()
        assert owner.failure[0] is code


# --- headers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"STERNA\r\n", b"SSH-2.0"])
def test_no_preface(start):
    """[PRE-2] [PRE-3] [PRE-4] [PRE-5] Whole or byte by byte: the same error, words included."""
    whole = feed(start)
    assert whole.failure is not None
    assert feed_pieces([start[at : at + 1] for at in range(len(start))]).failure == whole.failure


def _header_refusals() -> list[tuple[str, ErrorCode, int, bytes]]:
    frame = unchecked.frame
    return [
        ("HDR-2", ErrorCode.HEADER_CHECKSUM, 28, frame(FrameType.PING, bytes(8), header_crc=1)),
        ("HDR-3", ErrorCode.BAD_HEADER, 2, frame(FrameType.PING, bytes(8), flags=4)),
        ("HDR-4", ErrorCode.BAD_HEADER, 6, frame(FrameType.PING, bytes(8), reserved=1)),
        ("HDR-5", ErrorCode.BAD_HEADER, 4, frame(FrameType.PING, bytes(8), stream=1)),
        ("HDR-6", ErrorCode.BAD_SEQUENCE, 8, frame(FrameType.PING, bytes(8), sequence=1)),
        ("FRM-6", ErrorCode.UNKNOWN_CRITICAL, 0, frame(0x8FFF)),
        ("HDR-8", ErrorCode.BAD_HEADER, 20, frame(FrameType.PING, bytes(8), bulk_bytes=1)),
        ("HDR-8", ErrorCode.BAD_HEADER, 20, frame(0x7F00, bytes(8), bulk_bytes=1)),
        ("HDR-7", ErrorCode.LIMIT_CONTROL, 16, frame(FrameType.PING, body_bytes=(1 << 20) + 1)),
        ("HDR-7", ErrorCode.LIMIT_CONTROL, 16, frame(0x7F00, body_bytes=0xFFFFFFFF)),
        ("HDR-9", ErrorCode.LIMIT_BULK, 20, frame(FrameType.PAGES, bulk_bytes=(1 << 24) + 1)),
        ("HDR-10", ErrorCode.BODY_CHECKSUM, 24, frame(FrameType.PING, bytes(8), body_crc=1)),
        ("HDR-10", ErrorCode.BODY_CHECKSUM, 24, frame(0x7F00, bytes(8), body_crc=1)),
    ]


@pytest.mark.parametrize(("clause", "code", "offset", "data"), _header_refusals())
def test_headers_that_are_refused(clause, code, offset, data):
    """[HDR-2] [HDR-3] [HDR-4] [HDR-5] [HDR-6] [HDR-7] [HDR-8] [HDR-9] [HDR-10] [FRM-6]"""
    error = refusal(data)
    assert (error.clause, error.code, error.offset) == (clause, code, offset)
    owner = feed(data, greeted())
    assert owner.failure[:3] == (code, clause, offset)
    assert error.frame == (None if clause == "HDR-2" else int.from_bytes(data[:2], "little"))


def test_the_order_of_suspicion():
    """[HDR-11] Everything is wrong; each repair shows the next reason."""
    wrong = {
        "flags": 1,
        "reserved": 1,
        "stream": 9,
        "sequence": 9,
        "bulk_bytes": 0xFFFFFFFF,
        "body_bytes": 0xFFFFFFFF,
    }
    assert refusal(unchecked.frame(0xFFFF, **wrong, header_crc=0)).clause == "HDR-2"
    clauses = []
    for field in ("flags", "reserved", "stream", "sequence"):
        clauses.append(refusal(unchecked.frame(0xFFFF, **wrong)).clause)
        wrong[field] = 0
    clauses.append(refusal(unchecked.frame(0xFFFF, **wrong)).clause)
    clauses.append(refusal(unchecked.frame(0x7F00, **wrong)).clause)
    clauses.append(refusal(unchecked.frame(FrameType.PAGES, **wrong)).clause)
    clauses.append(refusal(unchecked.frame(FrameType.PAGES, **wrong | {"body_bytes": 0})).clause)
    assert clauses == ["HDR-3", "HDR-4", "HDR-5", "HDR-6", "FRM-6", "HDR-8", "HDR-7", "HDR-9"]


def test_a_wrong_header_is_refused_before_its_body_comes():
    """[HDR-7] [HDR-2] Thirty-two bytes are enough."""
    for clause, code, _, data in _header_refusals():
        if clause != "HDR-10":
            assert feed(data[:HEADER_BYTES], greeted()).failure[:2] == (code, clause)


def test_sequences_count_every_frame():
    """[HDR-6] [FRM-7] Skipped ones too."""
    made = greeted()
    owner = feed(PING + unchecked.frame(0x7F00, b"x", sequence=1), made)
    assert made.next_sequence == 2
    owner.reader.receive_data(unchecked.frame(FrameType.PING, bytes(8), sequence=1))
    owner.drain()
    assert owner.failure[:2] == (ErrorCode.BAD_SEQUENCE, "HDR-6")


def test_the_offending_frame_has_a_number():
    """[ABT-2] Whether its header was refused or its body."""
    for wrong in (unchecked.frame(FrameType.PING, b"", sequence=1), unchecked.frame(0xFFFF, sequence=1)):
        made = greeted()
        assert made.last_sequence == 0
        feed(PING + wrong, made)
        assert made.last_sequence == 1


def test_a_unit_in_pieces_is_held_and_nothing_else():
    """[LIM-4] What is held is the size of the unit, once its first bytes have come."""
    made = greeted()
    assert made.held_bytes == 0
    feed(PING[:5], made)
    assert made.held_bytes == HEADER_BYTES
    feed(PING[5 : HEADER_BYTES + 3], made)
    assert made.held_bytes == len(PING) - HEADER_BYTES
    feed(PING[HEADER_BYTES + 3 :], made)
    assert made.held_bytes == 0


def test_a_data_connection_has_its_own_number():
    """[HDR-5]"""
    owner = feed(unchecked.frame(FrameType.PING, bytes(8), stream=3), greeted(stream=3))
    assert owner.failure is None


@pytest.mark.parametrize("limits", [False, True])
def test_the_handshake_has_bounds_of_its_own(limits):
    """[LIM-5]"""
    made = FrameReader()
    if limits:
        made.set_limits(Limits(control_bytes=HANDSHAKE_BODY_BYTES + 1, bulk_bytes=1))
    made.receive_data(encode_preface() + unchecked.frame(0x7F00, bytes(HANDSHAKE_BODY_BYTES)))
    owner = Owner(made)
    owner.drain()
    assert owner.failure is None
    made.receive_data(unchecked.frame(0x7F00, bytes(HANDSHAKE_BODY_BYTES + 1), sequence=1))
    owner.drain()
    assert owner.failure is None if limits else owner.failure[:2] == (ErrorCode.LIMIT_CONTROL, "LIM-5")
    made = FrameReader()
    if limits:
        made.set_limits(Limits(bulk_bytes=1))
    owner = feed(encode_preface() + unchecked.frame(FrameType.PAGES, bulk_bytes=1), made)
    assert owner.failure[1] == ("FRM-1" if limits else "LIM-5")


def test_bounds_hold_for_frames_that_are_yielded_after_them():
    """HELLO and GUEST may come in one read; the owner announces in between."""
    hello = r.Hello(1, (1,), (), {}, bytes(16), 1, r.NO_RUNNER, session=b"s" * 16)
    guest = r.Guest("vm", 0, 1, 1, (r.Region(1, 0, 4096), r.Region(2, 4096, 4096)))
    data = [encode_preface(), *encode_frame(hello, 0), *encode_frame(guest, 1)]
    made = FrameReader()
    made.receive_data(b"".join(data))
    assert isinstance(made.next_event(), PrefaceReceived)
    assert isinstance(made.next_event(), FrameReceived)
    made.set_limits(Limits(regions=1))
    assert made.bounds.limits.regions == 1
    with pytest.raises(LimitExceeded):
        made.next_event()


# --- unknown frames ------------------------------------------------------------------------------


@given(strategies.unknown_types(critical=False), st.binary(max_size=3000))
def test_unknown_frames_are_skipped(kind, payload):
    """[FRM-7] The invariant skips-unknown."""
    owner = feed(
        unchecked.frame(kind, payload) + unchecked.frame(FrameType.PING, bytes(8), sequence=1), greeted()
    )
    skipped, ping = owner.events
    assert isinstance(skipped, UnknownFrame)
    assert (skipped.header.type, skipped.header.body_bytes) == (kind, len(payload))
    assert ping.record == r.Ping(0)


@given(strategies.grease())
def test_an_unknown_frame_before_hello_is_skipped(grease):
    """[FRM-7] [HEL-1] The first frame is the first that is known; bounds are those of the handshake."""
    hello = r.Hello(0, (1,), (), {}, bytes(16), 1, r.NO_RUNNER)
    owner = feed(
        encode_preface() + unchecked.frame(*grease) + b"".join(encode_frame(hello, 1)), FrameReader()
    )
    assert [type(event) for event in owner.events] == [PrefaceReceived, UnknownFrame, FrameReceived]
    assert (owner.events[-1].header.sequence, owner.events[-1].record) == (1, hello)


@given(strategies.unknown_types(critical=True))
def test_unknown_critical_frames_end_the_session(kind):
    """[FRM-6]"""
    assert feed(unchecked.frame(kind), greeted()).failure[:2] == (ErrorCode.UNKNOWN_CRITICAL, "FRM-6")


def test_unknown_frames_in_a_row_are_counted():
    """[FRM-8] A known frame between them starts the count anew."""
    row = [0x7F00] * UNKNOWN_FRAMES_IN_A_ROW
    kinds = [*row, FrameType.PING, *row, 0x7F00]
    frames = [unchecked.frame(kind, bytes(8), sequence=number) for number, kind in enumerate(kinds)]
    data = b"".join(frames)
    owner = feed(data, greeted())
    assert len(owner.events) == 2 * UNKNOWN_FRAMES_IN_A_ROW + 1
    assert owner.failure == (ErrorCode.LIMIT_RATE, "FRM-8", 0, 0x7F00, "too many unknown frames in a row")


# --- pages ---------------------------------------------------------------------------------------


def pages_frame(pages: int = 24, sequence: int = 0) -> tuple[r.Pages, bytes, bytes]:
    """A table of two raw runs and a zero one, its bulk, and the frame."""
    runs = make_runs(
        [(0, 1, Encoding.RAW), (5, 9, Encoding.ZERO), (20, pages, Encoding.RAW)], REGION.granule_log2
    )
    hashes = 1 + -(-(pages << 13) // 65536)
    table = r.Pages(1, 2, REGION.id, runs, strategies.np.arange(hashes, dtype="<u8"))
    bulk = strategies.np.random.default_rng(pages).bytes(table.bulk_bytes)
    return table, bulk, b"".join(encode_frame(table, sequence, bulk=[bulk], bounds=BOUNDS))


def test_page_bytes_go_straight_into_their_place():
    """get_buffer lends the target itself once its first bytes have come."""
    table, bulk, frame = pages_frame(64)
    made = greeted()
    place = bytearray(len(bulk))
    buffer = made.get_buffer()
    assert len(buffer) == READ_AHEAD_BYTES
    buffer[:] = frame[:READ_AHEAD_BYTES]
    made.buffer_updated(READ_AHEAD_BYTES)
    announced = made.next_event()
    assert announced == PagesAnnounced(announced.header, table)
    made.supply_bulk([memoryview(place)])
    assert not made.is_filling  # what was read ahead has still to go there
    assert made.next_event() is None
    direct = made.get_buffer()
    assert direct.obj is place
    assert len(direct) == len(frame) - READ_AHEAD_BYTES
    direct[:] = frame[READ_AHEAD_BYTES:]
    made.buffer_updated(len(direct) - 1)
    assert made.is_filling
    assert made.next_event() is None
    made.get_buffer()[0] = direct[-1]
    made.buffer_updated(1)
    assert not made.is_filling
    assert made.next_event() == PagesReceived(announced.header, table)
    assert made.next_event() is None
    assert place == bulk


def test_a_large_place_is_lent_a_piece_at_a_time():
    """And how much of it has come is told: who hashes it does so while the caches have it."""
    table, bulk, frame = pages_frame(512)
    made = greeted()
    place, head = bytearray(len(bulk)), len(frame) - len(bulk)
    assert made.coming is None
    made.receive_data(frame[:head])
    made.next_event()
    assert made.owed_bytes == 0  # nobody has said where it goes
    made.supply_bulk([memoryview(place)])
    assert made.next_event() is None
    come = 0
    while come + READ_AHEAD_BYTES < len(bulk):
        assert made.coming == (table, come)
        assert made.owed_bytes == len(bulk) - come
        piece = made.get_buffer()
        assert len(piece) == min(BULK_READ_BYTES, len(bulk) - come)
        piece[:] = bulk[come : come + len(piece)]
        made.buffer_updated(len(piece))
        come += len(piece)
    assert come > 2 * BULK_READ_BYTES
    made.receive_data(bulk[come:])
    assert isinstance(made.next_event(), PagesReceived)
    assert place == bulk
    assert made.coming is None


def test_what_flows_by_comes_nowhere():
    """A bulk part that is of no use has no place."""
    _, bulk, frame = pages_frame(24)
    made = greeted()
    made.receive_data(frame[: len(frame) - len(bulk)])
    made.next_event()
    made.discard_bulk()
    assert made.next_event() is None
    assert made.is_filling
    assert made.coming is None


def test_scattered_targets_are_lent_together():
    """For recvmsg_into: as many as asked for, and behind the last of all the read buffer for what follows."""
    _, bulk, frame = pages_frame(24)
    made = greeted()
    table_end = len(frame) - len(bulk)
    made.receive_data(frame[:table_end])
    made.next_event()
    places = [bytearray(8192) for _ in range(25)]
    made.supply_bulk(places)
    made.next_event()
    assert [len(buffer) for buffer in made.get_buffers(4)] == [8192] * 3
    assert [len(buffer) for buffer in made.get_buffers(26)] == [8192] * 25 + [READ_AHEAD_BYTES]
    assert len(made.get_buffer()) == READ_AHEAD_BYTES  # a single small piece is not worth a read
    buffers = made.get_buffers()
    assert len(buffers) == 26
    left = memoryview(frame[table_end:] + unchecked.frame(FrameType.PING, bytes(8), sequence=1))
    come = len(left)
    for buffer in buffers:
        part = left[: len(buffer)]
        buffer[: len(part)] = part
        left = left[len(part) :]
    made.buffer_updated(come)
    owner = Owner(made)
    owner.drain()
    assert isinstance(owner.events[0], PagesReceived)
    assert isinstance(owner.events[2], FrameReceived)
    assert b"".join(places) == bulk


@pytest.mark.parametrize(
    ("target_bytes", "lent"),
    [
        (BULK_READ_BYTES - 1, [BULK_READ_BYTES - 1, 1]),
        (BULK_READ_BYTES // 2, [BULK_READ_BYTES // 2] * 2),
        (BULK_READ_BYTES, [BULK_READ_BYTES]),
        (2 * BULK_READ_BYTES, [BULK_READ_BYTES]),
        (4096, [4096] * 256),
        (1024, [1024] * 256),  # not the read buffer, which has no place between two targets
    ],
)
def test_what_is_lent_together_is_no_more_than_of_one_long_target(target_bytes, lent):
    """What is read at once is what a core's own cache holds."""
    pages = 4 * BULK_READ_BYTES >> 13
    hashes = strategies.np.zeros(4 * BULK_READ_BYTES // CHUNK_BYTES, "<u8")
    table = r.Pages(1, 2, REGION.id, make_runs([(0, pages, Encoding.RAW)], 13), hashes)
    made = greeted()
    head, *_ = encode_frame(table, 0, bulk=[bytes(4 * BULK_READ_BYTES)], bounds=BOUNDS)
    made.receive_data(head)
    made.next_event()
    whole, rest = divmod(4 * BULK_READ_BYTES, target_bytes)
    made.supply_bulk([bytearray(target_bytes)] * whole + [bytearray(rest)])
    made.next_event()
    assert [len(buffer) for buffer in made.get_buffers()] == lent


def test_a_bulk_part_may_be_of_no_use():
    table, _bulk, frame = pages_frame()
    made = greeted()
    made.receive_data(frame + unchecked.frame(FrameType.PING, bytes(8), sequence=1))
    made.next_event()
    made.discard_bulk()
    assert made.next_event().record == table
    assert made.next_event().record == r.Ping(0)
    made = greeted()
    made.receive_data(frame[:1000])
    made.next_event()
    made.discard_bulk()
    assert made.next_event() is None
    assert len(made.get_buffers()) == 1
    made.receive_data(frame[1000:])
    assert isinstance(made.next_event(), PagesReceived)


def test_a_table_without_bytes_needs_no_targets():
    table = r.Pages(1, 2, REGION.id, make_runs([(0, 9, Encoding.ZERO)], 13), strategies.np.zeros(0, "<u8"))
    made = greeted()
    made.receive_data(b"".join(encode_frame(table, 0, bounds=BOUNDS)))
    assert isinstance(made.next_event(), PagesAnnounced)
    assert isinstance(made.next_event(), PagesReceived)


def test_a_table_outlives_the_read_buffer():
    """Its arrays are views of a copy; the next read changes nothing."""
    table, _bulk, frame = pages_frame()
    made = greeted()
    buffer = made.get_buffer()
    buffer[: len(frame[:400])] = frame[:400]
    made.buffer_updated(400)
    record = made.next_event().record
    made.discard_bulk()
    made.next_event()
    made.get_buffer()[:] = bytes(READ_AHEAD_BYTES)
    assert record == table
    assert not record.runs.flags.writeable
    assert not record.hashes.flags.writeable


@pytest.mark.parametrize("change", [-1, 1])
def test_the_bulk_part_has_the_length_of_its_table(change):
    """[PGS-14]"""
    table, bulk, _ = pages_frame()
    body = encode_body(table, BOUNDS)
    frame = unchecked.frame(FrameType.PAGES, body, bulk_bytes=len(bulk) + change)
    error = refusal(frame)
    assert (error.clause, error.code, error.offset) == ("PGS-14", ErrorCode.MALFORMED, 20)


def test_pages_before_the_guest():
    """[PGS-1]"""
    made = FrameReader()
    made.set_limits(Limits())
    owner = feed(encode_preface() + pages_frame()[2], made)
    assert owner.failure[:2] == (ErrorCode.UNEXPECTED_FRAME, "PGS-1")


def test_encodings_are_those_that_were_selected():
    """[PGS-9]"""
    made = greeted()
    made.set_encodings(frozenset({Encoding.RAW}))
    assert feed(pages_frame()[2], made).failure[:2] == (ErrorCode.NOT_SELECTED, "PGS-9")


def test_targets_that_do_not_fit():
    _, bulk, frame = pages_frame()
    made = greeted()
    with pytest.raises(LocalProtocolError):
        made.supply_bulk([bytearray(5)])
    with pytest.raises(LocalProtocolError):
        made.discard_bulk()
    made.receive_data(frame)
    made.next_event()
    size = len(bulk)
    gaps = memoryview(bytearray(2 * size))[::2]
    for targets in (
        [bytearray(size - 1)],
        [memoryview(bytes(size))],
        [gaps],
        [bytearray(size), bytearray(1)],
    ):
        with pytest.raises(LocalProtocolError):
            made.supply_bulk(targets)
    for call in (
        made.next_event,
        made.get_buffer,
        made.get_buffers,
        made.receive_eof,
        lambda: made.receive_data(b""),
    ):
        with pytest.raises(LocalProtocolError):
            call()
    array = strategies.np.zeros((2, size // 2), strategies.np.uint8)
    made.supply_bulk([bytearray(0), array])
    assert isinstance(made.next_event(), PagesReceived)
    assert array.tobytes() == bulk


# --- the doors -----------------------------------------------------------------------------------


def test_events_come_before_more_bytes():
    made = greeted()
    made.receive_data(PING + PING)
    for call in (made.get_buffer, lambda: made.receive_data(b"x")):
        with pytest.raises(LocalProtocolError):
            call()
    made.next_event()
    with pytest.raises(RemoteProtocolError):
        made.next_event()


def test_only_what_was_lent_is_updated():
    made = greeted()
    with pytest.raises(LocalProtocolError):
        made.buffer_updated(0)
    for size in (-1, READ_AHEAD_BYTES + 1):
        made.get_buffer()
        with pytest.raises(LocalProtocolError):
            made.buffer_updated(size)
    made.get_buffer()
    made.receive_data(b"")
    with pytest.raises(LocalProtocolError):
        made.buffer_updated(1)
    made.get_buffer()
    made.buffer_updated(0)
    assert made.next_event() is None


def test_a_long_body_is_read_in_place():
    """No second copy of what does not fit the read buffer."""
    made = greeted(read_ahead_bytes=64)
    state = r.State(1, 0, 0, 1, 1, 0, 5000, 0, True, bytes(range(250)) * 20)
    (frame,) = encode_frame(state, 0)
    left = memoryview(frame)
    lengths = []
    while left:
        buffer = made.get_buffer()
        lengths.append(len(buffer))
        part = left[: len(buffer)]
        buffer[: len(part)] = part
        left = left[len(part) :]
        made.buffer_updated(len(part))
        event = made.next_event()
    assert event.record == state
    assert lengths == [64, len(frame) - 64]


def test_the_first_error_is_final():
    """[FRM-11] The same one, from every door, and nothing is held any more."""
    made = greeted()
    made.receive_data(unchecked.frame(0xFFFF) + PING)
    with pytest.raises(PeerMisbehaved) as caught:
        made.next_event()
    calls = (
        made.next_event,
        made.get_buffer,
        made.get_buffers,
        made.receive_eof,
        lambda: made.receive_data(PING),
    )
    for call in calls:
        with pytest.raises(PeerMisbehaved) as again:
            call()
        assert again.value is caught.value


def test_the_end_is_an_error_for_ever():
    """[FRM-10]"""
    made = greeted()
    made.receive_data(PING[:5])
    assert made.next_event() is None
    with pytest.raises(PeerMisbehaved) as caught:
        made.receive_eof()
    with pytest.raises(PeerMisbehaved) as again:
        made.next_event()
    assert again.value is caught.value


# --- memory --------------------------------------------------------------------------------------


def test_nothing_is_held_for_what_is_skipped_or_refused():
    """The invariant bounded [LIM-4] [HDR-7]: a header that announces much costs nothing."""
    limits = replace(Limits(), control_bytes=1 << 30)
    gc.collect()
    tracemalloc.start()
    try:
        made = greeted(read_ahead_bytes=1024)
        made.set_limits(limits)
        made.receive_data(unchecked.frame(0x7F00, body_bytes=1 << 30))
        assert made.next_event() is None
        chunk = bytes(1 << 16)
        for _ in range(64):
            made.receive_data(chunk)
            assert made.next_event() is None
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 1 << 18
        refused = greeted(read_ahead_bytes=1024)
        refused.receive_data(unchecked.frame(FrameType.STATE, body_bytes=1 << 30))
        with pytest.raises(LimitExceeded):
            refused.next_event()
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 1 << 18
    finally:
        tracemalloc.stop()
