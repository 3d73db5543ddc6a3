#!/usr/bin/env python3
"""Any bytes as one direction of a connection; guided by coverage, or drawn by Hypothesis under pytest.

python fuzz/fuzz_frames.py CORPUS/streams -dict=fuzz/sterna.dict
"""

from __future__ import annotations

from sterna_fuzz.guided import fuzz, product

with product(__name__):
    from hypothesis import given
    from hypothesis import strategies as st

    from sterna_fuzz.raw import one_stream


@given(st.binary(max_size=2000))
def test_frames(data: bytes) -> None:
    """Any bytes give events or one coded error, and the same ones however they are cut."""
    one_stream(data)


if __name__ == "__main__":
    fuzz(one_stream)
