"""Ports for servers that are told one before they start, or keep theirs over a restart."""

from __future__ import annotations

import random
import socket

# Below those the system gives to connections and to servers that ask for any port: none of the tests that run at the
# same time gets it by chance between our look and the server's start.
RANGE = range(20_000, 32_000)


def free_port() -> int:
    while True:
        with socket.socket() as probe:
            port = random.SystemRandom().choice(RANGE)  # hypothesis seeds the plain one
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
