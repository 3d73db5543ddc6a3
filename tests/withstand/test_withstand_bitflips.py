"""Bits that change on the way, in the header, the body and the bulk part of a frame of every type.

Left as it is, a changed frame is caught by a checksum, and changed page bytes by their hash. With checksums
set right again it is somebody's intention, and means what it says: it is refused with a code or is legal, and
then the rest of the honest conversation is said. However that ends, a guest that runs is whole, and runs only
where it may.

Published bugs of this class: none of QEMU, Cloud Hypervisor, Xen and CRIU checks its stream at all, and
Propolis lost pages without a word; Xensploit (2008) changed the memory of guests on their way between hosts.
Single fields of QEMU's stream that were believed: CVE-2013-4526, CVE-2013-4529, CVE-2013-4530, CVE-2013-4532,
CVE-2013-4533, CVE-2013-4537, CVE-2013-4538, CVE-2013-4539, CVE-2013-4540, CVE-2013-4542, CVE-2013-4544.

[HDR-2] [HDR-3] [HDR-4] [HDR-5] [HDR-6] [HDR-10] [HDR-11] [CON-35] [CON-47] [PGS-13] [MEM-15] [MEM-19] [SEC-9]
"""

from __future__ import annotations

import pytest
from withstand_fields import leaves
from withstand_judge import judge, judge_any
from withstand_support import LIMITS, Victim, at_home, receivers, recording, sample, sample_bulk

from sterna.core.tables import DestinationState
from sterna.errors import RemoteProtocolError
from sterna.limits import HEADER_BYTES
from sterna.registry import ErrorCode, FrameType
from sterna.wire import Bounds, crc32, decode_body
from sterna.wire import records as r

F, C = FrameType, ErrorCode
TARGETS = [(role, frame) for frame in FrameType for role in receivers(frame)]
targets = pytest.mark.parametrize(
    ("role", "frame"), TARGETS, ids=[f"{frame.name}-to-{role}" for role, frame in TARGETS]
)
# Which of a byte's bits is changed where not all are: another one from byte to byte.
STRIDE = 5
REGIONS = {
    region.id: region
    for said in recording()["destination"]
    if said.frame == F.GUEST
    for region in decode_body(F.GUEST, said.body).regions  # type: ignore[union-attr]
}


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def one_a_byte(size: int) -> list[int]:
    """One bit of each byte, in turn."""
    return [8 * number + number * STRIDE % 8 for number in range(size)]


def carry_on(victim: Victim) -> None:
    """Refused, or legal: then the rest of the honest conversation is said, and it ends this way or that."""
    victim.carry_on()
    judge_any(victim)


def one_a_byte_of(frame: FrameType) -> list[int]:
    """One bit of each byte of a body; of the rows of a list, those of the first two."""
    kept = [
        leaf for leaf in leaves(frame) if not any(int(n) > 1 for n in leaf.path.split(".") if n.isdigit())
    ]
    places = [at for leaf in kept for at in range(leaf.offset, leaf.offset + leaf.size)]
    return [8 * at + at * STRIDE % 8 for at in places]


# ---- as damage does it ----


@targets
def test_a_bit_of_the_header(role: str, frame: FrameType) -> None:
    """[HDR-2] Before anything in it is believed, its own checksum among it."""
    for bit in one_a_byte(HEADER_BYTES):
        victim = at_home(role, frame)
        raw = victim.frame(frame, sample(frame), sample_bulk(frame))
        victim.attack(flipped(raw[:HEADER_BYTES], bit))
        judge(victim, C.HEADER_CHECKSUM, clause="HDR-2")


@pytest.mark.slow
@targets
def test_a_bit_of_the_body(role: str, frame: FrameType) -> None:
    """[HDR-10] Before it is read."""
    body = sample(frame)
    for bit in one_a_byte_of(frame):
        victim = at_home(role, frame)
        raw = victim.frame(frame, body)
        if frame is F.PAGES:
            raw = victim.frame(frame, body, bulk_bytes=len(sample_bulk(frame)))
        victim.attack(raw[:HEADER_BYTES] + flipped(body, bit))
        judge(victim, C.BODY_CHECKSUM, clause="HDR-10")


BULK_BITS = [8 * byte + byte % 8 for byte in range(0, len(sample_bulk(F.PAGES)), 127)]


