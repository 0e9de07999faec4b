"""Voices that a server keeps: SQLite for what is known of them, one safetensors file for each.

A voice is acknowledged only when it would survive a power cut: its file is synced and renamed into
place, then its row is committed (WAL, synchronous=FULL). A crash in between leaves a file without a
row, which `fsck` finds; never a row without its file. Several processes may use one folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import InputError, Unavailable, VoiceError
from engine.files import PathLike, read_bytes, sha256, sync_folder
from engine.serve.settings import Limits
from engine.voice import LIMIT_BYTES, Voice

SCHEMA = 1
NAME = re.compile(r"[\w][\w .-]{0,62}[\w.-]|[\w]")
ID = re.compile(r"v_[0-9a-f]{32}")
RESERVED = ("default",)  # the voice of the weights
SHARED = ""  # owner of voices that every key may use, and only the admin may change
TABLES = """
CREATE TABLE voices (
  id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, sha256 TEXT NOT NULL,
  created_at INTEGER NOT NULL, details TEXT NOT NULL, UNIQUE (owner, name)
) STRICT;
CREATE TABLE requests (
  owner TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, voice TEXT NOT NULL,
  at INTEGER NOT NULL, PRIMARY KEY (owner, key)
) STRICT;
CREATE TABLE deleted (id TEXT PRIMARY KEY, at INTEGER NOT NULL) STRICT;
"""


class VoiceMissing(VoiceError):
    """No such voice, or not one of this owner's: the text is the same for both."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no voice {name[:80]!r}; GET /v1/audio/voices lists yours")
        self.name = name

    def __reduce__(self) -> tuple[type[VoiceMissing], tuple[str]]:
        """For another process; an exception's default would give the message as the name."""
        return VoiceMissing, (self.name,)


class VoiceExists(VoiceError):
    """The owner has a voice of that name, or used the idempotency key for another request."""


class StoreFull(VoiceError):
    """The owner, or the store, has as many voices as allowed."""


class StoreUnavailable(Unavailable):
    """The disk or the database does not answer as it should; nothing was changed."""


@dataclass(frozen=True)
class Entry:
    """What the store knows of a voice. details: JSON: consent, quality, description, labels."""

    id: str
    owner: str
    name: str
    sha256: str
    created_at: int  # Unix seconds
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Idempotency:
    """A client's name for a request, and the hash of what it asked."""

    key: str
    digest: str


