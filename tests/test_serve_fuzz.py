"""Damaged audio through the decoder's process and hostile texts through the front end: few here,
100,000 and 20,000 in `make fuzz`."""

import os
import random

import damage
import numpy as np
import pytest

from engine.errors import InputError
from engine.serve.decode import AudioRefused, Decoder
from engine.serve.settings import DecodeLimits
from engine.text import front_end


def _name(value):
    return value if isinstance(value, str) else ""


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as made:
        yield made


@pytest.mark.parametrize(("format", "subtype"), damage.KINDS)
def test_what_is_allowed_decodes(decoder, format, subtype):
    samples, rate = decoder.decode(damage.sound(format, subtype, channels=2))
    assert abs(len(samples) / rate - 1.2) < 0.1 and samples.dtype == np.float32
    assert 0.05 < np.abs(samples).max() <= 1.1


@pytest.mark.parametrize(("name", "data"), list(damage.bombs()), ids=_name)
def test_bombs_are_refused(decoder, name, data):
    with pytest.raises(AudioRefused) as refused:
        decoder.decode(data)
    assert refused.value.status in (413, 415, 422)


def try_one(decoder: Decoder, data: bytes) -> str:
    """How a file ended: "decoded", or the code of its refusal. Anything else raises."""
    try:
        samples, rate = decoder.decode(data)
    except AudioRefused as refused:
        assert refused.status in (413, 415, 422)
        return refused.code
    assert np.isfinite(samples).all() and np.abs(samples).max() <= 16
    assert rate <= len(samples) <= 60 * rate
    return "decoded"


def test_damaged_files_are_decoded_or_refused(decoder):
    rng, whole = random.Random(7), damage.seeds()
    ends = {
        try_one(decoder, damage.damaged(rng.choice(whole), rng, rng.choice(whole)))
        for _ in range(150)
    }
    assert "decoded" in ends and len(ends) > 1


def test_a_decoder_that_hangs_or_dies_is_replaced(decoder):
    killed = []
    hasty = Decoder(DecodeLimits(wall_s=0.0), workers=1, on_kill=lambda: killed.append(1))
    with hasty:
        with pytest.raises(AudioRefused, match="long"):
            hasty.decode(damage.sound("WAV", "PCM_16"))
        assert killed == [1]
        hasty.limits = DecodeLimits()
        for _ in range(2):
            assert try_one(hasty, damage.sound("WAV", "PCM_16")) == "decoded"
            hasty._workers[0]._process.kill()
            hasty._workers[0]._process.wait()
    assert try_one(decoder, damage.sound("WAV", "PCM_16")) == "decoded"


def test_the_decoding_process_gets_no_file_no_socket_and_little_memory():
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            import socket
            from dataclasses import asdict

            from engine.serve import decode_child

            decode_child.lock_in(asdict(DecodeLimits()))
            for attempt in (lambda: open("/dev/null"), socket.socket, lambda: bytes(1 << 34)):
                try:
                    attempt()
                    os._exit(2)
                except (OSError, MemoryError):
                    status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def speak_or_refuse(text: str) -> None:
    """The front end's sentences, or InputError; anything else raises."""
    try:
        for sentence in front_end(text):
            assert sentence.symbols()
    except InputError as error:
        assert str(error)


def test_hostile_texts_are_spoken_or_refused():
    rng = random.Random(3)
    for _ in range(150):
        speak_or_refuse(damage.hostile_text(rng))
