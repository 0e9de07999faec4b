"""Files that are whole or absent: atomic writes, bounded reads, hashes. Standard library only."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PathLike = str | os.PathLike[str]


@contextlib.contextmanager
def atomic_file(path: PathLike) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path` complete or not at all.

    Written beside `path` under a temporary name, synced to disk, then renamed over it. If the
    block raises, the temporary file is removed and whatever was at `path` stays.

    Raises:
        OSError: the folder does not exist, is read-only or full.
    """
    path = Path(path)
    # open("x") and not tempfile: the file gets the permissions the user's umask asks for
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: PathLike) -> None:
    """Make renames inside `folder` last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bytes(path: PathLike, limit_bytes: int) -> bytes:
    """A regular file's bytes, at most `limit_bytes` + 1 of them, so a caller sees an excess.

    Raises:
        OSError: missing, unreadable, or not a regular file (a pipe would block for ever).
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as file:
        return file.read(limit_bytes + 1)


def sha256(path: PathLike) -> str:
    """Hex sha256 of a file's bytes.

    Raises:
        OSError: there is no such file.
    """
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()
