"""How long audio files say they are, where libsndfile believes or guesses too much."""

from __future__ import annotations

import io
from typing import IO

MARKS = (b"Xing", b"Info", b"VBRI")  # of an MP3's first frame, which holds its length and no sound

UNKNOWN = 0x7FFF_FFFF_FFFF_FFFF  # libsndfile's SF_COUNT_MAX


def ends_early(file: IO[bytes]) -> bool:
    """True if a RIFF or Ogg file stops before its own end; libsndfile reads these silently."""
    file.seek(0)
    head = file.read(12)
    size = file.seek(0, io.SEEK_END)
    if head[:4] == b"RIFF":
        promised = int.from_bytes(head[4:8], "little") + 8
        return size + 1 < promised < 0x7FFF_0000  # larger: a recorder that streamed, size unknown
    if head[:4] == b"OggS":
        file.seek(max(0, size - 65_536))  # a page is at most 65,307 bytes
        tail = file.read(65_536)
        flags = tail[tail.rfind(b"OggS") :][5:6]
        return not flags or not flags[0] & 4  # 4: last page of the stream
    return False


def promised_frames(file: IO[bytes], format: str, told: int) -> int:
    """Frames that the file announces, of what libsndfile told; 0 where it announces none.

    Of a stream that was kept, libsndfile tells the largest number there is (FLAC), or a guess from
    the file's size, tags included (MP3).
    """
    if format != "MP3":
        return told if told < UNKNOWN else 0
    file.seek(0)
    head = file.read(1 << 16)
    return told if any(mark in head for mark in MARKS) else 0
