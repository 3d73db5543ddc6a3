"""Seeds for coverage-guided fuzzers, from the test vectors: a corpus of inputs, and a dictionary of tokens.

python -m sterna_fuzz.seeds CORPUS      # writes CORPUS/streams and CORPUS/bodies
python -m sterna_fuzz.seeds --dict      # prints the dictionary, which is fuzz/sterna.dict
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from sterna.registry import GREASE_FIRST, MAGIC, FrameType
from sterna.testing.vectors import vectors_directory
from sterna.wire import unchecked
from sterna_fuzz.mutators import EDGES
from sterna_fuzz.raw import body_input

USAGE: Final = "usage: python -m sterna_fuzz.seeds CORPUS | --dict"


def inputs(vectors: Path | None = None) -> Iterator[tuple[str, bytes]]:
    """The name of the directory and the bytes of every input that the vectors give."""
    for path in sorted((vectors or vectors_directory()).glob("*.json")):
        if path.name == "schema.json":
            continue
        for group in json.loads(path.read_text())["groups"]:
            for test in group["tests"]:
                yield from _inputs(group, bytes.fromhex(test["hex"]))


def _inputs(group: dict[str, object], data: bytes) -> Iterator[tuple[str, bytes]]:
    match group["kind"]:
        case "preface" | "stream":
            yield "streams", data
        case "header":
            yield "streams", unchecked.preface() + data
        case "body":
            frame = FrameType[str(group["frame"])]
            yield "bodies", body_input(frame, data)
            yield "streams", unchecked.preface() + unchecked.frame(frame, data)


def write(directory: Path, vectors: Path | None = None) -> int:
    """Write the corpus, a file an input, named by its content as libFuzzer does. How many there are."""
    written = set()
    for kind, data in inputs(vectors):
        path = directory / kind / hashlib.sha1(data, usedforsecurity=False).hexdigest()
        if path not in written:
            written.add(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return len(written)


def dictionary() -> str:
    """Tokens that bytes are made of: the magic, types of frames, and numbers at the edges."""
    tokens = {"magic": MAGIC, "preface": unchecked.preface(), "header": unchecked.frame(GREASE_FIRST)}
    tokens |= {f"type_{frame.name.lower()}": frame.to_bytes(2, "little") for frame in FrameType}
    for width in (2, 4, 8):
        fitting = [value for value in EDGES if value < 1 << 8 * width]
        tokens |= {f"u{8 * width}_{value}": value.to_bytes(width, "little") for value in fitting}
    lines = [f'{name}="{_escaped(data)}"' for name, data in tokens.items()]
    return "# Made by: python -m sterna_fuzz.seeds --dict\n" + "\n".join(lines) + "\n"


def _escaped(data: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in data)


def main(arguments: Sequence[str]) -> int:
    """What the module's text says."""
    match arguments:
        case ["--dict"]:
            sys.stdout.write(dictionary())
        case [directory] if not directory.startswith("-"):
            count = write(Path(directory))
            sys.stderr.write(f"{count} inputs in {directory}\n")
        case _:
            sys.stderr.write(f"{USAGE}\n")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
