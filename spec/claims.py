"""Who shows which clause: tests, vectors and cases of the interoperability kit, and what nobody shows.

A claim is the id of a clause where something stands that fails when the clause is broken:

* in brackets in a test function's docstring, or in a comment in it or its decorators: ``[CON-3]``,
  ``[CON-3, CON-5]``, ``[TXT-1 to TXT-4]``; of helpers nothing counts, the tests that call them claim;
* in the docstring of a whole file of tests that is about the clause;
* as `clause` of a vector;
* among the `clauses` of a case of the interoperability kit.

So are claimed the invariants of chapter 19, by their names: ``[one-runner]``.

What the tests of the kit claim is looked at and does not count: they show what the kit notices, and what its
own small endpoint does, and nothing of the reference implementation. Its cases are played against that.

No list of claims is kept: `python spec/build.py --clauses` reads them anew.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from clauses import Clause, Excuse, documents, excuse, expand, load_excuses, load_invariants

ROOT = Path(__file__).resolve().parents[1]
TESTS_OF_THE_KIT = "tests/interop/"

_ID = r"[A-Z]{3}-[1-9]\d*"
_IDS = rf"{_ID}(?:(?:,| to|)\s+{_ID})*"
_BRACKETS = re.compile(r"\[([A-Z]{3}-\d[^\]]*)\]")
_NAMES = re.compile(rf"\[({'|'.join(load_invariants())})\]")
_IN_A_COMMENT = re.compile(rf"#.*(?:\[[A-Z]{{3}}-\d|{_NAMES.pattern})")
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Claim:
    """A clause or an invariant, and what claims it: a test as pytest names it, a vector or case by its id."""

    clause: str
    by: str


# ---- where claims stand ----


def in_test_file(name: str, source: str) -> Iterator[Claim]:
    """The claims of one file of tests."""
    tree = ast.parse(source)
    for each in _claimed(ast.get_docstring(tree)):
        yield Claim(each, name)
    tests = [*_tests(tree)]
    for test in tests:
        for each in _claimed(ast.get_docstring(test)):
            yield Claim(each, f"{name}::{test.name}")
    if not _IN_A_COMMENT.search(source):
        return
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        around = [test for test in tests if _first_line(test) <= token.start[0] <= (test.end_lineno or 0)]
        for each in _claimed(token.string) if around else ():
            yield Claim(each, f"{name}::{around[0].name}")


def _tests(parent: ast.Module | ast.ClassDef) -> Iterator[_Function]:
    """The functions that pytest takes for tests."""
    for node in parent.body:
        if isinstance(node, ast.ClassDef):
            yield from _tests(node)
        elif isinstance(node, _Function) and node.name.startswith("test_"):
            yield node


def _claimed(words: str | None) -> Iterator[str]:
    """What stands in brackets, clause by clause; of what only looks like a claim no clause has the name."""
    for found in _BRACKETS.findall(words or ""):
        yield from expand(found) if re.fullmatch(_IDS, found) else (found,)
    yield from _NAMES.findall(words or "")


def _first_line(test: _Function) -> int:
    return min([test.lineno, *(decorator.lineno for decorator in test.decorator_list)])


def in_vectors(text: str) -> Iterator[Claim]:
    """The claims of one file of vectors."""
    for group in json.loads(text)["groups"]:
        for test in group["tests"]:
            yield Claim(test["clause"], f"vector {test['id']}")


def in_cases() -> Iterator[Claim]:
    """The claims of the kit's cases, as its own report has them."""
    from sterna_interop.plan import catalogue

    for case in catalogue():
        yield from (Claim(each, f"case {case.id}") for each in case.clauses)


def find() -> list[Claim]:
    """All claims of this repository."""
    found: list[Claim] = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        found += in_test_file(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "spec" / "vectors").glob("*.json")):
        if path.stem != "schema":
            found += in_vectors(path.read_text(encoding="ascii"))
    return [*found, *in_cases()]


# ---- what follows from them ----


