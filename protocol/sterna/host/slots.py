"""What stands in a slot of a lease store, and how it is checked on the way out.

A slot is a line of JSON that says its own guest and epoch, so that one which was copied or renamed into
another's place is noticed, and a checksum over everything before it. There is one way to write a slot: what
is read is decoded, encoded again, and has to be the same bytes. spec/stores.md has the format.
"""

from __future__ import annotations

import unicodedata
from typing import Final

from sterna.errors import StoreDamaged
from sterna.host.sealed import seal, unseal
from sterna.limits import TEXT_BYTES
from sterna.wire.records import NO_ID, Runner

VERSION: Final = 1
EPOCH_MAX: Final = (1 << 64) - 1  # epochs are 64 bits on the wire

# 255 bytes of host name, each of them two once JSON has escaped it, and some 150 of everything else.
SLOT_BYTES_MAX: Final = 1024


def check_guest_id(guest: bytes) -> bytes:
    """Return `guest` if it is a guest's id; raise ValueError if not."""
    if len(guest) != len(NO_ID):
        raise ValueError(f"a guest's id has {len(NO_ID)} bytes, not {len(guest)}")
    return guest


def check_epoch(epoch: int) -> int:
    """Return `epoch` if a slot can have it; raise ValueError if not."""
    if not 1 <= epoch <= EPOCH_MAX:
        raise ValueError(f"slots are numbered from 1 to 2**64 - 1, not {epoch}")
    return epoch


def check_place(guest: bytes, epoch: int) -> None:
    """Raise ValueError unless a slot can be there."""
    check_guest_id(guest)
    check_epoch(epoch)


def check_runner(runner: Runner) -> None:
    """Raise ValueError unless this can fill a slot: zeros are no runner."""
    if len(runner.id) != len(NO_ID) or runner.id == NO_ID:
        raise ValueError(f"a runner's id is {len(NO_ID)} random bytes")
    host = runner.host
    printable = all(unicodedata.category(each) != "Cc" for each in host)
    if not printable or not 1 <= len(host.encode()) <= TEXT_BYTES:
        raise ValueError(f"{host[:40]!r} is no text of 1 to {TEXT_BYTES} bytes without control characters")


def encode_slot(guest: bytes, epoch: int, runner: Runner) -> bytes:
    """The one way to write this slot.

    Raises:
        ValueError: one of the three can be in no slot.
    """
    check_place(guest, epoch)
    check_runner(runner)
    fields = {
        "sterna_slot": VERSION,
        "guest": guest.hex(),
        "epoch": epoch,
        "host": runner.host,
        "id": runner.id.hex(),
    }
    return seal(fields)


def decode_slot(data: bytes, guest: bytes, epoch: int) -> Runner:
    """The runner in a slot that was found where the slot (guest, epoch) belongs.

    Raises:
        StoreDamaged: it is not what any `encode_slot` wrote for this place.
    """
    where = f"slot {epoch} of guest {guest.hex()}"
    if len(data) > SLOT_BYTES_MAX:
        raise StoreDamaged(f"{where} is longer than any slot: {ADVICE}")
    fields = unseal(data) or {}
    version = fields.get("sterna_slot")
    if isinstance(version, int) and version != VERSION:
        raise StoreDamaged(f"{where} has a format that this release does not know: use a newer one")
    try:
        runner = Runner(str(fields["host"]), bytes.fromhex(str(fields["id"])))
        good = encode_slot(guest, epoch, runner) == data
    except (ValueError, LookupError):
        good = False
    if not good:
        raise StoreDamaged(f"{where} is damaged, or another slot's: {ADVICE}")
    return runner


ADVICE: Final = "somebody has to look; compare the store's copies or backups, and do not empty the slot"
