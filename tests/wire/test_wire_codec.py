"""Bodies: round trips, one coded refusal for everything else, and a test for every clause about a body."""

import gc
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.errors import LimitExceeded, LocalProtocolError, PeerMisbehaved, RemoteProtocolError
from sterna.limits import HEADER_BYTES, Limits
from sterna.registry import (
    BitmapEncoding,
    Checksum,
    ErrorCode,
    FrameType,
    Mode,
    Owner,
    Phase,
    RegionKind,
    Style,
    Transfer,
)
from sterna.testing import strategies
from sterna.testing.strategies import BOUNDS, REGION
from sterna.wire import Bounds, decode_body, encode_body, unchecked
from sterna.wire import records as r
from sterna.wire.header import VERSION

HELLO = r.Hello(
    Mode.OPEN,
    versions=(0x10001, 0x10000),
    features=(r.FeatureOffer(1, True, 0), r.FeatureOffer(7, False, 100)),
    limits={1: 65536, 99: 1},
    guest=b"g" * 16,
    epoch=3,
    runner=r.Runner("host-a", b"r" * 16),
    agent="sterna",
)
WELCOME = r.Welcome(0x10001, b"s" * 16, b"t" * 32, (r.FeatureChoice(1, 0),), {1: 65536}, "sterna")
GUEST = r.Guest(
    "vm",
    architecture=999,
    vcpus=2,
    state_bytes=1 << 20,
    regions=(
        r.Region(1, 0, 1 << 20),
        r.Region(2, 1 << 20, 1 << 20, 16, 30, RegionKind.PMEM, Transfer.SHARED),
    ),
    cpu_features=("sse2", "avx"),
    nics=(r.Nic("eth0", b"\2abcde"),),
    disks=(r.Disk("root", "uuid", 1 << 30), r.Disk("data", "uuid2", 1 << 40)),
)
ACK = r.RoundAck(1, 2, 100, 10**9, (r.PageRange(REGION.id, 0, 5), r.PageRange(REGION.id, 5, 1)))
BITMAP = r.DirtyBitmap(1, REGION.id, 8, 12, BitmapEncoding.PLAIN, b"\xff\x0f")
RUNS = r.DirtyBitmap(
    1, REGION.id, 8, 12, BitmapEncoding.RUNS, bytes.fromhex("01" + "00" * 7 + "02" + "00" * 7)
)
STATE = r.State(1, 0, r.NO_VCPU, 2, 1, 0, total_bytes=10, offset=4, last=False, data=b"abc")
SEAL = r.Seal(1, Checksum.XXH3_128, b"d" * 16, b"e" * 16, 3, 4000, ((0, 17), (1, 4)))
VERDICT = r.Verdict(Owner.DESTINATION, 4, r.Runner("b", b"r" * 16), complete=True, digest=b"d" * 16)


def refusal(kind: FrameType, body: bytes, bounds: Bounds = BOUNDS) -> tuple[str, ErrorCode]:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_body(kind, body, bounds)
    assert caught.value.frame == kind
    assert caught.value.clause
    assert caught.value.offset is not None
    assert HEADER_BYTES <= caught.value.offset <= HEADER_BYTES + len(body)
    return caught.value.clause, caught.value.code


def decoded_or_refused(kind: FrameType, body: bytes) -> None:
    """Bytes are the canonical form of a record, or a refusal with clause, frame and offset."""
    try:
        record = decode_body(kind, body, BOUNDS)
    except RemoteProtocolError:
        refusal(kind, body)
    else:
        assert encode_body(record, BOUNDS) == body


def both_refuse(record: r.Record, clause: str, code: ErrorCode, bounds: Bounds = BOUNDS) -> None:
    """The writer refuses the record as a local error, and the reader what an unchecked writer makes of it."""
    with pytest.raises(LocalProtocolError) as caught:
        encode_body(record, bounds)
    assert (caught.value.clause, caught.value.code, caught.value.frame) == (clause, code, record.type)
    assert refusal(record.type, unchecked.body(record), bounds) == (clause, code)


def patched(record: r.Record, offset: int, new: bytes) -> bytes:
    body = encode_body(record, BOUNDS)
    return body[:offset] + new + body[offset + len(new) :]


# --- what must come back as it was ---------------------------------------------------------------


@pytest.mark.parametrize("kind", FrameType)
def test_every_record_comes_back(kind):
    """[round-trip] Both ways: the second encoding equals the first."""

    @given(strategies.BY_TYPE[kind]())
    def check(record):
        body = encode_body(record, BOUNDS)
        decoded = decode_body(kind, body, BOUNDS)
        assert decoded == record
        assert type(decoded) is type(record)
        assert encode_body(decoded, BOUNDS) == body
        assert decode_body(kind, memoryview(body), BOUNDS) == record
        assert unchecked.body(record) == body

    check()


