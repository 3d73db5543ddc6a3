"""What a machine tells its driver: requests to be carried out, events to be shown, the result.

A *request* wants something done that the core cannot do: touch the guest, write a record, claim an epoch.
The driver carries requests out one after another, in the order in which it got them, and answers each with
`machine.complete(request, answer, now)` or `machine.fail(request, error, now)`. A request that has become
pointless (the session was lost meanwhile) is answered all the same, and the machine ignores the answer; one
that the driver has not taken yet is withdrawn. That order is what makes a roll-back come after the pause that
it undoes.

An *event* needs no answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from sterna.core.image_notes import ImageNotes
from sterna.core.policy import Decision, RoundStats
from sterna.core.records import Record, Voided
from sterna.core.serving import AfterStats
from sterna.errors import LocalProtocolError, SternaError
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode, Phase, Style
from sterna.wire.records import (
    NO_ID,
    NO_TOKEN,
    Attach,
    Guest,
    Hello,
    PageRange,
    Progress,
    Runner,
    StateSection,
    Verdict,
)

# ---- requests of the source; what `complete` answers with stands behind each ----


@dataclass(frozen=True, slots=True, eq=False)
class StartTracking:
    """Begin to follow writes. Answer: None, or what is known to read as zeros, as bitmaps by region id."""


@dataclass(frozen=True, slots=True, eq=False)
class OpenStreams:
    """Open so many connections more to the same peer. Answer: what they are is the driver's business.

    From then on the machine has something to say on the connections `streams`. One that has had such a number
    before is to stay open, and unread, until `StreamAttached` tells that it is replaced [STR-14].
    """

    count: int
    first: int = 1

    @property
    def streams(self) -> range:
        """Their numbers."""
        return range(self.first, self.first + self.count)


@dataclass(frozen=True, slots=True, eq=False)
class CollectDirty:
    """Collect and clear the writes. Answer: bitmaps by region id.

    `last`: the guest is paused. `early`: a round is under way, and need not send what is written anew.
    """

    last: bool = False
    early: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Throttle:
    """Take `share` of the guest's running time away. Answer: None."""

    share: float


@dataclass(frozen=True, slots=True, eq=False)
class Pause:
    """Pause the guest. Answer: None."""


@dataclass(frozen=True, slots=True, eq=False)
class SaveState:
    """Save all state of the paused guest. Answer: the sections."""


@dataclass(frozen=True, slots=True, eq=False)
class KeepNotes:
    """Make room for notes that live as long as the image does. Answer: that room, None if there is none.

    It is `size_bytes` long and full of zeros, and the machine's to write until the next one is asked for.
    """

    size_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class MarkGranted:
    """Mark the holder, durably: `epoch` is granted to the destination. Answer: None."""

    epoch: int


@dataclass(frozen=True, slots=True, eq=False)
class RollBack:
    """Set the guest running here as before: throttle off, tracking stopped, resumed. Answer: None.

    `voided`: the grant that may have been marked or recorded, and that is void by its record now. No byte of
    HANDOVER has left, so the mark is to be taken off [ONE-19]; None if there was no grant.
    """

    voided: Voided | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RunOn:
    """The link is lost and may come back: let the guest run, with the throttle off, and go on tracking.

    Answer: None. A guest that runs already runs on.
    """


@dataclass(frozen=True, slots=True, eq=False)
class ReleaseImage:
    """Free the image; the guest lives at the destination. Answer: None."""


# ---- requests of the destination ----


@dataclass(frozen=True, slots=True, eq=False)
class Admit:
    """Decide on a new session. Answer: an `Admission`; `fail` refuses with the error's code.

    A `Verdict` is the answer if HANDOVER of this epoch has been received before [ONE-14].

    If the error has `items`, a sequence of texts, REFUSE lists them as what is missing.
    """

    hello: Hello


@dataclass(frozen=True, slots=True)
class Admission:
    """A session that the host takes: fresh unguessable ids, and who will run the guest here."""

    session: bytes
    token: bytes = field(repr=False)  # [SEC-5]
    runner: Runner

    @property
    def is_sound(self) -> bool:
        """Whether WELCOME can carry the ids."""
        return (len(self.session), len(self.token)) == (len(NO_ID), len(NO_TOKEN)) and self.session != NO_ID


