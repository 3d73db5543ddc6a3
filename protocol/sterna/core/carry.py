"""What survives a connection: the objects from which the next machine of a session is made.

A machine lives as long as its control connection. When the link is lost and the session can be taken up
again, it ends, and gives what it has as a *carry*. The carry owns it all: nothing else may use what is in it,
and it seeds one machine. Its *ticket* is what both sides know the session by, frozen since the opening.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sterna.core.account import Account
from sterna.core.conduct import wrong
from sterna.core.events import Admission, Outcome, Result
from sterna.core.fetching import Fetching
from sterna.core.holdings import Holdings
from sterna.core.lanes import Mark
from sterna.core.negotiate import Selection, choices
from sterna.core.policy import Decision
from sterna.core.sending import Sending
from sterna.core.serving import Serving
from sterna.errors import SternaError
from sterna.limits import STREAMS_MAX
from sterna.memory.digest import MemoryDigest
from sterna.memory.pages import PageSink
from sterna.registry import ErrorCode, Feature, Mode, Phase
from sterna.wire.records import Attach, FeatureOffer, Guest, Hello, Runner, Welcome


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a session is known by.

    Attributes:
        hello: that opened it.
        welcome: that answered.
        selection: what they agreed on, with the peer's limits.
        generation: of the newest control connection; 0 is the one that opened the session.
        streams: data connections, as ACCEPT has it.
    """

    hello: Hello
    welcome: Welcome
    selection: Selection
    generation: int = 0
    streams: int = 0

    @property
    def session(self) -> bytes:
        """The session's id."""
        return self.welcome.session

    @property
    def demand_index(self) -> int | None:
        """Index of a demand connection, once ACCEPT has come; None if the session can have none [PCY-26]."""
        can = self.selection.has(Feature.EARLY_PAGES) and self.streams < STREAMS_MAX
        return self.streams if can else None

    def check_attach(self, attach: Attach, stream: int, mark: Mark) -> None:
        """Whether an ATTACH may join its connection to this session. The one before has left this mark.

        Who comes with it is for the host, as for a resumption [STR-4].

        Raises:
            RemoteProtocolError: BAD_HEADER, BAD_VALUE or BAD_TOKEN, which end that connection alone.
        """
        if attach.index + 1 != stream:
            raise wrong(ErrorCode.BAD_HEADER, f"index {attach.index} on stream {stream}", "HDR-5", attach)
        right = hmac.compare_digest(attach.token, self.welcome.token)
        if not right or attach.session != self.session:
            raise wrong(ErrorCode.BAD_TOKEN, "no session has this id and token", "ATT-3", attach)
        if attach.index >= self.streams and attach.index != self.demand_index:
            detail = f"index {attach.index} of {self.streams} data connections"
            raise wrong(ErrorCode.BAD_VALUE, detail, "ATT-2", attach)
        if attach.generation <= mark.generation:
            detail = f"generation {attach.generation} after {mark.generation}"
            raise wrong(ErrorCode.BAD_TOKEN, detail, "STR-5", attach)

    def next_hello(self) -> Hello:
        """What a source says on its next connection [RES-1] [RES-2] [LIM-8]."""
        return replace(
            self.hello,
            mode=Mode.RESUME,
            versions=(self.selection.version,),
            features=tuple(
                FeatureOffer(feature, required=True, parameter=parameter)
                for feature, parameter in self.selection.features.items()
            ),
            session=self.session,
            token=self.welcome.token,
            generation=self.generation + 1,
        )

    def check_hello(self, hello: Hello) -> None:
        """Whether a HELLO may take this session up again.

        Who comes with it, and whether it is the peer that opened the session, is for the host [RES-3].

        Raises:
            RemoteProtocolError: BAD_TOKEN, NOT_SELECTED or LIMIT_MISMATCH, to be answered with REFUSE.
        """
        right = hmac.compare_digest(hello.token, self.welcome.token)
        if not right or hello.session != self.session:
            raise wrong(ErrorCode.BAD_TOKEN, "no session has this id and token", "RES-3", hello)
        if hello.generation <= self.generation:
            detail = f"generation {hello.generation} after {self.generation}"
            raise wrong(ErrorCode.BAD_TOKEN, detail, "RES-1", hello)
        features = {each.id: each.parameter for each in hello.features}
        agreed = (hello.versions, features) == ((self.selection.version,), self.selection.features)
        if not agreed or _about(hello) != _about(self.hello):
            raise wrong(ErrorCode.NOT_SELECTED, "not what the opening ended with", "RES-2", hello)
        if hello.limits != self.hello.limits:
            raise wrong(ErrorCode.LIMIT_MISMATCH, "not the limits of the opening", "LIM-8", hello)

    def next_welcome(self, hello: Hello, complete: int, held_frames: int) -> Welcome:
        """The answer to a HELLO that `check_hello` has let pass [RES-5]."""
        return replace(
            self.welcome,
            features=choices(self.selection),
            generation=hello.generation,
            complete_round=complete,
            held_frames=held_frames,
        )

    def check_welcome(self, welcome: Welcome, generation: int) -> None:
        """Whether a WELCOME is of this session, and leaves it as it was.

        Raises:
            RemoteProtocolError: BAD_VALUE, NOT_SELECTED or LIMIT_MISMATCH.
        """
        theirs = (welcome.session, welcome.token, welcome.generation)
        if theirs != (self.session, self.welcome.token, generation):
            raise wrong(ErrorCode.BAD_VALUE, "a WELCOME of another session or connection", "RES-5", welcome)
        features = {each.id: each.parameter for each in welcome.features}
        if (welcome.version, features) != (self.selection.version, self.selection.features):
            raise wrong(ErrorCode.NOT_SELECTED, "not what the opening ended with", "NEG-9", welcome)
        if welcome.limits != self.welcome.limits:
            raise wrong(ErrorCode.LIMIT_MISMATCH, "not the limits of the opening", "LIM-8", welcome)

    def with_streams(self, streams: int) -> Ticket:
        """The same session, of which ACCEPT has told how many data connections it has."""
        return replace(self, streams=streams)

    def of_generation(self, generation: int) -> Ticket:
        """The same session, with another newest connection."""
        return replace(self, generation=generation)


