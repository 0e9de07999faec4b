"""The HTTP routes as clients see them; a tiny engine clones, a fake device speaks."""

import asyncio
import base64
import io
import json
import warnings

import av
import httpx
import numpy as np
import pytest
from fake_device import alone
from serving import CONSENT, Speaker, call, client, close, make_app, make_engine, recording, upload

from engine import Voice, audio
from engine.serve.encode import FORMATS
from engine.serve.scheduler import Limits

TEXT = "One sentence. And another one!"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return make_engine(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def app(engine, tmp_path_factory):
    made, _ = make_app(engine, tmp_path_factory.mktemp("voices"))
    yield made
    close(made)


def speak(app, **fields):
    return call(app, "POST", "/v1/audio/speech", json={"input": TEXT, "seed": 1, **fields})


def sentences(app):
    """What the sentences of TEXT give in the default voice, without the gap between them."""
    voice = Speaker().speaker(app.state.service.engine.default_voice())
    samples = alone(TEXT, voice, seed=1).samples
    return samples[samples != 0]


def decoded(data):
    with av.open(io.BytesIO(data)) as file:
        frames = [f.to_ndarray().reshape(-1) for f in file.decode(audio=0)]
    return np.concatenate(frames)


def pcm(data):
    return np.frombuffer(data, "<i2").astype("f4") / 32768


def error_of(response, status):
    assert response.status_code == status, response.text
    return response.json()["error"]


@pytest.mark.parametrize("stream", [True, False])
def test_pcm_is_exactly_what_the_scheduler_made(app, stream):
    answer = speak(app, response_format="pcm", stream=stream)
    assert answer.status_code == 200 and answer.headers["content-type"] == "audio/pcm"
    samples = pcm(answer.content)
    np.testing.assert_allclose(samples[samples != 0], sentences(app), atol=1e-4)
    assert answer.headers["x-synthetic"] == "1"
    assert ("content-length" in answer.headers) is not stream


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("format", [f for f in FORMATS if f != "pcm"])
def test_every_format_decodes_to_the_right_length(app, format, stream):
    answer = speak(app, response_format=format, stream=stream)
    assert answer.headers["content-type"] == FORMATS[format].media_type
    whole = len(pcm(speak(app, response_format="pcm").content))
    samples = decoded(answer.content)
    length = len(samples) / (2 if format == "opus" else 1)  # FFmpeg decodes Opus at 48 kHz
    slack = 2400 if format in ("mp3", "opus") else 0
    assert whole <= length <= whole + slack
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody may call it damaged
        samples, rate = audio.read(io.BytesIO(answer.content))
    exact = 0 if format == "mp3" and not stream else slack / 24_000
    assert whole / 24_000 <= len(samples) / rate <= whole / 24_000 + exact
    if format == "wav":
        size = int.from_bytes(answer.content[4:8], "little")
        assert size == (0xFFFF_FFFF if stream else len(answer.content) - 8)


def test_events_are_openais_and_carry_the_same_audio(app):
    fields = {"stream_format": "sse", "response_format": "pcm", "words": True}
    answer = speak(app, **fields)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(e[6:]) for e in answer.text.split("\n\n") if e]
    audio = b"".join(
        base64.b64decode(e["audio"]) for e in events if e["type"] == "speech.audio.delta"
    )
    assert audio == speak(app, response_format="pcm").content
    words = [w["word"] for e in events if e["type"] == "speech.audio.words" for w in e["words"]]
    assert words == ["One", "sentence", "And", "another", "one"]
    assert events[-1]["type"] == "speech.audio.done"
    used = events[-1]["usage"]
    assert used["total_tokens"] == used["input_tokens"] + used["output_tokens"] > len(TEXT)
    plain = speak(app, **{**fields, "words": False})
    assert "speech.audio.words" not in plain.text