@dataclass(frozen=True, slots=True, eq=False)
class Readmit:
    """Take up a session that was lost. Answer: its `sterna.core.carry.DestinationCarry`; `fail` refuses.

    The host finds the session and holds `hello` to its ticket [RES-1 to RES-3]. Only then does it close the
    session's older connection, whose machine gives the carry [RES-4].
    """

    hello: Hello


@dataclass(frozen=True, slots=True, eq=False)
class Join:
    """This connection is a data connection of a session: find that. Answer: None; `fail` refuses [STR-4].

    Then the connection goes to that session's machine, with all that this one has: see `join` there.
    """

    attach: Attach


@dataclass(frozen=True, slots=True, eq=False)
class Reserve:
    """Allocate all of it. Answer: a `sterna.memory.pages.PageSink` over the memory; `fail` as for `Admit`."""

    guest: Guest


@dataclass(frozen=True, slots=True, eq=False)
class Prepare:
    """Get ready for the switchover. Answer: None; `fail` answers NOT_READY.

    `likely`: by region, pages that may be among those of `Expect`, so that it has the less to do in the
    blackout; none in stop-and-copy. `notes_bytes` is the size of its notes if it has any. The answer may be
    the place where these will be kept, as a writable `memoryview`: then the entries are kept there from now
    on, and the blackout need not wait for so many to be copied.
    """

    style: Style
    likely: Mapping[int, PageBitmap] = field(default_factory=dict)
    notes_bytes: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Expect:
    """Hold every access of the guest to these pages, by region, until `Installed` [PCY-5]. Answer: None.

    None at all takes back what an earlier attempt has asked for. With some, the `notes` are to be kept where
    they outlive this process [PCY-16]. `ahead`: they are not complete, and are written by the machine itself
    where `Prepare` was answered with, when they are.
    """

    stale: Mapping[int, PageBitmap]
    notes: ImageNotes
    ahead: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Installed:
    """These pages are verified and in place: note that, then let the guest go on [PCY-12]. Answer: None."""

    pages: tuple[PageRange, ...]


