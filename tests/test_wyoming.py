"""Wyoming by the client library that Home Assistant uses, over TCP."""

import asyncio
import contextlib
import json

import numpy as np
import pytest
from fake_device import FakeDevice, alone

from engine.audio import pcm16
from engine.serve.scheduler import Limits, Scheduler

pytest.importorskip("wyoming")
from wyoming.client import AsyncTcpClient
from wyoming.info import Describe, Info
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeVoice,
)

from engine.serve.wyoming import MESSAGE_BYTES, Handler, WyomingServer

VOICES = {"alice": 1.0, "bob": 2.0}
LONG = "One sentence of a few words. " * 20


@contextlib.asynccontextmanager
async def served(device=None, limits=None):
    with Scheduler(device or FakeDevice(), limits) as scheduler:
        server = WyomingServer(scheduler, lambda: VOICES, "127.0.0.1", 0)
        port = await server.begin()
        try:
            yield scheduler, server, AsyncTcpClient("127.0.0.1", port)
        finally:
            await asyncio.wait_for(server.end(), 10)


async def answer(client, last="audio-stop"):
    """Event types (each run of chunks once) and the samples, up to `last` or an error."""
    types, sound = [], b""
    while True:
        event = await asyncio.wait_for(client.read_event(), 10)
        assert event is not None, types
        if types[-1:] != [event.type]:
            types.append(event.type)
        sound += event.payload or b""
        if event.type in (last, "error"):
            return types, np.frombuffer(sound, "<i2"), event.data


def spoken(text, voice):
    return pcm16(alone(text, voice).samples)


def test_describe_lists_the_voices_and_says_that_text_may_stream():
    async def main():
        async with served() as (_, _, client), client:
            await client.write_event(Describe().event())
            return Info.from_event(await client.read_event())

    (program,) = asyncio.run(main()).tts
    assert [voice.name for voice in program.voices] == list(VOICES)
    assert program.supports_synthesize_streaming and program.installed
    assert program.voices[0].languages == ["en"]


@pytest.mark.parametrize("voice", [None, "bob"])
def test_a_text_is_spoken_in_the_voice_asked_for(voice):
    async def main():
        async with served() as (_, _, client), client:
            named = SynthesizeVoice(name=voice) if voice else None
            await client.write_event(Synthesize(LONG, named).event())
            first = await answer(client)
            await client.write_event(Synthesize("And again.", named).event())
            return first, await answer(client)

    for text, (types, sound, _) in zip((LONG, "And again."), asyncio.run(main()), strict=True):
        assert types == ["audio-start", "audio-chunk", "audio-stop"]
        np.testing.assert_array_equal(sound, spoken(text, VOICES[voice or "alice"]))


def test_text_that_is_still_being_written_is_spoken_sentence_by_sentence():
    text = "Dr. Fox came at 7 p.m. and left. Then it rained! The end"

    async def main():
        async with served() as (_, _, client), client:
            await client.write_event(SynthesizeStart(SynthesizeVoice(name="bob")).event())
            for word in text[:48].split(" "):
                await client.write_event(SynthesizeChunk(word + " ").event())
            early = await asyncio.wait_for(client.read_event(), 10)  # before the text is complete
            await client.write_event(SynthesizeChunk(text[49:]).event())
            await client.write_event(Synthesize(text, SynthesizeVoice(name="bob")).event())
            await client.write_event(SynthesizeStop().event())
            return early.type, await answer(client, "synthesize-stopped")

    early, (types, sound, _) = asyncio.run(main())
    assert early == "audio-start"
    assert types == ["audio-chunk", "audio-stop", "synthesize-stopped"]
    np.testing.assert_array_equal(sound, spoken(text, 2.0))


@pytest.mark.parametrize(
    ("text", "voice", "code"),
    [("Hello.", "nobody", "InputError"), ("...", None, "InputError"), ("", None, "InputError"),
     ("Hello. " * 1000, None, "InputError"), ("This is poison to the device.", None,
      "SynthesisError")],
)  # fmt: skip
def test_what_cannot_be_spoken_is_an_error_event_and_the_connection_goes_on(text, voice, code):
    async def main():
        async with served() as (scheduler, _, client), client:
            named = SynthesizeVoice(name=voice) if voice else None
            await client.write_event(Synthesize(text, named).event())
            failed = await answer(client)
            await client.write_event(Synthesize("Good.").event())
            good = await answer(client)
            return failed, good, scheduler.stats()["jobs"]

    (types, _, data), (_, sound, _), jobs = asyncio.run(main())
    assert types[-1] == "error" and data["code"] == code
    np.testing.assert_array_equal(sound, spoken("Good.", 1.0))
    assert jobs == 0


def test_a_full_queue_is_an_error_event_that_says_so():
    async def main():
        async with served(limits=Limits(jobs=0)) as (_, _, client), client:
            await client.write_event(Synthesize("Hello.").event())
            return await answer(client)

    types, _, data = asyncio.run(main())
    assert types == ["error"] and data["code"] == "Overloaded"


def test_a_client_that_hangs_up_stops_the_device():
    device = FakeDevice()

    async def main():
        async with served(device) as (scheduler, _, client):
            async with client:
                await client.write_event(Synthesize(LONG * 7).event())
                await client.read_event()
            for _ in range(500):
                if not scheduler.stats()["jobs"]:
                    break
                await asyncio.sleep(0.01)
            return scheduler.stats()["jobs"]

    assert asyncio.run(main()) == 0
    assert not device.streams
    assert device.spoken and len(device.spoken) < 140


@pytest.mark.parametrize(
    "data",
    [b"\x00\xff\n", b"[1, 2]\n", b'{"type": 3}\n', b'{"type": "synthesize"}\n',
     b'{"type": "synthesize", "data": {"text": 3}}\n', b'{"type": "synthesize-chunk"}\n' * 3,
     b'{"type": "synthesize", "data": []}\n', b"[" * 20_000 + b"\n",
     json.dumps({"type": "synthesize", "payload_length": MESSAGE_BYTES + 1}).encode() + b"\n",
     b'{"type": "describe", "data_length": -5}\n', b"x" * 200_000],
)  # fmt: skip
def test_damaged_events_hurt_nobody_else(data):
    async def main():
        async with served() as (_, server, client):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(data)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), 10)  # the server ends it
            writer.close()
            async with client:
                await client.write_event(Synthesize("Good.").event())
                return await answer(client)

    _, sound, _ = asyncio.run(main())
    np.testing.assert_array_equal(sound, spoken("Good.", 1.0))


def test_a_reader_that_takes_nothing_is_given_up():
    class Stuck:
        """A writer whose other end never reads."""

        def __init__(self):
            self.transport, self.aborted = self, False

        def abort(self):
            self.aborted = True

        def write(self, data): ...
        def writelines(self, data): ...
        def close(self): ...

        async def drain(self):
            await asyncio.Event().wait()

    async def main():
        reader, writer = asyncio.StreamReader(), Stuck()
        reader.feed_data(b'{"type": "synthesize", "data": {"text": "Hello there."}}\n')
        reader.feed_eof()
        with Scheduler(FakeDevice(), Limits(stall_s=0.1)) as scheduler:
            handler = Handler(scheduler, lambda: VOICES, reader, writer)
            await asyncio.wait_for(handler.run(), 10)
        return writer.aborted

    assert asyncio.run(main())
