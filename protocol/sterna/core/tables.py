"""The two state machines, as data.

Two laws, h11's. First: whatever changes a machine's state is a row here; the machines ask `step()` and do
what belongs to the row, they never assign a state themselves. Second: this file knows nothing of bytes,
clocks or guests; it is read by the machines, by the tests (which try every input in every state) and by
spec/build.py, which draws the specification's tables and diagrams from it.

An input is a frame that arrived, or a `Source`/`Destination` happening: a command, the completion of a
request, or the loss of the session. A pair that is not in a table is an error: `unexpected_frame` if it was
a frame of the peer, a `LocalProtocolError` if it was a call.

PING, PONG, PROGRESS and ABORT are legal in every state and change none [CON-1], so they stand in no row;
ABORT is the happening LOST.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias

from sterna.registry import FrameType, Phase

F = FrameType


class _Quick(Enum):
    """An enum that is hashed by C: with every frame several are looked up, and Enum does it in Python."""

    __hash__ = object.__hash__


class SourceState(_Quick):
    """Where the side stands that sends the guest away."""

    IDLE = "nothing sent yet"
    GREETING = "HELLO sent, waiting for WELCOME"
    DESCRIBING = "GUEST sent, waiting for ACCEPT"
    ATTACHING = "opening data connections"
    ARMING = "dirty tracking is being started"
    DECIDING = "the policy chooses what comes next"
    ROUND = "a round is being sent, the guest runs"
    ACKING = "ROUND_END sent, waiting for ROUND_ACK"
    COLLECTING = "collecting what the guest has written since"
    PREPARING = "SWITCHOVER sent, waiting for READY"
    PAUSING = "the guest is being paused"
    FREEZING = "paused; collecting the last writes and the state"
    BLACKOUT = "paused; sending the last pages and the state"
    SEALED = "SEAL sent, waiting for LOADED"
    CONFIRMING = "LOADED received; if there is a store, it is asked once more"
    GRANTING = "the holder is being marked as granted"
    RECORDING = "the grant is being recorded"
    HANDED_OVER = "HANDOVER may have left; only the destination's word or a won claim counts"
    VOIDING = "HANDOVER has not left and never will: the grant is being voided"
    MOVED = "the guest runs at the destination; the image is kept for it"
    RELEASING = "COMPLETE received, the image is being freed"
    CLOSING = "RELEASE and BYE sent, waiting for BYE"
    ROLLING_BACK = "the guest is being set running here again"
    RESUMING = "taking up a lost session"
    COMPARING = "learning what the destination holds"
    REATTACHING = "opening data connections again"
    REPLACING = "replacing a data connection at a barrier"
    SUSPENDING = "the link is lost; the guest is being set running"
    ASKING = "HELLO{verdict} sent, waiting for VERDICT"
    CLOSED = "done: the guest lives at the destination"
    ENDED = "done: the guest lives here"
    APART = "the guest runs at the destination and lacks pages; there is no connection yet"
    RETURNING = "taking up a lost session in order to serve pages"
    CATCHING_UP = "learning which pages the guest has got"
    SUSPENDED = "done: the link is lost, the guest runs here, the session can be taken up again"
    PARTED = "done: the link is lost, the guest runs at the destination, pages can be served again"
    DEPARTED = "done: the guest runs at the destination, this image was not released"
    UNDECIDED = "done: the guest stays paused until records, store or peer tell who owns it"
    ANSWERED = "done: the verdict has come"
    UNANSWERED = "done: no verdict has come"


class DestinationState(_Quick):
    """Where the side stands that receives the guest."""

    IDLE = "waiting for HELLO"
    ADMITTING = "the host decides on the session"
    WELCOMED = "WELCOME sent, waiting for GUEST"
    RESERVING = "room is being made for the guest"
    STANDBY = "between rounds"
    RECEIVING = "in a round"
    PREPARING = "preparing the switchover"
    READY = "READY sent, the source pauses its guest"
    BLACKOUT = "receiving the last pages"
    FROZEN = "receiving state, waiting for SEAL"
    LOADING = "the state is being loaded"
    LOADED = "LOADED sent, waiting for permission"
    RECORDING = "CLAIMING is being recorded"
    CLAIMING = "the epoch is being claimed"
    COMMITTING = "START is being recorded"
    STARTING = "the guest is being started"
    COMPLETING = "the guest runs here, COMPLETE is being recorded"
    RUNNING = "the guest runs here, COMPLETE sent"
    FETCHING = "the guest runs here, pages are still at the source"
    HANDING_BACK = "claimed but never run: HANDBACK is being recorded"
    RELEASED = "RELEASE received, waiting for BYE"
    DISCARDING = "everything reserved is being freed"
    RESUMING = "the host looks for a lost session"
    RESUMED = "taken up again, waiting for a round"
    SUSPENDING = "the link is lost; what was begun comes to its end"
    PARTING = "the guest runs here, the link is lost; pages that have come are being installed"
    ANSWERING = "asked for the verdict: records and store are looked at"
    JOINING = "a data connection: the host looks for its session"
    CLOSED = "done: the guest lives here"
    ENDED = "done: nothing of the guest is here"
    SUSPENDED = "done: the link is lost, the room is kept, the session can be taken up again"
    PARTED = "done: the link is lost, the guest runs here and lacks pages, they can be fetched again"
    SETTLED = "done: the guest runs here, the source was not released"
    STRANDED = "done: the guest runs here, and pages that it needs are still at the source"
    UNDECIDED = "done: permission was given and could not be used: the records decide"
    ANSWERED = "done: VERDICT sent"
    JOINED = "done: the data connection is its session's"
    UNANSWERED = "done: asked for the verdict, and not answered"


class SourceInput(_Quick):
    """What happens to a source besides frames."""

    START = "start()"
    START_RESUME = "start() of a lost session"
    START_VERDICT = "start() with a question"
    SERVES_ON = "machine of a lost session whose guest runs at the destination"
    COMPLETE_TOLD = "VERDICT that repeats COMPLETE"
    STREAMS_GRANTED = "data connections are to be opened"
    ATTACHED_ALL = "last ATTACHED"
    STREAM_WORN = "a data connection is to be replaced"
    TRACKING = "tracking started"
    ROUND_CHOSEN = "policy: another round"
    SWITCHOVER_CHOSEN = "policy: switch over"
    ROUND_SENT = "last page of the round sent"
    COLLECTED = "writes collected"
    PAUSED = "guest paused"
    SEAL_SENT = "last page and state sent"
    CONFIRMED = "store has answered, or there is none"
    GRANTED = "holder marked"
    RECORDED = "record durable"
    RELEASED = "image freed"
    ROLLED_BACK = "guest runs on, or could not"
    COMPARED = "last HELD"
    RUNS_ON = "guest runs on"
    LINK_LOST = "lost connection of a session that can be resumed"
    LOST = "failure, ABORT, cancel(), deadline, lost connection"


class DestinationInput(_Quick):
    """What happens to a destination besides frames."""

    HELLO_RESUME = "HELLO{resume}"
    HELLO_VERDICT = "HELLO{verdict}"
    JOINED = "host has the session"
    STREAM_JOINS = "ATTACH on a data connection"
    STREAM_REJOINS = "ATTACH on a data connection, after a resumption"
    ADMITTED = "host admits"
    REJOINED = "host has a session whose guest runs here and lacks pages"
    RESERVED = "room made"
    PREPARED = "prepared"
    UNPREPARED = "preparing failed"
    NEW_ATTEMPT = "ROUND of a higher attempt"
    STATE_LOADED = "state loaded"
    RECORDED = "record durable"
    CLAIM_WON = "claim won"
    CLAIM_LOST = "claim lost"
    HAND_BACK = "storage locks refused, or START not to be recorded"
    ANSWERED = "verdict found"
    STARTED = "guest runs"
    STARTED_AHEAD = "guest runs, pages are missing"
    FAULTED = "guest waits for pages, or they came damaged"
    INSTALLED = "last page installed"
    START_FAILED = "recording, claiming, handing back or starting failed"
    DISCARDED = "everything freed"
    NOT_ADMITTED = "host refuses"
    QUIET = "nothing is under way"
    LINK_LOST = "lost connection of a session that can be resumed"
    LOST = "failure, ABORT, refusal, cancel(), deadline, lost connection"


State: TypeAlias = SourceState | DestinationState
Input: TypeAlias = FrameType | SourceInput | DestinationInput

_NAMED: Final = re.compile(r"\b([A-Z_]{3,})(\.\.\.)?")


@dataclass(frozen=True, slots=True)
class Row:
    """What an input leads to. `does` is for the specification's reader; `clause` proves the row."""

    next: State
    does: str
    clause: str

    @property
    def sends(self) -> tuple[tuple[FrameType, bool], ...]:
        """The frames that this side sends then, in order; True for one that comes any number of times.

        Taken from what `does` tells its reader, so observers hold a side to what is written there.
        """
        verb, _, what = self.does.partition(" ")
        named = _NAMED.findall(what) if verb == "send" else []
        return tuple((FrameType[name], bool(repeated)) for name, repeated in named)


