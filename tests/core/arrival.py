"""What must be so when a guest has arrived, whatever happened on its way."""

from __future__ import annotations

from sterna.core.events import Outcome
from sterna.testing.pair import Pair


def completed(pair: Pair) -> None:
    """[same-memory] Both say so, of one session, and the guest finds its memory whole."""
    here, there = pair.source.result, pair.destination.result
    assert here is not None, pair.source.state
    assert there is not None, pair.destination.state
    assert (here.outcome, there.outcome) == (Outcome.COMPLETED, Outcome.COMPLETED), (here, there)
    assert here.digest == there.digest != b""
    assert here.session == there.session
    assert here.style is there.style
    assert pair.source_guest.released
    guest = pair.destination_guest
    guest.advance(0.1)
    assert guest.workload.errors == 0
    assert guest.workload.audit().errors == 0
