"""The minimal codec against the vectors: an implementation from the document alone says what they say."""

from __future__ import annotations

import pytest
from minimal_support import Vector, read_body, vectors

from sterna.registry import FRAMES, IMPLEMENTED_FRAMES, OPTIONAL_FRAMES
from sterna_interop.minimal.codes import SessionError
from sterna_interop.minimal.frames import LAYOUTS, SENDERS, TYPES, encode

BODIES = vectors("body")
ELSEWHERE = {"hello/only-others"}  # well-formed; that there is no common version is for who answers it


@pytest.mark.parametrize("vector", BODIES, ids=[vector.test["id"] for vector in BODIES])
def test_a_body(vector: Vector) -> None:
    """[FRM-1 to FRM-5, HDR-11]"""
    if vector.test["id"] in ELSEWHERE:
        return
    if vector.test["result"] == "invalid":
        with pytest.raises(SessionError) as error:
            read_body(vector)
        assert error.value.code == vector.test["error"]
        return
    assert encode(vector.group["frame"], read_body(vector)) == vector.data


def test_types_and_senders_are_the_registrys() -> None:
    assert {frame.name: int(frame) for frame in FRAMES} == TYPES
    assert {frame.name: FRAMES[frame].sender.name[0] for frame in FRAMES} == SENDERS
    assert {frame.name for frame in IMPLEMENTED_FRAMES - OPTIONAL_FRAMES} == LAYOUTS.keys()
