"""What all tests share: the `needs` marker, the order, Hypothesis' profiles, and a header that tells enough
to repeat a run.

A test that needs something of the machine says so with ``@pytest.mark.needs("userfaultfd")`` and is skipped
where `sterna doctor` finds it missing. A machine that is meant to have it lists it in STERNA_REQUIRE, and
there the same test fails: a skip that nobody asked for is how a test suite quietly stops testing.
"""

from __future__ import annotations

import functools
import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from sterna.linux.capabilities import probe

TESTS = Path(__file__).parent

# Two shared cores: a deadline or a slow draw says something about the machine, not about the code.
_COMMON = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", derandomize=True, **_COMMON)
settings.register_profile("dev", **_COMMON)


@functools.cache
def capabilities() -> dict[str, str | None]:
    """Every name that `needs` may use, with the reason why this machine lacks it; None if it has it."""
    return {found.name: None if found.available else found.reason for found in probe()}


@functools.cache
def required() -> frozenset[str]:
    """What STERNA_REQUIRE declares this machine to have."""
    names = os.environ.get("STERNA_REQUIRE", "").split(",")
    return frozenset(name.strip() for name in names if name.strip())


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the profile, and a seed that can be given again."""
    profile = config.getoption("--hypothesis-profile") or ("ci" if os.environ.get("CI") else "dev")
    config.option.hypothesis_profile = profile
    if config.getoption("--hypothesis-seed") is None and not settings.get_profile(profile).derandomize:
        config.option.hypothesis_seed = str(random.randrange(1 << 32))
    unknown = required() - capabilities().keys()
    if unknown:
        message = f"STERNA_REQUIRE: unknown {sorted(unknown)}; known are {sorted(capabilities())}"
        raise pytest.UsageError(message)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Seed and machine, so that a run in somebody else's log can be repeated."""
    seed = config.getoption("--hypothesis-seed")
    chosen = "derandomized" if seed is None else f"repeat with --hypothesis-seed={seed}"
    has = [name for name, lack in capabilities().items() if lack is None]
    lacks = [f"{name} ({lack})" for name, lack in capabilities().items() if lack is not None]
    return [
        f"hypothesis: profile {config.getoption('--hypothesis-profile')}, {chosen}",
        f"machine has: {', '.join(has) or 'nothing'}; lacks: {', '.join(lacks) or 'nothing'}",
        f"required: {', '.join(sorted(required())) or 'nothing'}",
    ]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, then slow ones, then whole processes: the first failure is the cheapest to read."""
    items.sort(
        key=lambda item: 2 if TESTS / "e2e" in item.path.parents else bool(item.get_closest_marker("slow"))
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot do, unless it was declared able to."""
    for marker in item.iter_markers("needs"):
        for name in marker.args:
            if name not in capabilities():
                pytest.fail(f"needs({name!r}): unknown; known are {sorted(capabilities())}", pytrace=False)
            lack = capabilities()[name]
            if lack is None:
                continue
            if name in required():
                pytest.fail(f"{name} is required by STERNA_REQUIRE, but: {lack}", pytrace=False)
            pytest.skip(f"needs {name}: {lack}")