def test_open_numbers_pass():
    """[FRM-4] Numbers of later releases (architectures, codes, state kinds) are for others to judge."""
    assert decode_body(FrameType.GUEST, encode_body(GUEST)).architecture == 999
    abort = r.Abort(0xFFFF, 0xFFFF, 0xFFFF)
    assert decode_body(FrameType.ABORT, encode_body(abort)) == abort
    state = replace(STATE, kind=0xFFFF, architecture=0xFFFF)
    assert decode_body(FrameType.STATE, encode_body(state)) == state


def test_a_table_can_be_written_before_the_regions_are_known():
    table = r.Pages(1, 1, 5, strategies.make_runs([(0, 1, 0)], 12), strategies.np.zeros(1, "<u8"))
    body = encode_body(table)
    assert decode_body(FrameType.PAGES, body, Bounds(regions={5: r.Region(5, 0, 4096)})) == table


# --- any bytes at all ----------------------------------------------------------------------------


@given(st.sampled_from(FrameType), st.binary(max_size=400))
def test_any_bytes_give_a_record_or_one_coded_error(kind, body):
    """[coded-refusal]"""
    decoded_or_refused(kind, body)


@given(strategies.records(), st.data())
def test_a_changed_body_gives_a_record_or_one_coded_error(record, data):
    body = bytearray(encode_body(record, BOUNDS))
    for _ in range(data.draw(st.integers(1, 3))):
        if body:
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    decoded_or_refused(record.type, bytes(body))


@given(strategies.records())
def test_a_body_cut_anywhere_is_refused(record):
    """[FRM-1] [FRM-12] No layout is the beginning of another one."""
    body = encode_body(record, BOUNDS)
    for size in range(min(len(body), 600)):
        assert refusal(record.type, body[:size])[0] in {"FRM-1", "FRM-12", "PGS-4"}


@given(strategies.records(), st.binary(min_size=1, max_size=40))
def test_trailing_bytes_are_refused(record, more):
    """[FRM-2]"""
    body = encode_body(record, BOUNDS)
    assert refusal(record.type, body + more) == ("FRM-2", ErrorCode.TRAILING_BYTES)
    with pytest.raises(PeerMisbehaved) as caught:
        decode_body(record.type, body + more, BOUNDS)
    assert caught.value.offset == HEADER_BYTES + len(body)


def test_errors_say_where():
    """The offset is that of the field, counted from the header's first byte."""
    with pytest.raises(PeerMisbehaved) as caught:
        decode_body(FrameType.PROGRESS, bytes([99]) + bytes(55))
    assert caught.value.offset == HEADER_BYTES
    body = encode_body(GUEST)
    second = 24 + 3 + 24  # fixed part, name, first region
    with pytest.raises(PeerMisbehaved) as caught:
        decode_body(FrameType.GUEST, body[: second + 4] + b"\x11" + body[second + 5 :])
    assert (caught.value.offset, caught.value.clause) == (HEADER_BYTES + second + 4, "GST-4")


# --- clause by clause ----------------------------------------------------------------------------

# Where each body has reserved bytes: record, offset, size.
RESERVED = [
    (HELLO, 1, 1),
    (HELLO, 20, 4),
    (HELLO, 104 + 7 + 7 + 8 + 3, 5),
    (HELLO, 104 + 7 + 7 + 8 + 32 + 2, 6),
    (WELCOME, 20, 4),
    (WELCOME, 72 + 7 + 2, 6),
    (WELCOME, 72 + 7 + 16 + 2, 6),
    (GUEST, 10, 2),
    (r.Accept(1), 10, 6),
    (r.Attach(b"s" * 16, b"t" * 32, 1, 1), 54, 2),
    (r.Attached(1, 1, 1), 14, 2),
    (r.RoundEnd(1, 1, 1, 1, ((0, 1),)), 26, 6),
    (r.RoundEnd(1, 1, 1, 1, ((0, 1),)), 34, 6),
    (ACK, 28, 4),
    (ACK, 36, 4),
    (r.Switchover(1, Style.BITMAP), 5, 3),
    (r.Ready(1), 4, 4),
    (r.NotReady(1, 2), 6, 2),
    (BITMAP, 9, 3),
    (r.Held(1, REGION.id, True, 8, 12, BitmapEncoding.PLAIN, b"\xff\x0f"), 10, 2),
    (STATE, 41, 7),
    (SEAL, 5, 1),
    (SEAL, 12, 4),
    (SEAL, 58, 6),
    (r.Loaded(1, b"d" * 16), 4, 4),
    (r.Handover(1, 1), 4, 4),
    (r.PageRequest(REGION.id, 0, 1), 5, 3),
    (r.Progress(Phase.ROUNDS, 1, 2, 3, 4, 5, 6, 7), 1, 3),
    (r.Abort(1, 2), 6, 2),
    (r.Abort(1, 2), 20, 4),
    (VERDICT, 3, 5),
]


