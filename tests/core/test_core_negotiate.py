"""What the two sides agree on before anything moves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_support import ALL_FEATURES, GUEST, HERE, ID, PAGE, SESSION, TOKEN
from hypothesis import given
from hypothesis import strategies as st

from sterna.core.negotiate import (
    BASE_FEATURES,
    VERSION,
    VERSIONS,
    Selection,
    check_first_epoch,
    check_granules,
    check_room,
    check_welcome,
    choices,
    feature_name,
    offer,
    select,
)
from sterna.errors import LimitExceeded, LocalProtocolError, PeerIncompatible, PeerMisbehaved
from sterna.limits import RESUME_MOST_S, Limits
from sterna.registry import (
    IMPLEMENTED_FEATURES,
    VERSION_DRAFT,
    VERSION_MAJOR,
    Encoding,
    ErrorCode,
    Feature,
    FrameType,
    Limit,
    Mode,
    Transfer,
)
from sterna.wire import records as r

PACKED = {Feature.ENCODING_ZSTD: 18, Feature.ENCODING_DELTA: 1 << 20}
REQUIRED = {Feature.STOP_AND_COPY, Feature.HASH_XXH3_64}


def hello(**changes):
    return replace(r.Hello(Mode.OPEN, VERSIONS, offer(), {}, ID, 5, HERE), **changes)


def welcome(**changes):
    return replace(r.Welcome(VERSION, SESSION, TOKEN, ALL_FEATURES, {}), **changes)


def without(features, *gone):
    return tuple(each for each in features if each.id not in gone)


# ---- the offer ----


def test_the_offer_is_what_is_implemented():
    """[NEG-10] [MEM-17]"""
    offers = {each.id: each for each in offer(progress_ms=250)}
    assert offers.keys() == BASE_FEATURES <= IMPLEMENTED_FEATURES
    assert {number for number, each in offers.items() if each.required} == REQUIRED
    assert offers[Feature.PROGRESS].parameter == 250
    assert VERSION == VERSION_MAJOR << 16 | VERSION_DRAFT


def test_what_depends_on_a_host_is_offered_where_there_is_such_a_host():
    """[NEG-10] And selected where the destination has one, too."""
    more = {Feature.LEASE_STORE: 0}
    offers = {each.id: each for each in offer(more=more, required=more)}
    assert offers.keys() == BASE_FEATURES | more.keys()
    assert {number for number, each in offers.items() if each.required} == REQUIRED | more.keys()
    said = hello(features=offer(more=more))
    assert not select(said).has(Feature.LEASE_STORE)
    assert select(said, BASE_FEATURES | more.keys()).has(Feature.LEASE_STORE)
    with pytest.raises(PeerIncompatible, match="lease_store") as caught:
        select(hello(features=offer(more=more, required=more)))
    assert caught.value.code is ErrorCode.MISSING_FEATURE


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_that_a_store_cannot_vouch_for(epoch, stored):
    """[ONE-54]"""
    features = {Feature.LEASE_STORE: 0} if stored else {}
    selection = Selection(VERSION, features, Limits())
    if epoch or not stored:
        check_first_epoch(hello(epoch=epoch), selection)
        return
    with pytest.raises(PeerMisbehaved) as caught:
        check_first_epoch(hello(epoch=epoch), selection)
    assert (caught.value.code, caught.value.clause) == (ErrorCode.STALE_EPOCH, "ONE-54")


@pytest.mark.parametrize(("offered", "agreed"), [(60, 60), (1 << 63, RESUME_MOST_S)])
def test_a_lost_session_is_not_kept_for_longer_than_this_side_likes(offered, agreed):
    """[NEG-8] [RES-14]"""
    asked = hello(features=offer(more={Feature.RESUME: offered}))
    assert Feature.RESUME not in select(asked).features
    assert select(asked, BASE_FEATURES | {Feature.RESUME}).features[Feature.RESUME] == agreed


def test_features_have_names():
    assert feature_name(Feature.ENCODING_ZERO) == "encoding_zero"
    assert feature_name(4711) == "feature 4711"


# ---- the selection ----


def test_everything_that_both_know_is_selected():
    """[NEG-3] [NEG-11]"""
    unknown = r.FeatureOffer(4711, required=False, parameter=9)
    selection = select(hello(features=(unknown, *offer(500)), limits={Limit.REGIONS: 3, 4711: 9}))
    assert selection.version == VERSION
    assert selection.features == {each.id: each.parameter for each in offer(500)}
    assert selection.has(Feature.PROGRESS)
    assert not selection.has(Feature.RESUME)
    assert selection.limits == Limits(regions=3)  # [LIM-2] [LIM-3]
    assert {each.id for each in choices(selection)} == BASE_FEATURES


@pytest.mark.parametrize("mode", list(Mode))
def test_a_version_is_found_or_the_session_refused(mode):
    """[NEG-1] [VRS-3] Whatever else the HELLO holds."""
    with pytest.raises(PeerIncompatible, match=r"2-draft\.7") as caught:
        select(hello(mode=mode, versions=(2 << 16 | 7, 3 << 16), features=()))
    assert (caught.value.code, caught.value.clause) == (ErrorCode.NO_COMMON_VERSION, "NEG-1")
    assert select(hello(versions=(9 << 16, VERSION))).version == VERSION


@pytest.mark.parametrize("mode", [Mode.RESUME, Mode.VERDICT, Mode.STORED])
def test_modes_that_are_not_implemented(mode):
    """[CON-10] [STO-7]"""
    with pytest.raises(PeerIncompatible) as caught:
        select(hello(mode=mode, session=SESSION))
    assert (caught.value.code, caught.value.frame) == (ErrorCode.UNSUPPORTED, FrameType.HELLO)


def test_a_required_feature_that_is_missing_here():
    """[NEG-4] All that are missing are named."""
    strange = (r.FeatureOffer(Feature.RESUME, required=True), r.FeatureOffer(4711, required=True))
    with pytest.raises(PeerIncompatible, match="resume, feature 4711") as caught:
        select(hello(features=(*offer(), *strange)))
    assert (caught.value.code, caught.value.clause) == (ErrorCode.MISSING_FEATURE, "NEG-4")


@pytest.mark.parametrize("feature", sorted(REQUIRED))
def test_a_feature_that_the_source_must_offer(feature):
    """[NEG-4] [MEM-17]"""
    with pytest.raises(PeerIncompatible, match=feature_name(feature)) as caught:
        select(hello(features=without(offer(), feature)))
    assert caught.value.code is ErrorCode.MISSING_FEATURE


UNUSABLE = [{Limit.CONTROL_BYTES: 65535}, {Limit.BULK_BYTES: 0}, {Limit.BATCH_RUNS: 0}]


@pytest.mark.parametrize("limits", UNUSABLE, ids=str)
def test_limits_that_no_session_fits(limits):
    """[LIM-7] On both sides."""
    with pytest.raises(LimitExceeded) as caught:
        select(hello(limits=limits))
    assert (caught.value.code, caught.value.clause) == (ErrorCode.LIMIT_MISMATCH, "LIM-7")
    with pytest.raises(LimitExceeded) as caught:
        check_welcome(hello(), welcome(limits=limits))
    assert (caught.value.code, caught.value.clause) == (ErrorCode.LIMIT_MISMATCH, "LIM-7")


# ---- the source's look at it ----


def test_a_version_that_was_not_offered():
    """[NEG-2]"""
    with pytest.raises(PeerMisbehaved) as caught:
        check_welcome(hello(), welcome(version=VERSION + 1))
    assert (caught.value.code, caught.value.clause) == (ErrorCode.UNSOLICITED, "NEG-2")


def test_a_feature_that_was_not_offered():
    """[NEG-5]"""
    with pytest.raises(PeerMisbehaved, match="post_copy") as caught:
        check_welcome(hello(), welcome(features=(*ALL_FEATURES, r.FeatureChoice(Feature.POST_COPY))))
    assert (caught.value.code, caught.value.clause) == (ErrorCode.UNSOLICITED, "NEG-5")


def changed(feature, by):
    """What was offered, with another parameter of one feature."""
    return tuple(
        r.FeatureChoice(each.id, each.parameter + by * (each.id == feature)) for each in ALL_FEATURES
    )


@pytest.mark.parametrize(
    ("feature", "by"),
    [(feature, 1) for feature in sorted(BASE_FEATURES - {Feature.PROGRESS})] + [(Feature.PROGRESS, -1)],
)
def test_a_parameter_that_asks_for_more_than_was_offered(feature, by):
    """[NEG-8]"""
    with pytest.raises(PeerMisbehaved, match=feature_name(feature)) as caught:
        check_welcome(hello(), welcome(features=changed(feature, by)))
    assert (caught.value.code, caught.value.clause) == (ErrorCode.UNSOLICITED, "NEG-8")


def test_progress_may_be_asked_for_less_often():
    """[NEG-8] Its parameter is a least time, so the larger one is the modest one."""
    chosen = check_welcome(hello(), welcome(features=changed(Feature.PROGRESS, 1)))
    assert chosen.features[Feature.PROGRESS] == 1001


@pytest.mark.parametrize("feature", sorted(REQUIRED))
def test_a_required_feature_that_is_not_selected(feature):
    """[NEG-6]"""
    with pytest.raises(PeerIncompatible, match=feature_name(feature)) as caught:
        check_welcome(hello(), welcome(features=without(ALL_FEATURES, feature)))
    assert (caught.value.code, caught.value.clause) == (ErrorCode.MISSING_FEATURE, "NEG-6")


UNKNOWN = st.integers(0, 40).filter(lambda number: number not in IMPLEMENTED_FEATURES)
OFFERS = st.lists(
    st.builds(r.FeatureOffer, UNKNOWN, st.just(False), st.integers(0, 99)),
    unique_by=lambda offer: offer.id,
)


@given(OFFERS, st.dictionaries(st.sampled_from(list(Limit)), st.integers(65536, 1 << 64 - 1)))
def test_what_a_destination_selects_the_source_accepts(more, limits):
    """[NEG-5] [NEG-6] [NEG-8] Whatever is offered beside what is needed."""
    said = hello(features=(*offer(), *more), limits=limits)
    chosen = select(said)
    answer = welcome(features=choices(chosen), limits=limits)
    assert check_welcome(said, answer) == chosen


# ---- room ----


def test_a_guest_that_fits():
    check_room(GUEST, Limits())
    check_granules(GUEST, Limits())
    check_room(GUEST, Limits(regions=1, memory_bytes=4 * PAGE, state_bytes=4096, bulk_bytes=PAGE))


@pytest.mark.parametrize(
    "limits",
    [
        Limits(regions=0),
        Limits(memory_bytes=4 * PAGE - 1),
        Limits(state_bytes=4095),
        Limits(bulk_bytes=PAGE - 1),
    ],
)
def test_a_guest_that_does_not_fit_the_destination(limits):
    """[LIM-6]"""
    with pytest.raises(LocalProtocolError, match="announced are") as caught:
        check_room(GUEST, limits)
    assert (caught.value.code, caught.value.clause) == (ErrorCode.LIMIT_MISMATCH, "LIM-6")


def test_a_page_that_no_frame_carries():
    """[CON-15]"""
    with pytest.raises(PeerIncompatible) as caught:
        check_granules(GUEST, Limits(bulk_bytes=PAGE - 1))
    assert (caught.value.code, caught.value.frame) == (ErrorCode.PAGE_SIZE, FrameType.GUEST)


def test_pages_that_do_not_travel_may_have_any_size():
    shared = replace(GUEST.regions[0], granule_log2=16, size_bytes=1 << 16, transfer=Transfer.SHARED)
    check_granules(replace(GUEST, regions=(shared,)), Limits(bulk_bytes=1))
    check_room(replace(GUEST, regions=(shared,)), Limits(bulk_bytes=1))


def test_the_encodings_of_a_selection():
    """[PGS-9] [NEG-7]"""
    some = {Feature.STOP_AND_COPY: 0}
    assert Selection(VERSION, some, Limits()).encodings == {Encoding.RAW}
    assert Selection(VERSION, {**some, Feature.ENCODING_ZERO: 0}, Limits()).encodings == {
        Encoding.RAW,
        Encoding.ZERO,
    }
    packed = Selection(VERSION, {**some, **PACKED}, Limits())
    assert packed.encodings == {Encoding.RAW, Encoding.ZSTD, Encoding.DELTA}
    assert (packed.window_log2, Selection(VERSION, some, Limits()).window_log2) == (18, 0)


@pytest.mark.parametrize(
    ("offered", "selected"), [(9, None), (10, 10), (18, 18), (23, 23), (24, 23), (63, 23)]
)
def test_frames_look_back_as_far_as_this_side_likes(offered, selected):
    """[PGS-23] [NEG-8] [SEC-11] If that is less than a frame can, there are none, and no changes."""
    said = hello(features=offer(more={**PACKED, Feature.ENCODING_ZSTD: offered}))
    features = select(said, BASE_FEATURES | PACKED.keys()).features
    assert features.get(Feature.ENCODING_ZSTD) == selected
    assert (Feature.ENCODING_DELTA in features) == (selected is not None)


def test_hashes_are_left_out_where_both_sides_say_so():
    """[MEM-21] [NEG-5] By itself nobody offers or selects that; hashes as such stay required [MEM-17]."""
    asked = hello(features=offer(more={Feature.UNHASHED: 0}))
    willing = BASE_FEATURES | {Feature.UNHASHED}
    assert Feature.UNHASHED not in BASE_FEATURES
    assert select(asked).hashed
    assert select(hello(), willing).hashed
    chosen = select(asked, willing)
    assert not chosen.hashed
    assert chosen.has(Feature.HASH_XXH3_64)
    assert not check_welcome(asked, welcome(features=choices(chosen))).hashed


def test_no_changes_without_hashes():
    """[PGS-26] Neither side selects one with the other, or takes it. Compression goes with it."""
    said = hello(features=offer(more={**PACKED, Feature.UNHASHED: 0}))
    both = BASE_FEATURES | PACKED.keys() | {Feature.UNHASHED}
    chosen = select(said, both)
    assert chosen.encodings == {Encoding.RAW, Encoding.ZERO, Encoding.ZSTD}
    assert check_welcome(said, welcome(features=choices(chosen))) == chosen
    answer = welcome(features=(*choices(chosen), r.FeatureChoice(Feature.ENCODING_DELTA, 1)))
    with pytest.raises(PeerMisbehaved) as caught:
        check_welcome(said, answer)
    assert (caught.value.code, caught.value.clause) == (ErrorCode.UNSOLICITED, "PGS-26")


def test_no_changes_without_frames():
    """[PGS-23] Neither side selects one without the other, or takes it."""
    said = hello(features=offer(more={Feature.ENCODING_DELTA: 1 << 20}))
    assert Feature.ENCODING_DELTA not in select(said, BASE_FEATURES | PACKED.keys()).features
    said = hello(features=offer(more=PACKED))
    both = tuple(r.FeatureChoice(*each) for each in PACKED.items())
    answer = welcome(features=(*ALL_FEATURES, *both))
    assert check_welcome(said, answer).has(Feature.ENCODING_DELTA)
    check_welcome(said, welcome(features=(*ALL_FEATURES, both[0])))
    with pytest.raises(PeerMisbehaved) as caught:
        check_welcome(said, welcome(features=(*ALL_FEATURES, both[1])))
    assert (caught.value.code, caught.value.clause) == (ErrorCode.UNSOLICITED, "PGS-23")


@pytest.mark.parametrize("style", [Feature.BITMAP, Feature.POST_COPY, None])
def test_no_early_pages_where_none_follows(style):
    """[PCY-25] Neither side selects them alone, or takes that; by itself nobody offers or selects them."""
    assert Feature.EARLY_PAGES not in BASE_FEATURES
    styles = () if style is None else (style,)
    more = dict.fromkeys((Feature.EARLY_PAGES, *styles), 0)
    said = hello(features=offer(more=more))
    chosen = select(said, BASE_FEATURES | more.keys())
    assert chosen.has(Feature.EARLY_PAGES) == (style is not None)
    assert check_welcome(said, welcome(features=choices(chosen))) == chosen
    alone = r.FeatureChoice(Feature.EARLY_PAGES, 0)
    answer = welcome(features=(*without(choices(chosen), Feature.EARLY_PAGES, *styles), alone))
    with pytest.raises(PeerMisbehaved) as caught:
        check_welcome(said, answer)
    assert (caught.value.code, caught.value.clause) == (ErrorCode.UNSOLICITED, "PCY-25")