def test_fields_that_mean_nothing_here_are_ignored_and_named(app):
    answer = speak(app, instructions="cheerful", pitch=3, voice="alloy", model="tts-1")
    assert answer.status_code == 200
    assert answer.headers["x-clonewave-ignored"] == "instructions, pitch"


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"input": ""}, 400, "input"),
        ({"input": "😀"}, 400, "input"),
        ({"input": "a" * 4097}, 400, "input"),
        ({"input": 3}, 400, "input"),
        ({"speed": 9}, 400, "speed"),
        ({"seed": -1}, 400, "seed"),
        ({"response_format": "aac"}, 400, "response_format"),
        ({"stream_format": "x"}, 400, "stream_format"),
        ({"language": "fr"}, 400, "language"),
        ({"deadline_ms": 0}, 400, "deadline_ms"),
        ({"model": "gpt"}, 404, "model"),
        ({"voice": "nobody"}, 404, "voice"),
        ({"voice": {"id": "nobody"}}, 404, "voice"),
        ({"voice": ["x"]}, 400, None),
    ],
)
def test_bad_requests_name_the_field(app, fields, status, param):
    error = error_of(speak(app, **fields), status)
    assert error["message"] and set(error) == {"message", "type", "param", "code"}
    if param:
        assert error["param"] == param


def test_wrong_routes_methods_and_bodies_have_the_same_envelope(app):
    assert error_of(call(app, "GET", "/nothing"), 404)["code"] == "not_found"
    assert error_of(call(app, "GET", "/v1/audio/speech"), 405)["code"] == "method_not_allowed"
    broken = {"content": b"{", "headers": {"content-type": "application/json"}}
    assert error_of(call(app, "POST", "/v1/audio/speech", **broken), 400)["message"]
    form = {"content": b'{"input": "x"}', "headers": {"content-type": "text/plain"}}
    assert error_of(call(app, "POST", "/v1/audio/speech", **form), 400)


def test_the_request_id_comes_back_and_a_hostile_one_does_not(app):
    good = call(app, "GET", "/livez", headers={"X-Request-Id": "abc-1"})
    assert good.headers["x-request-id"] == "abc-1"
    bad = call(app, "GET", "/livez", headers={"X-Request-Id": "<script>"})
    assert bad.headers["x-request-id"] != "<script>"


def test_a_batch_gives_each_item_its_own_status(app):
    items = [{"input": "One.", "response_format": "pcm"}, {"input": "Two.", "voice": "nobody"},
             {"input": "😀"}, *({"input": f"Number {i}."} for i in range(30))]  # fmt: skip
    answer = call(app, "POST", "/v1/audio/speech/batch", json={"items": items})
    results = answer.json()["results"]
    assert [r["index"] for r in results] == list(range(33))
    assert [r["status"] for r in results] == [200, 404, 400, *[200] * 30]
    seconds = len(pcm(base64.b64decode(results[0]["audio"]))) / 24_000
    assert abs(seconds - results[0]["seconds"]) < 0.001
    assert results[1]["error"]["code"] == "voice_not_found" and results[1]["audio"] is None
    for count in (0, 65):
        body = {"items": [{"input": "x"}] * count}
        error_of(call(app, "POST", "/v1/audio/speech/batch", json=body), 400)


def test_overload_is_429_with_retry_after_and_the_rest_is_spoken(engine, tmp_path):
    app, device = make_app(engine, tmp_path, queue=Limits(jobs=2))
    try:
        device.gate.clear()

        async def go():
            async with client(app) as http:
                body = {"input": TEXT, "response_format": "pcm"}
                tasks = [
                    asyncio.create_task(http.post("/v1/audio/speech", json=body)) for _ in range(5)
                ]
                done: set = set()
                while len(done) < 3:
                    done, _ = await asyncio.wait(tasks, return_when="FIRST_COMPLETED")
                    await asyncio.sleep(0.01)
                device.gate.set()
                return await asyncio.gather(*tasks)

        answers = asyncio.run(go())
    finally:
        close(app)
    refused = [a for a in answers if a.status_code == 429]
    assert len(refused) == 3 and sum(a.status_code == 200 for a in answers) == 2
    for answer in refused:
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["x-should-retry"] == "true"
        assert answer.json()["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize(
    ("text", "fields", "status"),
    [("mad", {}, 500), ("poison and so on", {"stream": False}, 500),
     ("a text that takes long", {"deadline_ms": 200}, 504)],
)  # fmt: skip
def test_what_would_fail_again_tells_clients_not_to_retry(engine, tmp_path, text, fields, status):
    app, device = make_app(engine, tmp_path)
    if status == 504:
        device.gate.clear()
    try:
        body = {"input": text, **fields}

        async def go():
            async with client(app) as http:
                request = asyncio.create_task(http.post("/v1/audio/speech", json=body))
                await asyncio.sleep(0.4)
                device.gate.set()
                return await request

        answer = asyncio.run(go())
    finally:
        close(app)
    error_of(answer, status)
    assert answer.headers["x-should-retry"] == "false"
    assert "Traceback" not in answer.text and "/" not in answer.json()["error"]["message"]


