"""The kit's guest against values made by hand, so that an implementer can compare with them."""

from __future__ import annotations

import hashlib
import struct

from sterna.registry import Transfer
from sterna.wire.records import Region, StateSection
from sterna_interop.guest import GuestSpec, SectionSpec, Write, memory_hash, mix, region_of, state_hash, words

SMALL = GuestSpec(
    regions=(
        Region(2, 1 << 20, 8192),
        Region(1, 0, 16384),
        Region(3, 1 << 30, 4096, transfer=Transfer.SHARED),
    ),
    seed=5,
    writes=((Write(1, 1, 2),), (Write(1, 2, 2), Write(2, 0, 1))),
)


def test_mix_is_splitmix64() -> None:
    """The first outputs of splitmix64 with seed 0 and seed 1234567, as its author publishes them."""
    assert mix(0) == 0xE220A8397B1DCDAF
    assert mix(1234567) == 6457827717110365317


def test_words_follow_each_other() -> None:
    data = words(10, 20)
    step = 0x9E3779B97F4A7C15
    assert data == struct.pack("<QQQ", 10, 10 + step, (10 + 2 * step) % 2**64)[:20]


def test_a_page_is_made_of_its_numbers() -> None:
    region = SMALL.copied[0]
    key = mix((mix((mix((mix(5) + 1) % 2**64) + 3) % 2**64) + 2) % 2**64)
    assert SMALL.page(region, 3, 2) == words(key, 4096)
    contents = {SMALL.page(region, page, generation) for page in range(4) for generation in (1, 2, 3)}
    assert len(contents) == 12


def test_some_pages_are_zero_at_first_and_some_become_so() -> None:
    spec = GuestSpec()
    region = spec.copied[0]
    zeros = {page for page in range(region.pages) if spec.page(region, page, 0) == bytes(4096)}
    assert 40 < len(zeros) < 90  # a quarter of 256
    later = {page for page in range(40) if spec.page(region, page, 1) == bytes(4096)}
    assert later - zeros, "the script makes no page zero that was not"
    assert zeros - later
    assert GuestSpec(zero_one_in=0).page(region, min(zeros), 0) != bytes(4096)


def test_the_script_sets_generations() -> None:
    assert SMALL.generations(0) == {1: [0, 0, 0, 0], 2: [0, 0]}
    assert SMALL.generations(1) == {1: [0, 1, 1, 0], 2: [0, 0]}
    assert SMALL.generations() == {1: [0, 1, 2, 2], 2: [2, 0]}


def test_the_image_has_the_copied_regions_in_the_order_of_their_ids() -> None:
    image = SMALL.image()
    assert list(image) == [1, 2]
    assert SMALL.memory_hash() == hashlib.sha256(image[1] + image[2]).hexdigest()
    assert memory_hash([image[1], image[2]]) == SMALL.memory_hash()
    assert len({SMALL.memory_hash(entries) for entries in (0, 1, 2)}) == 3


def test_the_state_does_not_depend_on_the_order_of_the_sections() -> None:
    state = GuestSpec(sections=(SectionSpec(9), SectionSpec(8, vcpu=0))).state
    assert [len(section.data) for section in state] == [9, 8]
    assert state[0].data == words(mix(1 + (1 << 32)), 9)
    assert state_hash(state) == state_hash(state[::-1])
    assert state_hash(state) != state_hash(state[:1])


def test_the_state_hash_is_over_identity_length_and_data() -> None:
    section = StateSection(3, 1, b"abc", 0, 7, 2)
    expected = hashlib.sha256(struct.pack("<IIIIIQ", 0, 3, 7, 1, 2, 3) + b"abc").hexdigest()
    assert state_hash([section]) == expected


def test_a_region_from_its_fields() -> None:
    fields = {"id": 4, "address": 65536, "size_bytes": 65536, "granule_log2": 16, "fault_granule_log2": 12}
    assert region_of(fields | {"kind": 0, "transfer": 0}) == Region(4, 65536, 65536, 16, 12)
