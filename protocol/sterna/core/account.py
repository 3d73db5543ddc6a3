"""What the result of a session will tell, gathered while it goes on."""

from __future__ import annotations

from typing import Final

from sterna.core.events import BlackoutStep, Outcome, Result
from sterna.core.policy import RoundStats
from sterna.core.serving import AfterStats
from sterna.errors import PeerAborted, SternaError
from sterna.limits import ROUNDS_KEPT
from sterna.registry import Phase, Style
from sterna.wire.records import NO_ID, Verdict

# A switchover has a dozen; a peer that takes one back again and again begins anew each time.
_STEPS_MAX: Final = 32


class Account:
    """The account of one session.

    Attributes:
        rounds: those that were acknowledged or sealed, the newest `ROUNDS_KEPT` of them.
        bytes_received: from the first byte on.
        error: why it was lost, None if it was not.
        failed_in: the phase in which it was lost.
        blackout_s: how long the guest stood still, once that is known.
        session: its id, zeros before WELCOME.
        verdict: what the destination has said of who owns the guest.
        losses: how often the link was lost and the session could go on.
        resumed: how often it was taken up again.
        style: of the newest switchover.
        after: how the pages went that followed the guest.
        streams: data connections that the session has had at once.
        resumable: whether the session can be taken up again.
        verified: whether pages are verified by hashes; None as long as nothing was agreed on.
        forgettable: destination: it is on record, and no SWITCHOVER has come, so nobody has granted in it.
        unrecorded: why the end of the session is not on record here, None if it is.
    """

    def __init__(self, now: float) -> None:
        self.rounds: list[RoundStats] = []
        self.bytes_received = 0
        self.error: SternaError | None = None
        self.failed_in = Phase.ANY
        self.blackout_s: float | None = None
        self.session = NO_ID
        self.verdict: Verdict | None = None
        self.losses = self.resumed = 0
        self._sent_before = 0  # bytes, on the connections that were lost
        self.style = Style.STOP_AND_COPY
        self.after: AfterStats | None = None
        self.streams = 0
        self.resumable = self.forgettable = False
        self.verified: bool | None = None
        self.unrecorded: SternaError | None = None
        self._started = now
        self._stopped: float | None = None
        self._ran: float | None = None
        self._state = ""  # of the machine
        self._steps: list[tuple[str, float]] = []  # since the guest stands still: states, and when they began

    def round_over(self, stats: RoundStats) -> None:
        """A round was acknowledged or sealed."""
        self.rounds.append(stats)
        del self.rounds[:-ROUNDS_KEPT]

    def failed(self, error: SternaError, phase: Phase) -> None:
        """The session is lost. What comes after the first reason follows from it."""
        if self.error is None:
            self.error, self.failed_in = error, phase

    def suspended(self, bytes_sent: int) -> None:
        """The link is lost, and the account goes on with the session."""
        self.losses += 1
        self._sent_before += bytes_sent
        self.error, self.failed_in = None, Phase.ANY

    def taken_up(self) -> None:
        """The session goes on."""
        self.resumed += 1

    def guest_stops(self, now: float) -> None:
        """The blackout begins."""
        self._stopped = now
        self._steps = [(self._state, now)]

    def entered(self, state: str, now: float) -> None:
        """The machine is in this state."""
        if state != self._state and len(self._steps) < _STEPS_MAX:
            self._steps.append((state, now))
        self._state = state

    def guest_runs(self, now: float) -> None:
        """The blackout, if there was one, is over. What is told once more changes nothing."""
        if self._ran is not None:
            return
        self.blackout_s = None if self._stopped is None else now - self._stopped
        self._ran = now

    def since_run(self, now: float) -> float:
        """Seconds since the guest has begun to run at the destination."""
        assert self._ran is not None
        return now - self._ran

    @property
    def _blackout_steps(self) -> tuple[BlackoutStep, ...]:
        """None if the guest has not stood still, or did not run there."""
        if self.blackout_s is None or self._ran is None:
            return ()
        ends = [min(begun, self._ran) for _, begun in self._steps[1:]] + [self._ran]
        spans = zip(self._steps, ends, strict=True)
        return tuple(BlackoutStep(state.lower(), end - at) for (state, at), end in spans if end > at)

    def close(self, outcome: Outcome, now: float, *, epoch: int, digest: bytes, bytes_sent: int) -> Result:
        """The result. Trouble behind a completed migration is told for the log, but is not its code."""
        blamed = self.error if outcome is not Outcome.COMPLETED else None
        peer = blamed if isinstance(blamed, PeerAborted) else None
        return Result(
            outcome,
            None if blamed is None else blamed.code,
            by_peer=peer is not None,
            error=self.error,
            phase=self.failed_in,
            epoch=epoch,
            rounds=tuple(self.rounds),
            bytes_sent=self._sent_before + bytes_sent,
            bytes_received=self.bytes_received,
            seconds=now - self._started,
            blackout_s=self.blackout_s,
            blackout_steps=self._blackout_steps,
            run_after_s=None if self._ran is None else self._ran - self._started,
            digest=digest,
            verified=self.verified,
            retry_after_ms=0 if peer is None else peer.retry_after_ms,
            items=() if peer is None else peer.items,
            session=self.session,
            verdict=self.verdict,
            resumed=self.resumed,
            style=self.style,
            after=self.after,
            streams=self.streams,
            resumable=self.resumable,
            unrecorded=self.unrecorded,
        )