@pytest.mark.parametrize(("record", "offset", "size"), RESERVED)
def test_reserved_fields_are_zero(record, offset, size):
    """[FRM-3] Every single bit of them."""
    for bit in range(size * 8):
        body = patched(record, offset, (1 << bit).to_bytes(size, "little"))
        assert refusal(record.type, body) == ("FRM-3", ErrorCode.BAD_VALUE)


ENUMERATIONS = [
    (HELLO, 0),
    (GUEST, 24 + 3 + 6),
    (GUEST, 24 + 3 + 7),
    (r.Switchover(1, Style.BITMAP), 4),
    (BITMAP, 8),
    (SEAL, 4),
    (r.Progress(Phase.ROUNDS, 1, 2, 3, 4, 5, 6, 7), 0),
    (VERDICT, 0),
]


@pytest.mark.parametrize(("record", "offset"), ENUMERATIONS)
def test_enumerations_are_closed(record, offset):
    """[FRM-4]"""
    assert refusal(record.type, patched(record, offset, b"\xff")) == ("FRM-4", ErrorCode.BAD_VALUE)


def test_enumerations_are_closed_for_the_writer():
    """[FRM-4]"""
    both_refuse(r.Switchover(1, 77), "FRM-4", ErrorCode.BAD_VALUE)


@pytest.mark.parametrize(
    ("record", "offset"),
    [
        (HELLO, 104 + 7 + 7 + 8 + 2),
        (STATE, 40),
        (r.PageRequest(REGION.id, 0, 1), 4),
        (VERDICT, 1),
        (VERDICT, 2),
    ],
)
def test_booleans_are_zero_or_one(record, offset):
    """[FRM-5]"""
    assert refusal(record.type, patched(record, offset, b"\2")) == ("FRM-5", ErrorCode.BAD_VALUE)


def test_booleans_are_zero_or_one_for_the_writer():
    """[FRM-5]"""
    both_refuse(r.PageRequest(REGION.id, 0, 1, urgent=2), "FRM-5", ErrorCode.BAD_VALUE)


@pytest.mark.parametrize("rows", [((1, 5), (0, 5)), ((1, 5), (1, 6))])
def test_streams_ascend(rows):
    """[FRM-16]"""
    both_refuse(r.RoundEnd(1, 1, 1, 1, rows), "FRM-16", ErrorCode.BAD_VALUE)
    both_refuse(replace(SEAL, last_sequences=rows), "FRM-16", ErrorCode.BAD_VALUE)


@pytest.mark.parametrize(("first", "count"), [(3, 0), ((1 << 52) - 1, 2), ((1 << 64) - 1, 1)])
def test_ranges_have_pages_of_an_address_space(first, count):
    """[FRM-17]"""
    both_refuse(r.PageRequest(REGION.id, first, count), "FRM-17", ErrorCode.BAD_VALUE, Bounds())
    both_refuse(
        replace(ACK, rejected=(r.PageRange(7, first, count),)), "FRM-17", ErrorCode.BAD_VALUE, Bounds()
    )


@pytest.mark.parametrize(("region", "first"), [(REGION.id + 1, 0), (REGION.id, REGION.pages - 11)])
def test_ranges_lie_in_their_region(region, first):
    """[FRM-18] Only where the region table is known."""
    for record in (
        r.PageRequest(region, first, 12),
        replace(ACK, rejected=(r.PageRange(region, first, 12),)),
        replace(BITMAP, region=region, first=first),
        r.Held(1, region, False, first, 12, BitmapEncoding.PLAIN, b"\0\0"),
    ):
        both_refuse(record, "FRM-18", ErrorCode.OUTSIDE_REGION)
        assert decode_body(record.type, encode_body(record)) == record


@pytest.mark.parametrize("raw", [b"\xff", b"a\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"])
def test_text_is_utf8(raw):
    """[TXT-2]"""
    assert refusal(FrameType.ABORT, unchecked.body(r.Abort(1, 2, text=raw))) == ("TXT-2", ErrorCode.BAD_TEXT)


def test_surrogates_cannot_be_written():
    """[TXT-2]"""
    with pytest.raises(LocalProtocolError) as caught:
        encode_body(r.Abort(1, 2, text="\ud800"))
    assert (caught.value.clause, caught.value.code) == ("TXT-2", ErrorCode.BAD_TEXT)