def test_a_voice_lives_from_upload_to_deletion(app):
    made = call(app, "POST", "/v1/audio/voices", **upload("Jane Doe"))
    assert made.status_code == 201, made.text
    voice = made.json()
    assert voice["consent"] == CONSENT and voice["quality"]["weights"] == [1.0]
    assert 2 < voice["quality"]["seconds"] <= 3
    listed = call(app, "GET", "/v1/audio/voices").json()["voices"]
    assert [v["id"] for v in listed] == ["default", voice["id"]]
    for name in (voice["id"], "Jane Doe"):
        assert call(app, "GET", f"/v1/audio/voices/{name}").json() == voice
        other = speak(app, voice=name, response_format="pcm").content
        assert len(other) and other != speak(app, response_format="pcm").content
    exported = call(app, "GET", f"/v1/audio/voices/{voice['id']}/export")
    assert exported.headers["content-disposition"].endswith(f'"{voice["id"]}.safetensors"')
    assert call(app, "DELETE", "/v1/audio/voices/Jane Doe").json()["deleted"] is True
    for method, path in (("DELETE", ""), ("GET", ""), ("GET", "/export")):
        error_of(call(app, method, f"/v1/audio/voices/{voice['id']}{path}"), 404)
    error_of(speak(app, voice=voice["id"]), 404)


def test_an_exported_voice_is_a_voice_file(app, tmp_path):
    made = call(app, "POST", "/v1/audio/voices", **upload("Exported")).json()
    path = tmp_path / "voice.safetensors"
    path.write_bytes(call(app, "GET", f"/v1/audio/voices/{made['id']}/export").content)
    voice = Voice.load(path, app.state.service.engine.encoder_hash)
    assert voice.metadata["name"] == "Exported" and voice.metadata["consent"] == CONSENT
    call(app, "DELETE", f"/v1/audio/voices/{made['id']}")


def test_several_recordings_of_different_kinds_make_one_voice(app):
    files = [
        ("audio_sample", ("a.wav", recording(2.0))),
        ("audio_sample", ("b.flac", recording(2.0, "FLAC", rate=44_100, seed=1))),
        ("audio_sample", ("c.ogg", recording(2.0, "OGG", "VORBIS", rate=16_000, seed=2))),
        ("audio_sample", ("d.mp3", recording(2.0, "MP3", "MPEG_LAYER_III", seed=3))),
    ]
    form = {"name": "Four", "consent": CONSENT, "labels[accent]": "none", "description": "x"}
    made = call(app, "POST", "/v1/audio/voices", data=form, files=files)
    assert made.status_code == 201, made.text
    voice = made.json()
    assert len(voice["quality"]["snr_db"]) == 4 and voice["labels"] == {"accent": "none"}
    assert abs(sum(voice["quality"]["weights"]) - 1) < 0.01
    call(app, "DELETE", f"/v1/audio/voices/{voice['id']}")