Table: TypeAlias = dict[tuple[State, Input], Row]

_S, _I = SourceState, SourceInput

SOURCE: Final[Table] = {
    (_S.IDLE, _I.START): Row(_S.GREETING, "send preface, HELLO", "CON-7"),
    (_S.IDLE, _I.START_RESUME): Row(_S.RESUMING, "send preface, HELLO{resume}", "RES-1"),
    (_S.IDLE, _I.START_VERDICT): Row(_S.ASKING, "send preface, HELLO{verdict}", "ONE-60"),
    (_S.GREETING, F.WELCOME): Row(_S.DESCRIBING, "send GUEST", "CON-13"),
    (_S.GREETING, F.REFUSE): Row(_S.ROLLING_BACK, "guest runs on", "CON-9"),
    (_S.GREETING, F.VERDICT): Row(_S.ROLLING_BACK, "guest runs on", "ONE-14"),
    (_S.DESCRIBING, F.ACCEPT): Row(_S.ARMING, "start dirty tracking", "CON-19"),
    (_S.DESCRIBING, F.REFUSE): Row(_S.ROLLING_BACK, "guest runs on", "CON-14"),
    (_S.DESCRIBING, _I.STREAMS_GRANTED): Row(_S.ATTACHING, "open data connections, ATTACH on each", "STR-2"),
    (_S.ATTACHING, F.ATTACHED): Row(_S.ATTACHING, "wait for the others", "STR-2"),
    (_S.ATTACHING, _I.ATTACHED_ALL): Row(_S.ARMING, "start dirty tracking", "STR-2"),
    (_S.ARMING, _I.TRACKING): Row(_S.DECIDING, "everything is pending", "CON-19"),
    (_S.DECIDING, _I.ROUND_CHOSEN): Row(_S.ROUND, "send ROUND, PAGES...", "CON-20"),
    (_S.DECIDING, _I.SWITCHOVER_CHOSEN): Row(_S.PREPARING, "send SWITCHOVER", "SWI-2"),
    (_S.ROUND, _I.ROUND_SENT): Row(_S.ACKING, "send ROUND_END; collect writes", "CON-26"),
    (_S.ACKING, F.ROUND_ACK): Row(_S.COLLECTING, "have the writes collected", "CON-34"),
    (_S.COLLECTING, _I.COLLECTED): Row(_S.DECIDING, "pending = written or rejected", "CON-34"),
    (_S.PREPARING, F.READY): Row(_S.PAUSING, "pause the guest", "CON-39"),
    (_S.PREPARING, F.NOT_READY): Row(_S.COLLECTING, "collect writes", "CON-42"),
    (_S.PAUSING, _I.PAUSED): Row(_S.FREEZING, "collect writes, save state", "CON-44"),
    (_S.FREEZING, _I.COLLECTED): Row(_S.BLACKOUT, "send ROUND, PAGES...", "CON-45"),
    (_S.BLACKOUT, _I.SEAL_SENT): Row(
        _S.SEALED, "send ROUND_END, DIRTY_BITMAP..., STATE..., SEAL", "CON-44"
    ),
    (_S.SEALED, F.LOADED): Row(_S.CONFIRMING, "ask the store, if there is one", "ONE-64"),
    (_S.CONFIRMING, _I.CONFIRMED): Row(_S.GRANTING, "mark the holder as granted", "ONE-17"),
    (_S.GRANTING, _I.GRANTED): Row(_S.RECORDING, "record the grant", "ONE-18"),
    (_S.RECORDING, _I.RECORDED): Row(_S.HANDED_OVER, "send HANDOVER", "ONE-18"),
    (_S.HANDED_OVER, F.RUNNING): Row(_S.MOVED, "send PAGES..., keep the image", "ONE-38"),
    (_S.HANDED_OVER, F.HANDBACK): Row(_S.UNDECIDED, "claim the next epoch", "ONE-37"),
    (_S.HANDED_OVER, _I.LOST): Row(_S.UNDECIDED, "stay paused", "ONE-20"),
    (_S.MOVED, F.ATTACHED): Row(_S.MOVED, "send PAGES...", "STR-15"),
    (_S.MOVED, F.PAGE_REQUEST): Row(_S.MOVED, "send PAGES...", "PCY-9"),
    (_S.MOVED, F.COMPLETE): Row(_S.RELEASING, "free the image", "CMP-2"),
    (_S.MOVED, _I.LOST): Row(_S.DEPARTED, "keep the image", "CON-64"),
    (_S.RELEASING, F.ATTACHED): Row(_S.RELEASING, "no page is left for it", "STR-15"),
    (_S.CLOSING, F.ATTACHED): Row(_S.CLOSING, "no page is left for it", "STR-15"),
    (_S.RELEASING, _I.RELEASED): Row(_S.CLOSING, "send RELEASE, BYE", "CMP-2"),
    (_S.RELEASING, _I.LOST): Row(_S.RELEASING, "go on", "CON-64"),
    (_S.CLOSING, F.BYE): Row(_S.CLOSED, "close", "CON-70"),
    (_S.CLOSING, _I.LOST): Row(_S.CLOSED, "close", "CON-70"),
    (_S.ROLLING_BACK, _I.ROLLED_BACK): Row(_S.ENDED, "close", "CON-62"),
    (_S.RESUMING, F.WELCOME): Row(_S.COMPARING, "compare what is held", "RES-5"),
    (_S.RESUMING, F.REFUSE): Row(_S.ROLLING_BACK, "guest runs on", "RES-3"),
    (_S.COMPARING, F.HELD): Row(_S.COMPARING, "compare what is held", "RES-6"),
    (_S.COMPARING, _I.COMPARED): Row(_S.COLLECTING, "collect writes", "RES-9"),
    (_S.COMPARING, _I.STREAMS_GRANTED): Row(
        _S.REATTACHING, "open data connections, ATTACH on each", "STR-15"
    ),
    (_S.REATTACHING, F.ATTACHED): Row(_S.REATTACHING, "wait for the others", "STR-15"),
    (_S.REATTACHING, _I.ATTACHED_ALL): Row(_S.COLLECTING, "collect writes", "STR-15"),
    (_S.DECIDING, _I.STREAM_WORN): Row(_S.REPLACING, "open it again, ATTACH there", "STR-12"),
    (_S.REPLACING, F.ATTACHED): Row(_S.REPLACING, "close the older one", "STR-12"),
    (_S.REPLACING, _I.ATTACHED_ALL): Row(_S.DECIDING, "go on", "STR-12"),
    (_S.SUSPENDING, _I.RUNS_ON): Row(_S.SUSPENDED, "close", "RES-11"),
    (_S.SUSPENDING, _I.LOST): Row(_S.ROLLING_BACK, "guest runs on", "CON-62"),
    (_S.RESUMING, F.VERDICT): Row(_S.ROLLING_BACK, "guest runs on", "RES-15"),
    (_S.IDLE, _I.SERVES_ON): Row(_S.APART, "wait for a connection", "RES-13"),
    (_S.MOVED, _I.LINK_LOST): Row(_S.PARTED, "keep the image", "RES-13"),
    (_S.APART, _I.START_RESUME): Row(_S.RETURNING, "send preface, HELLO{resume}", "RES-13"),
    (_S.RETURNING, F.WELCOME): Row(_S.CATCHING_UP, "compare what is held", "RES-13"),
    (_S.RETURNING, F.REFUSE): Row(_S.DEPARTED, "keep the image", "RES-3"),
    (_S.RETURNING, F.VERDICT): Row(_S.DEPARTED, "keep the image", "RES-15"),
    (_S.RETURNING, _I.COMPLETE_TOLD): Row(_S.RELEASING, "free the image", "ONE-39"),
    (_S.CATCHING_UP, F.HELD): Row(_S.CATCHING_UP, "compare what is held", "RES-13"),
    (_S.CATCHING_UP, _I.COMPARED): Row(_S.MOVED, "send PAGES...", "RES-13"),
    (_S.RETURNING, _I.LINK_LOST): Row(_S.PARTED, "keep the image", "RES-13"),
    (_S.CATCHING_UP, _I.LINK_LOST): Row(_S.PARTED, "keep the image", "RES-13"),
    (_S.APART, _I.LOST): Row(_S.DEPARTED, "keep the image", "CON-64"),
    (_S.RETURNING, _I.LOST): Row(_S.DEPARTED, "keep the image", "CON-64"),
    (_S.CATCHING_UP, _I.LOST): Row(_S.DEPARTED, "keep the image", "CON-64"),
    (_S.ASKING, F.VERDICT): Row(_S.ANSWERED, "close", "ONE-60"),
    (_S.ASKING, F.REFUSE): Row(_S.UNANSWERED, "close", "ONE-60"),
    (_S.ASKING, _I.LOST): Row(_S.UNANSWERED, "close", "ONE-60"),
}  # fmt: skip

