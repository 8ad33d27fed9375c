"""Ports for servers that are told theirs (children of a test): below those that the system hands out by itself.

A port that was asked for with 0 and given back may be another process's by the time the child opens it: with several
test processes, about one run in fifty.
"""

from __future__ import annotations

import functools
import itertools
import random
import socket
from collections.abc import Iterator

FIRST, COUNT = 20_000, 12_000  # Linux hands out from 32,768 on, other systems from 49,152


@functools.cache
def _numbers() -> Iterator[int]:
    begin = random.SystemRandom().randrange(COUNT)  # test processes begin apart
    return (FIRST + (begin + step) % COUNT for step in itertools.count())


def unused() -> int:
    """A port on 127.0.0.1 that nothing listens on, and that no later call in this process gives again soon."""
    for port in _numbers():
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise AssertionError("every number was tried")
