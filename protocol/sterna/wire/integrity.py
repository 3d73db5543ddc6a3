"""Checksums. Thin on purpose: zlib and xxhash do the work, this module says which and over what.

CRC-32 guards headers and bodies, XXH3-64 a chunk of pages, XXH3-128 the whole of the memory and of the state.
All of them find accidents; against an attacker only TLS protects.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
from xxhash import xxh3_64_intdigest, xxh3_128, xxh3_128_digest

from sterna.limits import CHUNK_BYTES
from sterna.registry import Checksum
from sterna.wire.records import Hashes, StateSection

Buffer: TypeAlias = bytes | bytearray | memoryview

DIGEST_ALGORITHM: Final = Checksum.XXH3_128
DIGEST_BYTES: Final = 16

_SECTION: Final = struct.Struct("<HHIIIQ")


def crc32(data: Buffer, value: int = 0) -> int:
    """CRC-32 (IEEE 802.3, as zlib) of `data`; `value` continues an earlier one."""
    return zlib.crc32(data, value)


def page_hash(chunk: Buffer) -> int:
    """XXH3-64 (seed 0) of one chunk of raw page bytes [PGS-13]."""
    return xxh3_64_intdigest(chunk)


def chunk_hashes(run: memoryview) -> Hashes:
    """One hash for each chunk of a run's raw bytes, counted from the run's start [PGS-12, PGS-13]."""
    starts = range(0, len(run), CHUNK_BYTES)
    return np.fromiter(
        (xxh3_64_intdigest(run[at : at + CHUNK_BYTES]) for at in starts), np.uint64, count=len(starts)
    )


def digest(data: Buffer) -> bytes:
    """XXH3-128 (seed 0), big-endian canonical form: 16 bytes."""
    return xxh3_128_digest(data)


def state_digest(sections: Sequence[StateSection]) -> bytes:
    """XXH3-128 over names and bytes of state sections in the order in which they are sent [MEM-18].

    Raises:
        struct.error: a number does not fit its field.
    """
    hashed = xxh3_128()
    for section in sections:
        name = section.architecture, section.kind, section.vcpu, section.version, section.instance
        hashed.update(_SECTION.pack(*name, len(section.data)))
        hashed.update(section.data)
    return hashed.digest()