@dataclass(frozen=True, slots=True, eq=False)
class LoadState:
    """Load the state, run nothing. Answer: None."""

    sections: tuple[StateSection, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """Claim `epoch` for `runner`, and repeat that until the slot is filled. Answer: the runner in the slot.

    Without a store it is `runner` itself: the claim counts as won when it is made (spec 11.6).
    """

    epoch: int
    runner: Runner


@dataclass(frozen=True, slots=True, eq=False)
class TakeStorage:
    """Take the guest's storage locks [ONE-26]. Answer: None; `fail` makes the guest be handed back."""


@dataclass(frozen=True, slots=True, eq=False)
class RunGuest:
    """First instruction. Answer: None."""

    epoch: int
    runner: Runner


@dataclass(frozen=True, slots=True, eq=False)
class Discard:
    """Free everything; the guest never ran here. Answer: None."""


@dataclass(frozen=True, slots=True, eq=False)
class AnswerVerdict:
    """A HELLO of mode verdict: say who owns the guest. Answer: a `Verdict`; `fail` refuses [ONE-60].

    What the answer promises is durable before it is given [ONE-44].
    """

    hello: Hello


# ---- requests of both ----


@dataclass(frozen=True, slots=True, eq=False)
class ProbeStore:
    """Have an answer of the lease store, whose newest slot must be (epoch, runner) [ONE-16]. Answer: None.

    `last`: the guest is paused, and whatever the answer takes is downtime [ONE-64].
    """

    epoch: int
    runner: Runner
    last: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Persist:
    """Make a record durable. Answer: None.

    Of a `SessionRecord` the peer's identity and address are the driver's to fill in.

    Attributes:
        early: nothing waits for it. It is not needed yet, and will be asked for again: then it is there and
            costs nothing; or it only takes another one back.
    """

    record: Record
    early: bool = False


Request: TypeAlias = (
    StartTracking | CollectDirty | Throttle | Pause | SaveState | KeepNotes | MarkGranted | RollBack
    | ReleaseImage | RunOn | OpenStreams | Admit | Readmit | Join | Reserve | Prepare | Expect | Installed
    | LoadState | Claim | TakeStorage | RunGuest | Discard
    | AnswerVerdict | ProbeStore | Persist
)  # fmt: skip


def check_answer(request: Request, answer: object) -> None:
    """Whether an answer is of the type that the request's class asks for; where that is None, any will do.

    Raises:
        LocalProtocolError: it is not.
    """
    good, wanted = not isinstance(answer, BaseException), "what was asked for; an exception is for fail()"
    match request:
        case CollectDirty():
            good, wanted = isinstance(answer, Mapping), "bitmaps by region"
        case SaveState():
            good = isinstance(answer, Sequence) and all(isinstance(each, StateSection) for each in answer)
            wanted = "state sections"
        case Admit():
            sound = isinstance(answer, Admission) and answer.is_sound
            good, wanted = sound or isinstance(answer, Verdict), "an Admission or a Verdict"
        case Readmit():
            carry = hasattr(answer, "ticket") and hasattr(answer, "holdings")
            good, wanted = carry or isinstance(answer, Verdict), "a DestinationCarry or a Verdict"
        case Reserve():
            sink = all(hasattr(answer, each) for each in ("targets", "commit", "early_pages"))
            good, wanted = sink, "a PageSink"
        case Claim():
            good, wanted = isinstance(answer, Runner), "the runner in the slot"
        case AnswerVerdict():
            good, wanted = isinstance(answer, Verdict), "a Verdict"
        case KeepNotes(size_bytes=size) | Prepare(notes_bytes=size):
            room = isinstance(answer, memoryview) and not answer.readonly and len(answer) >= size
            good, wanted = room or answer is None, "as many bytes as were asked for, or None"
        case _:
            pass
    if not good:
        detail = f"{type(request).__name__} is answered with {wanted}"
        raise LocalProtocolError(ErrorCode.INTERNAL, detail)


# ---- events ----


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """The handshake is done."""

    session: bytes
    peer_agent: str
    version: int
    features: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class PhaseEntered:
    """A new phase."""

    phase: Phase


@dataclass(frozen=True, slots=True)
class StreamAttached:
    """A data connection is attached: its number, and how many had that number before."""

    stream: int
    generation: int


@dataclass(frozen=True, slots=True)
class RoundStarted:
    """A round begins. `last` is the one of the blackout."""

    round: int
    pages: int
    last: bool


@dataclass(frozen=True, slots=True)
class RoundFinished:
    """A round of the running guest was acknowledged, or received, or (last) sealed."""

    stats: RoundStats


@dataclass(frozen=True, slots=True)
class Decided:
    """The policy has decided; `decision.verdict` says it in words."""

    decision: Decision


@dataclass(frozen=True, slots=True)
class PagesFollow:
    """The guest is the destination's, and so many of its pages are still at the source."""

    pages: int


@dataclass(frozen=True, slots=True)
class PagesFollowed:
    """All of them are there."""

    stats: AfterStats


@dataclass(frozen=True, slots=True)
class PeerProgress:
    """What the peer says of its progress: hostile numbers, for display only."""

    record: Progress


class Outcome(StrEnum):
    """How a session ended, as far as this side knows.

    Attributes:
        COMPLETED: the guest runs at the destination, and the source has freed its image.
        MOVED: likewise, but the last exchange was cut: the source keeps an image that it need not keep. Or
            nobody has said yet that the guest, which is the destination's, runs there, see `Result.has_run`.
        STRANDED: the guest runs at the destination, and needs pages that are at the source: keep the image.
        ROLLED_BACK: the guest runs at the source.
        UNDECIDED: the guest is paused, and nobody knows who owns it. It is not the last word where records
            are kept: they decide, or store, peer or operator, see `sterna.core.recovery`.
        ANSWERED: a question was put, and the verdict is in the result.
        GUEST_FAILED: the source owns the guest, but could not set it running again.
        JOINED: a data connection, which its session's machine has now; no endpoint ends so.
        SUSPENDED: the link is lost, and the session can be taken up again; no endpoint ends so.
    """

    COMPLETED = "completed"
    MOVED = "moved"
    STRANDED = "stranded"
    ROLLED_BACK = "rolled_back"
    UNDECIDED = "undecided"
    ANSWERED = "answered"
    GUEST_FAILED = "guest_failed"
    JOINED = "joined"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True)