# Before HANDOVER may have left, any trouble sets the guest running again [CON-62].
_ROLLS_BACK = (
    _S.IDLE, _S.GREETING, _S.DESCRIBING, _S.ATTACHING, _S.ARMING, _S.DECIDING, _S.ROUND, _S.ACKING,
    _S.COLLECTING, _S.PREPARING, _S.PAUSING, _S.FREEZING, _S.BLACKOUT, _S.SEALED, _S.CONFIRMING,
    _S.RESUMING, _S.COMPARING, _S.REATTACHING, _S.REPLACING,
)  # fmt: skip
SOURCE.update({(state, _I.LOST): Row(_S.ROLLING_BACK, "guest runs on", "CON-62") for state in _ROLLS_BACK})

# The mark was ordered, so HANDOVER may have left; this controller knows that it has not [ONE-19].
_VOIDS_GRANT = (_S.GRANTING, _S.RECORDING)
SOURCE.update({(state, _I.LOST): Row(_S.VOIDING, "record VOIDED", "ONE-19") for state in _VOIDS_GRANT})
SOURCE[_S.VOIDING, _I.RECORDED] = Row(_S.ROLLING_BACK, "take the mark off, guest runs on", "ONE-19")
SOURCE[_S.VOIDING, _I.LOST] = Row(_S.UNDECIDED, "stay paused", "ONE-19")

