"""Plans are data; the bytes follow from them."""

from __future__ import annotations

import dataclasses

from hypothesis import given

from sterna_fuzz.conversations import DESTINATION, SOURCE, conversation
from sterna_fuzz.drafts import Draft
from sterna_fuzz.mutators import MUTATORS, Step
from sterna_fuzz.plans import STEPS_MAX, Plan, fields, plans, spoil


def test_no_step_is_the_conversation():
    plan = Plan("dirty", DESTINATION)
    assert spoil(plan).parts == plan.frames == conversation("dirty").frames[DESTINATION]
    assert plan.only is None
    assert not spoil(plan).as_said


def test_what_a_row_says_holds_for_one_step_alone():
    step = Step("flip_header", 1)
    assert spoil(Plan("dirty", SOURCE, (step,))).as_said
    assert not spoil(Plan("dirty", SOURCE, (step, step))).as_said
    assert Plan("dirty", SOURCE, (step,)).only is MUTATORS["flip_header"]


@given(plans())
def test_the_same_plan_gives_the_same_bytes(plan):
    assert 1 <= len(plan.steps) <= STEPS_MAX
    assert spoil(plan) == spoil(plan)


@given(fields(["plain"]))
def test_every_field_of_every_frame_can_be_changed(plan):
    (step,) = plan.steps
    assert step.mutator == "field"
    record = Draft(list(plan.frames), (), (), plan.conversation.regions).record(step.at + 1)
    assert step.where < len(dataclasses.fields(record))


@given(plans(["drop"], scripts=["zero"], sides=[SOURCE], most=2))
def test_plans_can_be_narrowed(plan):
    assert (plan.script, plan.side) == ("zero", SOURCE)
    assert {step.mutator for step in plan.steps} == {"drop"}
    assert len(plan.steps) <= 2
