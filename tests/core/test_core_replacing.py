"""Data connections that wear out are replaced at a barrier, and nothing is lost or sent twice."""

from __future__ import annotations

import pytest
from lanes_support import PAGE, check_moved, encoded, pair_of, run_to, work

from sterna.core import shares
from sterna.core.events import OpenStreams, RoundFinished, StreamAttached
from sterna.core.tables import DestinationState, SourceState
from sterna.errors import TransportError
from sterna.registry import ErrorCode, Feature
from sterna.testing.pair import Pair

WORN = TransportError(ErrorCode.UNSUPPORTED, "the key is used up")


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch):
    monkeypatch.setattr(shares, "BLOCK_BYTES", 2 * PAGE)


def attached(pair: Pair) -> list[tuple[int, int]]:
    events = (event for event in pair.events["source"] if isinstance(event, StreamAttached))
    return [(event.stream, event.generation) for event in events]


def rounds(pair: Pair) -> list[int]:
    return [event.stats.pages for event in pair.events["source"] if isinstance(event, RoundFinished)]


def test_a_round_is_cut_short_for_it():
    """[STR-12] [STR-5] [ATT-4] [ATT-5] What was not sent on that connection follows in the next round."""
    pair = run_to(pair_of(2), DestinationState.RECEIVING)
    before = pair.source.state
    pair.source.wear_out(WORN, pair.now, 2)
    assert pair.source.state is before is SourceState.ROUND
    pair.run()
    check_moved(pair)
    assert attached(pair) == [(1, 0), (2, 0), (2, 1)]
    assert pair.source.result.resumed == 0
    first, second, *_ = rounds(pair)
    assert first < 32 <= first + second


def test_batches_that_are_packed_for_it_meanwhile_are_lost_no_more_than_others():
    """[STR-12] [RND-3] One waits and two are under way: they still go where they belong, in this round."""
    pair = pair_of(2)
    pair.source.packs, pair.source.ahead = True, 3
    run_to(pair, SourceState.ROUND)
    pair.run()  # until there is nothing to be sent but by jobs
    jobs = [pair.source.next_job(2) for _ in range(3)]
    pair.source.job_done(jobs[0], encoded(pair, jobs[0]))
    pair.source.wear_out(WORN, pair.now, 2)
    assert pair.source.next_job(2) is None
    while (job := pair.source.next_job(1)) is not None:
        pair.source.job_done(job, encoded(pair, job))
        pair.run()
    assert pair.source.state is SourceState.ROUND  # it waits for the other two
    for job in jobs[1:]:
        pair.source.job_done(job, encoded(pair, job))
    pair._between = work
    pair.run()
    check_moved(pair)
    assert attached(pair) == [(1, 0), (2, 0), (2, 1)]
    assert rounds(pair)[:2] == [16 + 3, 16 - 3]


@pytest.mark.parametrize("state", [SourceState.ACKING, SourceState.COLLECTING])
def test_a_barrier_that_comes_by_itself_will_do(state):
    """[STR-12]"""
    pair = run_to(pair_of(2), state)
    for stream in (1, 2):
        pair.source.wear_out(WORN, pair.now, stream)
    pair.run()
    check_moved(pair)
    assert attached(pair) == [(1, 0), (2, 0), (1, 1), (2, 1)]


def test_another_one_may_wear_out_meanwhile():
    """[STR-12]"""
    pair = run_to(pair_of(3), SourceState.ACKING)
    pair.source.wear_out(WORN, pair.now, 1)
    run_to(pair, SourceState.REPLACING)
    pair.source.wear_out(WORN, pair.now, 3)
    pair.run()
    check_moved(pair)
    assert attached(pair)[3:] == [(1, 1), (3, 1)]


def test_what_is_left_out_does_not_count_as_written():
    """Else the policy would see a guest that writes faster than the link carries."""
    pair = run_to(pair_of(2), DestinationState.RECEIVING)
    pair.source.wear_out(WORN, pair.now, 1)
    pair.run()
    stats = [event.stats for event in pair.events["source"] if isinstance(event, RoundFinished)]
    assert stats[0].dirty_pages < 32 - stats[0].pages