# From the first round on, and until HANDOVER may have left, a lost link is no such trouble [RES-11] [RES-12].
# While pages follow the guest it is none either, but then the guest runs there [RES-13].
_RESUMES = (
    _S.IDLE, _S.DECIDING, _S.ROUND, _S.ACKING, _S.COLLECTING, _S.PREPARING, _S.PAUSING, _S.FREEZING,
    _S.BLACKOUT, _S.SEALED, _S.CONFIRMING, _S.RESUMING, _S.COMPARING, _S.REATTACHING, _S.REPLACING,
)  # fmt: skip
SOURCE.update({(state, _I.LINK_LOST): Row(_S.SUSPENDING, "guest runs on", "RES-11") for state in _RESUMES})

_D, _J = DestinationState, DestinationInput

DESTINATION: Final[Table] = {
    (_D.IDLE, F.HELLO): Row(_D.ADMITTING, "ask the host", "CON-9"),
    (_D.IDLE, _J.HELLO_RESUME): Row(_D.RESUMING, "ask the host", "RES-3"),
    (_D.IDLE, _J.HELLO_VERDICT): Row(_D.ANSWERING, "ask the records", "ONE-15"),
    (_D.ANSWERING, _J.ANSWERED): Row(_D.ANSWERED, "send VERDICT", "ONE-60"),
    (_D.ANSWERING, _J.LOST): Row(_D.UNANSWERED, "close", "ONE-60"),
    (_D.ADMITTING, _J.ADMITTED): Row(_D.WELCOMED, "send WELCOME", "CON-9"),
    (_D.ADMITTING, _J.ANSWERED): Row(_D.ANSWERED, "send VERDICT", "ONE-14"),
    (_D.WELCOMED, F.GUEST): Row(_D.RESERVING, "make room", "CON-14"),
    (_D.IDLE, F.ATTACH): Row(_D.JOINING, "ask the host", "ATT-1"),
    (_D.JOINING, _J.JOINED): Row(_D.JOINED, "hand it over", "STR-4"),
    (_D.JOINING, _J.LOST): Row(_D.ENDED, "close", "STR-4"),
    (_D.RESERVING, _J.RESERVED): Row(_D.STANDBY, "send ACCEPT", "ACC-1"),
    (_D.STANDBY, F.ROUND): Row(_D.RECEIVING, "open the round", "CON-20"),
    (_D.RECEIVING, F.PAGES): Row(_D.RECEIVING, "verify, hold or reject", "CON-31"),
    (_D.RECEIVING, F.ROUND_END): Row(_D.STANDBY, "send ROUND_ACK", "CON-30"),
    (_D.STANDBY, F.SWITCHOVER): Row(_D.PREPARING, "prepare", "CON-38"),
    (_D.PREPARING, _J.PREPARED): Row(_D.READY, "send READY", "CON-40"),
    (_D.PREPARING, _J.UNPREPARED): Row(_D.STANDBY, "send NOT_READY", "CON-38"),
    (_D.READY, F.ROUND): Row(_D.BLACKOUT, "open the last round", "CON-45"),
    (_D.BLACKOUT, F.PAGES): Row(_D.BLACKOUT, "verify, hold", "CON-47"),
    (_D.BLACKOUT, F.ROUND_END): Row(_D.FROZEN, "check the counts", "CON-46"),
    (_D.FROZEN, F.STATE): Row(_D.FROZEN, "collect fragments", "STA-5"),
    (_D.FROZEN, F.DIRTY_BITMAP): Row(_D.FROZEN, "pages become stale", "PCY-3"),
    (_D.FROZEN, F.SEAL): Row(_D.LOADING, "compare digests, load state", "CON-50"),
    (_D.LOADING, _J.STATE_LOADED): Row(_D.LOADED, "send LOADED", "CON-52"),
    (_D.LOADED, F.HANDOVER): Row(_D.RECORDING, "record CLAIMING", "ONE-25"),
    (_D.RECORDING, _J.RECORDED): Row(_D.CLAIMING, "claim the epoch", "ONE-25"),
    (_D.CLAIMING, _J.CLAIM_WON): Row(_D.COMMITTING, "take the storage locks, record START", "ONE-27"),
    (_D.CLAIMING, _J.CLAIM_LOST): Row(_D.DISCARDING, "free everything", "ONE-29"),
    (_D.COMMITTING, _J.HAND_BACK): Row(_D.HANDING_BACK, "record HANDBACK", "ONE-26"),
    (_D.HANDING_BACK, _J.RECORDED): Row(_D.DISCARDING, "send HANDBACK", "ONE-35"),
    (_D.COMMITTING, _J.RECORDED): Row(_D.STARTING, "run the guest", "ONE-28"),
    (_D.STARTING, _J.STARTED): Row(_D.COMPLETING, "send RUNNING", "CON-56"),
    (_D.COMPLETING, _J.RECORDED): Row(_D.RUNNING, "send COMPLETE", "ONE-39"),
    (_D.COMPLETING, _J.LOST): Row(_D.SETTLED, "guest runs on", "CON-64"),
    (_D.STARTING, _J.STARTED_AHEAD): Row(_D.FETCHING, "send RUNNING, PAGE_REQUEST...", "CON-56"),
    (_D.FETCHING, _J.FAULTED): Row(_D.FETCHING, "send PAGE_REQUEST...", "PCY-11"),
    (_D.FETCHING, F.PAGES): Row(_D.FETCHING, "verify, install", "PCY-12"),
    (_D.FETCHING, _J.INSTALLED): Row(_D.COMPLETING, "record COMPLETE", "CON-57"),
    (_D.FETCHING, _J.LOST): Row(_D.STRANDED, "guest waits for the source", "CON-64"),
    (_D.FETCHING, _J.LINK_LOST): Row(_D.PARTING, "install what has come", "RES-13"),
    (_D.PARTING, _J.QUIET): Row(_D.PARTED, "guest waits for the source", "RES-13"),
    (_D.PARTING, _J.INSTALLED): Row(_D.COMPLETING, "record COMPLETE", "CON-57"),
    (_D.PARTING, _J.LOST): Row(_D.STRANDED, "guest waits for the source", "CON-64"),
    (_D.RESUMING, _J.REJOINED): Row(_D.FETCHING, "send WELCOME, HELD..., PAGE_REQUEST...", "RES-13"),
    (_D.SUSPENDING, _J.REJOINED): Row(_D.PARTING, "guest waits for the source", "RES-13"),
    (_D.COMPLETING, F.PAGES): Row(_D.COMPLETING, "drop what came twice", "STR-11"),
    (_D.RUNNING, F.PAGES): Row(_D.RUNNING, "drop what came twice", "STR-11"),
    (_D.RUNNING, F.RELEASE): Row(_D.RELEASED, "forget the source", "CMP-2"),
    (_D.RUNNING, _J.LOST): Row(_D.SETTLED, "guest runs on", "CON-64"),
    (_D.RELEASED, F.BYE): Row(_D.CLOSED, "send BYE, close", "CON-70"),
    (_D.RELEASED, _J.LOST): Row(_D.CLOSED, "close", "CON-70"),
    (_D.DISCARDING, _J.DISCARDED): Row(_D.ENDED, "close", "CON-63"),
    (_D.RESUMING, _J.ADMITTED): Row(_D.RESUMED, "send WELCOME, HELD...", "RES-5"),
    (_D.RESUMING, _J.NOT_ADMITTED): Row(_D.ENDED, "refuse", "RES-3"),
    (_D.RESUMING, _J.LOST): Row(_D.SUSPENDING, "keep the room", "RES-4"),
    (_D.RESUMED, F.ROUND): Row(_D.RECEIVING, "open the round", "RES-8"),
    (_D.SUSPENDING, _J.QUIET): Row(_D.SUSPENDED, "keep the room", "RES-14"),
    (_D.SUSPENDING, _J.NOT_ADMITTED): Row(_D.ENDED, "close", "RES-3"),
    (_D.RESUMING, _J.ANSWERED): Row(_D.ANSWERED, "send VERDICT", "RES-15"),
}  # fmt: skip

