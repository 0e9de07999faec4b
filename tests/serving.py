"""A server's application for tests: a tiny engine clones, a fake device speaks."""

import asyncio
import contextlib
import io
import socket
import threading
import time
from dataclasses import replace

import httpx
import numpy as np
import soundfile
from fake_device import FakeDevice
from sounds import talk
from tiny import make_weights

from engine import Engine, Voice
from engine.serve.app import build_app
from engine.serve.scheduler import Scheduler
from engine.serve.server import make_server
from engine.serve.settings import Limits, Settings

CONSENT = "I am the speaker and I agree"


class Speaker(FakeDevice):
    """The fake device, taking Voices and saying its numbers at 24 kHz."""

    sample_rate, gap = 24_000, np.zeros(2400, np.float32)

    def speaker(self, voice):
        return round(float(abs(voice.embedding[0])), 2)


class Slow(Speaker):
    """A few ms a step, so that a sentence takes a while."""

    def step(self, streams, frames):
        time.sleep(0.004)
        return super().step(streams, frames)


def make_engine(folder):
    """A tiny engine in `folder` that has a default voice."""
    engine = Engine(make_weights(folder))
    Voice([0.5] * 16, (1.0,), engine.encoder_hash).save(folder / "voice.safetensors")
    return engine


def make_app(engine, folder, device=None, queue=None, **options):
    """(app, device); close it with `close`."""
    device = device or Speaker()
    options.setdefault("limits", Limits(requests_per_minute=0))
    settings = Settings(voices=folder, **options)
    app = build_app(engine, Scheduler(device, queue), settings)
    assert app.state.service.scheduler.wait_ready()
    return app, device


def close(app):
    app.state.service.scheduler.close(drain=False)
    app.state.service.close()


def client(app, **options):
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://testserver", **options)


def call(app, method, url, **options):
    """One request, without a network; the response."""

    async def go():
        async with client(app) as http:
            return await http.request(method, url, **options)

    return asyncio.run(go())


def recording(seconds=3.0, format="WAV", subtype="PCM_16", rate=24_000, seed=0):
    """Bytes of a file that can be cloned."""
    file = io.BytesIO()
    soundfile.write(file, talk(seconds, rate, seed=seed), rate, subtype, format=format)
    return file.getvalue()


def upload(name="Jane", data=None, consent=CONSENT):
    """Arguments of a request that clones."""
    files = {"audio_sample": ("me.wav", recording() if data is None else data, "audio/wav")}
    return {"data": {"name": name, "consent": consent}, "files": files}


@contextlib.contextmanager
def running(app, **changes):
    """The application behind a real socket; gives its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = replace(app.state.service.settings, port=port, **changes)
    app.state.service.settings = settings
    app.state.service.limits = settings.limits
    server = make_server(app, settings)
    server.capture_signals = contextlib.nullcontext  # not the main thread
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield port
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def wait_until(true, seconds=10.0):
    """Wait for a condition; fails after so long."""
    event = threading.Event()
    for _ in range(round(seconds / 0.01)):
        if true():
            return
        event.wait(0.01)
    raise AssertionError("it did not happen in time")
