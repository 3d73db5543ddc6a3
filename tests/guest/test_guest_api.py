from __future__ import annotations

import pytest

from sterna.errors import GuestError
from sterna.guest.api import GuestDescription, WithoutPostCopy
from sterna.registry import ErrorCode
from sterna.wire import encode_body
from sterna.wire.codec import decode_body
from sterna.wire.records import Disk, Nic, Region


def test_everything_that_a_description_names_is_in_guest() -> None:
    """[SFX-2] [SFX-4] Disks with their identities, interfaces with their addresses; there and back."""
    disks = (Disk("root", "nvme-0001", 1 << 40), Disk("data", "san:lun-7", 1 << 42))
    nics = (Nic("eth0", b"\x02\x00\x00\x00\x00\x01"), Nic("eth1", b"\x02\x00\x00\x00\x00\x02"))
    described = GuestDescription(
        b"\x07" * 16, "web-1", (Region(0, 0, 1 << 20),), cpu_features=("avx2",), nics=nics, disks=disks
    )
    record = described.to_record()
    assert (record.disks, record.nics, record.cpu_features) == (disks, nics, ("avx2",))
    body = encode_body(record)
    for name in (b"nvme-0001", b"san:lun-7", nics[0].mac, nics[1].mac):
        assert name in body
    assert GuestDescription.from_record(decode_body(record.type, body), described.id) == described


async def test_a_guest_that_needs_all_of_its_pages_says_so_and_refuses() -> None:
    guest = WithoutPostCopy()
    assert not guest.can_post_copy
    assert await guest.missing() == {}
    for refused in (guest.expect({}), guest.faults(), guest.installed(0, 0, 1), guest.notes(1)):
        with pytest.raises(GuestError) as caught:
            await refused
        assert caught.value.code is ErrorCode.UNSUPPORTED