_DISCARDS = (
    _D.IDLE, _D.ADMITTING, _D.WELCOMED, _D.RESERVING, _D.STANDBY, _D.RECEIVING, _D.PREPARING,
    _D.READY, _D.BLACKOUT, _D.FROZEN, _D.LOADING, _D.LOADED, _D.RESUMED,
)  # fmt: skip
DESTINATION.update({(state, _J.LOST): Row(_D.DISCARDING, "free everything", "CON-63") for state in _DISCARDS})

# A source may take its attempt back at any moment before HANDOVER [CON-58].
_VOIDS = (
    _D.STANDBY, _D.RECEIVING, _D.PREPARING, _D.READY, _D.BLACKOUT, _D.FROZEN, _D.LOADING, _D.LOADED,
)  # fmt: skip
DESTINATION.update(
    {(state, _J.NEW_ATTEMPT): Row(_D.RECEIVING, "void the attempt", "CON-59") for state in _VOIDS}
)

# From the moment at which there is room for the guest, and until HANDOVER, it is kept for a while [RES-14].
_KEEPS = (*_VOIDS, _D.RESUMED)
DESTINATION.update({(state, _J.LINK_LOST): Row(_D.SUSPENDING, "keep the room", "RES-14") for state in _KEEPS})

# Before the first round, behind a resumption, and at a barrier [STR-2] [STR-12] [STR-15].
_ATTACHES = (_D.STANDBY, _D.FETCHING)
DESTINATION.update({(state, _J.STREAM_JOINS): Row(state, "ATTACHED there", "STR-6") for state in _ATTACHES})
# Who opens them again behind RUNNING does not know that all pages have come meanwhile.
_REATTACHES = (*_ATTACHES, _D.RESUMED, _D.COMPLETING, _D.RUNNING, _D.RELEASED)
DESTINATION.update(
    {(state, _J.STREAM_REJOINS): Row(state, "ATTACHED there", "STR-15") for state in _REATTACHES}
)

