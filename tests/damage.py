"""Files and texts meant to break what reads them."""

import gzip
import io
import random
import struct

import numpy as np
import soundfile
from sounds import talk

KINDS = (
    ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "PCM_U8"), ("WAVEX", "PCM_32"),
    ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
)  # fmt: skip
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF)


def sound(format, subtype, seconds=1.2, rate=16_000, channels=1):
    """Bytes of a short recording."""
    samples = np.repeat(talk(seconds, rate)[:, None], channels, axis=1)
    file = io.BytesIO()
    soundfile.write(file, samples, rate, subtype, format=format)
    return file.getvalue()


def seeds():
    """One whole file of each kind that is taken."""
    return [sound(format, subtype) for format, subtype in KINDS]


def damaged(data, rng: random.Random, other=b""):
    """`data` with a few wounds: bits, bytes, lengths, holes, repeats, cuts, pieces of another."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(min(len(out), rng.choice((64, 512, len(out)))) or 1)
        kind = rng.randrange(7)
        if kind == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and out:
            out[at] = rng.randrange(256)
        elif kind == 2:
            value, width = rng.choice(INTERESTING), rng.choice("<I >I <H >H".split())
            out[at : at + struct.calcsize(width)] = struct.pack(
                width, value & (0xFFFF if "H" in width else 0xFFFF_FFFF)
            )
        elif kind == 3:
            del out[at : at + rng.choice((1, 4, 100, 4000))]
        elif kind == 4:
            out[at:at] = out[at : at + rng.choice((1, 4, 100))] * rng.choice((1, 2, 20))
        elif kind == 5:
            del out[rng.randrange(len(out) + 1) :]
        else:
            begin = rng.randrange(len(other) + 1)
            out[at : at + 50] = other[begin : begin + rng.choice((1, 16, 200))]
    return bytes(out)


def bombs():
    """(name, bytes): small or odd files that would cost memory or time, made by hand."""
    wav, flac = sound("WAV", "PCM_16"), sound("FLAC", "PCM_16")
    zeros = io.BytesIO()
    soundfile.write(zeros, np.zeros(4_000_000), 8_000, "PCM_16", format="FLAC")  # 500 s
    opus = io.BytesIO()
    soundfile.write(opus, np.zeros(48_000 * 90), 48_000, "OPUS", format="OGG")
    wide = io.BytesIO()
    soundfile.write(wide, np.zeros((96_000, 8)), 96_000, "PCM_16", format="FLAC")
    yield "eight channels", wide.getvalue()
    yield "silence of 500 s in FLAC", zeros.getvalue()
    yield "silence of 90 s in Opus", opus.getvalue()
    yield "gzip of a WAV", gzip.compress(wav)
    yield "zip header", b"PK\x03\x04" + wav
    yield "nothing", b""
    yield "one byte", b"R"
    yield "RIFF only", b"RIFF\xff\xff\xff\xffWAVE"
    yield "zeros", bytes(100_000)
    for rate in (0, 1, 7_999, 96_001, 0x7FFF_FFFF, 0xFFFF_FFFF):  # claims to be short, or long
        yield f"WAV at {rate} Hz", _patched(wav, 24, "<I", rate)
    for channels in (0, 3, 8, 255, 1024, 0xFFFF):
        yield f"WAV of {channels} channels", _patched(wav, 22, "<H", channels)
    for bits in (0, 64, 0xFFFF):
        yield f"WAV of {bits} bits", _patched(wav, 34, "<H", bits)
    for tag in (0, 2, 6, 7, 0x11, 0x31, 0x50, 0x55, 0x161, 0xFFFE, 0xFFFF):  # ADPCM, GSM, ...
        yield f"WAV of codec {tag:#x}", _patched(wav, 20, "<H", tag)
    for container, subtype in (("AIFF", "PCM_16"), ("CAF", "PCM_16"), ("AU", "ULAW"),
                               ("W64", "PCM_16"), ("AVR", "PCM_16"), ("WAV", "IMA_ADPCM"),
                               ("WAV", "MS_ADPCM"), ("WAV", "GSM610"), ("WAV", "ULAW"),
                               ("WAV", "DOUBLE"), ("VOC", "PCM_16"), ("RF64",
    "PCM_16")):  # fmt: skip
        yield f"{container} {subtype}", sound(container, subtype, rate=8_000)
    for value in (np.nan, np.inf, 1e30):
        file = io.BytesIO()
        soundfile.write(file, np.full(32_000, value), 16_000, "FLOAT", format="WAV")
        yield f"samples of {value}", file.getvalue()
    yield "WAV cut in its header", wav[:40]
    yield "WAV without samples", wav[:44]
    yield "FLAC cut after its header", flac[:100]
    yield "ID3 of 256 MB", b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + bytes(1000)
    yield "MP3 syncs without frames", b"\xff\xfb\x90\x64" * 20_000
    yield "Ogg pages without packets", b"OggS\x00\x02" + bytes(20) + b"\x01\x00" * 20_000


def _patched(data, at, layout, value):
    out = bytearray(data)
    struct.pack_into(layout, out, at, value)
    return bytes(out)


ALPHABETS = (
    "abc def, ghi. JKL! 123 4.5 $6 7%",
    "\u202e\u200b\u200f\ufeff\u2066 אבגد ", "\0\x01\x1b\x7f\x85\r\n\t",
    "👩‍👩‍👧🏽‍♀️🇬🇧", "àéîõü ßœ", "漢字かな한글",
    "<>&{}[]()/\\%|~^`'\"", "\u0301\u0302\u0489", "𝔞𝕓𝖈①½Ⅳ",
)
PIECES = (
    "<speak><break time='999999s'/></speak>", "<!DOCTYPE a [<!ENTITY b 'c'>]>&b;", "{HH AH0 L OW1}",
    "{", "}}", " / ", " % ", "http://a.b/c?d=e#f", "1" * 400, "9" * 20 + "th",
    "$" * 50, "1/2/3/4/5",
    "12:34:56:78", "A.B.C.D.", "...", "?!?!", "é" * 100, "Mr. Dr. St. ",
    "\n\n\n", "-" * 100, "a" * 300,
    "../../etc/passwd", "%s%n%x", "${jndi:ldap://x}",
    "'; DROP TABLE voices; --", "\ud800", "\ud83d",
    "1e999", "-0.0", "½" * 30, "MCMXCIV", "1990s 80's 3-4pm 1,2,3,,4", "10^10^10", "∞≠≈√π",
)  # fmt: skip


def hostile_text(rng: random.Random, limit=4096):
    """Up to `limit` characters that no front end expects."""
    parts = []
    for _ in range(rng.choice((1, 2, 5, 20))):
        if rng.random() < 0.4:
            parts.append(rng.choice(PIECES))
        else:
            alphabet = rng.choice(ALPHABETS)
            parts.append("".join(rng.choices(alphabet, k=rng.choice((1, 5, 40)))))
    if rng.random() < 0.02:
        parts = [rng.choice(parts) * 500]
    return "".join(parts)[:limit]
