"""What a source does next while its guest runs: another round, the switchover, or nothing any more.

After each round, and after each NOT_READY, what the guest has written meanwhile is collected, and the policy
is asked (sterna.core.policy, sterna.core.style). Here its answer is put into effect. A barrier lies between
ROUND_ACK and the answer: that is when connections are replaced, which comes first [STR-12].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from sterna.core.departed import U64_MAX, Departed
from sterna.core.events import (
    CollectDirty,
    Decided,
    RoundFinished,
    RoundStarted,
    Throttle,
)
from sterna.core.opening import SourceConfig
from sterna.core.policy import Action, Decision
from sterna.core.style import decide_style, selected_styles
from sterna.core.tables import SourceInput, SourceState
from sterna.errors import LocalProtocolError
from sterna.memory.pages import PageSource
from sterna.registry import ErrorCode, Feature, FrameType, Style
from sterna.wire.records import NotReady, RoundAck, Switchover

# What was collected so long before ROUND_ACK came is not collected again: the guest writes on in any case
# until it is paused. Over a slow or a long link much more may have been written since.
FRESH_S: Final = 0.01
# A destination that is not ready after so many tries will not be.
NOT_READY_MAX: Final = 3


class Choosing(Departed):
    """The part of a source's machine that goes from round to round, and to the switchover."""

    def __init__(self, config: SourceConfig, pages: PageSource, now: float) -> None:
        super().__init__(config, pages, now)
        self._ack: RoundAck | None = None
        self._round_sent_at = now  # its last page
        self._lag_s: float | None = None  # from there until ROUND_ACK came, of the round before
        self._is_collecting = False  # beside ROUND_ACK
        self._collected_at = -math.inf
        self._written_since = now  # what is collected next was written from here on
        self._throttle = 0.0
        self._styles = frozenset(Style)  # what may be tried

    # ---- what has come of the last choice ----

    def _on_tracking(self, answer: object, now: float) -> None:
        assert self._selection is not None
        if isinstance(answer, Mapping) and self._selection.has(Feature.ENCODING_ZERO):
            self._memory.unwritten(answer)
        self._written_since = now
        self._step(SourceInput.TRACKING, now)
        self._choose(now)

    def _collect_beside_ack(self, now: float) -> None:
        """The round has been sent. What is written from here on is found behind the next one [CON-34].

        Where ROUND_ACK takes its time that would be in vain.
        """
        lag_s = self.rtt_s or 0.0 if self._lag_s is None else self._lag_s
        self._round_sent_at, self._collected_at = now, -math.inf
        self._is_collecting = lag_s <= FRESH_S
        if self._is_collecting:
            self._ask(CollectDirty())

    def _on_round_ack(self, record: RoundAck, now: float) -> None:
        self._memory.acknowledged(record)
        self._step(FrameType.ROUND_ACK, now)
        self._ack, self._lag_s = record, now - self._round_sent_at
        if self._is_collecting:
            return
        if now - self._collected_at <= FRESH_S:
            self._go_on_behind_round(now)
        else:
            self._ask(CollectDirty())

    def _on_not_ready(self, record: NotReady, now: float) -> None:
        self._step(FrameType.NOT_READY, now)
        self._attempt += 1
        self._not_ready += 1
        if self._not_ready >= NOT_READY_MAX:
            detail = f"not ready {self._not_ready} times, the last time because of {record.text!r}"
            self._fail(LocalProtocolError(ErrorCode.NOT_READY, detail, clause="CON-43"), now)
            return
        if record.code == ErrorCode.UNSUPPORTED and self._job.policy.switchover == "auto":
            self._styles = frozenset()  # this guest cannot, whatever its host can: go without [CON-42]
        self._ask(CollectDirty())

    def _on_collected(self, answer: object, now: float) -> None:
        assert isinstance(answer, Mapping)
        self._memory.written(answer)
        self._is_collecting, self._collected_at = False, now
        match self._state:
            case SourceState.ACKING:
                pass
            case SourceState.FREEZING:
                self._step(SourceInput.COLLECTED, now)
                self._begin_round(now, last=True)
            case _:
                self._go_on_behind_round(now)

    def _go_on_behind_round(self, now: float) -> None:
        self._step(SourceInput.COLLECTED, now)
        written_s, self._written_since = self._collected_at - self._written_since, self._collected_at
        if self._ack is not None:
            self._note_round(now, self._ack, written_s)
            self._ack = None
            if self._replaces(now):
                return
        self._choose(now)

    # ---- the next one ----

    def _choose(self, now: float) -> None:
        """Ask the policy what comes next, and begin it."""
        decision = self._decide()
        self._decision, self._report = decision, None
        self._emit(Decided(decision))
        match decision.action:
            case Action.SWITCHOVER:
                self._switch_over(decision, now)
            case Action.GIVE_UP:
                self._fail(LocalProtocolError(ErrorCode.NOT_CONVERGING, decision.verdict), now)
            case _:
                self._go_round(decision, now)

    def _decide(self) -> Decision:
        most, expected = self._job.guest.state_bytes, self._job.expected_state_bytes
        assert self._selection is not None
        decision = decide_style(
            self._account.rounds,
            self._memory.pending_bytes,
            most if expected is None else min(expected, most),
            self.rtt_s or 0.0,
            self._job.policy,
            styles=self._styles & selected_styles(self._selection),
        )
        if decision.action is Action.GIVE_UP or self._report is None:
            return decision
        # What follows a resumption is a round, however little is left for it [RES-8].
        verdict = "the link was lost: a round of what may be missing comes first"
        return replace(decision, action=Action.CONTINUE, throttle=0.0, verdict=verdict)

    def _switch_over(self, decision: Decision, now: float) -> None:
        self._account.style = decision.style
        self._note_session()
        self._step(SourceInput.SWITCHOVER_CHOSEN, now)
        downtime_us = min(int(decision.predicted_downtime_s * 1e6), U64_MAX)
        self._send(Switchover(self._attempt, decision.style, downtime_us))

    def _go_round(self, decision: Decision, now: float) -> None:
        if decision.throttle != self._throttle:
            self._throttle = decision.throttle
            self._ask(Throttle(decision.throttle))
        self._step(SourceInput.ROUND_CHOSEN, now)
        self._begin_round(now, last=False)
        if len(self._account.rounds) == 1:  # while pages travel, the guest does not wait for a disk
            self._note_session(early=True)

    # ---- rounds ----

    def _begin_round(self, now: float, *, last: bool) -> None:
        assert self._selection is not None
        assert self._decision is not None
        bounds = self._selection.limits, self._job.batch_bytes, self._decision.bandwidth_bytes_s
        if last and self._account.style is not Style.STOP_AND_COPY:
            opening = self._memory.begin_empty(self._attempt, now)
        else:
            opening = self._memory.begin(self._attempt, *bounds, now, last=last)
        self._emit(RoundStarted(opening.round, opening.pages, last))
        self._send(opening)

    def _note_round(self, now: float, ack: RoundAck | None, written_s: float = 0.0) -> None:
        stats = replace(self._memory.stats(now, self._throttle, ack), written_s=max(written_s, 0.0))
        self._account.round_over(stats)
        self._emit(RoundFinished(stats))