def _about(hello: Hello) -> tuple[bytes, int, Runner]:
    """Whom it is about."""
    return hello.guest, hello.epoch, hello.runner


@dataclass(frozen=True, slots=True)
class SourceCarry:
    """A source's session without a connection.

    Attributes:
        attempt: the one that the loss has ended.
        memory: what has been sent, what is pending, and of which round.
        account: goes on.
        not_ready: NOT_READY received so far.
        decision: the policy's last, None before the first.
        serving: the pages that the guest lacks which runs at the destination; None if it lacks none, and
            while it runs here.
        sealed: digest of the pause image, if there is one.
        marks: of the data connections.
        moved: whether the guest runs at the destination.
    """

    ticket: Ticket
    attempt: int
    memory: Sending
    account: Account
    not_ready: int = 0
    decision: Decision | None = None
    serving: Serving | None = None
    sealed: bytes = b""
    marks: Mapping[int, Mark] = field(default_factory=dict)
    moved: bool = False


@dataclass(frozen=True, slots=True)
class DestinationCarry:
    """A destination's session without a connection, and the room that it keeps.

    Attributes:
        attempt: the newest that it knows.
        guest: what comes.
        sink: its memory here.
        digest: the entries of its pages.
        holdings: the rounds of these.
        account: goes on.
        fetching: the pages that the guest lacks which runs here; None while it does not.
        sealed: digest of the pause image, if there is one.
        marks: of the data connections.
    """

    ticket: Ticket
    attempt: int
    admission: Admission
    guest: Guest
    sink: PageSink
    digest: MemoryDigest
    holdings: Holdings
    account: Account
    bulk_bytes: int = 0
    fetching: Fetching | None = None
    sealed: bytes = b""
    marks: Mapping[int, Mark] = field(default_factory=dict)

    def strand(self, error: SternaError, now: float) -> Result:
        """Nobody comes any more for pages to be fetched from: how the session has ended."""
        assert self.fetching is not None
        self.account.failed(error, Phase.RESUME)
        self.account.after = self.fetching.stats()
        epoch, digest = self.ticket.hello.epoch + 1, self.sealed
        return self.account.close(Outcome.STRANDED, now, epoch=epoch, digest=digest, bytes_sent=0)