def test_a_bit_of_a_running_guests_page() -> None:
    """[CON-35] [RAK-4] Rejected, these pages and no others; SEAL misses them [MEM-15]."""
    for bit in BULK_BITS:
        victim = at_home("destination", F.PAGES)
        body, bulk = sample(F.PAGES), sample_bulk(F.PAGES)
        victim.attack(victim.frame(F.PAGES, body, flipped(bulk, bit)))
        assert victim.machine.result is None
        victim.carry_on()
        (ack,) = (said.body for said in victim.spoken if said.frame == F.ROUND_ACK)
        told = decode_body(F.ROUND_ACK, ack)
        assert isinstance(told, r.RoundAck)
        assert told.rejected == (r.PageRange(0, 0, len(bulk) // 4096),)
        judge(victim, C.DIGEST_MISMATCH, clause="MEM-15")


def test_a_bit_of_a_paused_guests_page() -> None:
    """[CON-47] Nothing writes the memory of a paused guest."""
    said = [said for said in recording()["destination"] if said.frame == F.PAGES][-1]
    for bit in [8 * byte + byte % 8 for byte in range(0, len(said.bulk), 127)]:
        victim = Victim("destination").until(DestinationState.BLACKOUT, F.PAGES)
        victim.attack(victim.frame(F.PAGES, said.body, flipped(said.bulk, bit)))
        judge(victim, C.PAGE_HASH, clause="CON-47")


# ---- as an attacker does it ----

HEADER_FIELDS = [
    (0, 2, None, None),  # another type
    (2, 4, C.BAD_HEADER, "HDR-3"),
    (4, 6, C.BAD_HEADER, "HDR-5"),
    (6, 8, C.BAD_HEADER, "HDR-4"),
    (8, 16, C.BAD_SEQUENCE, "HDR-6"),
    (16, 24, None, None),  # another length
    (24, 28, C.BODY_CHECKSUM, "HDR-10"),
]


@pytest.mark.slow
@targets
def test_a_bit_of_the_header_with_its_checksum_set_right(role: str, frame: FrameType) -> None:
    """[HDR-11] Each field has its own code; another type or length is what it is."""
    for first, end, code, clause in HEADER_FIELDS:
        for bit in (bit for bit in one_a_byte(28) if first <= bit // 8 < end):
            victim = at_home(role, frame)
            body = sample(frame)
            raw = victim.frame(frame, body, sample_bulk(frame))
            checked = flipped(raw, bit)[: HEADER_BYTES - 4]
            crc = crc32(checked).to_bytes(4, "little")
            victim.attack(checked + crc + raw[HEADER_BYTES:])
            if code is not None:
                judge(victim, code, clause=clause)
            else:
                carry_on(victim)


@pytest.mark.slow
@targets
def test_a_bit_of_the_body_with_its_checksum_set_right(role: str, frame: FrameType) -> None:
    """One in each byte, in the state in which the frame is due; then the rest of the conversation."""
    body = sample(frame)
    for bit in one_a_byte_of(frame):
        victim = at_home(role, frame)
        victim.attack(victim.frame(frame, flipped(body, bit), sample_bulk(frame)))
        carry_on(victim)


@pytest.mark.parametrize("frame", FrameType, ids=lambda frame: frame.name)
def test_every_bit_of_the_body_gives_a_record_or_one_error(frame: FrameType) -> None:
    """[coded-refusal] All of them, at the codec: reserved fields and texts refuse theirs [FRM-3] [TXT-3]."""
    body, bounds = sample(frame), Bounds(LIMITS, REGIONS)
    for leaf in leaves(frame):
        for bit in range(8 * leaf.offset, 8 * (leaf.offset + leaf.size)):
            error = None
            try:
                decode_body(frame, flipped(body, bit), bounds)
            except RemoteProtocolError as refusal:
                error = refusal
            assert error is not None or leaf.kind != "reserved", leaf
            assert error is None or error.clause, f"{leaf.path}: {error}"
    decode_body(frame, body, bounds)


@pytest.mark.parametrize("name", ["digest", "state_digest", "state_sections", "state_bytes"])
def test_seal_of_another_image(name: str) -> None:
    """[MEM-15] [MEM-19] [SEA-3] A changed digest, and counts: nothing is loaded."""
    (leaf,) = (leaf for leaf in leaves(F.SEAL) if leaf.path == name)
    for bit in range(8 * leaf.offset, 8 * (leaf.offset + leaf.size), 3):
        victim = at_home("destination", F.SEAL)
        victim.attack(victim.frame(F.SEAL, flipped(sample(F.SEAL), bit)))
        judge(victim, C.DIGEST_MISMATCH if "digest" in name else C.COUNT_MISMATCH)
        assert "load_state" not in victim.room.calls


def test_state_that_an_attacker_changed_is_not_loaded() -> None:
    """[MEM-19] [CON-51] Any bit of the registers."""
    (leaf,) = (leaf for leaf in leaves(F.STATE) if leaf.path == "data")
    for bit in range(8 * leaf.offset, 8 * (leaf.offset + leaf.size), 11):
        victim = at_home("destination", F.STATE)
        victim.attack(victim.frame(F.STATE, flipped(sample(F.STATE), bit)))
        victim.carry_on()
        judge(victim, C.DIGEST_MISMATCH, clause="MEM-19")
