"""Building blocks of the schema: Construct classes that carry clause and offset of what they check.

Construct's own `Enum`, `Const`, `PascalString` and `GreedyRange` are not used: they accept unknown
values, name no clause or swallow errors. The classes here check the same rules on the way in and on the
way out; only sterna.wire.unchecked, which builds wrong frames on purpose, switches them off.

`Any` is at home here and in schema.py: the library is untyped at its core. What is typed is the border,
codec.py.
"""

# ruff: noqa: ANN401

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import fields
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from construct import (
    Bytes,
    Construct,
    FormatField,
    FormatFieldError,
    Renamed,
    StreamError,
    Struct,
    Terminated,
    stream_read,
    this,
)
from construct import Subconstruct as _Subconstruct

from sterna.limits import TEXT_BYTES
from sterna.registry import ErrorCode
from sterna.wire.records import Runner
from sterna.wire.rules import Bounds, Rule, Violation

if TYPE_CHECKING:
    Subconstruct = _Subconstruct[Any, Any, Any, Any]
    AnyConstruct = Construct[Any, Any]
    AnyFormatField = FormatField[Any, Any]
else:
    Subconstruct = _Subconstruct
    AnyConstruct = Construct
    AnyFormatField = FormatField


def bounds_of(context: Any) -> Bounds:
    """What the frame that is read or written is held against."""
    bounds: Bounds = context["_params"]["bounds"]  # as attributes they take several times as long
    return bounds


def is_unchecked(context: Any) -> bool:
    """True when sterna.wire.unchecked builds something wrong on purpose."""
    return bool(context["_params"].get("unchecked", False))


def parse_from(schema: AnyConstruct, stream: Any, **given: Any) -> Any:
    """What `schema` finds in a stream.

    Construct's own `parse_stream` makes a context that holds itself: a ring for the garbage collector with
    every frame.
    """
    context: Any = {"_params": given}
    return schema._parse(stream, context, "(parsing)")


def build_into(schema: AnyConstruct, obj: Any, stream: Any, **given: Any) -> None:
    """Write `obj` into a stream; see `parse_from`."""
    context: Any = {"_params": given}
    schema._build(obj, stream, context, "(building)")


class Number(AnyFormatField):
    """A FormatField whose layout is compiled once, and whose errors are found when there is one."""

    def __init__(self, code: str) -> None:
        super().__init__("<", code)  # type: ignore[call-arg] # its stubs know __new__ alone
        self.layout = struct.Struct(f"<{code}")

    def _parse(self, stream: Any, context: Any, path: Any) -> Any:
        raw = stream.read(self.length)
        if len(raw) < self.length:
            raise StreamError("the body ends here", path=path)
        return self.layout.unpack(raw)[0]

    def _build(self, obj: Any, stream: Any, context: Any, path: Any) -> Any:
        try:
            stream.write(self.layout.pack(obj))
        except struct.error as error:
            raise FormatFieldError(f"{obj!r}: {error}", path=path) from None
        return obj


Int8ul: Final = Number("B")
Int16ul: Final = Number("H")
Int32ul: Final = Number("L")
Int64ul: Final = Number("Q")


class Fields(Struct):
    """A Struct without what this schema has no use for: fields that stop it, and the stream as a value.

    What was read so far is a plain dict, and with it the context of the fields that follow.
    """

    def __init__(self, *subcons: Any) -> None:
        super().__init__(*subcons)
        self.rows = [
            (each.name, each.subcon if isinstance(each, Renamed) else each, f" -> {each.name or '?'}")
            for each in self.subcons
        ]

    def _parse(self, stream: Any, context: Any, path: Any) -> Any:
        found: Any = {"_params": context["_params"]}
        for name, field, step in self.rows:
            value = field._parse(stream, found, path + step)
            if name is not None:
                found[name] = value
        return found

    def _build(self, obj: Any, stream: Any, context: Any, path: Any) -> Any:
        given: Any = {"_params": context["_params"], **obj}
        for name, field, step in self.rows:
            value = given.get(name) if field.flagbuildnone else given[name]
            given[name] = field._build(value, stream, given, path + step)
        return given


