"""manifest.sqlite of a bulk run: every line that was asked for, and what became of it.

A line is done when its row says so, and its row says so only when its file is whole and on disk. A
run that dies at any moment leaves lines that are done and lines that are not, nothing between.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ConfigError, InputError
from engine.synthesize import check

MANIFEST = "manifest.sqlite"
FIELDS = {"id", "text", "voice", "speed", "seed"}
ID = re.compile(r"[\w-][\w.-]{0,127}")
LINE_BYTES = 1 << 20
SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS lines (
  id TEXT PRIMARY KEY,
  line INTEGER NOT NULL,            -- in the input, from 1
  request TEXT NOT NULL,            -- JSON: text, voice, speed, seed
  status TEXT NOT NULL,             -- waiting, done or failed
  file TEXT, sha256 TEXT,           -- beside this manifest
  seconds REAL, words TEXT, warnings TEXT,  -- of the speech; words: JSON [[word, start, end], ..]
  error TEXT
);
CREATE INDEX IF NOT EXISTS open_lines ON lines (status, line);
"""


@dataclass(frozen=True)
class Line:
    """One line of the input."""

    id: str
    number: int
    text: str
    voice: str | None = None
    speed: float = 1.0
    seed: int = 0

    @property
    def request(self) -> str:
        """What decides the speech, for comparing runs."""
        asked = {"text": self.text, "voice": self.voice, "speed": self.speed, "seed": self.seed}
        return json.dumps(asked, sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True)
class Outcome:
    """What became of a line: `error`, or the rest."""

    file: str | None = None
    sha256: str | None = None
    seconds: float = 0.0
    words: tuple[tuple[str, float, float], ...] = ()
    warnings: tuple[str, ...] = ()
    error: str | None = None


def read_lines(path: Path) -> Iterator[Line]:
    """Lines of a JSONL file; empty ones are left out.

    Each is an object with "text" and, if wanted, "id" (names the file; default: the line's number),
    "voice" (a file, relative to the JSONL file), "speed" and "seed"; or just a string.
    Raises:
        InputError: a line that is no such thing; the message names it.
    """
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(iter(lambda: file.readline(LINE_BYTES + 1), b""), 1):
                if len(raw) > LINE_BYTES:
                    raise InputError(f"{path}:{number}: longer than {LINE_BYTES:,} bytes")
                if raw.strip():
                    yield _line(f"{path}:{number}", number, raw)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def _line(where: str, number: int, raw: bytes) -> Line:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {error}") from error
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise InputError(f'{where}: give {{"text": "..."}} or a string')
    if unknown := sorted(value.keys() - FIELDS):
        raise InputError(f"{where}: unknown {unknown}, known: {sorted(FIELDS)}")
    id, voice = str(value.get("id", f"{number:06d}")), value.get("voice")
    if not ID.fullmatch(id):
        raise InputError(f"{where}: id {id[:80]!r}: letters, digits, _ - and . (not first), to 128")
    if voice is not None and not isinstance(voice, str):
        raise InputError(f"{where}: voice must be the name of a file")
    speed, seed = value.get("speed", 1.0), value.get("seed", 0)
    if isinstance(speed, bool) or not isinstance(speed, (int, float)) or type(seed) is not int:
        raise InputError(f"{where}: speed must be a number and seed a whole number")
    try:
        check(speed, seed)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return Line(id, number, value["text"], voice, float(speed), seed)


class Manifest:
    """The manifest in `folder`, for one process at a time."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError if another process is at work there."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(folder / MANIFEST, isolation_level=None, timeout=1)
        try:
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")  # kept until we end, however we do
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(SCHEMA)
        except sqlite3.OperationalError as error:
            self._db.close()
            raise ConfigError(f"{folder}: another run is at work here ({error})") from error
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise ConfigError(f"{folder / MANIFEST}: not a manifest ({error})") from error
        for left in folder.glob(".*.tmp"):  # of files that a kill cut short
            with suppress(OSError):
                left.unlink()

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @property
    def empty(self) -> bool:
        return self._db.execute("SELECT 1 FROM lines LIMIT 1").fetchone() is None

    def clear(self) -> None:
        """Forget everything; files stay until they are written again."""
        self._db.executescript("BEGIN; DELETE FROM lines; DELETE FROM settings; COMMIT;")

    def same_settings(self, settings: dict[str, str]) -> list[str]:
        """Keep them, or name those that differ from what the run began with."""
        kept = dict(self._db.execute("SELECT name, value FROM settings"))
        if not kept:
            self._db.executemany("INSERT INTO settings VALUES (?, ?)", settings.items())
        return [name for name, value in settings.items() if kept.get(name, value) != value]

    def plan(self, lines: Iterable[Line]) -> int:
        """Take up lines; what was done and is asked for in the same words stays done.

        Returns their number. Raises InputError for an id that comes twice; then nothing changed.
        """
        seen: dict[str, int] = {}
        with self._transaction():
            for line in lines:
                if line.id in seen:
                    raise InputError(f"id {line.id!r} in line {seen[line.id]} and {line.number}")
                seen[line.id] = line.number
                self._db.execute(
                    "INSERT INTO lines (id, line, request, status) VALUES (?, ?, ?, 'waiting') "
                    "ON CONFLICT (id) DO UPDATE SET line = excluded.line, "
                    "status = iif(request = excluded.request AND status = 'done', 'done', "
                    "'waiting'), error = NULL, request = excluded.request",
                    (line.id, line.number, line.request),
                )
            self._db.execute("CREATE TEMP TABLE asked (id TEXT PRIMARY KEY)")
            self._db.executemany("INSERT INTO asked VALUES (?)", ((id,) for id in seen))
            self._db.execute("DELETE FROM lines WHERE id NOT IN asked")
            self._db.execute("DROP TABLE asked")
            for id, file in self._db.execute("SELECT id, file FROM lines WHERE status = 'done'"):
                if not (self.folder / file).is_file():  # someone took it away
                    self._db.execute("UPDATE lines SET status = 'waiting' WHERE id = ?", (id,))
        return len(seen)

    def waiting(self) -> Iterator[Line]:
        """Lines that are not done, in order."""
        query = "SELECT id, line, request FROM lines WHERE status = 'waiting' ORDER BY line"
        for id, number, request in self._db.execute(query).fetchall():
            yield Line(id, number, **json.loads(request))

    def record(self, line: Line, outcome: Outcome) -> None:
        """What became of a line; on disk when this returns."""
        status = "failed" if outcome.error else "done"
        self._db.execute(
            "UPDATE lines SET status = ?, file = ?, sha256 = ?, seconds = ?, words = ?, "
            "warnings = ?, error = ? WHERE id = ?",
            (status, outcome.file, outcome.sha256, outcome.seconds, json.dumps(outcome.words),
             json.dumps(outcome.warnings), outcome.error, line.id),
        )  # fmt: skip

    def counts(self) -> dict[str, int]:
        """Lines by status."""
        return dict(self._db.execute("SELECT status, count(*) FROM lines GROUP BY status"))

    def rows(self, status: str) -> list[dict[str, Any]]:
        """Everything about the lines of a status, in order."""
        cursor = self._db.execute("SELECT * FROM lines WHERE status = ? ORDER BY line", (status,))
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db

    def __enter__(self) -> None:
        self.db.execute("BEGIN IMMEDIATE")

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.db.execute("COMMIT" if error is None else "ROLLBACK")