@pytest.mark.parametrize("char", [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0))])
def test_text_has_no_control_characters(char):
    """[TXT-3]"""
    both_refuse(r.Abort(1, 2, text=f"a{char}b"), "TXT-3", ErrorCode.BAD_TEXT)


def test_text_that_leaves_its_body_is_cut():
    """[TXT-1]"""
    body = unchecked.body(r.Abort(1, 2, text="abc"))
    assert refusal(FrameType.ABORT, body[:24] + b"\x04abc") == ("FRM-1", ErrorCode.MALFORMED)


def test_text_has_at_most_255_bytes():
    """[TXT-4]"""
    assert decode_body(FrameType.ABORT, encode_body(r.Abort(1, 2, text="x" * 255))).text == "x" * 255
    for text in ("x" * 256, "é" * 128):
        with pytest.raises(LocalProtocolError) as caught:
            encode_body(r.Abort(1, 2, text=text))
        assert (caught.value.clause, caught.value.code) == ("TXT-4", ErrorCode.BAD_TEXT)


def test_hello_has_some_versions():
    """[HEL-2]"""
    for versions in ((), tuple(range(17)), (5, 4, 5)):
        both_refuse(replace(HELLO, versions=versions), "HEL-2", ErrorCode.BAD_VALUE)


def test_hello_offers_no_feature_twice():
    """[HEL-3]"""
    twice = (r.FeatureOffer(1), r.FeatureOffer(1, parameter=3))
    for features in (twice, tuple(map(r.FeatureOffer, range(65)))):
        both_refuse(replace(HELLO, features=features), "HEL-3", ErrorCode.BAD_VALUE)


def _two_equal_limits(record: r.Hello | r.Welcome) -> bytes:
    body = encode_body(replace(record, limits={1: 5, 2: 6}))
    return body[:-16] + body[-32:-16]


def test_hello_states_no_limit_twice():
    """[HEL-4]"""
    both_refuse(replace(HELLO, limits=dict.fromkeys(range(65), 1)), "HEL-4", ErrorCode.BAD_VALUE)
    assert refusal(FrameType.HELLO, _two_equal_limits(HELLO)) == ("HEL-4", ErrorCode.BAD_VALUE)


@pytest.mark.parametrize("mode", [Mode.OPEN, Mode.STORED])
@pytest.mark.parametrize("extra", [{"session": b"s" * 16}, {"token": b"t" * 32}, {"generation": 1}])
def test_an_opening_names_no_session(extra, mode):
    """[HEL-5]"""
    both_refuse(replace(HELLO, mode=mode, **extra), "HEL-5", ErrorCode.BAD_VALUE)


@pytest.mark.parametrize("mode", [Mode.RESUME, Mode.VERDICT])
def test_resume_and_verdict_name_a_session(mode):
    """[HEL-6]"""
    both_refuse(replace(HELLO, mode=mode), "HEL-6", ErrorCode.BAD_VALUE)


# Values that mean nothing here, and may in another version: offset in HELLO and bytes.
STRANGE = {
    "mode": (0, b"\x09"),
    "reserved": (1, b"\x01"),
    "epoch": (8, b"\xff" * 8),
    "generation": (16, b"\x01"),
    "more reserved": (20, b"\x01"),
    "session": (56, b"\x01"),
    "token": (72, b"\x01"),
    "required": (104 + 7 + 7 + 8 + 2, b"\x02"),
    "of a feature": (104 + 7 + 7 + 8 + 3, b"\xff" * 5),
    "of a limit": (104 + 7 + 7 + 8 + 32 + 2, b"\xff" * 6),
}
LATER = replace(HELLO, versions=(0x20000, 0x20001))


@pytest.mark.parametrize(("offset", "new"), STRANGE.values(), ids=STRANGE)
def test_a_hello_of_another_version_is_answered_whatever_it_holds(offset, new):
    """[VRS-3] [FRM-15] [NEG-1] Values are this version's business only if a common version is listed."""
    assert refusal(FrameType.HELLO, patched(LATER, offset, new)) == ("NEG-1", ErrorCode.NO_COMMON_VERSION)
    assert refusal(FrameType.HELLO, patched(HELLO, offset, new))[1] is ErrorCode.BAD_VALUE


def test_a_hello_of_another_version_is_a_record_if_its_values_make_sense():
    """[NEG-1] Only the core knows that it is to be refused, and in which words."""
    assert decode_body(FrameType.HELLO, encode_body(LATER)) == LATER


