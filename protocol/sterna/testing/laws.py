"""What the conformance checks of guests say it with, and see with."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import xxhash

from sterna.guest.api import DestinationGuest, GuestDescription, SourceGuest
from sterna.registry import Transfer
from sterna.wire.records import Region


def require(good: bool, law: str, what: str) -> None:
    """Fail with the law and what is wrong.

    Raises:
        AssertionError: it is not good.
    """
    if not good:
        raise AssertionError(f"{law}: {what}")


def copied(description: GuestDescription) -> Iterator[Region]:
    """The regions that a migration copies."""
    return (region for region in description.regions if region.transfer == Transfer.COPY)


def memory_hash(guest: SourceGuest | DestinationGuest, description: GuestDescription) -> bytes:
    """XXH3-128 over the memory of all copied regions."""
    digest = xxhash.xxh3_128()
    for region in copied(description):
        digest.update(guest.memory(region.id))
    return digest.digest()


def memory_pages(memory: memoryview | bytearray | bytes, region: Region) -> npt.NDArray[np.uint64]:
    """Memory as an array of shape (pages, words)."""
    return np.frombuffer(memory, np.uint64).reshape(region.pages, -1)
