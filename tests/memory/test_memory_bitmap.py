"""PageBitmap against sets of numbers, at the borders of words and windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.memory import bitmap as module
from sterna.memory.bitmap import PageBitmap, assign_runs, checked_runs, expand_runs

# Around the borders of words, of the first window of first_runs (64 words) and of its second (256 more).
SIZES = [0, 1, 2, 63, 64, 65, 127, 128, 129, 700, 4095, 4096, 4097, 20479, 20480, 20481, 30000]


@st.composite
def sizes_and_runs(draw, max_runs=20):
    bits = draw(st.sampled_from(SIZES))
    runs = []
    for _ in range(draw(st.integers(0, max_runs))):
        near = st.sampled_from([64, 4096, 20480]).flatmap(lambda at: st.integers(at - 3, at + 3))
        first = min(draw(st.one_of(near, st.integers(0, bits))), bits)
        count = draw(st.one_of(st.integers(0, min(3, bits - first)), st.integers(0, bits - first)))
        runs.append((first, count))
    return bits, runs


def pages_of(runs):
    return {page for first, count in runs for page in range(first, first + count)}


def arrays(runs):
    return np.array([run[0] for run in runs], np.int64), np.array([run[1] for run in runs], np.int64)


def bitmap_of(bits, pages):
    mask = np.zeros(bits, np.bool_)
    mask[list(pages)] = True
    return PageBitmap.from_mask(mask)


def content(bitmap):
    """The pages of a bitmap, found without any method under test; trailing bits must be zero."""
    bits = np.unpackbits(bitmap.words.view(np.uint8), bitorder="little")
    assert not bits[bitmap.bits :].any()
    return set(np.flatnonzero(bits).tolist())


def naive_runs(pages):
    runs = []
    for page in sorted(pages):
        if runs and runs[-1][0] + runs[-1][1] == page:
            runs[-1][1] += 1
        else:
            runs.append([page, 1])
    return [tuple(run) for run in runs]


def listed(runs):
    starts, counts = runs
    assert starts.dtype == counts.dtype == np.int64
    return list(zip(starts.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize("bits", SIZES)
def test_full_and_empty(bits):
    empty, full = PageBitmap(bits), PageBitmap.full(bits)
    assert empty.count() == 0
    assert not empty.any()
    assert listed(empty.runs()) == []
    assert full.count() == bits
    assert full.any() == (bits > 0)
    assert listed(full.runs()) == ([(0, bits)] if bits else [])
    full.clear_all()
    assert full == empty
    empty.fill()
    assert empty == PageBitmap.full(bits)


@pytest.mark.parametrize("bits", [1, 64, 65, 128, 4097])
def test_single_pages(bits):
    for page in {0, bits // 2, bits - 1}:
        bitmap = PageBitmap(bits)
        bitmap.set(page)
        assert content(bitmap) == {page}
        assert listed(bitmap.runs()) == [(page, 1)]
        bitmap.clear(page)
        assert bitmap == PageBitmap(bits)


def test_words_are_those_of_the_bits():
    bitmap = PageBitmap(130)
    bitmap.set(0)
    bitmap.set(65, 2)
    bitmap.set(129)
    assert bitmap.words.tolist() == [1, 6, 2]
    assert bitmap.to_bytes() == bytes([1] + [0] * 7 + [6] + [0] * 7 + [2])
    assert repr(bitmap) == "<PageBitmap 4 of 130>"


@given(sizes_and_runs(), st.data())
def test_set_and_clear(case, data):
    bits, runs = case
    bitmap, model = PageBitmap(bits), set()
    for first, count in runs:
        if data.draw(st.booleans()):
            bitmap.set(first, count)
            model |= pages_of([(first, count)])
        else:
            bitmap.clear(first, count)
            model -= pages_of([(first, count)])
    assert content(bitmap) == model
    assert all((page in bitmap) == (page in model) for page in range(0, bits, 1 + bits // 200))
    assert bitmap.count() == len(model)
    assert bitmap.any() == bool(model)
    assert listed(bitmap.runs()) == naive_runs(model)


@given(sizes_and_runs(max_runs=40), st.sampled_from([np.int64, np.uint64, np.uint32]))
def test_many_runs_at_once(case, dtype):
    bits, runs = case
    starts, counts = (array.astype(dtype) for array in arrays(runs))
    bitmap = PageBitmap(bits)
    bitmap.set_runs(starts, counts)
    assert content(bitmap) == pages_of(runs)
    half = len(runs) // 2
    bitmap.clear_runs(starts[half:], counts[half:])
    assert content(bitmap) == pages_of(runs) - pages_of(runs[half:])
    full = PageBitmap.full(bits)
    full.clear_runs(starts, counts)
    assert content(full) == set(range(bits)) - pages_of(runs)


def test_many_long_runs_at_once():
    bits, step = 1 << 20, 1 << 14
    starts = np.arange(3, bits - step, step)
    bitmap = PageBitmap(bits)
    bitmap.set_runs(starts, np.full(len(starts), step - 7))
    assert listed(bitmap.runs()) == [(start, step - 7) for start in starts.tolist()]
    bitmap.clear_runs(starts + 1, np.full(len(starts), step - 8))
    assert listed(bitmap.runs()) == [(start, 1) for start in starts.tolist()]


@given(sizes_and_runs(), st.data())
def test_algebra(case, data):
    bits, runs = case
    left, right = pages_of(runs[::2]), pages_of(runs[1::2])
    a, b = bitmap_of(bits, left), bitmap_of(bits, right)
    assert (a == b) == (left == right)
    for operate, expected in (
        (PageBitmap.__ior__, left | right),
        (PageBitmap.__iand__, left & right),
        (PageBitmap.__isub__, left - right),
        (PageBitmap.__ixor__, left ^ right),
    ):
        target = a.copy()
        result = operate(target, b)
        assert result is target
        assert content(result) == expected
        assert content(a) == left
        assert content(b) == right
    itself = a.copy()
    itself -= itself
    assert not itself.any()


def test_algebra_beyond_a_block():
    bits = (module._BLOCK_WORDS + 5) * 64 + 3
    everything, left = PageBitmap.full(bits), PageBitmap(bits)
    left.set(0, 100)
    left.set(bits - 50, 50)
    everything -= left
    assert listed(everything.runs()) == [(100, bits - 150)]
    assert everything.count() == bits - 150


def test_sets_of_different_size_do_not_mix():
    for operate in (PageBitmap.__ior__, PageBitmap.__iand__, PageBitmap.__isub__, PageBitmap.__ixor__):
        with pytest.raises(ValueError, match="bitmaps of 64 and 65 bits"):
            operate(PageBitmap(64), PageBitmap(65))
    assert PageBitmap(64) != PageBitmap(65)
    assert PageBitmap(64) != "something else"
    with pytest.raises(TypeError):
        hash(PageBitmap(1))


@given(sizes_and_runs())
def test_bytes_and_words_round_trip(case):
    bits, runs = case
    bitmap = bitmap_of(bits, pages_of(runs))
    data = bitmap.to_bytes()
    assert len(data) == (bits + 7) // 8
    assert int.from_bytes(data, "little") == sum(1 << page for page in pages_of(runs))
    for again in (
        PageBitmap.from_bytes(data, bits),
        PageBitmap.from_bytes(memoryview(data), bits),
        PageBitmap.from_bytes(bytearray(data), bits),
        PageBitmap.from_words(bitmap.words, bits),
    ):
        assert again == bitmap
        again.fill()  # they own their words
        assert bitmap.to_bytes() == data


@pytest.mark.parametrize(
    ("data", "bits"),
    [(b"", 1), (b"\0", 0), (b"\0", 9), (b"\0\0", 8), (b"\x02", 1), (b"\xff\x80", 15), (b"\0", -1), (b"", -1)],
)
def test_bytes_that_are_no_bitmap(data, bits):
    with pytest.raises(ValueError, match="bit"):
        PageBitmap.from_bytes(data, bits)


@pytest.mark.parametrize(("words", "bits"), [([0], 65), ([0, 0], 64), ([2], 1), ([0, 1 << 63], 127), ([], 1)])
def test_words_that_are_no_bitmap(words, bits):
    with pytest.raises(ValueError, match="bit"):
        PageBitmap.from_words(np.array(words, np.uint64), bits)


def test_a_negative_size():
    with pytest.raises(ValueError, match="negative"):
        PageBitmap(-1)


@pytest.mark.parametrize(
    ("first", "count"), [(-1, 1), (0, 101), (100, 1), (101, 0), (50, 51), (5, -1), (1 << 70, 1)]
)
def test_outside(first, count):
    bitmap = PageBitmap(100)
    for change in (bitmap.set, bitmap.clear, bitmap.runs_between):
        with pytest.raises(IndexError):
            change(first, count)
    if first < 1 << 63:
        for many in (bitmap.set_runs, bitmap.clear_runs):
            with pytest.raises(IndexError):
                many([0, first], [1, count])
    assert not bitmap.any()


@pytest.mark.parametrize("page", [-1, 100, 1 << 70])
def test_membership_outside(page):
    with pytest.raises(IndexError):
        page in PageBitmap(100)  # noqa: B015 - the question itself must fail
    if page < 1 << 63:
        with pytest.raises(IndexError):
            PageBitmap(100).has(np.array([0, page]))


def test_run_arrays_that_do_not_match():
    bitmap = PageBitmap(10)
    for starts, counts in (([1], [1, 2]), ([[1]], [[1]]), (3, 1)):
        with pytest.raises(ValueError, match="equal length"):
            bitmap.set_runs(starts, counts)
    huge = np.array([(1 << 64) - 1], np.uint64)
    for starts, counts in ((huge, [1]), ([1], huge), (huge, huge)):
        with pytest.raises(IndexError):
            checked_runs(starts, counts, 10)
    bitmap.set_runs([], [])
    assert not bitmap.any()


@given(sizes_and_runs(), st.data())
def test_has(case, data):
    bits, runs = case
    bitmap = bitmap_of(bits, pages_of(runs))
    asked = data.draw(st.lists(st.integers(0, bits - 1), max_size=20)) if bits else []
    answer = bitmap.has(np.array(asked, np.int64))
    assert answer.dtype == np.bool_
    assert answer.tolist() == [page in pages_of(runs) for page in asked]


@given(sizes_and_runs(), st.data())
def test_runs_between(case, data):
    bits, runs = case
    pages = pages_of(runs)
    first = data.draw(st.integers(0, bits))
    count = data.draw(st.integers(0, bits - first))
    expected = naive_runs(page for page in pages if first <= page < first + count)
    assert listed(bitmap_of(bits, pages).runs_between(first, count)) == expected


@given(sizes_and_runs(), st.data())
def test_first_runs(case, data):
    bits, runs = case
    pages = pages_of(runs)
    start = data.draw(st.integers(0, bits))
    max_pages, max_runs = data.draw(st.integers(1, 1000)), data.draw(st.integers(1, 6))
    expected, room = [], max_pages
    for first, count in naive_runs(page for page in pages if page >= start)[:max_runs]:
        if room:
            expected.append((first, min(count, room)))
            room -= expected[-1][1]
    assert listed(bitmap_of(bits, pages).first_runs(start, max_pages, max_runs)) == expected


def test_first_runs_answer_belongs_to_the_caller():
    bitmap = PageBitmap.full(1000)
    starts, counts = bitmap.first_runs(0, 100, 1)
    starts += 1
    counts += 1
    assert listed(bitmap.first_runs(0, 100, 1)) == [(0, 100)]


@given(sizes_and_runs(), st.integers(1, 5000), st.integers(1, 40))
def test_batches_cover_the_set_once(case, max_pages, max_runs):
    bits, runs = case
    pages = pages_of(runs)
    seen = []
    for starts, counts in bitmap_of(bits, pages).batches(max_pages, max_runs):
        assert 0 < counts.sum() <= max_pages
        assert 0 < len(starts) <= max_runs
        assert np.all(starts[1:] > (starts + counts)[:-1])
        seen += expand_runs(starts, counts).tolist()
    assert seen == sorted(pages)


def test_batches_start_where_told():
    batches = PageBitmap.full(1000).batches(300, 10, start=300)
    assert [listed(batch) for batch in batches] == [[(300, 300)], [(600, 300)], [(900, 100)]]
    with pytest.raises(ValueError, match="positive"):
        next(PageBitmap(9).batches(0, 1))


def test_batches_join_runs_across_windows(monkeypatch):
    """However short the windows are: a run ends where it ends, or where the batch is full."""
    monkeypatch.setattr(module, "_AHEAD_WORDS", 1)
    pages = pages_of([(5, 3), (60, 10), (128, 64), (192, 400), (700, 1)])
    bitmap = bitmap_of(1000, pages)
    assert [listed(batch) for batch in bitmap.batches(1000, 2)] == [
        [(5, 3), (60, 10)], [(128, 464), (700, 1)],
    ]  # fmt: skip
    assert listed(next(bitmap.batches(300, 9))) == [(5, 3), (60, 10), (128, 287)]


def test_meets():
    bitmap = bitmap_of(1000, {300})
    assert bitmap.meets(300, 1)
    assert bitmap.meets(200, 101)
    assert not bitmap.meets(0, 250)
    assert not bitmap.meets(384, 616)


def test_a_run_longer_than_every_window():
    bits = 3 << 20
    bitmap = PageBitmap.full(bits)
    bitmap.clear(5)
    assert listed(bitmap.first_runs(6, bits, 3)) == [(6, bits - 6)]
    assert listed(bitmap.first_runs(0, bits, 3)) == [(0, 5), (6, bits - 6)]


def test_first_runs_looks_at_little(monkeypatch):
    """A pass is linear in the words, however finely it is cut and however sparse the set is."""
    bits = 1 << 22
    looked = 0
    word_edges = PageBitmap._word_edges

    def counted(self, low, high, max_words):
        nonlocal looked
        looked += high - low
        return word_edges(self, low, high, max_words)

    monkeypatch.setattr(PageBitmap, "_word_edges", counted)
    rng = np.random.default_rng(1)
    for pages in (0, 10, 1000, 30000):
        bitmap = bitmap_of(bits, rng.integers(0, bits, pages))
        looked = 0
        batches = sum(1 for _ in bitmap.batches(256, 16))
        # Windows grow by the factor 4, so what a call looks at too much is less than 4 times its advance.
        assert looked <= 8 * len(bitmap.words) + batches * 2 * module._WINDOW_WORDS


def test_first_runs_of_a_crowded_set():
    """More words with an edge than the runs asked for need: the rest of the window is not unpacked."""
    bits = 64 * 3000
    pages = set(np.random.default_rng(1).integers(0, bits, bits // 3).tolist())
    bitmap, runs = bitmap_of(bits, pages), naive_runs(pages)
    for max_runs in (1, 2, 10):
        assert listed(bitmap.first_runs(0, bits, max_runs)) == runs[:max_runs]
    # Words that end like the one before them but have no edge of their own are not counted.
    bitmap = PageBitmap(bits)
    for word in range(0, 3000, 2):
        bitmap.set(word * 64 + 32, 32 + 64)
    assert listed(bitmap.first_runs(0, bits, 2)) == [(32, 96), (160, 96)]
    assert [run for part in bitmap.batches(bits, 2) for run in listed(part)] == naive_runs(content(bitmap))


@pytest.mark.parametrize("border", [4096, 4096 + 4 * 4096])
def test_first_runs_joins_a_run_that_crosses_windows(border):
    bitmap = PageBitmap(30000)
    bitmap.set(7)
    bitmap.set(border - 5, 10)
    assert listed(bitmap.first_runs(0, 100, 5)) == [(7, 1), (border - 5, 10)]
    assert listed(bitmap.first_runs(0, 100, 2)) == [(7, 1), (border - 5, 10)]
    assert listed(bitmap.first_runs(8, 7, 1)) == [(border - 5, 7)]
    assert listed(bitmap.first_runs(0, 100, 1)) == [(7, 1)]


def test_runs_unpack_only_words_with_an_edge(monkeypatch):
    bits = 1 << 22
    bitmap = PageBitmap.full(bits)
    bitmap.clear(1000, 2_000_000)
    bitmap.set(5000)
    unpacked = 0
    unpackbits = np.unpackbits

    def counted(array, **options):
        nonlocal unpacked
        unpacked += len(array) // 8
        return unpackbits(array, **options)

    monkeypatch.setattr(np, "unpackbits", counted)
    assert listed(bitmap.runs()) == [(0, 1000), (5000, 1), (2_001_000, bits - 2_001_000)]
    assert unpacked <= 8


def test_bounds_of_first_runs():
    bitmap = PageBitmap(100)
    for start in (-1, 101):
        with pytest.raises(IndexError):
            bitmap.first_runs(start, 1, 1)
    for bounds in ((0, 1), (1, 0), (-1, 1)):
        with pytest.raises(ValueError, match="positive"):
            bitmap.first_runs(0, *bounds)
    assert listed(bitmap.first_runs(100, 1, 1)) == []


@given(sizes_and_runs())
def test_assign_and_expand(case):
    bits, runs = case
    starts, counts = arrays(runs)
    assert expand_runs(starts, counts).tolist() == [
        page for first, count in runs for page in range(first, first + count)
    ]
    array = np.zeros(bits, np.uint8)
    assign_runs(array, starts, counts, 7)
    assert set(np.flatnonzero(array).tolist()) == pages_of(runs)
    assert set(array.tolist()) <= {0, 7}