# With HANDOVER received the permission stands, whether the connection does or not [ONE-30].
_GOES_ON = (_D.RECORDING, _D.CLAIMING, _D.COMMITTING, _D.HANDING_BACK, _D.STARTING)
DESTINATION.update({(state, _J.LOST): Row(state, "go on", "ONE-30") for state in _GOES_ON})
DESTINATION.update(
    {(state, _J.START_FAILED): Row(_D.UNDECIDED, "stay stopped", "ONE-30") for state in _GOES_ON}
)

TERMINAL: Final[frozenset[State]] = frozenset(
    {
        _S.CLOSED, _S.ENDED, _S.DEPARTED, _S.UNDECIDED, _S.ANSWERED, _S.UNANSWERED, _S.SUSPENDED, _S.PARTED,
        _D.CLOSED, _D.ENDED, _D.SETTLED, _D.STRANDED, _D.UNDECIDED, _D.ANSWERED, _D.UNANSWERED,
        _D.SUSPENDED, _D.PARTED, _D.JOINED,
    }
)  # fmt: skip

# In these the session is over for this side: what still arrives is read and ignored.
DEAF: Final[frozenset[State]] = TERMINAL | {
    _S.VOIDING, _S.ROLLING_BACK, _S.SUSPENDING, _D.DISCARDING, _D.SUSPENDING, _D.PARTING,
}  # fmt: skip

