"""Openings of sessions, as another process finds them."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from sterna.core.negotiate import choices, offer, select
from sterna.core.reopening import Opening
from sterna.errors import RecordError, RemoteProtocolError
from sterna.host.openings import OPENING_BYTES, SUFFIX, Openings, decode_opening, encode_opening
from sterna.host.sealed import seal, unseal
from sterna.limits import Limits
from sterna.registry import Feature, Mode
from sterna.wire.header import VERSION, VERSIONS
from sterna.wire.records import Disk, Guest, Hello, Region, Runner, Welcome

ID, SESSION, TOKEN = bytes(range(16)), b"s" * 16, b"t" * 32
LIMITS = Limits().to_wire()
FEATURES = offer(more={Feature.RESUME: 30})
HELLO = Hello(Mode.OPEN, VERSIONS, FEATURES, LIMITS, ID, 3, Runner("there", b"r" * 16), "a source")
SELECTION = select(HELLO, frozenset(each.id for each in FEATURES))
WELCOME = Welcome(VERSION, SESSION, TOKEN, choices(SELECTION), LIMITS, "a destination")
GUEST = Guest("web-1", 0, 1, 4096, (Region(0, 0, 1 << 20),))
OPENING = Opening(HELLO, WELCOME, GUEST, Runner("here", b"h" * 16))
ASKING = replace(HELLO, mode=Mode.RESUME, session=SESSION, token=TOKEN, generation=1)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "records"  # nothing is there yet


async def test_what_is_put_is_found_by_whom_it_is_for(directory: Path) -> None:
    """[RES-16] [RES-3] [LOG-8]"""
    openings = Openings(directory)
    assert await openings.find(ASKING, "host-a") is None
    await openings.put(OPENING, "host-a")
    assert await Openings(directory).find(ASKING, "host-a") == OPENING
    assert OPENING.ticket.selection == SELECTION
    OPENING.ticket.check_hello(OPENING.ticket.next_hello())
    assert await openings.find(ASKING, "host-b") is None
    assert await openings.find(replace(ASKING, session=b"x" * 16), "host-a") is None
    assert await openings.find(replace(ASKING, token=b"x" * 32), "host-a") is None
    for changes in ({"epoch": 4}, {"features": ()}, {"generation": 0}, {"limits": {}}):
        with pytest.raises(RemoteProtocolError):  # [RES-1] [RES-2] [LIM-8]
            await openings.find(replace(ASKING, **changes), "host-a")
    path = directory / f"{ID.hex()}{SUFFIX}"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


async def test_the_newest_counts_until_it_is_dropped(directory: Path) -> None:
    openings = Openings(directory)
    await openings.put(replace(OPENING, runner=Runner("here", b"1" * 16)), "host-a")
    await openings.put(OPENING, "host-a")
    assert await openings.find(ASKING, "host-a") == OPENING
    for _ in range(2):
        await openings.drop(ID, SESSION)
        assert await openings.find(ASKING, "host-a") is None


async def test_a_session_drops_its_own_opening_alone(directory: Path) -> None:
    """It may end later than the one that has taken its place; what is damaged is nobody's."""
    openings = Openings(directory)
    await openings.put(OPENING, "host-a")
    await openings.drop(ID, b"o" * 16)
    assert await openings.find(ASKING, "host-a") == OPENING
    path = directory / f"{ID.hex()}{SUFFIX}"
    path.write_bytes(b"damaged")
    await openings.drop(ID, b"o" * 16)
    assert not path.exists()


async def test_without_a_directory_nothing_is_kept() -> None:
    openings = Openings(None)
    await openings.put(OPENING, "host-a")
    assert await openings.find(ASKING, "host-a") is None
    await openings.drop(ID, SESSION)


@pytest.mark.parametrize("name", ["hello", "welcome", "guest", "runner", "peer", "sterna_opening", "more"])
def test_another_line_is_none(name: str) -> None:
    """[LOG-2] Sealed or not: it is what this program makes of the values, or nothing."""
    line = encode_opening(OPENING, "host-a")
    assert decode_opening(line) == (OPENING, "host-a")
    fields = unseal(line)
    assert fields is not None
    del fields["check"]
    fields[name] = {"hello": "00", "welcome": "zz", "guest": fields["hello"], "runner": 5}.get(name, [])
    assert decode_opening(seal(fields)) is None
    fields.pop(name)
    if name != "more":
        assert decode_opening(seal(fields)) is None
    assert decode_opening(line[:-1]) is None


async def test_one_that_is_damaged_is_none(directory: Path) -> None:
    openings = Openings(directory)
    await openings.put(OPENING, "host-a")
    path = directory / f"{ID.hex()}{SUFFIX}"
    path.write_bytes(path.read_bytes()[:-20])
    assert await openings.find(ASKING, "host-a") is None
    path.unlink()
    path.mkdir()
    assert await openings.find(ASKING, "host-a") is None
    with pytest.raises(RecordError, match=SUFFIX):
        await openings.put(OPENING, "host-a")


async def test_one_that_is_too_long_is_not_kept(directory: Path) -> None:
    openings = Openings(directory)
    disks = tuple(Disk(f"{number}".rjust(255, "d"), "i" * 255, 1) for number in range(OPENING_BYTES // 1000))
    with pytest.raises(RecordError, match="an opening that is too long"):
        await openings.put(replace(OPENING, guest=replace(GUEST, disks=disks)), "host-a")
