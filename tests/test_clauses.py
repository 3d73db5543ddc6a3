"""Every MUST of the specification is shown by a test, a vector or a case, or it has a reason why nothing can.

`python spec/build.py --clauses` prints who claims what. The other half of this file gives the same machinery
made-up documents, tests and excuses, to see that it catches what it is for.
"""

from __future__ import annotations

import json
from importlib import resources

import pytest

import claims
import clauses
from clauses import SpecError
from sterna_interop.cases_matrix import SCENARIOS

CLAUSES = clauses.load_all()
CLAIMS = claims.find()
COVERAGE = claims.cover(CLAUSES, clauses.load_excuses(), CLAIMS)
UNCLAIMED = COVERAGE.unclaimed


# ---- this repository ----


@pytest.mark.parametrize("name", [clause.id for clause in COVERAGE.musts])
def test_every_must_is_shown_or_has_a_reason(name: str) -> None:
    assert name not in UNCLAIMED, f"claim it in the test that shows it, as [{name}]: {CLAUSES[name].text}"


def test_every_claim_is_of_a_clause() -> None:
    assert claims.unknown(CLAIMS, CLAUSES) == []


@pytest.mark.parametrize("name", clauses.load_invariants())
def test_every_invariant_is_shown(name: str) -> None:
    assert claims.of_invariants(CLAIMS)[name], f"claim it in the test that shows it, as [{name}]"


@pytest.mark.parametrize("document", clauses.documents())
def test_every_requirement_is_a_clause(document: str) -> None:
    """Of what stands outside of one, nobody would know whether anything shows it."""
    assert clauses.stray((clauses.SPEC / document).read_text(encoding="utf-8")) == []


def test_no_excuse_is_needless() -> None:
    assert COVERAGE.needless == []


def test_the_kit_knows_every_clause() -> None:
    """The package data of the kit, which reports without this repository at hand."""
    data = json.loads(resources.files("sterna_interop").joinpath("data/clauses.json").read_text())
    assert [row["id"] for row in data["clauses"]] == list(clauses.load())
    for row in data["clauses"]:
        clause = CLAUSES[row["id"]]
        assert (row["text"], row["codes"], row["levels"]) == (clause.text, [*clause.codes], [*clause.levels])
        excused = clause.reserved or clause.id in COVERAGE.excuses
        assert (row["reserved"], row["excuse"] is not None) == (clause.reserved, excused)


def test_the_table_names_every_must() -> None:
    lines = claims.table(CLAIMS).splitlines()
    shown = [line.split()[0] for line in lines if line[:4].isupper() and "-" in line[:8]]
    assert shown == [clause.id for clause in COVERAGE.musts]


# ---- a document made up ----

DOCUMENT = """\
# A protocol

## 1. First

*ABC-2 and ABC-4 to ABC-5 are reserved in draft 1.*

**[ABC-1]** A thing MUST be
so. → `bad_value`, `malformed`

**[ABC-2]** It MUST fly.

**[ABC-3]** It MAY sing, SHOULD not MUSTER. → `bad_value`

### 1.1 Under it

*Reserved in draft 1.* Here is nothing.

**[ABC-4]** It MUST.

#### 1.1.1 And under that

**[ABC-6]** It MUST too.

### 1.2 Beside it

**[ABC-5]** It MUST NOT. (ABC-1 and *reserved* have no meaning here.)

**[ABC-7]** It SHOULD. (Reserved in draft 1. Suggested: 8.)

**[ABC-8]** It MUST, and is not reserved.

## 2. Second

*Reserved in draft 1: nothing of it is there.*

**[XYZ-1]** It MUST.

## 3. Third

- [HOL-1] It MUST listen and
  go on.
- [HOL-2] It ends.
"""
MADE_UP = clauses.parse(DOCUMENT)


def test_what_a_clause_says() -> None:
    first = MADE_UP["ABC-1"]
    assert first.text == "A thing MUST be so."
    assert (first.levels, first.codes, first.section) == (("MUST",), ("bad_value", "malformed"), "1")
    assert MADE_UP["ABC-3"].levels == ("SHOULD", "MAY")
    assert not MADE_UP["ABC-3"].must
    assert (MADE_UP["HOL-1"].text, MADE_UP["HOL-2"].levels) == ("It MUST listen and go on.", ())
    assert MADE_UP["HOL-2"].must  # it states what is so
    assert {name: each.section for name, each in MADE_UP.items() if name in {"ABC-6", "ABC-5", "XYZ-1"}} == {
        "ABC-6": "1.1.1",
        "ABC-5": "1.2",
        "XYZ-1": "2",
    }


def test_requirements_outside_of_clauses_are_found() -> None:
    key_words = "The key words MUST, SHOULD and MAY are used as usual."
    assert clauses.stray(f"# Title\n\n{key_words}\n\n{DOCUMENT}") == []
    strays = ["It MUST too.", "- And this SHOULD.", "- An item\n  that MAY."]
    assert clauses.stray("\n\n".join([DOCUMENT, *strays])) == strays


def test_invariants_stand_in_a_table_of_their_chapter() -> None:
    head = "| name | statement | rests on |\n|---|---|---|\n"
    chapter = f"## 9. Invariants\n\n{head}| `always` | It holds. | ABC-1 |\n| `so-too` | This. | all |\n"
    more = f"\n## 10. More\n\n{head}| `not` | This not. | ABC-1 |\n"
    assert clauses.invariants(f"# A\n\n{chapter}{more}") == {"always": "It holds.", "so-too": "This."}
    assert len(clauses.load_invariants()) == 10