# Permission to run may have been given: what this side says decides nothing any more.
COMMITTED: Final[frozenset[State]] = frozenset(
    {
        _S.HANDED_OVER, _S.MOVED, _S.RELEASING, _S.CLOSING, _S.CLOSED, _S.DEPARTED, _S.UNDECIDED,
        _S.APART, _S.RETURNING, _S.CATCHING_UP, _S.PARTED,
        _D.RECORDING, _D.CLAIMING, _D.COMMITTING, _D.HANDING_BACK, _D.STARTING, _D.COMPLETING, _D.RUNNING,
        _D.FETCHING, _D.PARTING, _D.PARTED, _D.RELEASED, _D.CLOSED, _D.SETTLED, _D.STRANDED, _D.UNDECIDED,
    }
)  # fmt: skip

# The phase that ABORT and PROGRESS name, and whose deadline runs.
PHASES: Final[dict[State, Phase]] = {
    **dict.fromkeys((_S.IDLE, _S.GREETING, _D.IDLE, _D.ADMITTING), Phase.HANDSHAKE),
    **dict.fromkeys((_S.DESCRIBING, _D.WELCOMED, _D.RESERVING), Phase.DESCRIBE),
    **dict.fromkeys((_S.ATTACHING, _D.JOINING), Phase.STREAMS),
    **dict.fromkeys(
        (
            *(_S.ARMING, _S.DECIDING, _S.ROUND, _S.ACKING, _S.COLLECTING, _S.REPLACING),
            *(_D.STANDBY, _D.RECEIVING),
        ),
        Phase.ROUNDS,
    ),
    **dict.fromkeys((_S.PREPARING, _D.PREPARING), Phase.PREPARE),
    **dict.fromkeys(
        (
            *(_S.PAUSING, _S.FREEZING, _S.BLACKOUT, _S.SEALED),
            *(_S.CONFIRMING, _S.GRANTING, _S.RECORDING),
        ),
        Phase.BLACKOUT,
    ),
    **dict.fromkeys((_D.READY, _D.BLACKOUT, _D.FROZEN, _D.LOADING, _D.LOADED), Phase.BLACKOUT),
    **dict.fromkeys((_S.HANDED_OVER,), Phase.COMMIT),
    **dict.fromkeys((_D.RECORDING, _D.CLAIMING, _D.COMMITTING, _D.STARTING, _D.HANDING_BACK), Phase.COMMIT),
    **dict.fromkeys((_S.MOVED, _S.RELEASING, _S.CLOSING), Phase.AFTER),
    **dict.fromkeys((_D.COMPLETING, _D.RUNNING, _D.FETCHING, _D.RELEASED), Phase.AFTER),
    **dict.fromkeys((_S.RESUMING, _S.COMPARING, _S.REATTACHING, _D.RESUMING, _D.RESUMED), Phase.RESUME),
    **dict.fromkeys((_S.APART, _S.RETURNING, _S.CATCHING_UP), Phase.RESUME),
    **dict.fromkeys((_S.ASKING, _D.ANSWERING), Phase.ASK),
}

# From the order to pause until the guest runs: what is done here is its blackout.
STANDING: Final[frozenset[Phase]] = frozenset({Phase.BLACKOUT, Phase.COMMIT})