def test_the_layout_of_a_hello_comes_before_its_versions():
    """[VRS-3] [HDR-11] Nothing can be said of versions that cannot be found, or of values before these."""
    for hello in (HELLO, LATER):
        body = patched(hello, 0, b"\x09")
        for wrong, clause in (
            (body[:100], "FRM-1"),
            (body[:-1], "FRM-12"),
            (body + b"x", "FRM-2"),
            (body[:2] + bytes(2) + body[4:], "HEL-2"),
            (body[:118] + body[122:126] + body[122:], "HEL-2"),
            (body[:4] + b"\x41" + body[5:], "HEL-3"),
            (body[:6] + b"\x41" + body[7:], "HEL-4"),
            (body[:105] + b"\xff" + body[106:], "TXT-2"),
            (body[:105] + b"\n" + body[106:], "TXT-3"),
        ):
            assert refusal(FrameType.HELLO, wrong)[0] == clause


@given(strategies.hellos(), st.data())
def test_the_layout_of_hello_does_not_change(hello, data):
    """[FRM-15] The same bytes: whatever a value is, the versions are found, and nothing else is told of."""
    body = bytearray(encode_body(hello))
    for offset, size in ((0, 1), (1, 1), (8, 12), (20, 4), (24, 80)):
        body[offset : offset + size] = data.draw(st.binary(min_size=size, max_size=size))
    try:
        found = decode_body(FrameType.HELLO, bytes(body))
    except RemoteProtocolError:
        code = ErrorCode.BAD_VALUE if VERSION in hello.versions else ErrorCode.NO_COMMON_VERSION
        assert refusal(FrameType.HELLO, bytes(body))[1] is code
    else:
        assert found.versions == hello.versions


@pytest.mark.parametrize("epoch", [(1 << 64) - 2, (1 << 64) - 1])
def test_two_epochs_can_follow_an_opening(epoch):
    """[HEL-8] Other modes name the epoch of an opening, or of a stream that nobody hands over."""
    both_refuse(replace(HELLO, epoch=epoch), "HEL-8", ErrorCode.BAD_VALUE)
    for hello in (
        replace(HELLO, epoch=(1 << 64) - 3),
        replace(HELLO, epoch=epoch, mode=Mode.STORED),
        replace(HELLO, epoch=epoch, mode=Mode.VERDICT, session=b"s" * 16),
    ):
        assert decode_body(FrameType.HELLO, encode_body(hello)) == hello


def test_welcome_selects_no_feature_twice():
    """[WEL-1]"""
    twice = (r.FeatureChoice(1), r.FeatureChoice(1, 3))
    for features in (twice, tuple(map(r.FeatureChoice, range(65)))):
        both_refuse(replace(WELCOME, features=features), "WEL-1", ErrorCode.BAD_VALUE)


def test_welcome_states_no_limit_twice():
    """[WEL-2]"""
    both_refuse(replace(WELCOME, limits=dict.fromkeys(range(65), 1)), "WEL-2", ErrorCode.BAD_VALUE)
    assert refusal(FrameType.WELCOME, _two_equal_limits(WELCOME)) == ("WEL-2", ErrorCode.BAD_VALUE)


def test_refuse_lists_at_most_64_items():
    """[REF-1]"""
    both_refuse(r.Refuse(1, items=("x",) * 65), "REF-1", ErrorCode.BAD_VALUE)


def test_a_guest_has_regions():
    """[GST-1]"""
    both_refuse(replace(GUEST, regions=()), "GST-1", ErrorCode.BAD_REGION)


def test_a_guest_has_at_most_the_announced_regions():
    """[GST-2] [LIM-4] Before a single one is read: the body holds none of them."""
    regions = tuple(r.Region(number, number << 12, 4096) for number in range(65))
    both_refuse(replace(GUEST, regions=regions), "GST-2", ErrorCode.LIMIT_REGIONS)
    assert decode_body(FrameType.GUEST, encode_body(replace(GUEST, regions=regions[:64])))
    body = unchecked.body(GUEST, {"regions": 0xFFFF})[:24]
    assert refusal(FrameType.GUEST, body) == ("GST-2", ErrorCode.LIMIT_REGIONS)
    with pytest.raises(LimitExceeded):
        decode_body(FrameType.GUEST, body)


