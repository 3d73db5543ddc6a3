"""What came out: one `CaseResult` for each case, pair of peers and transport, and the sums over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """What was tried."""

    ENDPOINT = "endpoint"  # an endpoint against a script of the kit's
    MATRIX = "matrix"  # two endpoints, through the relay
    VECTOR = "vector"  # a codec against spec/vectors


class Verdict(StrEnum):
    """How a case ended."""

    PASS = "pass"
    NON_STRICT = "non_strict"  # not what a SHOULD asks for, and legal
    FAIL = "fail"
    CRASH = "crash"  # the shim ended in a way that the contract does not have
    UNSUPPORTED = "unsupported"  # exit code 89, or an endpoint that does without what the case is about
    SKIP = "skip"  # not tried, for a reason that is told
    XFAIL = "xfail"  # failed, as `expect_fail` says
    XPASS = "xpass"  # passed, although `expect_fail` says otherwise
    KIT_ERROR = "kit_error"  # the kit's own trouble

    @property
    def is_unexpected(self) -> bool:
        """Whether a run with this in it has found something."""
        return self in {Verdict.FAIL, Verdict.CRASH, Verdict.XPASS}

    @property
    def is_as_expected(self) -> bool:
        """Whether it was tried and ended as it should."""
        return self in {Verdict.PASS, Verdict.NON_STRICT, Verdict.XFAIL}


KIT: Final = "kit"  # stands for the other side in endpoint cases
CODEC: Final = "codec"  # and this for both in vector cases


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """One cell of the report.

    Attributes:
        source, destination: names of peers; `KIT` for the kit's own side.
        transport: "plain" or "tls", "" where there is none.
        expected, actual: what differed, where something did.
        code: the error code with which the endpoint under test ended, if it did.
        detail: more for people; of a skipped case the reason.
        artifacts: by name, what was kept: text of a peer's stdout or stderr, the path of a recording.
    """

    case: str
    kind: Kind
    source: str
    destination: str
    verdict: Verdict
    transport: str = ""
    expected: str = ""
    actual: str = ""
    code: str = ""
    detail: str = ""
    duration_ms: int = 0
    artifacts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Summary:
    """Sums over all results."""

    cases: dict[str, int]
    verdicts: dict[str, int]
    as_expected: int
    unexpected: int
    unsupported: int
    kit_errors: int

    @classmethod
    def of(cls, results: Iterable[CaseResult]) -> Summary:
        """Count them."""
        every = list(results)
        kinds = Counter(result.kind for result in every)
        verdicts = Counter(result.verdict for result in every)
        return cls(
            {kind.value: kinds[kind] for kind in Kind},
            {verdict.value: count for verdict in Verdict if (count := verdicts[verdict])},
            sum(result.verdict.is_as_expected for result in every),
            sum(result.verdict.is_unexpected for result in every),
            verdicts[Verdict.UNSUPPORTED],
            verdicts[Verdict.KIT_ERROR],
        )
