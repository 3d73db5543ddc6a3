"""The scripted peer as the `play` of a case: what is told, what is said, and whether the answer is right."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from sterna.registry import ErrorCode, Feature, FrameType
from sterna.wire import Abort, FeatureOffer, Refuse, Runner
from sterna_interop.case import Line, NotStrict, NotTried, Unexpected
from sterna_interop.contract import Params, Role
from sterna_interop.peer import Conversation, Peer
from sterna_interop.peer_destination import Destination, DestinationPlan
from sterna_interop.peer_early import EarlyPlan
from sterna_interop.peer_early_destination import EarlyDestination
from sterna_interop.peer_early_source import EarlySource
from sterna_interop.peer_lanes import LanePlan, StreamDestination, StreamSource
from sterna_interop.peer_resumed import ResumedSource
from sterna_interop.peer_source import Source, SourcePlan
from sterna_interop.peer_steps import Account, Act, Manner, Place, code_of

PATIENCE_S: Final = 8.0  # for the conversation, and then for the end of the endpoint's bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What a peer does in one case. Calling it is to play.

    Attributes:
        role: of the peer.
        plan: what is changed of the honest conversation's plan.
        place, act: the misbehaviour.
        answers: codes with which the endpoint must end the session; none: it need not.
        mute: it need not say so, or cannot.
        silent: the endpoint must not answer: the peer has ended the session [CON-68].
        refused: the answer must be REFUSE [CON-11].
        named: the ABORT must name the frame of the act, by type and number [ABT-2].
        optional: the endpoint need not come to the act's place.
        about: an optional feature: a whole conversation without it has tried nothing.
        hears: a frame that the endpoint should have sent.
        completes: the whole conversation must be had.
        patience_s: how long the endpoint may take for the conversation, and then for the end.
        lanes: what is done with data connections, where there are any.
        early: what is done with the demand connection, where pages follow the guest.
    """

    role: Role
    plan: dict[str, object] = field(default_factory=dict)
    manner: Manner = field(default_factory=Manner)
    place: Place | None = None
    act: Act | None = None
    answers: frozenset[ErrorCode] = frozenset()
    mute: bool = False
    silent: bool = False
    refused: bool = False
    named: bool = False
    optional: bool = False
    about: Feature | None = None
    hears: FrameType | None = None
    completes: bool = False
    patience_s: float = PATIENCE_S
    lanes: LanePlan | None = None
    early: EarlyPlan | None = None

    async def __call__(self, line: Line, told: Params) -> None:
        """Play, and judge what the endpoint said.

        Raises:
            Unexpected: it said something else than it must.
            NotTried: it goes without what the case is about.
        """
        manner = self.manner
        if told.deadline_s:
            manner = replace(manner, heartbeat_s=min(manner.heartbeat_s, told.deadline_s / 8))
        if self.lanes is not None:
            manner = replace(manner, limits=replace(manner.limits, data_streams=self.lanes.count))
        conversation = self._conversation(told)
        if isinstance(conversation, ResumedSource):
            line = await conversation.lose(line, manner, self.patience_s)
        peer = Peer(line, manner, self.place, self.act)
        try:
            account = await peer.converse(conversation, self.patience_s)
            await line.end()
        finally:
            for each in (peer, *peer.lanes):
                each.line.cut()  # the control connection has ended, and that was what mattered
        self.judge(account)
        if self.completes and told.tls is not None and account.end != "proper":
            raise Unexpected("close_notify after BYE [TLS-20]", f"the end: {account.end or 'none'}")

    def _conversation(self, told: Params) -> Conversation:
        runner = Runner(told.runner_host, told.runner)
        facts: dict[str, object] = {"guest": told.guest, "epoch": told.epoch, "runner": runner}
        if self.role is Role.SOURCE:
            plan = SourcePlan(**facts | self.plan)  # type: ignore[arg-type]
            if self.early is not None:
                return (ResumedSource if self.early.resumes else EarlySource)(plan, self.early)
            if self.lanes is None:
                return Source(plan)
            offer = FeatureOffer(Feature.DATA_STREAMS, parameter=self.lanes.count)
            return StreamSource(replace(plan, features=(*plan.features, offer)), self.lanes)
        taking = DestinationPlan(**facts | self.plan)  # type: ignore[arg-type]
        if self.lanes is None:
            return Destination(taking)
        taking = replace(taking, features=(*taking.features, Feature.DATA_STREAMS))
        if self.early is not None:
            return EarlyDestination(taking, self.lanes, self.early)
        return StreamDestination(taking, self.lanes)

    def judge(self, account: Account) -> None:
        """Whether the endpoint's part was right.

        Raises:
            Unexpected: it was not.
            NotStrict: it was legal.
            NotTried: it was right, and has nothing to do with the case.
        """
        wanted = self._wanted()
        if account.breach:
            raise Unexpected(wanted, account.breach)
        if self.about is not None and account.completed and self.about not in account.features:
            raise NotTried(f"the {self.role.other} does without {self.about.name.lower()}")
        if account.completed and account.untried:
            raise NotTried(account.untried)
        if self.optional and account.completed and not account.acted:
            return
        code = code_of(account.answer)
        said_nothing = self.mute and account.answer is None
        if self.answers and code not in self.answers and not said_nothing:
            raise Unexpected(wanted, _shown(account))
        if self.answers and account.answer is not None and account.end == "reset" and not self.mute:
            raise Unexpected(f"the end of its direction after {account.answer.type.name} [CON-67]", "a reset")
        if self.named:
            self._judge_name(account)
        if self.silent and account.answer is not None:
            raise Unexpected(wanted, _shown(account))
        if self.refused and not isinstance(account.answer, Refuse):
            raise Unexpected(wanted, _shown(account))
        if self.completes and not account.completed:
            raise Unexpected(wanted, _shown(account))
        if self.hears is not None and not account.has_heard(self.hears):
            raise NotStrict(f"a {self.hears.name}", "none")

    def _judge_name(self, account: Account) -> None:
        assert self.place is not None
        assert self.place.frame is not None
        wanted = f"an ABORT of frame {self.place.frame:#06x}, number {account.last_act}"
        match account.answer:
            case Abort(frame=self.place.frame, sequence=account.last_act):
                return
            case Abort() as answer:
                raise Unexpected(wanted, f"of frame {answer.frame:#06x}, number {answer.sequence}")
            case _:
                raise Unexpected(wanted, _shown(account))

    def _wanted(self) -> str:
        if self.answers:
            codes = " or ".join(sorted(code.name.lower() for code in self.answers))
            return f"REFUSE {codes}" if self.refused else f"ABORT or REFUSE {codes}"
        if self.silent:
            return "no answer to ABORT"
        return "a whole migration" if self.completes else "frames that the specification allows"


def _shown(account: Account) -> str:
    """How the endpoint ended, in a few words."""
    code, answer = code_of(account.answer), account.answer
    if code is not None and answer is not None:
        return f"{answer.type.name} {code.name.lower()}"
    if account.completed:
        return "a whole migration"
    said = account.heard[-1] if account.heard else "nothing"
    return f"{said} and then {'silence' if not account.end else f'the end ({account.end})'}"