class BlackoutStep:
    """How long a side's machine was in a state, in words of the state tables, while the guest stood still."""

    state: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """The end of a session at one side.

    Attributes:
        outcome: who has the guest.
        code: None if completed, else why not.
        by_peer: the code came from the peer.
        error: the exception behind it, for the local log.
        phase: what was under way when it failed.
        epoch: the newest under which this side knows the guest to run; 0 if it has none.
        rounds: in order; of a very long session the newest `ROUNDS_KEPT`.
        bytes_sent: on all connections, before TLS; likewise `bytes_received`.
        seconds: the session took.
        blackout_s: source: from the order to pause to RUNNING; destination: from READY to the guest's
            start. None where it was not reached.
        blackout_steps: what that consists of, in order; one state waits for what the other side does.
        run_after_s: from the session's begin until this side knew that the guest runs there; None if not.
        digest: memory digest of the pause image, empty where it was not reached.
        verified: whether pages were verified by hashes, unless both sides were told to go without [MEM-21];
            None if the session came to no agreement.
        retry_after_ms: how long the peer that refuses would like to be left alone; 0 if it did not say.
        items: what the peer that refuses lacks, a text each: CPU features, for example.
        session: its id, 16 bytes, zeros if none was opened.
        verdict: what the destination has said of who owns the guest; a HANDBACK is one as well.
        resumed: how many times the session was taken up again after a loss.
        style: of the newest switchover.
        after: how the pages went that followed the guest; None where none had to.
        streams: data connections on which pages travelled; 0 is on the control connection.
        resumable: whether the session could be taken up again after a loss (feature `resume`).
        unrecorded: source: why the guest's new owner is not on record here, None if it is or need not be.
    """

    outcome: Outcome
    code: ErrorCode | None = None
    by_peer: bool = False
    error: SternaError | None = None
    phase: Phase = Phase.ANY
    epoch: int = 0
    rounds: tuple[RoundStats, ...] = ()
    bytes_sent: int = 0
    bytes_received: int = 0
    seconds: float = 0.0
    blackout_s: float | None = None
    blackout_steps: tuple[BlackoutStep, ...] = ()
    run_after_s: float | None = None
    digest: bytes = b""
    verified: bool | None = None
    retry_after_ms: int = 0
    items: tuple[str, ...] = field(default=())
    session: bytes = NO_ID
    verdict: Verdict | None = None
    resumed: int = 0
    style: Style = Style.STOP_AND_COPY
    after: AfterStats | None = None
    streams: int = 0
    resumable: bool = False
    unrecorded: SternaError | None = None

    @property
    def has_run(self) -> bool:
        """Whether this side knows that the guest has run at the destination, and not only whose it is."""
        told = self.verdict is not None and self.verdict.complete
        return told or self.run_after_s is not None


@dataclass(frozen=True, slots=True)
class Suspended:
    """The link is lost. Last event of a machine whose session can be taken up again by another."""

    error: SternaError
    times: int


@dataclass(frozen=True, slots=True)
class SessionResumed:
    """A lost session was taken up again, for the n-th time; so many pages are to be sent again."""

    times: int
    complete_round: int
    pages_missing: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event. What is still to be sent should be sent, then the connection closed."""

    result: Result


Event: TypeAlias = (
    SessionOpened | PhaseEntered | StreamAttached | RoundStarted | RoundFinished | Decided | PagesFollow
    | PagesFollowed | PeerProgress | Suspended | SessionResumed | Finished
)  # fmt: skip

Dirty: TypeAlias = Mapping[int, PageBitmap]
