"""A scripted source that loses its session before the first round, and resumes it (chapter 12).

Nothing was sent, so nothing is held, and the whole conversation follows on the second connection. No page
comes early there [PCY-26].
"""

from __future__ import annotations

from dataclasses import replace

from sterna.limits import Limits
from sterna.registry import Feature, Mode
from sterna.wire import FeatureOffer, Welcome
from sterna_interop.case import Line, NotTried, Unexpected
from sterna_interop.peer import Peer
from sterna_interop.peer_early import EarlyPlan
from sterna_interop.peer_early_source import EarlySource
from sterna_interop.peer_source import SourcePlan
from sterna_interop.peer_steps import Breach, Manner


class ResumedSource(EarlySource):
    """A source that is to `lose` its session first."""

    def __init__(self, plan: SourcePlan, early: EarlyPlan) -> None:
        super().__init__(plan, replace(early, opens=False))
        self._lost: Welcome | None = None

    async def lose(self, line: Line, manner: Manner, patience_s: float) -> Line:
        """Open the session on a connection, and lose that; the one to resume it on.

        Raises:
            NotTried: the endpoint does without resumption; the guest has been moved.
            Unexpected: it does not take the session.
        """
        first = Peer(line, manner)

        async def opens(peer: Peer) -> None:
            await super(ResumedSource, self)._greet(peer)
            if Feature.RESUME in peer.account.features:
                self._lost = peer.welcome
                line.cut()
            else:
                await self._move(peer)

        account = await first.converse(opens, patience_s)
        if not account.completed or account.breach:
            raise Unexpected("a session that can be lost", account.breach or "none")
        if self._lost is None:
            raise NotTried("the destination does without resume")
        return await line.another()

    async def _greet(self, peer: Peer) -> None:
        assert self._lost is not None
        hello = replace(
            self._plan.hello(peer.manner.limits),
            mode=Mode.RESUME,
            versions=(self._lost.version,),
            features=tuple(FeatureOffer(each.id, True, each.parameter) for each in self._lost.features),
            session=self._lost.session,
            token=self._lost.token,
            generation=1,
        )
        await peer.say(hello)
        peer.announced()
        welcome = await peer.hear(Welcome)
        if welcome != replace(self._lost, generation=1):
            raise Breach("WELCOME is not that of the opening, or knows of rounds [RES-5] [NEG-9] [LIM-8]")
        peer.greeted = True
        peer.welcome = welcome
        peer.account.features = frozenset(each.id for each in welcome.features)
        self._limits = Limits.from_wire(welcome.limits)
        self._attempt += 1  # [RES-8]
