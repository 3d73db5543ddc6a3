#!/usr/bin/env python3
"""Any bytes as the body of any frame; guided by coverage, or drawn by Hypothesis under pytest.

python fuzz/fuzz_bodies.py CORPUS/bodies -dict=fuzz/sterna.dict
"""

from __future__ import annotations

from sterna_fuzz.guided import fuzz, product

with product(__name__):
    from hypothesis import given
    from hypothesis import strategies as st

    from sterna_fuzz.raw import one_body


@given(st.binary(max_size=500))
def test_bodies(data: bytes) -> None:
    """Any bytes are a record's only body, or are refused with a code."""
    one_body(data)


if __name__ == "__main__":
    fuzz(one_body)
