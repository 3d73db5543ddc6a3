"""The clauses of the specification: what each requires, with which codes, whether it is reserved.

A clause is a paragraph, ``**[CON-3]** Every other frame MUST ...``, or outside of protocol.md an item of a
list, ``- [HOL-3] An object MUST NOT ...``. Behind an arrow stand the codes with which a receiver names that
it was broken. *Reserved* is what the document marks so, in three ways (its section 2.1): at the head of a
chapter or section, in italics; in a sentence in italics that lists clauses; in brackets in the clause itself.
No second list of them is kept anywhere.

Every MUST is to be claimed by a test, a vector or a case (claims.py), or excused: it is reserved, or
excused.toml says why nothing can show it. `python spec/build.py --clauses` prints all that as a table, and
tests/test_clauses.py fails for each MUST that is neither.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SPEC = Path(__file__).resolve().parent
PROTOCOL = "protocol.md"
EXCUSES = SPEC / "excused.toml"
LEVELS = ("MUST", "SHOULD", "MAY")
RESERVED = "reserved"  # the class of excuse that nobody writes down

_ID = r"[A-Z]{3}-[1-9]\d*"
_RANGE = rf"{_ID}(?: to {_ID})?"
_CLAUSE = re.compile(rf"(?:\*\*|- )\[({_ID})\](?:\*\*)? (.*)", re.DOTALL)
_MARK = re.compile(r"(?:\*\*|^- )\[(.+?)\](?:\*\*| )", re.MULTILINE)
_HEADING = re.compile(r"(#{2,4}) (\d+(?:\.\d+)*)?")
_HEAD_MARK = re.compile(r"\*Reserved in draft 1\b")
_LIST_MARK = re.compile(rf"\*({_RANGE}(?:,? (?:and )?{_RANGE})*) (?:is|are) reserved in draft 1\b")
_OWN_MARK = re.compile(r"\(Reserved in draft 1\b")


class SpecError(Exception):
    """The document or the excuses contradict themselves; the message says where."""


@dataclass(frozen=True, slots=True)
class Clause:
    """One clause.

    Attributes:
        id: area and number, such as CON-3.
        text: its words in one line, without id and arrow.
        levels: which of MUST, SHOULD and MAY it uses.
        codes: names of the error codes behind its arrow.
        section: where it stands, such as 8.2; of a chapter without sections the chapter's number.
        reserved: that the document marks it as reserved in this draft.
    """

    id: str
    text: str
    levels: tuple[str, ...]
    codes: tuple[str, ...]
    section: str
    reserved: bool

    @property
    def must(self) -> bool:
        """Whether somebody has to show it; a sentence of fact, without key words, binds as well."""
        return "MUST" in self.levels or not self.levels

    @property
    def chapter(self) -> int:
        """The number of its chapter."""
        return int(self.section.split(".")[0])


@dataclass(frozen=True, slots=True)
class Excuse:
    """Why nothing shows a clause: a class of reasons, and the sentence for this clause."""

    kind: str
    reason: str


def expand(text: str) -> Iterator[str]:
    """The ids that "TXT-1 to TXT-4, HDR-2 and HDR-3" names.

    Raises:
        SpecError: a range runs backwards or over two areas.
    """
    for first, last in re.findall(rf"({_ID})(?: to ({_ID}))?", text):
        area, low = first.split("-")
        to_area, high = (last or first).split("-")
        if to_area != area or int(high) < int(low):
            raise SpecError(f"{first} to {last} is no range")
        yield from (f"{area}-{number}" for number in range(int(low), int(high) + 1))


def parse(document: str) -> dict[str, Clause]:
    """The clauses of a document by their ids, in its order.

    Raises:
        SpecError: an id stands twice or not at the start of a paragraph, or a mark lists what is no clause.
    """
    found: dict[str, Clause] = {}
    listed: set[str] = set()
    section, marked = "", ""  # the section that we are in; the one whose head says that it is reserved
    for paragraph in _paragraphs(document):
        heading = _HEADING.match(paragraph)
        if heading:
            section = heading[2] or section
            if marked and not f"{section}.".startswith(f"{marked}."):
                marked = ""
            continue
        if _HEAD_MARK.match(paragraph):
            marked = section
        for names in _LIST_MARK.findall(" ".join(paragraph.split())):
            listed.update(expand(names))
        clause = _CLAUSE.match(paragraph)
        if clause:
            if clause[1] in found:
                raise SpecError(f"{clause[1]} stands there twice")
            found[clause[1]] = _clause(clause[1], " ".join(clause[2].split()), section, marked=bool(marked))
    marks = _MARK.findall(document)
    if marks != list(found):
        raise SpecError(f"no id at the start of a paragraph: {sorted(set(marks) - found.keys())}")
    if not listed <= found.keys():
        raise SpecError(f"marked as reserved, but no clause: {sorted(listed - found.keys())}")
    for name in listed:
        old = found[name]
        found[name] = Clause(old.id, old.text, old.levels, old.codes, old.section, reserved=True)
    return found


def stray(document: str) -> list[str]:
    """The paragraphs that use a key word and are no clause, but for the one that says what key words mean."""
    words = re.compile(rf"\b({'|'.join(LEVELS)})\b")
    return [
        paragraph.strip()
        for paragraph in _paragraphs(document)
        if words.search(paragraph)
        and not _CLAUSE.match(paragraph)
        and not paragraph.startswith("The key words")
    ]


def _paragraphs(document: str) -> list[str]:
    """What blank lines separate, and each item of a list."""
    return re.split(r"\n\s*\n|\n(?=- )", document)


def _clause(name: str, words: str, section: str, *, marked: bool) -> Clause:
    text, _, arrow = words.partition("→")
    levels = tuple(level for level in LEVELS if re.search(rf"\b{level}\b", text))
    codes = tuple(re.findall(r"`(\w+)`", arrow))
    return Clause(name, text.strip(), levels, codes, section, marked or bool(_OWN_MARK.search(text)))


def load(document: str = PROTOCOL) -> dict[str, Clause]:
    """The clauses of one of the documents."""
    return parse((SPEC / document).read_text(encoding="utf-8"))


def documents() -> dict[str, dict[str, Clause]]:
    """The documents of this folder that have clauses, the protocol first, with these."""
    names = sorted((path.name for path in SPEC.glob("*.md")), key=lambda name: (name != PROTOCOL, name))
    return {name: found for name in names if (found := load(name))}


def load_all() -> dict[str, Clause]:
    """The clauses of all documents; their areas differ."""
    return {name: clause for found in documents().values() for name, clause in found.items()}


def invariants(document: str) -> dict[str, str]:
    """The names in the chapter on invariants, and what each says."""
    chapter = document.partition(". Invariants\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `([a-z-]+)` \| (.+?) \| .+ \|$", chapter, re.MULTILINE))


def load_invariants() -> dict[str, str]:
    """Those of the protocol."""
    return invariants((SPEC / PROTOCOL).read_text(encoding="utf-8"))


def excuses(text: str, clauses: Mapping[str, Clause]) -> dict[str, Excuse]:
    """What a file of excuses says: a table a class of reasons, in it `about` and a sentence for each clause.

    Raises:
        SpecError: it excuses what is no clause, requires nothing, is reserved anyway, or was excused before.
    """
    found: dict[str, Excuse] = {}
    for kind, rows in tomllib.loads(text).items():
        for name, reason in rows.items():
            if name == "about":
                continue
            if name not in clauses:
                raise SpecError(f"{name} is excused and no clause")
            if not clauses[name].must:
                raise SpecError(f"{name} is excused and has no MUST")
            if clauses[name].reserved:
                raise SpecError(f"{name} is excused and reserved: that needs no excuse")
            if name in found:
                raise SpecError(f"{name} is excused twice")
            found[name] = Excuse(kind, reason)
    return found


def load_excuses() -> dict[str, Excuse]:
    """What excused.toml says."""
    return excuses(EXCUSES.read_text(encoding="utf-8"), load_all())


def excuse(clause: Clause, written: Mapping[str, Excuse]) -> Excuse | None:
    """Why nothing need show a clause; None if something must."""
    if clause.reserved:
        return Excuse(RESERVED, "reserved in this draft: not implemented, not offered, refused by its code")
    return written.get(clause.id)


def clauses_json(spec_version: str) -> str:
    """The clauses of protocol.md as data, for tools that report about them: a clause a line."""
    written = load_excuses()
    rows = []
    for clause in load().values():
        why = excuse(clause, written)
        rows.append(
            {
                "id": clause.id,
                "section": clause.section,
                "levels": clause.levels,
                "codes": clause.codes,
                "reserved": clause.reserved,
                "excuse": why and {"class": why.kind, "reason": why.reason},
                "text": clause.text,
            }
        )
    head = {"schema": 1, "spec_version": spec_version, "generator": "spec/build.py"}
    lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
    body = ",\n".join(f"  {json.dumps(row, ensure_ascii=True)}" for row in rows)
    return "\n".join(["{", *lines, ' "clauses": [', body, " ]", "}", ""])
