"""A second endpoint, written from spec/protocol.md alone: it imports nothing of `sterna` or of the kit.

It is slow and plain: blocking sockets, one thread, and the standard library but for xxhash. It is there so
that the kit has a peer which does not share Sterna's mistakes, and to show how much an implementation is.
``python -m sterna_interop.minimal`` is its shim.
"""
