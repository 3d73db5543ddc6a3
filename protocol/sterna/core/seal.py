"""What SEAL states about the pause image, against what has arrived [CON-50]."""

from __future__ import annotations

from sterna.core.conduct import wrong
from sterna.core.rounds import IncomingRound
from sterna.core.state import StateAssembler
from sterna.core.words import count_text
from sterna.memory.digest import MemoryDigest
from sterna.registry import ErrorCode
from sterna.wire import state_digest
from sterna.wire.records import Seal


def check_seal(
    record: Seal, last: IncomingRound, states: StateAssembler, memory: MemoryDigest, stale: int = 0
) -> bytes:
    """Compare in the order of CON-50; the memory digest, computed here.

    Args:
        record: what the source states.
        last: the round of the blackout.
        states: the state that arrived.
        memory: the entries of all pages that arrived.
        stale: how many pages were declared stale [MEM-10].

    Raises:
        RemoteProtocolError: COUNT_MISMATCH or DIGEST_MISMATCH.
    """
    last.check_sequences(record.last_sequences, record)
    sections = states.sections
    if not states.is_whole or (record.state_sections, record.state_bytes) != (len(sections), states.bytes):
        detail = (
            f"{count_text(record.state_sections, 'section')} of {record.state_bytes} bytes stated, "
            f"{len(sections)} of {states.bytes} arrived{'' if states.is_whole else ', the last one in part'}"
        )
        raise wrong(ErrorCode.COUNT_MISMATCH, detail, "SEA-3", record)
    digest = memory.value()
    missing = memory.stale_pages - stale
    if record.digest != digest or missing:
        detail = f"{count_text(missing, 'page')} missing, digest {digest.hex()}"
        raise wrong(ErrorCode.DIGEST_MISMATCH, detail, "MEM-15", record)
    if record.state_digest != state_digest(sections):
        raise wrong(ErrorCode.DIGEST_MISMATCH, "another execution state", "MEM-19", record)
    return digest
