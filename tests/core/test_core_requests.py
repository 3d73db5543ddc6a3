"""The queue of requests; what a whole machine does with it is in test_core_session."""

from __future__ import annotations

import pytest

from sterna.core.events import Pause, SaveState, StartTracking
from sterna.core.requests import RequestQueue
from sterna.errors import LocalProtocolError


def test_first_come_first_served():
    queue, requests = RequestQueue(), [StartTracking(), Pause(), SaveState()]
    assert (queue.take(), queue.prompt, bool(queue)) == (None, None, False)
    for request in requests:
        queue.ask(request)
    assert (list(queue), queue.prompt, bool(queue)) == (requests, requests[0], True)
    assert [queue.take(), queue.take()] == requests[:2]
    assert (queue.taken, list(queue), queue.prompt) == (tuple(requests[:2]), requests[2:], None)
    for request in requests[:2]:
        queue.answered(request)
    assert (queue.taken, queue.prompt) == ((), requests[2])


def test_an_answer_out_of_turn_changes_nothing():
    queue, first, second = RequestQueue(), Pause(), Pause()
    queue.ask(first)
    with pytest.raises(LocalProtocolError, match="Pause is not the next request to be answered"):
        queue.answered(first)  # nobody has taken it
    queue.ask(second)
    queue.take()
    queue.take()
    for wrong in (second, Pause()):
        with pytest.raises(LocalProtocolError, match="not the next"):
            queue.answered(wrong)
    assert queue.taken == (first, second)


def test_what_was_taken_cannot_be_withdrawn():
    queue, taken = RequestQueue(), Pause()
    queue.ask(taken)
    queue.take()
    queue.ask(SaveState())
    queue.withdraw()
    assert (queue.taken, list(queue)) == ((taken,), [])
