"""Write the test vectors, spec/vectors/*.json, from the cases in vector_cases.

`python spec/vectors.py` writes, `python spec/vectors.py --check` exits 1 when a committed file differs.
Nothing of the reference implementation is imported: layouts and expected errors are the document's, by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SPEC = Path(__file__).resolve().parent
FOLDER = SPEC / "vectors"

# A script, not a package: its cases are found by path.
sys.path[:0] = [str(SPEC)]

from vector_cases import (  # noqa: E402
    attach,
    batches,
    describe,
    ending,
    handshake,
    headers,
    pages,
    prefaces,
    rounds,
    streams,
    switchover,
    texts,
)
from vector_cases.book import Group  # noqa: E402
from vector_cases.layout import REGISTRY  # noqa: E402
from vector_cases.notes import NOTES  # noqa: E402

SECTIONS = (
    prefaces.prefaces,
    headers.headers,
    streams.streams,
    texts.texts,
    handshake.hello,
    handshake.welcome,
    handshake.refuse,
    texts.abort,
    describe.guest,
    attach.accept,
    attach.attach,
    rounds.round_,
    rounds.round_end,
    rounds.round_ack,
    rounds.bitmaps,
    pages.pages,
    batches.batches,
    switchover.prepare,
    switchover.state,
    switchover.seal,
    ending.commit,
    ending.after,
    ending.page_request,
    ending.progress,
    ending.verdict,
)


def groups() -> Iterator[Group]:
    """All groups, of all files."""
    for section in SECTIONS:
        yield from section()


def _line(value: Any) -> str:
    return json.dumps(value, separators=(", ", ": "))


def document(found: list[Group]) -> str:
    """The text of one file: a test a line, so that a change of one is a change of a line."""
    flags = {flag for group in found for test in group.tests for flag in test["flags"]}
    notes = {
        flag: {"bugType": kind, "description": description, "effect": effect}
        for flag, (kind, description, effect) in NOTES.items()
        if flag in flags
    }
    assert flags == notes.keys(), flags - notes.keys()
    head = {
        "schema": "schema.json",
        "spec_version": REGISTRY["protocol"]["alpn"],
        "generator": "spec/vectors.py",
        "numberOfTests": sum(len(group.tests) for group in found),
    }
    lines = ["{"]
    lines += [f" {_line(name)}: {_line(value)}," for name, value in head.items()]
    lines += [
        ' "notes": {',
        ",\n".join(f"  {_line(flag)}: {_line(note)}" for flag, note in notes.items()),
        " },",
    ]
    lines.append(' "groups": [')
    shown = []
    for group in found:
        inner = [f"   {_line(name)}: {_line(value)}," for name, value in group.head().items()]
        tests = ",\n".join(f"    {_line(test)}" for test in group.tests)
        shown.append("\n".join(["  {", *inner, '   "tests": [', tests, "   ]", "  }"]))
    lines += [",\n".join(shown), " ]", "}", ""]
    return "\n".join(lines)


def outputs() -> dict[Path, str]:
    """Every vector file with the text that it must have."""
    files: dict[str, list[Group]] = {}
    for group in groups():
        files.setdefault(group.file, []).append(group)
    ids = [test["id"] for found in files.values() for group in found for test in group.tests]
    assert len(ids) == len(set(ids)), sorted({each for each in ids if ids.count(each) > 1})
    return {FOLDER / f"{name}.json": document(found) for name, found in files.items()}


def main(arguments: list[str]) -> int:
    """Write the files, or with --check compare them."""
    status = 0
    for path, text in outputs().items():
        if path.exists() and path.read_text(encoding="ascii") == text:
            continue
        name = path.relative_to(SPEC.parent)
        if "--check" in arguments:
            print(f"{name} is stale: run python spec/vectors.py", file=sys.stderr)
            status = 1
        else:
            FOLDER.mkdir(exist_ok=True)
            path.write_text(text, encoding="ascii")
            print(f"wrote {name}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
