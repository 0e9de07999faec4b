"""The command line as a user meets it: exit status, stdout, files; on a tiny random model."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from sounds import talk
from tiny import make_weights

from engine import Engine, audio
from engine.__main__ import NOT_BUILT, VERBS, main


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = make_weights(tmp_path_factory.mktemp("weights"))
    Engine(folder).clone(talk(3.0), 24_000).save(folder / "voice.safetensors")
    return folder


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "me.wav"
    audio.write(path, talk(3.0), 24_000)
    return path


def test_say_without_voice_uses_the_one_that_comes_with_the_model(weights, tmp_path, capsys):
    out = tmp_path / "out.wav"
    assert main(["say", "Hello.", "-o", str(out), "--weights", str(weights)]) == 0
    samples, rate = soundfile.read(out)
    assert rate == 24_000 and len(samples) > 1000
    captured = capsys.readouterr()
    assert captured.out == "" and "x real time" in captured.err and str(out) in captured.err


def test_clone_then_say_with_the_voice_file_and_json(weights, recording, tmp_path, capsys):
    voice, out = tmp_path / "me.safetensors", tmp_path / "out.flac"
    common = ["--weights", str(weights), "--json"]
    assert main(["clone", str(recording), "-o", str(voice), "--consent", "I agree", *common]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["consent"] == "I agree" and made["weights"] == [1.0]
    assert voice.stat().st_size < 10_000
    assert main(["say", "Two words.", "-v", str(voice), "-o", str(out), *common]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [w["word"] for w in said["words"]] == ["Two", "words"]
    assert soundfile.info(out).format == "FLAC"


def test_pcm_on_stdout_is_the_speech_and_nothing_else(weights, tmp_path):
    command = [sys.executable, "-m", "engine", "say", "-", "-o", "-", "--format", "pcm"]
    done = subprocess.run(
        [*command, "--weights", str(weights)], input=b"From a pipe.", capture_output=True,
        check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    spoken = Engine(weights).synthesize("From a pipe.", Engine(weights).default_voice())
    expected = (spoken.samples.clip(-1, 1) * 32767).round().astype("<i2")
    np.testing.assert_array_equal(np.frombuffer(done.stdout, "<i2"), expected)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["say", "  "], 3, "empty"),
        (["say", "Hi.", "-v", "missing.wav"], 3, "missing.wav"),
        (["say", "Hi.", "-v", "missing.safetensors"], 4, "missing.safetensors"),
        (["say", "Hi.", "--speed", "9"], 3, "speed"),
        (["say", "Hi.", "-o", "out.xyz"], 3, "xyz"),
        (["clone", "missing.wav"], 3, "missing.wav"),
        (["train", "vocoder", "missing", "-o", "run", "--cache", "cache"], 3, "data set"),
        (["train", "vocoder", "missing", "-o", "run", "--set", "typo=1"], 3, "typo"),
    ],
)
def test_errors_are_one_line_with_a_status(
    weights, tmp_path, capsys, monkeypatch, arguments, status, message
):
    monkeypatch.chdir(tmp_path)
    if arguments[0] != "train":
        arguments = [*arguments, "--weights", str(weights)]
    assert main(arguments) == status
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not list(tmp_path.glob("*.wav")) and not list(tmp_path.glob("*.xyz"))


def test_missing_weights_and_devices_have_their_own_status(tmp_path):
    assert main(["info", "--weights", str(tmp_path)]) == 4
    assert main(["info", "--device", "cuda"]) == 5


def test_info_counts_parameters(weights, capsys):
    assert main(["info", "--weights", str(weights), "--json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    engine = Engine(weights)
    assert models["vocoder"]["parameters"] == sum(p.numel() for p in engine.vocoder.parameters())


def test_doctor_names_every_backend_with_its_reason(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["backends"]["reference"] is None
    assert all(reason is None or reason for reason in found["backends"].values())


def test_what_is_not_built_says_so_and_is_not_in_the_help(capsys):
    for verb in NOT_BUILT:
        assert main([verb]) == 2
        assert "not built yet" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out
    assert all(verb in listed for verb in VERBS)
    assert not any(f"  {verb} " in listed for verb in NOT_BUILT)
