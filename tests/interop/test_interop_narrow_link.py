"""A link that is narrow, and counts."""

from __future__ import annotations

import socket

from sterna_interop.narrow_link import HOST, NarrowLink


def test_what_passes_is_counted_one_way():
    """Both ways, on two connections, and their ends."""
    with socket.create_server((HOST, 0)) as server, NarrowLink(1e9) as link:
        link.leads_to(server.getsockname()[1])
        for number in (1, 2):
            with socket.create_connection((HOST, link.port)) as near:
                far, _ = server.accept()
                with far:
                    near.sendall(b"x" * 100_000 * number)
                    near.shutdown(socket.SHUT_WR)
                    got = b"".join(iter(lambda far=far: far.recv(1 << 16), b""))
                    assert len(got) == 100_000 * number
                    far.sendall(b"answer")
                assert near.recv(100) == b"answer"
        assert link.passed() == 300_000
