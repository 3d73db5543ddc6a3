"""The schema as a document: every frame has a declaration, and nothing in it is a known trap."""

import ast
import inspect

import pytest
from construct import Struct, Terminated

from sterna.registry import FrameType
from sterna.wire import codec, fields, lists, schema


def test_every_frame_has_a_declaration():
    assert list(schema.BODIES) == list(FrameType)
    assert all(schema.BODIES[frame] is getattr(schema, frame.name) for frame in FrameType)


@pytest.mark.parametrize("frame", FrameType)
def test_bodies_end(frame):
    """[FRM-2] Without Terminated Construct would not look at what follows."""
    mapped = schema.BODIES[frame].subcon
    assert isinstance(mapped.subcon, Struct)
    assert mapped.subcon.subcons[-1] is Terminated


@pytest.mark.parametrize("module", [codec, fields, lists, schema])
def test_no_trap_of_construct_is_used(module):
    """`compile` accepts truncated bodies; the others swallow errors or pass unknown values."""
    used = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Attribute)
    }
    names = {node.id for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Name)}
    traps = {"compile", "Enum", "GreedyRange", "Optional", "Select", "PascalString", "Pickled", "Lazy"}
    assert not traps & (used | names)
