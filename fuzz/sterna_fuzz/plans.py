"""A spoilt conversation, as data: which one, whose words, and what is done to them.

A plan is what Hypothesis draws and shrinks and what a report shows. The bytes follow from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hypothesis import strategies as st

from sterna_fuzz.conversations import DESTINATION, SCRIPTS, SOURCE, Conversation, conversation
from sterna_fuzz.drafts import Draft
from sterna_fuzz.mutators import MUTATORS, Mutator, Step, field_count

STEPS_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """What one side of a conversation says, spoilt.

    Attributes:
        script: the conversation.
        side: whose words are spoilt.
        steps: what is done to them, in order.
    """

    script: str
    side: str
    steps: tuple[Step, ...] = ()

    @property
    def conversation(self) -> Conversation:
        """The valid one."""
        return conversation(self.script)

    @property
    def frames(self) -> tuple[bytes, ...]:
        """What the side says there."""
        return self.conversation.frames[self.side]

    @property
    def only(self) -> Mutator | None:
        """The mutator, if there is just one."""
        return MUTATORS[self.steps[0].mutator] if len(self.steps) == 1 else None


@dataclass(frozen=True, slots=True)
class Spoilt:
    """The bytes of a plan.

    Attributes:
        parts: what was a preface and frames.
        as_said: whether what `Mutator.ends` and `Mutator.same` say holds: they were the only change.
    """

    parts: tuple[bytes, ...]
    as_said: bool

    @property
    def data(self) -> bytes:
        """The stream."""
        return b"".join(self.parts)


def spoil(plan: Plan) -> Spoilt:
    """Do what a plan says."""
    whole = plan.conversation
    other = DESTINATION if plan.side == SOURCE else SOURCE
    strangers = conversation("regions" if plan.script != "regions" else "dirty").frames[plan.side]
    draft = Draft(list(plan.frames), whole.frames[other][1:], strangers[1:], whole.regions)
    as_said = True
    for step in plan.steps:
        if len(draft.parts) > 1:
            as_said = MUTATORS[step.mutator].apply(draft, step)
    return Spoilt(tuple(draft.parts), as_said and len(plan.steps) == 1)


def fields(scripts: Sequence[str] = ("plain", "dirty", "wiped")) -> st.SearchStrategy[Plan]:
    """Plans that change one field of one frame, each field of each frame as often as any other."""
    places = [
        (script, side, index - 1, number)
        for script in scripts
        for side in (SOURCE, DESTINATION)
        for index in range(1, len(conversation(script).frames[side]))
        for number in range(field_count(spoil(Plan(script, side)).parts[index], conversation(script).regions))
    ]
    return st.builds(
        lambda place, value: Plan(place[0], place[1], (Step("field", place[2], place[3], value),)),
        st.sampled_from(places),
        st.integers(0, 200),
    )


def plans(
    mutators: Sequence[str] = (),
    *,
    scripts: Sequence[str] = (),
    sides: Sequence[str] = (SOURCE, DESTINATION),
    most: int = STEPS_MAX,
    least: int = 1,
) -> st.SearchStrategy[Plan]:
    """Plans of these mutators, all of them by default."""
    numbers = st.integers(0, 40) | st.integers(0, (1 << 32) - 1)
    steps = st.builds(
        Step,
        mutator=st.sampled_from(sorted(mutators or MUTATORS)),
        at=numbers,
        where=numbers,
        value=numbers,
    )
    return st.builds(
        Plan,
        script=st.sampled_from(sorted(scripts or SCRIPTS)),
        side=st.sampled_from(sides),
        steps=st.lists(steps, min_size=least, max_size=most).map(tuple),
    )
