"""Programs that nobody here wrote, against one server with the shipped voice model."""

import asyncio
import base64
import io
import json
import shutil
import socket
import subprocess

import httpx
import numpy as np
import openai
import pytest
from serving import CONSENT, close, running

from engine import Engine, audio
from engine.audio import pcm16
from engine.engine import DEFAULT_WEIGHTS
from engine.serve.app import build_app
from engine.serve.settings import Limits, Settings

pytest.importorskip("wyoming")
from wyoming.client import AsyncTcpClient
from wyoming.info import Describe, Info
from wyoming.tts import Synthesize, SynthesizeVoice

SAMPLE = DEFAULT_WEIGHTS.parent / "samples" / "austen.flac"
TEXT, SEED = "Yes, of course.", 7


@pytest.fixture(scope="module")
def engine():
    return Engine()


@pytest.fixture(scope="module")
def served(engine, tmp_path_factory):
    """(address, Wyoming's port) of a server that knows the voice "Jane"."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        wyoming = free.getsockname()[1]
    settings = Settings(
        voices=tmp_path_factory.mktemp("voices"), limits=Limits(requests_per_minute=0),
        wyoming_port=wyoming,
    )  # fmt: skip
    app = build_app(engine, settings=settings)
    assert app.state.service.scheduler.wait_ready()
    try:
        with running(app) as port:
            url = f"http://127.0.0.1:{port}"
            form = {"name": "Jane", "consent": CONSENT}
            sample = {"audio_sample": ("jane.flac", SAMPLE.read_bytes())}
            made = httpx.post(f"{url}/v1/audio/voices", data=form, files=sample, timeout=60)
            assert made.status_code == 201, made.text
            yield url, wyoming
    finally:
        close(app)


@pytest.fixture(scope="module")
def said(engine):
    """What Jane says, without a server."""
    return engine.synthesize(TEXT, engine.clone(SAMPLE), seed=SEED)


def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("format", ["mp3", "opus", "wav", "flac", "pcm"])
def test_openais_client_streams_the_cloned_voice(served, said, format):
    create = client(served[0]).audio.speech.with_streaming_response.create
    with create(
        model="tts-1", voice="Jane", input=TEXT, response_format=format, extra_body={"seed": SEED}
    ) as answer:
        chunks = list(answer.iter_bytes())
    data = b"".join(chunks)
    if format == "pcm":
        assert np.array_equal(np.frombuffer(data, "<i2"), pcm16(said.samples))
    else:
        samples, rate = audio.read(io.BytesIO(data))
        assert abs(len(samples) / rate - said.seconds) < 0.11
        assert np.abs(samples).max() > 0.05


def test_openais_client_takes_events(served, said):
    create = client(served[0]).audio.speech.with_streaming_response.create
    with create(
        model="tts-1", voice="Jane", input=TEXT, response_format="pcm", stream_format="sse",
        extra_body={"seed": SEED},
    ) as answer:  # fmt: skip
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line]
    assert events[-1]["type"] == "speech.audio.done"
    sound = b"".join(base64.b64decode(e["audio"]) for e in events[:-1])
    assert np.array_equal(np.frombuffer(sound, "<i2"), pcm16(said.samples))


def test_wyomings_client_hears_the_voices_of_the_server(served):
    async def main():
        async with AsyncTcpClient("127.0.0.1", served[1]) as home:
            await home.write_event(Describe().event())
            info = Info.from_event(await home.read_event())
            asked = Synthesize(TEXT, SynthesizeVoice(name="Jane"))
            await home.write_event(asked.event())
            sound = b""
            while (event := await asyncio.wait_for(home.read_event(), 30)).type != "audio-stop":
                sound += event.payload or b""
        return info, np.frombuffer(sound, "<i2")

    info, samples = asyncio.run(main())
    assert [voice.name for voice in info.tts[0].voices] == ["default", "Jane"]
    assert len(samples) > 6_000 and np.abs(samples).max() > 1_000


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl_makes_lists_speaks_and_deletes_a_voice(served, tmp_path):
    url, _ = served

    def curl(*arguments):
        command = ["curl", "-sSf", *arguments]
        return subprocess.run(command, check=True, capture_output=True).stdout

    voices = f"{url}/v1/audio/voices"
    made = curl(voices, "-F", "name=Guest", "-F", f"audio_sample=@{SAMPLE}", "-F",
                f"consent={CONSENT}")  # fmt: skip
    assert json.loads(made)["name"] == "Guest"
    assert {voice["name"] for voice in json.loads(curl(voices))["voices"]} > {"Guest", "default"}
    body = json.dumps({"input": TEXT, "voice": "Guest", "response_format": "wav"})
    curl(f"{url}/v1/audio/speech", "-H", "Content-Type: application/json", "-d", body,
         "-o", str(tmp_path / "guest.wav"))  # fmt: skip
    samples, rate = audio.read(tmp_path / "guest.wav")
    assert len(samples) / rate > 0.3
    curl("-X", "DELETE", f"{voices}/Guest")
    with pytest.raises(openai.NotFoundError):
        client(url).audio.speech.create(model="tts-1", voice="Guest", input=TEXT)
