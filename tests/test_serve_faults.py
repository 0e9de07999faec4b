"""What breaks under a server's feet: it says so, loses nothing, and goes on when it is over."""

import contextlib
import errno
import os
import signal
import socket
import sqlite3

import damage
import httpx
import pytest
from serving import Slow, call, close, make_app, make_engine, running, upload, wait_until

from engine.serve import decode
from engine.serve.decode import AudioRefused, Decoder
from engine.serve.settings import DecodeLimits, Limits

SPEECH = {"input": "Still here, and speaking.", "response_format": "pcm", "seed": 1}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return make_engine(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def app(engine, tmp_path):
    app, _ = make_app(engine, tmp_path / "voices")
    yield app
    close(app)


def assert_refused_but_speaking(app):
    """An upload is a 503 that names no path; what needs no store goes on."""
    refused = call(app, "POST", "/v1/audio/voices", **upload("Late"))
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
    assert "/" not in refused.json()["error"]["message"]
    spoken = call(app, "POST", "/v1/audio/speech", json=SPEECH)
    assert spoken.status_code == 200 and len(spoken.content) > 500


def assert_over(app):
    """The same upload works now, and what was acknowledged before is there."""
    assert call(app, "POST", "/v1/audio/voices", **upload("Late")).status_code == 201
    names = {v["name"] for v in call(app, "GET", "/v1/audio/voices").json()["voices"]}
    assert names == {"default", "Early", "Late"}


def test_a_locked_database_is_unavailable_until_it_is_free(app, tmp_path):
    assert call(app, "POST", "/v1/audio/voices", **upload("Early")).status_code == 201
    app.state.service.store._db.execute("PRAGMA busy_timeout=50")  # 5 s otherwise
    other = sqlite3.connect(tmp_path / "voices" / "voices.sqlite", isolation_level=None)
    with contextlib.closing(other):
        other.execute("BEGIN IMMEDIATE")
        assert_refused_but_speaking(app)
        other.execute("ROLLBACK")
    assert_over(app)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_that_takes_nothing_is_unavailable_until_it_does(app, monkeypatch, error):
    assert call(app, "POST", "/v1/audio/voices", **upload("Early")).status_code == 201

    def fail(*_):
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        assert_refused_but_speaking(app)
    assert_over(app)


def test_a_decoder_that_stands_still_is_replaced(monkeypatch):
    monkeypatch.setattr(decode, "GRACE_S", 0.2)
    killed, sound = [], damage.sound("WAV", "PCM_16")
    limits = DecodeLimits(wall_s=5.0)
    with Decoder(limits, workers=1, on_kill=lambda: killed.append(1)) as decoder:
        decoder.decode(sound)
        os.kill(decoder._workers[0]._process.pid, signal.SIGSTOP)
        decoder.limits = DecodeLimits(wall_s=0.2)
        with pytest.raises(AudioRefused):
            decoder.decode(sound)
        assert killed == [1]
        monkeypatch.setattr(decode, "GRACE_S", 20.0)
        decoder.limits = limits
        assert len(decoder.decode(sound)[0])


def test_more_connections_than_allowed_are_dropped_and_the_others_do_not_notice(engine, tmp_path):
    limits = Limits(requests_per_minute=0, connections=8)
    app, device = make_app(engine, tmp_path / "voices", Slow(), limits=limits)
    with running(app) as port, contextlib.ExitStack() as held:
        url = f"http://127.0.0.1:{port}/v1/audio/speech"
        long = {**SPEECH, "input": "One sentence of a few words. " * 8}
        whole = httpx.post(url, json=long, timeout=30).content
        with httpx.stream("POST", url, json=long, timeout=30) as answer:
            dropped = 0
            for _ in range(40):
                idle = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
                idle.settimeout(0.2)
                try:
                    dropped += not idle.recv(1)
                except ConnectionError:
                    dropped += 1
                except TimeoutError:  # allowed
                    pass
            assert b"".join(answer.iter_raw()) == whole
        held.close()
        wait_until(lambda: ready(url), 20)
        assert httpx.post(url, json=long, timeout=30).content == whole
    assert dropped >= 30 and not device.streams


def ready(url):
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url.replace("v1/audio/speech", "readyz")).status_code == 200