@dataclass(frozen=True, slots=True)
class Coverage:
    """Clauses, excuses and claims held against each other.

    Attributes:
        claims: of each clause that is claimed, by whom.
    """

    clauses: Mapping[str, Clause]
    excuses: Mapping[str, Excuse]
    claims: Mapping[str, tuple[str, ...]]

    @property
    def musts(self) -> list[Clause]:
        """What has to be claimed or excused."""
        return [clause for clause in self.clauses.values() if clause.must]

    @property
    def unclaimed(self) -> list[str]:
        """The ids of each MUST that is neither claimed nor excused."""
        return [each.id for each in self.musts if each.id not in self.claims and self.excuse(each) is None]

    @property
    def needless(self) -> list[str]:
        """The ids that are excused although something claims them."""
        return [name for name in self.excuses if name in self.claims]

    def excuse(self, clause: Clause) -> Excuse | None:
        """Why a clause need not be claimed; None if it must."""
        return excuse(clause, self.excuses)


def cover(clauses: Mapping[str, Clause], excuses: Mapping[str, Excuse], claims: Iterable[Claim]) -> Coverage:
    """Hold claims and excuses against clauses; those of others, and of the kit's tests, are left out."""
    by: dict[str, list[str]] = defaultdict(list)
    for claim in claims:
        if claim.clause not in clauses or claim.by.startswith(TESTS_OF_THE_KIT):
            continue
        if claim.by not in by[claim.clause]:
            by[claim.clause].append(claim.by)
    of_these = {name: why for name, why in excuses.items() if name in clauses}
    return Coverage(clauses, of_these, {name: tuple(who) for name, who in by.items()})


def unknown(claims: Iterable[Claim], clauses: Mapping[str, Clause]) -> list[Claim]:
    """The claims of what is neither a clause nor an invariant."""
    names = load_invariants()
    return [claim for claim in claims if claim.clause not in clauses and claim.clause not in names]


def of_invariants(claims: Iterable[Claim]) -> dict[str, list[str]]:
    """Who claims each invariant; the kit's tests do not count here either."""
    by: dict[str, list[str]] = {name: [] for name in load_invariants()}
    for claim in claims:
        if claim.clause in by and not claim.by.startswith(TESTS_OF_THE_KIT):
            by[claim.clause].append(claim.by)
    return by


def table(claims: Iterable[Claim]) -> str:
    """Every MUST with who claims it, and the totals by chapter."""
    claims, excuses = [*claims], load_excuses()
    lines: list[str] = []
    for document, clauses in documents().items():
        coverage = cover(clauses, excuses, claims)
        lines += [*_rows(coverage), "", *_totals(document, coverage), ""]
    return "\n".join(lines)


def _rows(coverage: Coverage) -> Iterator[str]:
    for clause in coverage.musts:
        by = coverage.claims.get(clause.id, ())
        why = coverage.excuse(clause)
        mark = f"({why.kind}) " if why else ""
        if by:
            shown = "; ".join(by[:3]) + (f"; and {len(by) - 3} more" if len(by) > 3 else "")
        else:
            shown = why.reason if why else "NOT CLAIMED"
        yield f"{clause.id:8}{clause.section:6}{mark}{shown}"


def _totals(title: str, coverage: Coverage) -> Iterator[str]:
    yield f"{title:20}{'MUSTs':>7}{'claimed':>9}{'excused':>9}{'reserved':>10}{'open':>6}"
    chapters = sorted({clause.chapter for clause in coverage.musts})
    for chapter in [*chapters, None]:
        musts = [clause for clause in coverage.musts if chapter in {None, clause.chapter}]
        claimed = sum(clause.id in coverage.claims for clause in musts)
        excused = sum(clause.id in coverage.excuses for clause in musts)
        reserved = sum(clause.reserved and clause.id not in coverage.claims for clause in musts)
        left = sum(clause.id in coverage.unclaimed for clause in musts)
        name = "all" if chapter is None else f"chapter {chapter}"
        yield f"{name:20}{len(musts):7}{claimed:9}{excused:9}{reserved:10}{left:6}"