BAD_REGIONS = [
    ("GST-3", (r.Region(1, 0, 4096), r.Region(1, 8192, 4096))),
    ("GST-4", (r.Region(1, 0, 4096, 11),)),
    ("GST-4", (r.Region(1, 0, 1 << 17, 17),)),
    ("GST-5", (r.Region(1, 0, 4096, 12, 11),)),
    ("GST-5", (r.Region(1, 0, 4096, 12, 31),)),
    ("GST-6", (r.Region(1, 2048, 4096),)),
    ("GST-6", (r.Region(1, 0, 4097),)),
    ("GST-6", (r.Region(1, 0, 0),)),
    ("GST-6", (r.Region(1, 4096, 1 << 16, 16),)),
    ("GST-7", (r.Region(1, (1 << 64) - 4096, 8192),)),
    ("GST-8", (r.Region(1, 4096, 8192), r.Region(2, 8192, 4096))),
    ("GST-8", (r.Region(1, 8192, 4096), r.Region(2, 0, 1 << 20))),
    ("GST-8", (r.Region(1, 0, 4096), r.Region(2, 0, 4096))),
]


@pytest.mark.parametrize(("clause", "regions"), BAD_REGIONS)
def test_region_tables(clause, regions):
    """[GST-3] [GST-4] [GST-5] [GST-6] [GST-7] [GST-8]"""
    both_refuse(replace(GUEST, regions=regions), clause, ErrorCode.BAD_REGION)


def test_a_region_may_end_with_the_address_space():
    """[GST-7]"""
    guest = replace(GUEST, regions=(r.Region(1, (1 << 64) - 4096, 4096), r.Region(2, (1 << 64) - 8192, 4096)))
    assert decode_body(FrameType.GUEST, encode_body(guest)) == guest


def test_a_guest_has_at_most_the_announced_memory():
    """[GST-9]"""
    bounds = Bounds(limits=Limits(memory_bytes=(2 << 20) - 1))
    both_refuse(GUEST, "GST-9", ErrorCode.LIMIT_MEMORY, bounds)
    assert decode_body(FrameType.GUEST, encode_body(GUEST), Bounds(limits=Limits(memory_bytes=2 << 20)))


def test_a_guest_has_at_most_the_announced_state():
    """[GST-10]"""
    both_refuse(GUEST, "GST-10", ErrorCode.LIMIT_STATE, Bounds(limits=Limits(state_bytes=(1 << 20) - 1)))


@pytest.mark.parametrize(
    "lists",
    [
        {"cpu_features": tuple(map(str, range(1025)))},
        {"nics": tuple(r.Nic(str(number), b"123456") for number in range(65))},
        {"disks": tuple(r.Disk(str(number), "", 1) for number in range(65))},
    ],
)
def test_a_guest_has_no_endless_lists(lists):
    """[GST-11]"""
    both_refuse(replace(GUEST, **lists), "GST-11", ErrorCode.BAD_VALUE)


@pytest.mark.parametrize(
    "lists",
    [
        {"cpu_features": ("sse", "sse")},
        {"nics": (r.Nic("e", b"123456"), r.Nic("e", b"123457"))},
        {"disks": (r.Disk("d", "1", 1), r.Disk("d", "2", 1))},
    ],
)
def test_names_of_a_guest_are_unique(lists):
    """[GST-12]"""
    both_refuse(replace(GUEST, **lists), "GST-12", ErrorCode.BAD_VALUE)


def test_accept_has_at_most_16_data_streams():
    """[ACC-2]"""
    both_refuse(r.Accept(1, 17), "ACC-2", ErrorCode.BAD_VALUE)


def test_a_data_connection_has_an_index_below_16():
    """[ATT-2]"""
    both_refuse(r.Attach(b"s" * 16, b"t" * 32, 16, 1), "ATT-2", ErrorCode.BAD_VALUE)
    both_refuse(r.Attached(16, 1, 1), "ATT-2", ErrorCode.BAD_VALUE)


def test_rounds_begin_at_one():
    """[RND-1] [RAK-1]"""
    both_refuse(r.Round(1, 0, 5), "RND-1", ErrorCode.BAD_VALUE)
    both_refuse(r.RoundEnd(1, 0, 5, 5), "RND-1", ErrorCode.BAD_VALUE)
    both_refuse(r.RoundAck(1, 0, 5, 5), "RAK-1", ErrorCode.BAD_VALUE)


def test_there_are_at_most_17_streams():
    """[RND-2] [SEA-2]"""
    for rows in (((17, 0),), tuple((number, 0) for number in range(18))):
        both_refuse(r.RoundEnd(1, 1, 1, 1, rows), "RND-2", ErrorCode.BAD_VALUE)
        both_refuse(replace(SEAL, last_sequences=rows), "SEA-2", ErrorCode.BAD_VALUE)


def test_rejected_ranges_are_bounded():
    """[RAK-2] [LIM-4]"""
    bounds = replace(BOUNDS, limits=Limits(rejected_runs=1))
    both_refuse(ACK, "RAK-2", ErrorCode.LIMIT_REJECTED, bounds)
    body = unchecked.body(ACK, {"rejected": 0xFFFFFFFF})
    assert refusal(FrameType.ROUND_ACK, body) == ("RAK-2", ErrorCode.LIMIT_REJECTED)


