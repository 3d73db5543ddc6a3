"""What SEAL states: each statement that is wrong is found, the first one first."""

from dataclasses import replace

import numpy as np
import pytest

from sterna.core.rounds import IncomingRound
from sterna.core.seal import check_seal
from sterna.core.state import StateAssembler, fragments
from sterna.errors import RemoteProtocolError
from sterna.memory.digest import MemoryDigest
from sterna.memory.regions import RegionTable
from sterna.registry import Checksum, Encoding, ErrorCode
from sterna.wire import make_runs, state_digest
from sterna.wire.records import Pages, Region, Seal, StateSection

TABLE = RegionTable([Region(1, 0, 4 * 4096, 12, 12)])
SECTION = StateSection(2, 1, b"registers")
WHOLE = Pages(1, 1, 1, make_runs([(0, 4, Encoding.ZERO)], 12), np.array([], dtype="<u8"))


def arrived(pages=WHOLE):
    """A last round of four zero pages, and one section."""
    last, memory = IncomingRound(1, TABLE, 0.0, last=True), MemoryDigest(TABLE)
    states = StateAssembler(99, 9, 1)
    last.take(pages, (), 7)
    memory.record(pages)
    for fragment in fragments(SECTION, 1, 65536):
        states.add(fragment)
    return last, states, memory


def seal(memory, **changes):
    right = Seal(1, Checksum.XXH3_128, memory.value(), state_digest([SECTION]), 1, 9, ((0, 7),))
    return replace(right, **changes)


def test_the_digest_of_what_has_arrived():
    last, states, memory = arrived()
    assert check_seal(seal(memory), last, states, memory) == memory.value()


@pytest.mark.parametrize(
    ("changes", "code", "clause"),
    [
        ({"last_sequences": ((0, 6),)}, ErrorCode.COUNT_MISMATCH, "RND-4"),
        ({"last_sequences": (), "state_sections": 2}, ErrorCode.COUNT_MISMATCH, "RND-4"),
        ({"state_sections": 2}, ErrorCode.COUNT_MISMATCH, "SEA-3"),
        ({"state_bytes": 8, "digest": bytes(16)}, ErrorCode.COUNT_MISMATCH, "SEA-3"),
        ({"digest": bytes(16), "state_digest": bytes(16)}, ErrorCode.DIGEST_MISMATCH, "MEM-15"),
        ({"state_digest": bytes(16)}, ErrorCode.DIGEST_MISMATCH, "MEM-19"),
    ],
)
def test_a_wrong_statement(changes, code, clause):
    """[CON-50] [RND-4] [SEA-3] [MEM-15] [MEM-19]"""
    last, states, memory = arrived()
    with pytest.raises(RemoteProtocolError) as caught:
        check_seal(seal(memory, **changes), last, states, memory)
    assert (caught.value.code, caught.value.clause) == (code, clause)


def test_a_section_without_its_end():
    """[SEA-3] Although the counts are right."""
    last, _, memory = arrived()
    rest = StateAssembler(99, 9, 1)
    rest.add(replace(next(fragments(SECTION, 1, 65536)), last=False, total_bytes=10))
    with pytest.raises(RemoteProtocolError, match="in part"):
        check_seal(seal(memory, state_sections=0, state_bytes=10), last, rest, memory)


def test_no_page_may_be_missing():
    """[MEM-11] Equal digests are not enough in stop-and-copy."""
    last, states, memory = arrived(replace(WHOLE, runs=WHOLE.runs[:0]))
    with pytest.raises(RemoteProtocolError, match="4 pages missing"):
        check_seal(seal(memory), last, states, memory)
