"""Forks, at every line of its input, a process that adds and deletes voices until it is killed.

That process says what it did only after it was acknowledged. Forked, because a start of Python with
torch takes longer than all the rest.
"""

import os
import secrets
import sys

import numpy as np

from engine import Voice
from engine.serve.store import VoiceStore


def say(*words: object) -> None:
    """A whole line or nothing, even when killed: `print` may write a line in pieces."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def write(folder: str) -> None:
    store = VoiceStore(folder)
    voice = Voice(np.ones(16, np.float32), (1.0,), "0" * 64, {"consent": "yes"})
    while True:
        entry = store.add(voice, owner="me", name=secrets.token_hex(8))
        say("added", entry.id)
        if secrets.randbelow(2) or store.count() > 50:
            say("deleting", entry.id)
            store.delete(entry)
            say("deleted", entry.id)


def main() -> None:
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            write(sys.argv[1])
        say("started", pid)
        os.waitpid(pid, 0)
        say("ended", pid)


if __name__ == "__main__":
    main()