def test_nothing_is_rejected_without_hashes():
    """[RAK-6] [BMP-9] Checked behind RAK-2, and where the field is."""
    bounds = replace(BOUNDS, hashed=False)
    held = r.Held(1, BITMAP.region, True, BITMAP.first, BITMAP.bits, BITMAP.encoding, BITMAP.data)
    both_refuse(ACK, "RAK-6", ErrorCode.BAD_VALUE, bounds)
    both_refuse(held, "BMP-9", ErrorCode.BAD_VALUE, bounds)
    for record in (replace(ACK, rejected=()), replace(held, rejected=False)):
        assert decode_body(record.type, encode_body(record, bounds), bounds) == record
    both_refuse(ACK, "RAK-2", ErrorCode.LIMIT_REJECTED, replace(bounds, limits=Limits(rejected_runs=1)))


@pytest.mark.parametrize(
    "rejected",
    [
        (r.PageRange(7, 5, 1), r.PageRange(7, 0, 1)),
        (r.PageRange(7, 0, 6), r.PageRange(7, 5, 1)),
        (r.PageRange(7, 0, 1), r.PageRange(6, 5, 1)),
    ],
)
def test_rejected_ranges_ascend(rejected):
    """[RAK-3]"""
    both_refuse(replace(ACK, rejected=rejected), "RAK-3", ErrorCode.OVERLAPPING_RUNS, Bounds())


def test_rejected_ranges_of_several_regions():
    """[RAK-3]"""
    ack = replace(ACK, rejected=(r.PageRange(6, 100, 1), r.PageRange(7, 0, 1)))
    assert decode_body(FrameType.ROUND_ACK, encode_body(ack)) == ack


def _run(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(8, "little") for number in numbers)


BAD_BITMAPS = [
    ("BMP-1", {"bits": 0, "data": b""}, ErrorCode.BAD_VALUE),
    ("BMP-1", {"first": (1 << 52) - 11}, ErrorCode.BAD_VALUE),
    ("BMP-2", {"data": b"\xff"}, ErrorCode.BAD_VALUE),
    ("BMP-2", {"data": b"\xff\0\0"}, ErrorCode.BAD_VALUE),
    ("BMP-3", {"data": b"\xff\x10"}, ErrorCode.TRAILING_BYTES),
    ("BMP-4", {"encoding": BitmapEncoding.RUNS, "data": _run(1, 2)[:-1]}, ErrorCode.BAD_VALUE),
    ("BMP-5", {"encoding": BitmapEncoding.RUNS, "data": _run(1, 0)}, ErrorCode.BAD_VALUE),
    ("BMP-5", {"encoding": BitmapEncoding.RUNS, "data": _run(1, 12)}, ErrorCode.BAD_VALUE),
    ("BMP-5", {"encoding": BitmapEncoding.RUNS, "data": _run((1 << 64) - 1, 2)}, ErrorCode.BAD_VALUE),
    ("BMP-6", {"encoding": BitmapEncoding.RUNS, "data": _run(5, 1, 1, 1)}, ErrorCode.OVERLAPPING_RUNS),
    ("BMP-6", {"encoding": BitmapEncoding.RUNS, "data": _run(1, 3, 3, 1)}, ErrorCode.OVERLAPPING_RUNS),
]


@pytest.mark.parametrize(("clause", "changes", "code"), BAD_BITMAPS)
def test_bitmaps(clause, changes, code):
    """[BMP-1] [BMP-2] [BMP-3] [BMP-4] [BMP-5] [BMP-6]"""
    bitmap = replace(BITMAP, **changes)
    both_refuse(bitmap, clause, code)
    held = r.Held(1, bitmap.region, True, bitmap.first, bitmap.bits, bitmap.encoding, bitmap.data)
    both_refuse(held, clause, code)


def test_a_bitmap_of_whole_bytes():
    """[BMP-3]"""
    bitmap = replace(BITMAP, bits=16, data=b"\xff\xff")
    assert decode_body(FrameType.DIRTY_BITMAP, encode_body(bitmap)) == bitmap


def test_a_section_is_not_longer_than_announced():
    """[STA-1] [LIM-4]"""
    both_refuse(STATE, "STA-1", ErrorCode.LIMIT_STATE, Bounds(limits=Limits(state_bytes=9)))


