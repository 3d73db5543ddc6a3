"""Lists of rows of fixed width, at once instead of row by row.

Construct takes some 12 us for a row, and a ROUND_ACK may have thousands of them: for as long as it is read
nothing else of the process moves. So a list may have, beside its declaration, a *glance*: conditions over
all rows together that hold only if every rule of the declaration holds. Rows that a glance shows to be
right are read and written with struct. Whatever it does not show to be right is left to the declaration,
which alone knows what is wrong, and where; so both always agree on errors, and a glance may be too strict,
but never too lax. Tests hold it against the declaration.

The widths and names of the columns are taken from the declaration.
"""

# ruff: noqa: ANN401

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import starmap
from operator import attrgetter
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from construct import Bytes, FormatField
from construct import Subconstruct as AnySubconstruct

from sterna.limits import STREAMS_MAX
from sterna.wire import rules
from sterna.wire.fields import (
    AnyConstruct,
    Fields,
    Int16ul,
    Int64ul,
    Mapped,
    Rows,
    Ruled,
    Subconstruct,
    bounds_of,
    is_unchecked,
    pair,
    reserved,
)
from sterna.wire.page_rules import PAGE_SPACE
from sterna.wire.rules import Bounds, Rule

Columns: TypeAlias = npt.NDArray[np.void]
Glance: TypeAlias = Callable[[Columns, Bounds], bool]

# What the numbers of a row can be that are none, or do not fit: for the declaration to refuse.
_UNFIT: Final = (AttributeError, TypeError, struct.error)


class Layout:
    """The columns of a declared row.

    Attributes:
        names: of the columns that are not reserved, in their order.
        dtype: of a row, for numpy.
        row: of a row, for struct; reserved columns are left out.
    """

    def __init__(self, row: AnyConstruct) -> None:
        names, columns, code = [], [], "<"
        zero: list[bool] = []
        for name, field in _fields(row):
            if isinstance(field, FormatField):
                names.append(name)
                columns.append((name, f"<u{field.length}"))
                code += field.fmtstr[1:]
            else:
                columns.append((f"reserved{len(columns)}", f"V{field.length}"))
                code += f"{field.length}x"
            zero += [not isinstance(field, FormatField)] * field.length
        self.names: Final = tuple(names)
        self.dtype: Final = np.dtype(columns)
        self.row: Final = struct.Struct(code)
        self._reserved: Final = np.flatnonzero(zero)

    def columns(self, raw: bytes) -> Columns | None:
        """The rows in these bytes, None if a reserved field is not zero."""
        octets = np.frombuffer(raw, np.uint8).reshape(-1, self.dtype.itemsize)
        if octets[:, self._reserved].any():
            return None
        return np.frombuffer(raw, self.dtype)


def _fields(row: AnyConstruct) -> Iterator[tuple[str, Any]]:
    """Names and innermost classes of a Struct's fields, whatever rules are wrapped around them."""
    for field in _inside(row, lambda each: hasattr(each, "subcons")).subcons:
        yield field.name, _inside(field, lambda each: isinstance(each, (FormatField, Bytes)))


def _inside(construct: Any, wanted: Callable[[Any], bool]) -> Any:
    while not wanted(construct):
        assert isinstance(construct, AnySubconstruct)
        construct = construct.subcon
    return construct


class AtOnce(Subconstruct):
    """A list with a glance.

    Args:
        declared: the rows, with the rules of the list.
        make: the item of a row's numbers; None for pairs.
        glance: whether all rules hold, those of reserved fields apart; false is no verdict.
    """

    def __init__(self, declared: Ruled, make: Callable[..., Any] | None, glance: Glance) -> None:
        super().__init__(declared)
        rows = declared.subcon
        assert isinstance(rows, Rows)
        self.count: Final = rows.count
        self.layout: Final = Layout(rows.subcon)
        self.make: Final = make
        self.take: Final = tuple if make is None else attrgetter(*self.layout.names)
        self.glance: Final = glance

    def _is_right(self, raw: bytes, context: Any) -> bool:
        columns = self.layout.columns(raw)
        return columns is not None and self.glance(columns, bounds_of(context))

    def _parse(self, stream: Any, context: Any, path: Any) -> Any:
        offset, size = stream.tell(), context[self.count] * self.layout.row.size
        raw = stream.read(size)
        if raw and len(raw) == size and self._is_right(raw, context):
            rows = self.layout.row.iter_unpack(raw)
            return tuple(rows if self.make is None else starmap(self.make, rows))
        stream.seek(offset)
        return self.subcon._parse(stream, context, path)

    def _build(self, obj: Any, stream: Any, context: Any, path: Any) -> Any:
        if not is_unchecked(context):
            try:
                raw = b"".join(starmap(self.layout.row.pack, map(self.take, obj)))
            except _UNFIT:
                raw = b""
            if raw and self._is_right(raw, context):
                stream.write(raw)
                return obj
        return self.subcon._build(obj, stream, context, path)


# --- lists of several frames --------------------------------------------------------------------


def limits(*held: Rule[Any], unused: Callable[[int], AnyConstruct] = reserved) -> AnyConstruct:
    """The limits of HELLO and WELCOME: rows on the wire, a dict in the record."""
    row = pair("id", "value", Fields("id" / Int16ul, unused(2), unused(4), "value" / Int64ul))
    rows = AtOnce(Ruled(Rows("limit_count", row), *held), None, ids_differ)
    return Mapped(rows, dict, lambda value, _unchecked: tuple(value.items()))


def last_sequences(clause: str) -> AnyConstruct:
    """The rows of ROUND_END and SEAL: a stream and the sequence number of its last frame."""
    stream = Ruled(Int16ul, rules.stream_rules(clause)[1])
    row = Fields("stream" / stream, reserved(2), reserved(4), "sequence" / Int64ul)
    declared = Ruled(Rows("stream_count", pair("stream", "sequence", row)), rules.LAST_SEQUENCES)
    return AtOnce(declared, None, streams_ascend)


# --- glances ------------------------------------------------------------------------------------


def ids_differ(rows: Columns, _: Bounds) -> bool:
    """HEL-4, WEL-1, WEL-2: no id comes twice."""
    return len(set(rows["id"].tolist())) == len(rows)


def offers_are_right(rows: Columns, bounds: Bounds) -> bool:
    """FRM-5, HEL-3."""
    return bool(rows["required"].max() <= 1) and ids_differ(rows, bounds)


def streams_ascend(rows: Columns, _: Bounds) -> bool:
    """RND-2, SEA-2, FRM-16."""
    stream = rows["stream"]
    return bool(stream[-1] <= STREAMS_MAX and (stream[:-1] < stream[1:]).all())


def ranges_ascend(rows: Columns, bounds: Bounds) -> bool:
    """FRM-17, FRM-18, RAK-3: none is empty, in their regions, apart and in order."""
    region, first, count = rows["region"], rows["first"], rows["count"]
    if not count.all() or max(int(first.max()), int(count.max())) > PAGE_SPACE:
        return False
    end = first + count  # does not wrap
    apart = (region[:-1] < region[1:]) | ((region[:-1] == region[1:]) & (end[:-1] <= first[1:]))
    if not apart.all() or int(end.max()) > PAGE_SPACE:
        return False
    if bounds.regions is None:
        return True
    last = np.append(np.flatnonzero(region[:-1] != region[1:]), len(rows) - 1)  # row of each region
    return all(
        (known := bounds.regions.get(number)) is not None and pages <= known.pages
        for number, pages in zip(region[last].tolist(), end[last].tolist(), strict=True)
    )
