"""Rigs for sessions that can be taken up again: the first machine, its loss, and the machine after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from core_support import SESSION, TOKEN, DestinationRig, FetchingRig, Rig, ServingRig, SourceRig

from sterna.core import events as e
from sterna.core.carry import DestinationCarry, SourceCarry
from sterna.core.negotiate import BASE_FEATURES, offer
from sterna.core.policy import PolicySettings
from sterna.core.source import SourceMachine
from sterna.core.style import offer_for
from sterna.core.tables import DestinationState, SourceState, State
from sterna.registry import BitmapEncoding, Feature, Mode
from sterna.wire import records as r

S, D = SourceState, DestinationState
SECONDS = 60
OFFER = offer(more={Feature.RESUME: SECONDS})
FEATURES = BASE_FEATURES | {Feature.RESUME}
EARLY_OFFER = offer_for("bitmap", {Feature.RESUME: SECONDS})
EARLY_CHOICES = tuple(r.FeatureChoice(each.id, each.parameter) for each in EARLY_OFFER)


class FirstSourceRig(SourceRig):
    """A source that offers to resume, and a destination that selects all that it offers."""

    def __init__(self, **changes: object) -> None:
        super().__init__(**{"features": OFFER, **changes})

    def welcome(self, **changes: object) -> r.Welcome:
        choices = tuple(r.FeatureChoice(each.id, each.parameter) for each in self.machine._job.features)
        return super().welcome(**{"features": choices, **changes})

    def lose(self) -> SourceCarry:
        """The link is lost, and the guest runs on."""
        self.machine.connection_lost(None, self.now)
        self.do(e.RunOn)
        return self.machine.carry


class FirstDestinationRig(DestinationRig):
    """A destination that selects to resume."""

    def __init__(self, **changes: object) -> None:
        super().__init__(features=FEATURES, **changes)

    def hello(self, **changes: object) -> r.Hello:
        return super().hello(**{"features": OFFER, **changes})

    def lose(self) -> DestinationCarry:
        """The link is lost, and the room kept."""
        self.machine.connection_lost(None, self.now)
        return self.machine.carry


class SecondSourceRig(FirstSourceRig):
    """The machine behind a loss in `lost_in`; its peer is scripted."""

    script: tuple[tuple[State, Callable[[Rig], None]], ...]

    def __init__(self, lost_in: SourceState = S.ACKING, **changes: object) -> None:
        first = FirstSourceRig(**changes).until(lost_in)
        carry = first.lose()
        super().__init__(**changes)
        self.memory, self.first = first.memory, first
        pages = carry.memory._pages
        self.machine = SourceMachine.resumed(self.machine._job, pages, carry, self.now)

    def welcome_back(self, **changes: object) -> r.Welcome:
        """The answer of a destination that had nothing of the round that was open."""
        fields = {"generation": self.machine._ticket.generation, **changes}
        return self.welcome(**fields)

    def held(self, **changes: object) -> r.Held:
        """The first page came in round 1."""
        fields = {
            "round": 1,
            "region": 0,
            "rejected": False,
            "first": 0,
            "bits": 1,
            "encoding": BitmapEncoding.PLAIN,
            "data": b"\1",
        }
        return r.Held(**fields | changes)


class SecondDestinationRig(FirstDestinationRig):
    """The machine behind a loss in `lost_in`; its peer is scripted."""

    def __init__(
        self, lost_in: DestinationState = D.STANDBY, *, whole: bool = False, **changes: object
    ) -> None:
        first = FirstDestinationRig(**changes).until(lost_in)
        if whole:
            first.whole_round()
            first.drain()
        self.carry = first.lose()
        super().__init__(**changes)
        self.first, self.memory, self.digest = first, first.memory, first.digest
        self.round, self.attempt = first.round, first.attempt

    def hello_back(self, **changes: object) -> r.Hello:
        """The right HELLO{resume}."""
        fields = {
            "mode": Mode.RESUME,
            "session": SESSION,
            "token": TOKEN,
            "generation": self.carry.ticket.generation + 1,
        }
        return self.hello(**fields | changes)

    def answer(self, request: e.Request) -> object:
        return self.carry if isinstance(request, e.Readmit) else super().answer(request)

    def begin_again(self) -> None:
        """The first ROUND behind the loss."""
        self.attempt += 1
        self.begin()


class FirstServingRig(ServingRig):
    """A source that offers to resume, and whose guest runs before pages 1 and 2 are there."""

    def __init__(self, **changes: object) -> None:
        policy = PolicySettings(switchover="bitmap", max_rounds=1)
        SourceRig.__init__(self, **{"policy": policy, "features": EARLY_OFFER, **changes})

    def welcome(self, **changes: object) -> r.Welcome:
        return super().welcome(**{"features": EARLY_CHOICES, **changes})

    def lose(self) -> SourceCarry:
        """The link is lost, and the image kept."""
        self.machine.connection_lost(None, self.now)
        return self.machine.carry


class SecondServingRig(FirstServingRig):
    """The machine behind a loss while pages follow the guest.

    `sent`: whether they had left before; `asked`: what was asked for then, and not answered.
    """

    script: tuple[tuple[State, Callable[[Rig], None]], ...]

    def __init__(self, *, sent: bool = True, asked: Sequence[r.PageRequest] = (), **changes: object) -> None:
        first = FirstServingRig(**changes).until(S.MOVED if sent else S.HANDED_OVER)
        if not sent:
            first.running_early()
        first.say(*asked)
        carry = first.lose()
        super().__init__(**changes)
        self.first = first
        pages = carry.memory._pages
        self.machine = SourceMachine.resumed(self.machine._job, pages, carry, self.now)

    def welcome_back(self, **changes: object) -> r.Welcome:
        """The answer of a destination that has the blackout's round, and has installed nothing."""
        generation = self.machine._ticket.generation
        return self.welcome(**{"generation": generation, "complete_round": 2, **changes})

    def held(self, **changes: object) -> r.Held:
        """Pages 1 and 2 are installed."""
        fields = {"round": 3, "region": 0, "rejected": False, "first": 1, "bits": 2}
        fields |= {"encoding": BitmapEncoding.PLAIN, "data": b"\3"}
        return r.Held(**fields | changes)