def test_an_idempotency_key_makes_one_voice(app):
    header = {"Idempotency-Key": "once"}
    request = upload("Once")
    first = call(app, "POST", "/v1/audio/voices", headers=header, **request)
    again = call(app, "POST", "/v1/audio/voices", headers=header, **request)
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json() and again.headers["idempotent-replayed"] == "true"
    other = call(app, "POST", "/v1/audio/voices", headers=header, **upload("Twice"))
    error_of(other, 409)
    assert other.headers["x-should-retry"] == "false"
    error_of(call(app, "POST", "/v1/audio/voices", **request), 409)
    call(app, "DELETE", "/v1/audio/voices/Once")


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"consent": ""}, 403, "consent_required"),
        ({"consent": "ok"}, 403, "consent_required"),
        ({"name": ""}, 400, "invalid_name"),
        ({"name": "../../etc/passwd"}, 400, "invalid_name"),
        ({"name": "default"}, 400, "invalid_name"),
        ({"data": b"not audio"}, 415, "audio_unsupported"),
        ({"data": b""}, 415, "audio_unsupported"),
        ({"data": recording(0.5)}, 422, "audio_too_short"),
        ({"data": recording(61.0)}, 413, "audio_too_long"),
    ],
)
def test_uploads_that_cannot_be_cloned_say_why(app, change, status, code):
    error = error_of(call(app, "POST", "/v1/audio/voices", **upload(**change)), status)
    assert error["code"] == code
    names = [v["name"] for v in call(app, "GET", "/v1/audio/voices").json()["voices"]]
    assert change.get("name", "Jane") not in names[1:]


def test_forms_are_read_within_limits(app):
    ask = lambda **o: call(app, "POST", "/v1/audio/voices", **o)  # noqa: E731
    error_of(ask(data={"name": "x", "consent": CONSENT}), 415)  # urlencoded
    error_of(ask(json={"name": "x"}), 415)
    one = ("audio_sample", ("a.wav", recording(1.0)))
    form = {"name": "x", "consent": CONSENT}
    error_of(ask(data=form, files=[one] * 9), 400)
    error_of(ask(data=form, files=[("other", one[1])]), 400)
    error_of(ask(data={**form, "url": "http://localhost/"}, files=[one]), 400)
    error_of(ask(data={**form, "consent": "x" * 70_000}, files=[one]), 400)
    error_of(ask(data=form, files=[("consent", one[1]), one]), 400)


def test_a_body_that_is_too_large_is_refused_while_it_arrives(engine, tmp_path):
    app, _ = make_app(engine, tmp_path)
    taken = 0

    async def endless():
        nonlocal taken
        for _ in range(100):
            taken += 1 << 20
            yield b" " * (1 << 20)

    async def go():
        async with client(app) as http:
            return await http.post(
                "/v1/audio/speech", content=endless(), headers={"content-type": "application/json"}
            )

    try:
        answer = asyncio.run(go())
        promised = call(
            app, "POST", "/v1/audio/speech", content=b"{}",
            headers={"content-length": str(26 << 20), "content-type": "application/json"},
        )  # fmt: skip
    finally:
        close(app)
    error_of(answer, 413)
    assert taken <= 27 << 20
    error_of(promised, 413)


def test_models_and_health(app):
    for path in ("/v1/models", "/v1/audio/models"):
        models = call(app, "GET", path).json()
        assert "tts-1" in [m["id"] for m in models["data"]] and models["models"] == models["data"]
    assert call(app, "GET", "/livez").json() == {"status": "ok"}
    assert call(app, "GET", "/readyz").json() == {"status": "ready"}
    app.state.service.draining = True
    try:
        answer = call(app, "GET", "/readyz")
        assert answer.status_code == 503 and answer.json() == {"status": "draining"}
        assert answer.headers["connection"] == "close"
    finally:
        app.state.service.draining = False


def test_metrics_are_on_a_listener_of_their_own(app):
    speak(app)
    stop = app.state.service.metrics.listen("127.0.0.1", 19_464)
    try:
        text = httpx.get("http://127.0.0.1:19464/metrics").text
    finally:
        stop()
    assert 'clonewave_requests_total{code="200",route="/v1/audio/speech"}' in text
    for name in ("ttfa_seconds_bucket", "audio_seconds_total", "queue_cost_seconds", "voices "):
        assert f"clonewave_{name}" in text
    error_of(call(app, "GET", "/metrics"), 404)