class Ruled(Subconstruct):
    """A value that obeys rules. Reading, they are checked at once; the offset is the value's first byte."""

    def __init__(self, subcon: AnyConstruct, *held: Rule[Any]) -> None:
        super().__init__(subcon)
        self.rules = held

    def _check(self, obj: Any, context: Any, offset: int) -> None:
        bounds = bounds_of(context)
        for rule in self.rules:
            if not rule.holds(obj, bounds):
                raise rule.violation(offset)

    def _parse(self, stream: Any, context: Any, path: Any) -> Any:
        offset = stream.tell()
        obj = self.subcon._parse(stream, context, path)
        if self.rules:
            self._check(obj, context, offset)
        return obj

    def _build(self, obj: Any, stream: Any, context: Any, path: Any) -> Any:
        if self.rules and not is_unchecked(context):
            self._check(obj, context, stream.tell())
        return self.subcon._build(obj, stream, context, path)


class Mapped(Subconstruct):
    """A value that is another one on the wire. The functions raise `Violation` or any plain error."""

    def __init__(
        self, subcon: AnyConstruct, decode: Callable[[Any], Any], encode: Callable[[Any, bool], Any]
    ) -> None:
        super().__init__(subcon)
        self.decode = decode
        self.encode = encode

    def _parse(self, stream: Any, context: Any, path: Any) -> Any:
        offset = stream.tell()
        obj = self.subcon._parse(stream, context, path)
        try:
            return self.decode(obj)
        except Violation as violation:
            raise Violation(violation.code, violation.clause, violation.detail, offset) from None

    def _build(self, obj: Any, stream: Any, context: Any, path: Any) -> Any:
        self.subcon._build(self.encode(obj, is_unchecked(context)), stream, context, path)
        return obj


class Count(Subconstruct):
    """The number of items in the list `of`. Writing, it is counted, unless unchecked counts override it."""

    def __init__(self, of: str, subcon: AnyConstruct) -> None:
        super().__init__(subcon)
        self.of = of
        self.flagbuildnone = True

    def _parse(self, stream: Any, context: Any, path: Any) -> Any:
        return self.subcon._parse(stream, context, path)

    def _build(self, obj: Any, stream: Any, context: Any, path: Any) -> Any:
        count = len(context[self.of])
        if is_unchecked(context):
            count = context["_params"]["counts"].get(self.of, count)
        self.subcon._build(count, stream, context, path)
        return count


def _require_room(stream: Any, size: int) -> None:
    """What was counted must fit into the rest of the body, before any of it is read (FRM-12)."""
    offset = stream.tell()
    if size > stream.getbuffer().nbytes - offset:
        raise Violation(ErrorCode.MALFORMED, "FRM-12", "more is counted than the body holds", offset)


class Rows(Subconstruct):
    """A list whose count came before. Writing, it takes what is there.

    Args:
        count: name of the field with the count.
        subcon: an item.
        least: the fewest bytes that an item has, where its size is not fixed.
    """

    def __init__(self, count: str, subcon: AnyConstruct, least: int | None = None) -> None:
        super().__init__(subcon)
        self.count = count
        self.least = subcon.sizeof() if least is None else least

    def _parse(self, stream: Any, context: Any, path: Any) -> Any:
        _require_room(stream, context[self.count] * self.least)
        return tuple([self.subcon._parse(stream, context, path) for _ in range(context[self.count])])

    def _build(self, obj: Any, stream: Any, context: Any, path: Any) -> Any:
        for item in obj:
            self.subcon._build(item, stream, context, path)
        return obj


class Blob(Subconstruct):
    """Bytes whose number came before. Writing, it takes what is there."""

    def __init__(self, count: str) -> None:
        super().__init__(Bytes(this[count]))
        self.count = count

    def _parse(self, stream: Any, context: Any, path: Any) -> Any:
        _require_room(stream, context[self.count])
        return self.subcon._parse(stream, context, path)

    def _build(self, obj: Any, stream: Any, context: Any, path: Any) -> Any:
        stream.write(obj)
        return obj


_CONTROL: Final = frozenset(map(chr, (*range(0x20), *range(0x7F, 0xA0))))


def _decode_text(raw: bytes) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise Violation(ErrorCode.BAD_TEXT, "TXT-2", f"not UTF-8: {error.reason}") from None
    _check_text(text)
    return text


def _check_text(text: str) -> None:
    if not _CONTROL.isdisjoint(text):
        raise Violation(ErrorCode.BAD_TEXT, "TXT-3", "a control character")


def _encode_text(text: Any, unchecked: bool) -> bytes:
    if unchecked and isinstance(text, bytes):
        return text
    try:
        raw: bytes = text.encode()
    except UnicodeEncodeError as error:
        raise Violation(ErrorCode.BAD_TEXT, "TXT-2", f"not UTF-8: {error.reason}") from None
    if len(raw) > TEXT_BYTES:
        raise Violation(ErrorCode.BAD_TEXT, "TXT-4", f"{len(raw)} bytes of text")
    if not unchecked:
        _check_text(text)
    return raw


