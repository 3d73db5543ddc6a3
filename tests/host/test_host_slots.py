from __future__ import annotations

import json
from pathlib import Path

import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st

from sterna.errors import StoreDamaged
from sterna.host.sealed import seal
from sterna.host.slots import EPOCH_MAX, SLOT_BYTES_MAX, decode_slot, encode_slot
from sterna.testing.strategies import ids, runners
from sterna.wire.records import NO_ID, NO_RUNNER, Runner

GUEST = bytes(range(16))
RUNNER = Runner("alpha.example", bytes(range(16, 32)))
sound_runners = runners().filter(lambda runner: runner.host and runner.id != NO_ID)


def test_a_slot_as_the_document_shows_it() -> None:
    """The example of spec/stores.md [LEA-1]."""
    text = encode_slot(GUEST, 7, RUNNER).decode()
    said = (
        '{"sterna_slot":1,"guest":"000102030405060708090a0b0c0d0e0f","epoch":7,'
        '"host":"alpha.example","id":"101112131415161718191a1b1c1d1e1f"'
    )
    assert text == f'{said},"check":"{xxhash.xxh3_128_hexdigest(f"{said}}}".encode())}"}}\n'
    assert json.loads(text)["epoch"] == 7
    assert f"\n{text}```" in (Path(__file__).parents[2] / "spec" / "stores.md").read_text()


@given(ids(), st.integers(1, EPOCH_MAX), sound_runners)
@example(GUEST, EPOCH_MAX, Runner('"' * 255, b"\xff" * 16))
def test_what_is_written_is_read(guest: bytes, epoch: int, runner: Runner) -> None:
    data = encode_slot(guest, epoch, runner)
    assert len(data) <= SLOT_BYTES_MAX
    assert decode_slot(data, guest, epoch) == runner


@given(st.data())
def test_a_changed_slot_is_damaged(data: st.DataObject) -> None:
    """[LEA-2]"""
    good = encode_slot(GUEST, 7, RUNNER)
    place = data.draw(st.integers(0, len(good) - 1))
    how = data.draw(st.sampled_from(["change", "cut", "insert"]))
    byte = bytes([data.draw(st.integers(0, 255).filter(lambda value: value != good[place]))])
    bad = {
        "change": good[:place] + byte + good[place + 1 :],
        "cut": good[:place],
        "insert": good[:place] + byte + good[place:],
    }[how]
    with pytest.raises(StoreDamaged):
        decode_slot(bad, GUEST, 7)


@given(st.binary(max_size=2 * SLOT_BYTES_MAX))
@example(b"[" * SLOT_BYTES_MAX)
@example(b'{"sterna_slot":1,"host":1,"id":5}')
@example(b'{"sterna_slot":1,"host":"\\ud800","id":"101112131415161718191a1b1c1d1e1f"}')
@example(seal({"sterna_slot": [], "guest": GUEST.hex()}))
@example(b"null")
@example(b"9" * SLOT_BYTES_MAX)
def test_any_bytes_are_one_coded_error(data: bytes) -> None:
    """[LEA-2]"""
    with pytest.raises(StoreDamaged, match=r"slot 7 of guest 0001.* somebody has to look"):
        decode_slot(data, GUEST, 7)


def test_a_slot_in_another_ones_place_is_damaged() -> None:
    """[LEA-2]"""
    data = encode_slot(GUEST, 7, RUNNER)
    for guest, epoch in ((GUEST, 8), (GUEST[::-1], 7)):
        with pytest.raises(StoreDamaged, match="another slot's"):
            decode_slot(data, guest, epoch)


def test_a_later_format_is_not_guessed_at() -> None:
    """[LEA-2]"""
    data = seal({"sterna_slot": 2, "guest": GUEST.hex(), "somebody": "else"})
    with pytest.raises(StoreDamaged, match="does not know"):
        decode_slot(data, GUEST, 7)


@pytest.mark.parametrize(
    ("guest", "epoch", "runner"),
    [
        (GUEST[1:], 1, RUNNER),
        (GUEST, 0, RUNNER),
        (GUEST, EPOCH_MAX + 1, RUNNER),
        (GUEST, 1, NO_RUNNER),
        (GUEST, 1, Runner("", RUNNER.id)),
        (GUEST, 1, Runner("a", NO_ID)),
        (GUEST, 1, Runner("a", RUNNER.id + b"x")),
        (GUEST, 1, Runner("a\x7f", RUNNER.id)),
        (GUEST, 1, Runner("é" * 128, RUNNER.id)),
        (GUEST, 1, Runner("\ud800", RUNNER.id)),
    ],
)
def test_what_can_be_in_no_slot(guest: bytes, epoch: int, runner: Runner) -> None:
    with pytest.raises(ValueError, match=r"guest|slots|runner|text|surrogate"):
        encode_slot(guest, epoch, runner)
