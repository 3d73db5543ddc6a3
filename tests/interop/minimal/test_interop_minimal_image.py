"""The kit's guest, made twice; and the digests, against the worked examples of the document."""

from __future__ import annotations

import json

from xxhash import xxh3_64_intdigest

from sterna_interop.contract import Params, Role
from sterna_interop.guest import GuestSpec, state_hash
from sterna_interop.minimal.image import (
    Entries,
    Guest,
    Section,
    chunks,
    memory_sha256,
    state_digest,
    state_sha256,
)

SPEC = GuestSpec()
TOLD = json.loads(Params(case="x", role=Role.SOURCE, connect="", token=b"", guest=SPEC).to_json())["guest"]


def test_the_guest_is_the_kits() -> None:
    guest = Guest(TOLD)
    assert memory_sha256(guest.memory) == SPEC.memory_hash(0)
    assert state_sha256(guest.sections) == state_hash(SPEC.state)
    for entries in range(1, 4):
        assert guest.write()
        written = {
            (write.region, page)
            for write in SPEC.writes[entries - 1]
            for page in range(write.first, write.first + write.count)
        }
        assert guest.collect() == written
        assert memory_sha256(guest.memory) == SPEC.memory_hash(entries)
    assert not guest.write()
    assert not guest.collect()


def test_the_worked_example() -> None:
    """[MEM-1, MEM-6, MEM-13] Section 10.4."""
    region = {"id": 7, "granule_log2": 12, "size_bytes": 20 * 4096}
    entries = Entries([region])
    assert not entries.complete
    data = b"".join(bytes([page + 1]) * 4096 for page in range(17))
    found = list(chunks(0, data, 12))
    assert [(first, count) for first, count, _, _ in found] == [(0, 16), (16, 1)]
    assert [value for *_, value in found] == [0x97DAF28579BCC153, 0xE647403DB5B174BB]
    for first, count, _, value in found:
        entries.chunk(7, first, count, value)
    entries.zero(7, 17, 3)
    entries.chunk(7, 3, 1, xxh3_64_intdigest(b"\xa5" * 4096))
    assert entries.digest().hex() == "0a2e00424c9a1a32779f409ba35698b5"
    assert entries.complete
    entries.drop(7, 3, 1)
    assert entries.digest().hex() != "0a2e00424c9a1a32779f409ba35698b5"


def test_the_state_digest() -> None:
    """[MEM-18] Section 10.5."""
    section = Section(0, 2, 0, 1, 0, bytes(range(8)))
    assert state_digest([section]).hex() == "24e37b89349646cde476760c12f6bef3"