class Text(Subconstruct):
    """A text behind its length in one byte. Construct's own would open a stream for each."""

    def __init__(self) -> None:
        super().__init__(Int8ul)

    def _parse(self, stream: Any, context: Any, path: Any) -> Any:
        raw = stream_read(stream, self.subcon._parse(stream, context, path), path)
        try:
            return _decode_text(raw)
        except Violation as violation:
            offset = stream.tell() - len(raw) - 1
            raise Violation(violation.code, violation.clause, violation.detail, offset) from None

    def _build(self, obj: Any, stream: Any, context: Any, path: Any) -> Any:
        raw = _encode_text(obj, is_unchecked(context))
        self.subcon._build(len(raw), stream, context, path)
        stream.write(raw)
        return obj


def closed(enum: type[IntEnum], subcon: AnyConstruct = Int8ul) -> AnyConstruct:
    """A closed enumeration (FRM-4)."""
    members = {int(member): member for member in enum}

    def decode(number: int) -> IntEnum:
        member = members.get(number)
        if member is None:
            raise Violation(ErrorCode.BAD_VALUE, "FRM-4", f"no {enum.__name__} {number}")
        return member

    return Mapped(subcon, decode, lambda value, unchecked: int(value) if unchecked else int(decode(value)))


def _decode_bool(number: int) -> bool:
    if number > 1:
        raise Violation(ErrorCode.BAD_VALUE, "FRM-5", f"a boolean of {number}")
    return number == 1


def _zeros(zeros: bytes) -> Callable[[bytes], None]:
    def decode(raw: bytes) -> None:
        if raw != zeros:
            raise Violation(ErrorCode.BAD_VALUE, "FRM-3", "a reserved field is not zero")

    return decode


def reserved(size: int) -> AnyConstruct:
    """A field that is zero (FRM-3)."""
    zeros = Mapped(Bytes(size), _zeros(bytes(size)), lambda _value, _unchecked: bytes(size))
    zeros.flagbuildnone = True
    return zeros


def exact(size: int) -> AnyConstruct:
    """Bytes of fixed number. `Bytes` alone would also build from an integer."""

    def encode(value: Any, _unchecked: bool) -> Any:
        if not isinstance(value, bytes) or len(value) != size:
            raise Violation(ErrorCode.BAD_VALUE, "FRM-1", f"not {size} bytes")
        return value

    return Mapped(Bytes(size), lambda raw: raw, encode)


TEXT: Final = Text()
FLAG: Final[AnyConstruct] = Mapped(
    Int8ul, _decode_bool, lambda value, unchecked: int(value if unchecked else _decode_bool(value))
)


def record(cls: type[Any], *subcons: Any, rules: Iterable[Rule[Any]] = ()) -> AnyConstruct:
    """A Struct that is read to, and written from, the dataclass `cls`.

    Fields of the Struct that the dataclass lacks (counts) stay inside. `runner` is on the wire as
    runner_id and runner_host, with the variable part behind the fixed one.
    """
    names = [field.name for field in fields(cls)]

    def decode(found: Any) -> Any:
        if "runner_id" in found:
            found["runner"] = Runner(found["runner_host"], found["runner_id"])
        return cls(**{name: found[name] for name in names})

    def encode(value: Any, _unchecked: bool) -> dict[str, Any]:
        given = {name: getattr(value, name) for name in names}
        if "runner" in given:
            given |= {"runner_id": given["runner"].id, "runner_host": given["runner"].host}
        return given

    return Ruled(Mapped(Fields(*subcons), decode, encode), *rules)


def body(cls: type[Any], *subcons: Any, rules: Iterable[Rule[Any]] = ()) -> AnyConstruct:
    """A record that fills a whole body (FRM-2)."""
    return record(cls, *subcons, Terminated, rules=rules)


def pair(first: str, second: str, struct: AnyConstruct) -> AnyConstruct:
    """A Struct that is a tuple of two of its fields."""
    return Mapped(
        struct, lambda found: (found[first], found[second]), lambda two, _: {first: two[0], second: two[1]}
    )


def count(of: str, *held: Rule[int], width: AnyConstruct = Int16ul) -> AnyConstruct:
    """The count of the list `of`, checked before the list is read (FRM-12)."""
    return Count(of, Ruled(width, *held))


ID: Final = exact(16)
TOKEN: Final = exact(32)
DIGEST: Final = exact(16)