def test_reserved_is_what_the_document_marks() -> None:
    reserved = [each.id for each in MADE_UP.values() if each.reserved]
    assert reserved == ["ABC-2", "ABC-4", "ABC-6", "ABC-5", "ABC-7", "XYZ-1"]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("**[ABC-1]** It MUST.\n\n**[ABC-1]** It MAY.", "ABC-1 stands there twice"),
        ("As **[ABC-1]** says, it MUST.", "no id at the start of a paragraph: .*ABC-1"),
        ("**[ABC-01]** It MUST.", "no id at the start of a paragraph: .*ABC-01"),
        ("*ABC-2 is reserved in draft 1.*\n\n**[ABC-1]** It MUST.", "no clause: .*ABC-2"),
        ("*ABC-3 to ABC-2 are reserved in draft 1.*", "ABC-3 to ABC-2 is no range"),
        ("*ABC-3 to XYZ-4 are reserved in draft 1.*", "ABC-3 to XYZ-4 is no range"),
    ],
)
def test_a_document_that_contradicts_itself_is_caught(document: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        clauses.parse(document)


@pytest.mark.parametrize(
    ("excuse", "message"),
    [
        ('ABC-9 = "none"', "ABC-9 is excused and no clause"),
        ('ABC-3 = "may"', "ABC-3 is excused and has no MUST"),
        ('ABC-2 = "reserved"', "ABC-2 is excused and reserved"),
        ('ABC-1 = "one"\n[other]\nABC-1 = "two"', "ABC-1 is excused twice"),
    ],
)
def test_an_excuse_for_nothing_is_caught(excuse: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        clauses.excuses(f'[people]\nabout = "people"\n{excuse}', MADE_UP)


# ---- tests, vectors and cases made up ----

TEST_FILE = '''\
"""All about [ABC-8]."""

NOT = "[ABC-1]"  # [ABC-1] outside of tests counts for nothing


def helper():
    """[ABC-1]"""
    # [ABC-1]


@decorated(
    [
        1,  # [ABC-2]
    ]
)
async def test_one():
    """[ABC-3 to ABC-5] [XYZ-1, HOL-1]"""
    return "[ABC-1]", [ABC-1]


class TestMany:
    def test_two(self):
        # first this [ABC-6]
        # then ABC-1 without brackets, and [ABC-1 and more]
        pass

    def test_three(self):
        """[one-runner] and [no-runner]"""
'''


def test_claims_stand_in_tests_alone() -> None:
    found = [(claim.clause, claim.by) for claim in claims.in_test_file("t.py", TEST_FILE)]
    one = ["ABC-2", "ABC-3", "ABC-4", "ABC-5", "HOL-1", "XYZ-1"]
    assert sorted(found) == sorted(
        [
            ("ABC-8", "t.py"),
            ("ABC-6", "t.py::test_two"),
            ("ABC-1 and more", "t.py::test_two"),  # and is no clause
            ("one-runner", "t.py::test_three"),
            *((each, "t.py::test_one") for each in one),
        ]
    )


def test_claims_of_vectors() -> None:
    vectors = {"groups": [{"tests": [{"id": "hello/one", "clause": "ABC-1"}]}]}
    assert [*claims.in_vectors(json.dumps(vectors))] == [claims.Claim("ABC-1", "vector hello/one")]


def test_claims_of_cases() -> None:
    wanted = {(clause, f"case {scenario.id}") for scenario in SCENARIOS for clause in scenario.clauses}
    assert wanted
    assert wanted <= {(claim.clause, claim.by) for claim in claims.in_cases()}


def test_a_must_that_nobody_claims_is_caught() -> None:
    found = [claims.Claim("HOL-1", "test"), claims.Claim("ABC-3", "test")]
    # What is reserved need not be claimed.
    assert claims.cover(MADE_UP, {}, found).unclaimed == ["ABC-1", "ABC-8", "HOL-2"]
    of_the_kit = claims.Claim("ABC-1", "tests/interop/test_interop_minimal.py::test_it")
    assert claims.cover(MADE_UP, {}, [*found, of_the_kit]).unclaimed == ["ABC-1", "ABC-8", "HOL-2"]
    excuses = clauses.excuses('[people]\nabout = ""\nABC-8 = "because"', MADE_UP)
    assert claims.cover(MADE_UP, excuses, found).unclaimed == ["ABC-1", "HOL-2"]


def test_an_excuse_that_is_claimed_is_caught() -> None:
    excuses = clauses.excuses('[people]\nABC-1 = "because"\nABC-8 = "because"', MADE_UP)
    assert claims.cover(MADE_UP, excuses, [claims.Claim("ABC-8", "test")]).needless == ["ABC-8"]


def test_who_claims_an_invariant_is_known() -> None:
    of_the_kit = claims.Claim("rollback", "tests/interop/test_interop_minimal.py::test_it")
    by = claims.of_invariants([claims.Claim("rollback", "test"), claims.Claim("ABC-1", "test"), of_the_kit])
    assert by["rollback"] == ["test"]
    assert by["converges"] == []
    assert claims.unknown([of_the_kit], MADE_UP) == []


def test_a_claim_of_no_clause_is_caught() -> None:
    found = [claims.Claim("ABC-1", "test"), claims.Claim("ABC-99", "test"), claims.Claim("CON-1", "test")]
    assert claims.unknown(found, MADE_UP) == found[1:]
