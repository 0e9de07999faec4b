"""API keys: a file of hashes, read again when it changes. The keys themselves are never stored.

A line is `NAME SCOPE,SCOPE SHA256`; `#` begins a comment. Keys are 256 random bits, so that a plain
SHA-256 of one cannot be searched. Two lines with one NAME are one client with two keys, which is
how a key is changed without a gap.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ConfigError
from engine.files import PathLike, atomic_file

SCOPES = ("speech", "voices:write", "admin")
LINE = re.compile(r"(?P<name>[\w.-]{1,64})\s+(?P<scopes>[\w:,]+)\s+(?P<digest>[0-9a-f]{64})")
log = logging.getLogger("clonewave.serve")


@dataclass(frozen=True)
class Key:
    """Who asks. `name` owns the voices made with it."""

    name: str
    scopes: frozenset[str]
    digest: str = ""

    def allows(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes


LOCAL = Key("local", frozenset(SCOPES))  # everyone, where a server has no keys


def hash_key(key: str) -> str:
    """Hex sha256 of a key, as the file holds it."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class Keys:
    """The keys of a file; a file that no longer parses leaves the last good ones in force.

    Raises:
        ConfigError: on creation: missing, unreadable, empty or malformed.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        self._seen = self._stamp()
        self._keys = parse(self.path)

    def find(self, presented: str) -> Key | None:
        """The key that was presented, or None. Compares with every key, in constant time."""
        self._refresh()
        digest = hash_key(presented)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _stamp(self) -> tuple[int, int, int]:
        try:
            at = os.stat(self.path)
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror}; give a key file") from error
        return at.st_mtime_ns, at.st_size, at.st_ino

    def _refresh(self) -> None:
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return
            self._seen = stamp
            self._keys = parse(self.path)
            log.info("%s: %d keys read", self.path, len(self._keys))
        except ConfigError as error:
            log.error("%s; the keys read before stay in force", error)


def parse(path: Path) -> tuple[Key, ...]:
    """The keys of a file.

    Raises:
        ConfigError: unreadable, a line that is no key, an unknown scope, or no key at all.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a key file") from error
    keys = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = LINE.fullmatch(text)
        scopes = frozenset(match["scopes"].split(",")) if match else frozenset({""})
        if match is None or scopes - set(SCOPES):
            known = ",".join(SCOPES)
            raise ConfigError(f"{path}, line {number}: not `NAME SCOPES SHA256` with {known}")
        keys.append(Key(match["name"], scopes, match["digest"]))
    if not keys:
        raise ConfigError(f"{path}: no keys in it; add one with `clonewave serve --add-key NAME`")
    return tuple(keys)


def add_key(path: PathLike, name: str, scopes: str) -> str:
    """Make a key, add its hash to the file (made if missing, for its owner only), and return it.

    Raises:
        ConfigError: a name or scope that cannot be used, or a file that holds something else.
    """
    path = Path(path)
    key = f"cw_{secrets.token_urlsafe(32)}"
    line = f"{name} {scopes} {hash_key(key)}"
    match = LINE.fullmatch(line)
    if match is None or set(match["scopes"].split(",")) - set(SCOPES):
        raise ConfigError(f"{name!r} with {scopes!r}: a name of letters, scopes of {SCOPES}")
    try:
        before = path.read_text("utf-8") if path.exists() else ""
        if before.strip():
            parse(path)
        with atomic_file(path) as file:
            os.fchmod(file.fileno(), 0o600)
            file.write((before.rstrip("\n") + "\n" + line + "\n").lstrip("\n").encode())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give a path that can be written") from error
    return key
