"""What a server allows: every limit in one place, all configurable. Sizes in bytes, times in s."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Limits:
    """Bounds on one request and on all of them together."""

    body_bytes: int = 25 * MIB  # counted while it arrives
    upload_files: int = 8
    form_fields: int = 20
    field_bytes: int = 64 << 10
    text_chars: int = 4096
    batch_items: int = 64
    header_s: float = 5.0  # for a request's headers to arrive
    body_idle_s: float = 10.0  # between two pieces of a body
    body_total_s: float = 120.0
    keep_alive_s: float = 10.0
    write_stall_s: float = 10.0  # a reader that takes nothing for so long is dropped
    requests: int = 256  # in flight
    connections: int = 640  # beyond them, new ones are dropped; beyond 2 * requests, refused
    requests_per_minute: int = 60  # of one key; 0 = no limit
    voices: int = 10_000
    voices_per_key: int = 1_000


@dataclass(frozen=True)
class DecodeLimits:
    """Bounds on one uploaded recording, enforced in the process that decodes it."""

    min_s: float = 1.0
    max_s: float = 60.0
    min_rate: int = 8_000  # Hz
    max_rate: int = 96_000
    channels: int = 2
    decoded_bytes: int = 64 * MIB  # float32, all channels, counted while decoding
    cpu_s: int = 5
    wall_s: float = 5.5
    memory_bytes: int = 512 * MIB  # address space


@dataclass(frozen=True)
class Settings:
    """How one server runs. `clonewave serve --help` explains each."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key_file: Path | None = None
    insecure: bool = False
    voices: Path | None = None  # folder of the voice store; None: `default_voices()`
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0  # 0: no metrics listener
    wyoming_host: str = "127.0.0.1"
    wyoming_port: int = 0  # 0: no Wyoming listener
    drain_lag_s: float = 5.0  # a balancer needs time to see that we are not ready
    drain_s: float = 30.0  # for requests in flight
    limits: Limits = field(default_factory=Limits)
    decode: DecodeLimits = field(default_factory=DecodeLimits)

    @property
    def loopback(self) -> bool:
        return self.host in LOOPBACK

    @property
    def open_to_all(self) -> bool:
        """No keys: whoever reaches the port may do everything."""
        return self.api_key_file is None


def default_voices() -> Path:
    """Folder of the voice store of this user."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "clonewave" / "voices"
