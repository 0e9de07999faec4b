"""Over real sockets: clients that nobody here wrote, clients that go away, and hostile ones."""

import json
import shutil
import socket
import subprocess
import threading

import httpx
import numpy as np
import openai
import pytest
from serving import CONSENT, Slow, make_app, make_engine, recording, running, wait_until
from websockets.sync.client import connect

from engine.serve.settings import Limits

TEXT = "The first sentence. The second sentence. And the third one, which ends it."
LONG = "This goes on and on for quite a while, as texts sometimes do. " * 40  # 4 s and more
QUICK = Limits(header_s=0.5, body_idle_s=0.5, keep_alive_s=1.0, requests_per_minute=0)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return make_engine(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def served(engine, tmp_path):
    """(port, app, device) of a server on the loopback."""
    app, device = make_app(
        engine, tmp_path / "voices", Slow(), limits=QUICK, drain_lag_s=0.0, drain_s=5.0
    )
    with running(app) as port:
        yield port, app, device


def test_openais_client_streams_speech_in_a_cloned_voice(served):
    port, *_ = served
    url = f"http://127.0.0.1:{port}"
    form = {"data": {"name": "Jane", "consent": CONSENT},
            "files": {"audio_sample": ("me.wav", recording())}}  # fmt: skip
    assert httpx.post(f"{url}/v1/audio/voices", timeout=60, **form).status_code == 201
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    create = client.audio.speech.with_streaming_response.create
    sizes, kinds = {}, {}
    for voice in ("Jane", "alloy"):
        with create(model="tts-1", voice=voice, input=TEXT, response_format="pcm") as answer:
            chunks = list(answer.iter_bytes(1024))
        sizes[voice] = sum(map(len, chunks))
        kinds[voice] = b"".join(chunks)
    assert sizes["Jane"] == sizes["alloy"] > 2000 and kinds["Jane"] != kinds["alloy"]
    whole = client.audio.speech.create(model="tts-1", voice="Jane", input=TEXT)
    assert whole.content[:3] == b"ID3"  # mp3, as OpenAI's default
    assert "tts-1" in [model.id for model in client.models.list()]
    with pytest.raises(openai.NotFoundError) as missing:
        client.audio.speech.create(model="tts-1", voice="nobody", input=TEXT)
    assert missing.value.code == "voice_not_found"
    with pytest.raises(openai.BadRequestError):
        client.audio.speech.create(model="tts-1", voice="Jane", input="")


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl_gets_a_wav(served, tmp_path):
    port, *_ = served
    out = tmp_path / "out.wav"
    body = json.dumps({"input": TEXT, "response_format": "wav"})
    command = ["curl", "-sSf", f"http://localhost:{port}/v1/audio/speech", "-o", str(out),
               "-H", "Content-Type: application/json", "-d", body]  # fmt: skip
    subprocess.run(command, check=True)
    data = out.read_bytes()
    assert data[:4] == b"RIFF" and b"ICMT" in data and len(data) > 2000


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_stops_the_work(served, stream):
    port, app, device = served
    body = json.dumps({"input": LONG, "stream": stream, "response_format": "pcm"})
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(
            b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: "
            + f"{len(body)}\r\n\r\n{body}".encode()
        )
        wait_until(lambda: device.streams)
        if stream:
            assert raw.recv(100).startswith(b"HTTP/1.1 200")
    wait_until(lambda: not device.streams)
    assert app.state.service.scheduler.stats()["jobs"] == 0


def test_a_reader_that_stands_still_is_dropped(engine, tmp_path):
    limits = Limits(write_stall_s=0.3, requests_per_minute=0)
    app, device = make_app(engine, tmp_path / "voices", Slow(), limits=limits, drain_s=5.0)
    with running(app) as port, socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", port))
        body = json.dumps({"input": LONG, "response_format": "wav"}).encode()
        raw.sendall(
            b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
            b"\r\nContent-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
        )
        wait_until(lambda: device.streams)
        wait_until(lambda: not device.streams, 30)


def test_a_failure_on_the_way_breaks_the_sound_off(served):
    port, *_ = served
    url = f"http://127.0.0.1:{port}/v1/audio/speech"
    body = {"input": "A whole sentence that is spoken well. poison", "response_format": "pcm"}
    with httpx.stream("POST", url, json=body) as answer, pytest.raises(httpx.RemoteProtocolError):
        assert answer.status_code == 200
        for _ in answer.iter_raw():
            pass
    events = httpx.post(url, json={**body, "stream_format": "sse"}).text
    last = json.loads(events.strip().split("\n\n")[-1][6:])
    assert last["type"] == "speech.audio.error" and last["error"]["code"] == "engine_error"


ABUSE = {
    "nothing": b"",
    "half a line": b"GET /v1/mod",
    "half a header": b"GET /livez HTTP/1.1\r\nHost: local",
    "no end of headers": b"GET /livez HTTP/1.1\r\nHost: localhost\r\nA: b\r\n",
    "a body that stops": b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{",
    "chunks that stop": b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"inp",
    "bad chunk size": b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "two lengths": b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
    b"Content-Length: 6\r\n\r\nabcdef",
    "negative length": b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Length: -1\r\n\r\n",
    "large header": b"GET /livez HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 200_000 + b"\r\n\r\n",
    "many headers": b"GET /livez HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
    "binary": bytes(range(256)) * 10,
    "TLS": bytes.fromhex("16030100a5010000a10303") + bytes(160),
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "HTTP/9": b"GET /livez HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "ranges": b"GET /page/page.js HTTP/1.1\r\nHost: localhost\r\nRange: bytes="
    + b",".join(b"%d-%d" % (i, i + 1) for i in range(3000)) + b"\r\n\r\n",
}  # fmt: skip


def test_hostile_connections_are_dropped_and_others_do_not_notice(served):
    port, *_ = served
    connections = []
    for data in ABUSE.values():
        raw = socket.create_connection(("127.0.0.1", port))
        raw.settimeout(15)
        try:
            raw.sendall(data)
        except OSError:  # dropped while it was still sending
            pass
        connections.append(raw)
    url = f"http://127.0.0.1:{port}"
    assert httpx.get(f"{url}/livez", timeout=20).status_code == 200
    spoken = httpx.post(f"{url}/v1/audio/speech", json={"input": TEXT}, timeout=20)
    assert spoken.status_code == 200
    for name, raw in zip(ABUSE, connections, strict=True):
        answer = b""
        try:
            while part := raw.recv(65536):
                answer += part
        except ConnectionError:
            pass
        assert not answer.startswith(b"HTTP/1.1 5"), name
        raw.close()


def test_headers_one_byte_at_a_time_are_cut_off(served):
    port, *_ = served
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.settimeout(0.05)
        with pytest.raises(ConnectionError):
            for _ in range(400):
                raw.sendall(b"A")
                try:
                    if raw.recv(1) == b"":
                        raise ConnectionResetError
                except TimeoutError:
                    pass


def test_a_slow_upload_is_a_408(served):
    port, *_ = served
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.settimeout(15)
        raw.sendall(ABUSE["a body that stops"])
        answer = b""
        while part := raw.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 408") and b"slow_upload" in answer


def talk_over(socket, *messages):
    """Send messages; (all JSON answers, all audio) until the session is done."""
    for message in messages:
        socket.send(message if isinstance(message, str) else json.dumps(message))
    events, audio = [], b""
    for answer in socket:
        if isinstance(answer, bytes):
            audio += answer
        else:
            events.append(json.loads(answer))
            if events[-1]["type"] == "session.done":
                break
    return events, audio


def test_a_websocket_speaks_text_that_comes_in_pieces(served):
    port, *_ = served
    pieces = [TEXT[i : i + 7] for i in range(0, len(TEXT), 7)]
    words = [{"type": "input.text", "text": piece} for piece in pieces]
    config = {"type": "session.config", "voice": "default", "seed": 3}
    with connect(f"ws://127.0.0.1:{port}/v1/audio/speech/stream") as socket:
        events, audio = talk_over(
            socket, config, *words, {"type": "input.done"}, *words, {"type": "session.close"}
        )
    kinds = [e["type"] for e in events if e["type"] != "audio.words"]
    assert kinds == ["audio.start", "audio.done", "audio.start", "audio.done", "session.done"]
    body = {"input": TEXT, "seed": 3, "response_format": "pcm"}
    alone = httpx.post(f"http://127.0.0.1:{port}/v1/audio/speech", json=body).content
    assert audio == alone * 2
    said = [w["word"] for e in events if e["type"] == "audio.words" for w in e["words"]]
    assert said[:3] == ["The", "first", "sentence"] and len(said) == 2 * len(TEXT.split())


@pytest.mark.parametrize(
    "message",
    ["not json", "[]", '{"type": "nothing"}', {"type": "input.done"}, b"\0\1",
     {"type": "session.config", "speed": 99}, {"type": "input.text", "text": 3},
     {"type": "input.text", "text": "x" * 5000}, {"type": "session.config", "voice": ""}],
)  # fmt: skip
def test_a_bad_message_is_an_error_and_the_session_goes_on(served, message):
    port, *_ = served
    with connect(f"ws://127.0.0.1:{port}/v1/audio/speech/stream") as socket:
        if isinstance(message, bytes):
            socket.send(message)
            message = ""
        sent = message if isinstance(message, str) else json.dumps(message)
        if sent:
            socket.send(sent)
        assert json.loads(socket.recv())["type"] == "error"
        good = ({"type": "input.text", "text": "Hello."}, {"type": "input.done"})
        events, audio = talk_over(socket, *good, {"type": "session.close"})
    assert "error" not in [e["type"] for e in events] and audio


def test_a_websocket_that_goes_away_stops_the_work(served):
    port, _, device = served
    with connect(f"ws://127.0.0.1:{port}/v1/audio/speech/stream") as socket:
        socket.send(json.dumps({"type": "input.text", "text": LONG}))
        socket.send(json.dumps({"type": "input.text", "text": "The next one begins here."}))
        wait_until(lambda: device.streams)
        socket.close()
        wait_until(lambda: not device.streams)


def test_a_hundred_clients_that_leave_at_random_leak_nothing(served):
    port, app, device = served
    body = json.dumps({"input": LONG, "response_format": "pcm"}).encode()
    rng = np.random.default_rng(0)

    def one(bytes_read):
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.settimeout(20)
            raw.sendall(
                b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                b"application/json\r\nContent-Length: "
                + b"%d\r\n\r\n" % len(body) + body
            )
            while bytes_read > 0:
                part = raw.recv(4096)
                bytes_read -= len(part)
                if not part:
                    return

    lengths = rng.integers(0, 20_000, 100).tolist()
    threads = [threading.Thread(target=one, args=(length,)) for length in lengths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    wait_until(lambda: not device.streams and not app.state.service.scheduler.stats()["jobs"], 20)
    assert httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200

