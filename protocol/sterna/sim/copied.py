"""Copies of what is made of very many objects, made again and again from one writing.

What lies in one piece of memory, as arrays and views do in a room or in notes, lies in one piece in the copy:
whoever writes there writes for all of them. What gives out one thing after the other gives out nothing in the
copy: in a session that is left that is a round, which whoever takes it up abandons [RES-9].
"""

from __future__ import annotations

import pickle
from io import BytesIO
from itertools import chain
from types import GeneratorType
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

_Array: TypeAlias = npt.NDArray[np.generic]
_Whole: TypeAlias = bytes | bytearray | _Array


def written(one: object) -> bytes:
    """What copies of this are made from."""
    file = BytesIO()
    _Writer(file, protocol=pickle.HIGHEST_PROTOCOL).dump(one)
    return file.getvalue()


def copied(data: bytes) -> object:
    """A copy of what was written."""
    return pickle.loads(data)  # noqa: S301 - by this process, and nobody else


class _Writer(pickle.Pickler):
    def reducer_override(self, one: object) -> Any:  # noqa: ANN401 - or NotImplemented, which has no type
        """What is written for an array or a view: the memory in which it lies, and where."""
        match one:
            case GeneratorType() | chain():
                return iter, ((),)
            case memoryview():
                whole = _whole(one)
                return _part, (whole, _first(one) - _first(whole), one.nbytes)
            case np.ndarray() if (whole := _whole(one)) is not one:
                return np.ndarray, (one.shape, one.dtype, whole, _first(one) - _first(whole), one.strides)
            case _:
                return NotImplemented


def _whole(one: object) -> _Whole:
    """What has the memory."""
    while True:
        match one:
            case memoryview(obj=base) | np.ndarray(base=base) if base is not None:
                one = base
            case _:
                return cast("_Whole", one)


def _first(one: memoryview | _Whole) -> int:
    """The address of its first byte."""
    array = one if isinstance(one, np.ndarray) else np.frombuffer(one, np.uint8)
    return int(array.__array_interface__["data"][0])


def _part(whole: _Whole, start: int, size_bytes: int) -> memoryview:
    return memoryview(cast("bytearray", whole)).cast("B")[start : start + size_bytes]