class FirstFetchingRig(FetchingRig):
    """A destination that selects to resume, and whose guest runs before pages 1 and 2 are there."""

    def __init__(self, **changes: object) -> None:
        super().__init__(**{"features": FEATURES | {Feature.BITMAP, Feature.POST_COPY}, **changes})

    def hello(self, **changes: object) -> r.Hello:
        more = {Feature.BITMAP: 0, Feature.POST_COPY: 0, Feature.RESUME: SECONDS}
        return super().hello(**{"features": offer(more=more), **changes})

    def lose(self) -> DestinationCarry:
        """The link is lost, and the guest waits."""
        self.machine.connection_lost(None, self.now)
        return self.machine.carry


class SecondFetchingRig(FirstFetchingRig):
    """The machine behind a loss while pages were missing; its peer is scripted."""

    def __init__(self, first: FirstFetchingRig | None = None, **changes: object) -> None:
        first = first or FirstFetchingRig(**changes).until(D.FETCHING)
        self.carry = first.lose()
        super().__init__(**changes)
        self.first, self.memory, self.digest = first, first.memory, first.digest
        self.round, self.attempt = first.round, first.attempt

    def hello_back(self, **changes: object) -> r.Hello:
        """The right HELLO{resume}."""
        fields = {"mode": Mode.RESUME, "session": SESSION, "token": TOKEN}
        return self.hello(**{**fields, "generation": self.carry.ticket.generation + 1, **changes})

    def answer(self, request: e.Request) -> object:
        return self.carry if isinstance(request, e.Readmit) else super().answer(request)


def _scripts() -> None:
    SecondServingRig.script = (
        (S.RETURNING, SourceRig.start),
        (S.CATCHING_UP, lambda rig: rig.say(rig.welcome_back(held_frames=1))),
        (S.MOVED, lambda rig: rig.say(rig.held())),
    )
    SecondFetchingRig.script = (
        (D.RESUMING, lambda rig: rig.say(rig.hello_back())),
        (D.FETCHING, lambda rig: rig.do(e.Readmit, rig.carry)),
    )
    SecondSourceRig.script = (
        (S.RESUMING, SourceRig.start),
        (S.COMPARING, lambda rig: rig.say(rig.welcome_back(held_frames=1))),
        (S.COLLECTING, lambda rig: rig.say(rig.held())),
        (S.ROUND, lambda rig: rig.do(e.CollectDirty, rig.clean())),
        (S.ACKING, lambda rig: rig.drain()),
    )
    SecondDestinationRig.script = (
        (D.RESUMING, lambda rig: rig.say(rig.hello_back())),
        (D.RESUMED, lambda rig: rig.do(e.Readmit, rig.carry)),
        (D.RECEIVING, SecondDestinationRig.begin_again),
    )


_scripts()

RESUMED = [
    (SecondSourceRig, S.RESUMING),
    (SecondSourceRig, S.COMPARING),
    (SecondServingRig, S.APART),
    (SecondServingRig, S.RETURNING),
    (SecondServingRig, S.CATCHING_UP),
    (SecondDestinationRig, D.RESUMING),
    (SecondDestinationRig, D.RESUMED),
]
