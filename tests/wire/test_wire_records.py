"""Records as values."""

import dataclasses
import typing

import numpy as np
import pytest

from sterna.registry import Encoding, FrameType
from sterna.wire import make_runs
from sterna.wire import records as r


def test_there_is_one_record_for_each_frame():
    kinds = [record.type for record in typing.get_args(r.Record)]
    assert sorted(kinds) == sorted(FrameType)


@pytest.mark.parametrize("record", typing.get_args(r.Record))
def test_records_are_frozen_and_slotted(record):
    assert dataclasses.is_dataclass(record)
    assert record.__dataclass_params__.frozen
    assert "__slots__" in vars(record)


def test_a_region_knows_its_pages():
    assert r.Region(1, 0, 1 << 20, 14).pages == 64


def test_page_tables_are_compared_by_content():
    runs = make_runs([(0, 3, Encoding.RAW), (9, 4, Encoding.ZERO)], 12)
    table = r.Pages(1, 2, 3, runs, np.array([7], "<u8"))
    assert table == r.Pages(1, 2, 3, runs.copy(), np.array([7], "<u8"))
    assert table != r.Pages(1, 2, 4, runs, table.hashes)
    assert table != r.Pages(1, 2, 3, runs[:1], table.hashes)
    assert table != r.Pages(1, 2, 3, runs, np.array([8], "<u8"))
    assert table != 3
    assert (table.bulk_bytes, table.page_count) == (3 << 12, 7)
    assert table.rows == [tuple(run)[:4] for run in runs.tolist()]
    with pytest.raises(TypeError):
        hash(table)


def test_a_row_of_a_page_table_has_24_bytes():
    assert r.RUN_DTYPE.itemsize == 24