@pytest.mark.parametrize("state", [SourceState.PREPARING, SourceState.SEALED, SourceState.REPLACING])
def test_where_there_is_no_barrier_all_are_given_up(state):
    """[TLS-18] Or it is a connection that is being replaced already, or the control connection."""
    pair = pair_of(2)
    if state is SourceState.REPLACING:
        run_to(pair, SourceState.ACKING)
        pair.source.wear_out(WORN, pair.now, 1)
    run_to(pair, state)
    pair.source.wear_out(WORN, pair.now, 0 if state is SourceState.REPLACING else 1)
    assert pair.source.state is SourceState.SUSPENDING


@pytest.mark.parametrize("stream", [1, 9])
def test_one_that_is_not_attached_is_worn_at_once(stream):
    """[TLS-18]"""
    pair = run_to(pair_of(2), SourceState.ACKING)
    pair.source.wear_out(WORN, pair.now, 1)
    run_to(pair, SourceState.REPLACING)
    pair.perform("source", pair.source)
    pair.source.wear_out(WORN, pair.now, stream)
    assert pair.source.state is SourceState.SUSPENDING


@pytest.mark.parametrize("resumes", [True, False])
def test_one_that_cannot_be_opened(resumes):
    """[TLS-18] [RES-11] The session is taken up again, if that can be."""
    offered = pair_of(2).source._config.features
    features = tuple(each for each in offered if resumes or each.id != Feature.RESUME)
    pair = run_to(pair_of(2, features=features), SourceState.ACKING)
    pair.fail_on[OpenStreams] = TransportError(ErrorCode.CONNECT_FAILED, "nothing listens there")
    pair.source.wear_out(WORN, pair.now, 1)
    end = SourceState.SUSPENDED if resumes else SourceState.ENDED
    run_to(pair, end)
    assert pair.source.result.code is ErrorCode.CONNECT_FAILED


def test_the_link_may_be_lost_meanwhile():
    """[RES-11] [STR-15]"""
    pair = run_to(pair_of(2), SourceState.ACKING)
    pair.source.wear_out(WORN, pair.now, 1)
    run_to(pair, SourceState.REPLACING)
    pair.cut()
    pair.run()
    pair.reconnect()
    pair.run()
    check_moved(pair)
    assert pair.source.result.resumed == 1


@pytest.mark.parametrize("state", [SourceState.ROUND, SourceState.ACKING, SourceState.COLLECTING])
def test_what_wears_is_replaced_before_the_guest_is_paused(state):
    """[STR-12] At the barrier that comes by itself: no round is cut short for it."""
    pair = run_to(pair_of(2), state)
    for stream in (1, 2, 2):
        pair.source.wears(stream)
    run_to(pair, SourceState.PREPARING)
    assert attached(pair) == [(1, 0), (2, 0), (1, 1), (2, 1)]
    pair.run()
    check_moved(pair)
    assert (pair.source.result.resumed, rounds(pair)[0]) == (0, 32)


def test_what_is_worn_out_meanwhile_is_replaced_once():
    """[STR-12] Also if a new connection says at once that it wears: it has a round first."""
    pair = run_to(pair_of(2), SourceState.ACKING)
    pair.source.wears(1)
    pair.source.wear_out(WORN, pair.now, 1)
    run_to(pair, SourceState.REPLACING)
    pair.source.wears(1)
    pair.run()
    check_moved(pair)
    assert attached(pair) == [(1, 0), (2, 0), (1, 1)]


def test_a_control_connection_that_wears_is_begun_anew_before_the_guest_is_paused():
    """[STR-12] [RES-8] The guest runs on meanwhile, and all that was sent stays."""
    pair = run_to(pair_of(0), SourceState.ROUND)
    pair.source.wears()
    run_to(pair, SourceState.SUSPENDED)
    assert pair.source.result.code is ErrorCode.UNSUPPORTED
    pair.cut()
    pair.run()
    pair.reconnect()
    pair.run()
    check_moved(pair)
    assert pair.source.result.resumed == 1
    assert sum(rounds(pair)) == 32


def test_one_that_cannot_be_begun_anew_goes_on():
    """[TLS-18] Without resume it may well last; if not, it ends when it is worn out."""
    offered = pair_of(0).source._config.features
    pair = run_to(
        pair_of(0, features=tuple(each for each in offered if each.id != Feature.RESUME)), SourceState.ROUND
    )
    pair.source.wears()
    pair.destination.wears()
    pair.run()
    check_moved(pair)