class VoiceStore:
    """The voices of one folder. Thread-safe; close it when done.

    Raises (on creation and from every method):
        StoreUnavailable: disk full, read-only, database damaged or locked for too long.
    """

    def __init__(self, folder: PathLike, limits: Limits | None = None) -> None:
        self.folder = Path(folder)
        self.limits = limits or Limits()
        self.voices = self.folder / "voices"
        self.quarantine = self.folder / "quarantine"
        self._lock = threading.RLock()
        with _unavailable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.voices.mkdir(exist_ok=True)
            self._users = open(self.folder / "lock", "w")  # noqa: SIM115: held while open
            alone = _take(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not alone:
                _take(self._users, fcntl.LOCK_SH)
            self._db = self._connect()
            if alone:  # others' unfinished files are not ours to sweep
                self.fsck_report = self.fsck()
                _take(self._users, fcntl.LOCK_SH)

    fsck_report: Mapping[str, int] = {}

    def _connect(self) -> sqlite3.Connection:
        path = self.folder / "voices.sqlite"
        db = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")  # NORMAL may lose acknowledged rows on a power cut
        with _transaction(db):
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in TABLES.split(";")[:-1]:
                    db.execute(statement)
                db.execute(f"PRAGMA user_version={SCHEMA}")
        if version > SCHEMA:
            raise StoreUnavailable(f"{path}: of a newer clonewave (version {version}); upgrade")
        sync_folder(self.folder)  # the database's own name
        return db

    # ---- reading --------------------------------------------------------------------------------

    def find(self, name: str, owner: str) -> Entry:
        """The voice with that id or name which `owner` may use: its own before a shared one.

        Raises:
            VoiceMissing: there is none.
        """
        query = (
            "SELECT * FROM voices WHERE owner IN (?, ?) AND (id = ? OR name = ?) "
            "ORDER BY id = ? DESC, owner = ? LIMIT 1"
        )
        name = name if _is_text(name) else ""
        rows = self._rows(query, (owner, SHARED, name, name, name, SHARED))
        if not rows:
            raise VoiceMissing(name)
        return rows[0]

    def entries(self, owner: str | None = None) -> list[Entry]:
        """All that `owner` may use, oldest first; None: those of every owner."""
        if owner is None:
            return self._rows("SELECT * FROM voices ORDER BY created_at, rowid", ())
        query = "SELECT * FROM voices WHERE owner IN (?, ?) ORDER BY created_at, rowid"
        return self._rows(query, (owner, SHARED))

    def count(self) -> int:
        """How many voices there are, of all owners."""
        with self._lock, _unavailable(self.folder):
            return self._db.execute("SELECT count(*) FROM voices").fetchone()[0]

    def data(self, entry: Entry) -> bytes:
        """The voice file, checked against its hash.

        Raises:
            VoiceMissing: deleted meanwhile. StoreUnavailable: the file was changed or lost.
        """
        path = self.path(entry.id)
        with _unavailable(path):
            try:
                data = read_bytes(path, LIMIT_BYTES)
            except FileNotFoundError as error:
                self.find(entry.id, entry.owner)  # raises if it was deleted meanwhile
                raise StoreUnavailable(f"{entry.id}: its file is gone; restore it") from error
        if sha256(path) != entry.sha256:
            raise StoreUnavailable(f"{entry.id}: its file was changed; restore it")
        return data

    def load(self, entry: Entry, encoder: str | None = None) -> Voice:
        """The Voice itself; see `data` and `Voice.load` for the errors."""
        self.data(entry)
        return Voice.load(self.path(entry.id), encoder)

    def path(self, id: str) -> Path:
        """Where the file of a voice lies. Only ids that we made reach the file system."""
        if not ID.fullmatch(id):
            raise VoiceMissing(id)
        return self.voices / f"{id}.safetensors"

    def replay(self, owner: str, idempotency: Idempotency) -> Entry | None:
        """The voice that this very request made before, or None.

        Raises:
            VoiceExists: the key was used for another request.
        """
        query = "SELECT digest, voice FROM requests WHERE owner = ? AND key = ?"
        with self._lock, _unavailable(self.folder):
            row = self._db.execute(query, (owner, idempotency.key)).fetchone()
        if row is None:
            return None
        if row[0] != idempotency.digest:
            raise VoiceExists("this Idempotency-Key was used for another request; use a new one")
        return self.find(row[1], owner)

    # ---- writing --------------------------------------------------------------------------------

    def add(
        self, voice: Voice, *, owner: str, name: str, details: Mapping[str, Any] | None = None,
        idempotency: Idempotency | None = None,
    ) -> Entry:  # fmt: skip
        """Keep a voice. When this returns, the voice survives a crash or a power cut.

        Raises:
            InputError: see `check_name`.
            VoiceExists, StoreFull: see there.
        """
        check_name(name)
        id = f"v_{secrets.token_hex(16)}"
        with self._lock, _unavailable(self.folder):
            self._check_room(owner, name)
            voice.save(self.path(id))  # synced, renamed, folder synced
            entry = Entry(
                id, owner, name, sha256(self.path(id)), int(time.time()), dict(details or {})
            )
            try:
                with _transaction(self._db):
                    self._check_room(owner, name)  # another process may have been faster
                    self._db.execute("INSERT INTO voices VALUES (?, ?, ?, ?, ?, ?)", _row(entry))
                    if idempotency is not None:
                        values = (owner, idempotency.key, idempotency.digest, id, entry.created_at)
                        self._db.execute("INSERT INTO requests VALUES (?, ?, ?, ?, ?)", values)
            except (VoiceError, sqlite3.IntegrityError) as error:  # refused: surely not committed
                self.path(id).unlink(missing_ok=True)
                if isinstance(error, VoiceError):
                    raise
                raise VoiceExists("the same Idempotency-Key is at work; ask again") from error
        return entry

    def _check_room(self, owner: str, name: str) -> None:
        count = "SELECT count(*), coalesce(sum(owner = ?), 0) FROM voices"
        total, own = self._db.execute(count, (owner,)).fetchone()
        if total >= self.limits.voices or own >= self.limits.voices_per_key:
            raise StoreFull(f"{own} voices of {self.limits.voices_per_key} allowed; delete some")
        taken = "SELECT 1 FROM voices WHERE owner = ? AND name = ?"
        if self._db.execute(taken, (owner, name)).fetchone():
            raise VoiceExists(f"a voice named {name!r} exists; delete it or give another name")

    def delete(self, entry: Entry) -> None:
        """Forget a voice; its name may be used again.

        Raises:
            VoiceMissing: deleted already.
        """
        with self._lock, _unavailable(self.folder):
            with _transaction(self._db):
                gone = self._db.execute("DELETE FROM voices WHERE id = ?", (entry.id,)).rowcount
                if not gone:
                    raise VoiceMissing(entry.id)
                self._db.execute("DELETE FROM requests WHERE voice = ?", (entry.id,))
                mark = "INSERT OR REPLACE INTO deleted VALUES (?, ?)"
                self._db.execute(mark, (entry.id, int(time.time())))
            self.path(entry.id).unlink(missing_ok=True)
            sync_folder(self.voices)

    def backup(self, target: PathLike) -> None:
        """A copy of the database that is whole, whatever is being written meanwhile."""
        with self._lock, _unavailable(self.folder), sqlite3.connect(target) as copy:
            self._db.backup(copy)
        copy.close()

    def close(self) -> None:
        with self._lock:
            self._db.close()
            self._users.close()

    def __enter__(self) -> VoiceStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- after a crash --------------------------------------------------------------------------

    def fsck(self) -> Mapping[str, int]:
        """Make files and rows agree; only when nobody else has the store open.

        Unfinished files and files of deleted voices are removed; a file without a row and a file
        that does not match its hash are moved to `quarantine/`, never removed.

        Returns:
            How many: voices, unfinished, deleted, orphans, damaged (files), missing (rows kept).
        """
        rows = {entry.id: entry for entry in self.entries()}
        deleted = {id for (id,) in self._db.execute("SELECT id FROM deleted")}
        counts = dict.fromkeys(("unfinished", "deleted", "orphans", "damaged", "missing"), 0)
        for path in sorted(self.voices.iterdir()):
            id = path.name.removesuffix(".safetensors")
            if not path.is_file():
                continue
            if path.name.endswith(".tmp"):
                counts["unfinished"] += 1
                path.unlink()
            elif id in deleted and id not in rows:
                counts["deleted"] += 1
                path.unlink()
            elif id not in rows or sha256(path) != rows[id].sha256:
                counts["damaged" if id in rows else "orphans"] += 1
                self.quarantine.mkdir(exist_ok=True)
                os.replace(path, self.quarantine / path.name)
        counts["missing"] = sum(not self.path(id).exists() for id in rows)
        sync_folder(self.voices)
        return {"voices": len(rows), **counts}

    def _rows(self, query: str, values: tuple[Any, ...]) -> list[Entry]:
        with self._lock, _unavailable(self.folder):
            rows = self._db.execute(query, values).fetchall()
        return [Entry(*fixed, json.loads(details)) for *fixed, details in rows]  # type: ignore[call-arg]


def check_name(name: str) -> None:
    """Raise InputError for a name that a voice may not have."""
    if not NAME.fullmatch(name) or ID.fullmatch(name) or name in RESERVED:
        allowed = f"1 to 64 letters, digits, spaces, _ . or -, and none of {list(RESERVED)}"
        raise InputError(f"name {name[:80]!r}: {allowed}")


def _row(entry: Entry) -> tuple[Any, ...]:
    details = json.dumps(dict(entry.details), ensure_ascii=True)
    return entry.id, entry.owner, entry.name, entry.sha256, entry.created_at, details


def _is_text(name: str) -> bool:
    """SQLite takes no half surrogate pairs; a NUL would end the text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in name


def _take(file: Any, how: int) -> bool:
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def _unavailable(what: Path) -> Iterator[None]:
    """The errors of disk and database as one of ours, that says what to look at."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise VoiceExists("exists already; give another name") from error
    except sqlite3.DatabaseError as error:
        advice = "see its disk; `clonewave voices import` takes the files of a store again"
        raise StoreUnavailable(f"{what}: the voice database: {error}; {advice}") from error
    except OSError as error:
        raise StoreUnavailable(f"{what}: {error.strerror or error}; see its disk") from error
