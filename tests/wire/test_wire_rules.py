"""Rules as data."""

import pytest

from sterna.registry import ErrorCode
from sterna.wire import page_rules, rules
from sterna.wire.rules import DEFAULT_BOUNDS, Rule, Violation


def every_rule() -> list[Rule]:
    found: list[Rule] = []
    for value in [*vars(rules).values(), *vars(page_rules).values()]:
        found += [
            rule for rule in (value if isinstance(value, tuple) else (value,)) if isinstance(rule, Rule)
        ]
    return found


def test_a_rule_holds_or_says_what_and_where():
    rule: Rule[int] = rules.at_most("ABC-1", 3, "things")
    rule.check(3, DEFAULT_BOUNDS)
    with pytest.raises(Violation) as caught:
        rule.check(4, DEFAULT_BOUNDS, 17)
    violation = caught.value
    assert (violation.code, violation.clause, violation.offset) == (ErrorCode.BAD_VALUE, "ABC-1", 17)
    assert violation.detail == "more than 3 things"


@pytest.mark.parametrize("rule", every_rule(), ids=lambda rule: f"{rule.clause}-{rule.text}")
def test_rules_name_a_clause_and_a_reason(rule):
    area, number = rule.clause.split("-")
    assert area.isupper()
    assert len(area) == 3
    assert int(number) > 0
    assert rule.text
    assert isinstance(rule.code, ErrorCode)


def test_unique():
    assert rules.unique([])
    assert rules.unique("abc")
    assert not rules.unique("aba")