@pytest.mark.parametrize(
    ("clause", "changes"),
    [
        ("STA-2", {"offset": 8}),
        ("STA-2", {"offset": (1 << 64) - 1}),
        ("STA-3", {"last": True}),
        ("STA-3", {"offset": 7}),
        ("STA-4", {"data": b""}),
    ],
)
def test_fragments_fit_their_section(clause, changes):
    """[STA-2] [STA-3] [STA-4]"""
    both_refuse(replace(STATE, **changes), clause, ErrorCode.BAD_FRAGMENT)


def test_an_empty_section_is_one_empty_fragment():
    """[STA-4]"""
    state = replace(STATE, total_bytes=0, offset=0, data=b"", last=True)
    assert decode_body(FrameType.STATE, encode_body(state)) == state


@pytest.mark.parametrize("algorithm", [Checksum.CRC32, Checksum.XXH3_64])
def test_the_digest_has_an_algorithm_for_digests(algorithm):
    """[SEA-1]"""
    both_refuse(replace(SEAL, algorithm=algorithm), "SEA-1", ErrorCode.BAD_VALUE)


def test_an_epoch_follows_the_one_handed_over():
    """[HND-3]"""
    both_refuse(r.Handover(1, (1 << 64) - 1), "HND-3", ErrorCode.BAD_VALUE)


def test_a_verdict_does_not_contradict_itself():
    """[VER-1] [VER-2]"""
    both_refuse(replace(VERDICT, handed_back=True), "VER-1", ErrorCode.BAD_VALUE)
    both_refuse(replace(VERDICT, complete=False), "VER-2", ErrorCode.BAD_VALUE)


# --- counts and misuse ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "name", "more", "clause"),
    [
        (HELLO, "limits", 1, "FRM-12"),
        (WELCOME, "limits", 1, "FRM-12"),
        (r.Refuse(1, items=("a",)), "items", 1, "FRM-1"),
        (r.Refuse(1, items=("a",)), "items", 2, "FRM-12"),
        (GUEST, "disks", 9, "FRM-12"),
        (BITMAP, "data", 1, "FRM-12"),
    ],
)
def test_a_count_that_the_body_cannot_hold(record, name, more, clause):
    """[FRM-12] Texts are missed at their place, or before the first if even empty ones have no room."""
    body = unchecked.body(record, {name: len(getattr(record, name)) + more})
    assert refusal(record.type, body) == (clause, ErrorCode.MALFORMED)


def test_a_count_comes_before_its_items():
    """[FRM-12] [HDR-11] Two rows in the place of three, of which the first is wrong."""
    record = r.RoundAck(1, 1, 0, 0, (r.PageRange(REGION.id, 0, 0), r.PageRange(REGION.id, 1, 1)))
    assert refusal(FrameType.ROUND_ACK, unchecked.body(record, {"rejected": 3}))[0] == "FRM-12"
    assert refusal(FrameType.ROUND_ACK, unchecked.body(record))[0] == "FRM-17"


def test_what_concerns_one_field_comes_before_the_next():
    """[HDR-11]"""
    region = replace(GUEST.regions[0], granule_log2=3, kind=99)
    assert refusal(FrameType.GUEST, unchecked.body(replace(GUEST, regions=(region,))))[0] == "GST-4"
    last = unchecked.body(r.Handover(1, (1 << 64) - 1))
    assert refusal(FrameType.HANDOVER, last + b"\0")[0] == "HND-3"


@pytest.mark.parametrize(
    "record",
    [
        r.Ping(-1),
        r.Ping(1 << 64),
        r.Ping("1"),
        replace(HELLO, features=None),
        replace(HELLO, guest=b"short"),
        replace(HELLO, guest=7),
        replace(SEAL, state_digest=b""),
        replace(HELLO, agent=None),
        replace(SEAL, last_sequences=((1,),)),
        r.Pages(1, 1, REGION.id, strategies.np.zeros(3), strategies.np.zeros(0, "<u8")),
        r.Pages(-1, 1, REGION.id, strategies.make_runs([(0, 1, 1)], 12), strategies.np.zeros(0, "<u8")),
    ],
)
def test_a_record_that_is_none_is_a_local_error(record):
    with pytest.raises(LocalProtocolError):
        encode_body(record, BOUNDS)


def test_what_is_no_record_at_all_is_a_local_error():
    with pytest.raises(LocalProtocolError):
        encode_body("HELLO")


def test_a_type_without_layout_is_a_local_error():
    with pytest.raises(LocalProtocolError):
        decode_body(0x7F00, b"")


def test_frames_leave_no_rings():
    """Nothing of a frame is left for the garbage collector once its record is gone."""
    gc.collect()
    for record in (HELLO, WELCOME, GUEST, ACK, SEAL):
        assert decode_body(record.type, encode_body(record)) == record
    assert gc.collect() == 0
