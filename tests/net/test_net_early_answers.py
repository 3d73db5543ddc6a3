"""net/early_answers.py: a source dials the demand connection, and lets nothing depend on it [13.3]."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from early_support import Scene, scene
from sterna.core.events import Outcome
from sterna.errors import TransportError
from sterna.net.early_answers import EarlyAnswers
from sterna.registry import ErrorCode

pytestmark = [pytest.mark.needs("minor_faults"), pytest.mark.slow]


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(tmp_path) as made:
        yield made


async def test_the_push_goes_on_where_the_guest_is(made: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr("sterna.net.early_answers.NEAR_S", 0.0)
    monkeypatch.setattr("sterna.core.source.SourceMachine.push_near", lambda _, *at: told.append(at))
    moved = await made.run()
    assert moved.results["source"].outcome is Outcome.COMPLETED
    assert told
    assert len(set(told)) > 1


async def test_one_that_cannot_be_had_is_no_matter(made: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """[PCY-30]"""

    async def refused(*_: object) -> object:
        raise TransportError(ErrorCode.CONNECT_FAILED, "nobody is there")

    monkeypatch.setattr("sterna.net.early_answers.open_demand", refused)
    moved = await made.run()
    assert moved.results["source"].outcome is Outcome.COMPLETED
    assert moved.results["destination"].after.early == 0
    assert moved.errors == 0


async def test_an_image_that_is_released_is_read_by_nobody(
    made: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[CMP-2]"""
    closed: list[bool] = []
    close = EarlyAnswers.close

    def told(answers: EarlyAnswers) -> None:
        close(answers)
        assert answers._connection is not None
        assert answers._connection.ended.is_set()
        closed.append(made.endpoints["source"].result is None)

    monkeypatch.setattr(EarlyAnswers, "close", told)
    moved = await made.run()
    assert moved.results["source"].outcome is Outcome.COMPLETED
    assert closed[0]
