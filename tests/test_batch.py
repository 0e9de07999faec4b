"""Bulk runs: what is asked for comes out once, whatever ends the run in between."""

import json
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fake_device import FakeDevice, alone
from tiny import make_weights

from engine import audio, batch, files
from engine.__main__ import main
from engine.audio import pcm16
from engine.batch_manifest import MANIFEST, Manifest, read_lines
from engine.errors import ConfigError, InputError, VoiceError
from engine.serve.scheduler import Scheduler

FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None


def write_lines(path: Path, values) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def voice_of(name):
    if name == "missing":
        raise VoiceError("no such voice")
    return 1.0 if name is None else float(name)


def speak(source: Path, folder: Path, stop=None) -> batch.Totals:
    with Manifest(folder) as manifest, Scheduler(FakeDevice(2)) as scheduler:
        manifest.plan(read_lines(source))
        return batch.speak_here(manifest, scheduler, voice_of, "wav", progress=False, stop=stop)


def rows(folder: Path) -> dict[str, dict]:
    with Manifest(folder) as manifest:
        return {row["id"]: row for status in ("waiting", "done", "failed")
                for row in manifest.rows(status)}  # fmt: skip


def assert_complete(folder: Path, texts: dict[str, str]) -> None:
    """Every text once, in a whole file that is what its row says and what it must be."""
    found = rows(folder)
    assert found.keys() == texts.keys()
    names = {path.name for path in folder.iterdir()} - {
        MANIFEST, MANIFEST + "-wal", MANIFEST + "-shm"
    }  # fmt: skip
    assert names == {f"{id}.wav" for id in texts}
    for id, text in texts.items():
        row, path = found[id], folder / f"{id}.wav"
        assert row["status"] == "done" and row["file"] == path.name
        assert row["sha256"] == files.sha256(path)
        expected = alone(text, 1.0)
        assert row["seconds"] == pytest.approx(expected.seconds)
        samples, _ = audio.read(path)
        np.testing.assert_array_equal(pcm16(samples), pcm16(expected.samples))


def some_texts(count: int) -> dict[str, str]:
    return {f"line-{i}": f"This is line {i}. " + "More. " * (i % 5) for i in range(count)}


def as_lines(texts: dict[str, str]):
    return [{"id": id, "text": text} for id, text in texts.items()]


# ---- one run ------------------------------------------------------------------------------------


def test_every_line_comes_out_with_its_own_voice_speed_and_seed(tmp_path):
    lines = ["Just a string.", {"text": "Another voice.", "voice": "2"},
             {"id": "named", "text": "Faster.", "speed": 2, "seed": 7}]  # fmt: skip
    totals = speak(write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out")
    assert (totals.done, totals.failed) == (3, 0)
    for id, expected in {
        "000001": alone("Just a string.", 1.0), "000002": alone("Another voice.", 2.0),
        "named": alone("Faster.", 1.0, 2.0, 7),
    }.items():  # fmt: skip
        row = rows(tmp_path / "out")[id]
        samples, _ = audio.read(tmp_path / "out" / row["file"])
        np.testing.assert_array_equal(pcm16(samples), pcm16(expected.samples))
        assert [w for w, *_ in json.loads(row["words"])] == [w.word for w in expected.words]


def test_lines_that_cannot_be_spoken_are_recorded_and_tried_again(tmp_path):
    lines = [{"text": "Good."}, {"text": "..."}, {"text": "This is poison, really."},
             {"text": "No voice.", "voice": "missing"}]  # fmt: skip
    source = write_lines(tmp_path / "in.jsonl", lines)
    totals = speak(source, tmp_path / "out")
    assert (totals.done, totals.failed) == (1, 3)
    errors = [row["error"] for row in rows(tmp_path / "out").values() if row["error"]]
    assert len(errors) == 3 and any("no such voice" in error for error in errors)
    write_lines(source, [{"text": "Good."}, *[{"text": "Better."}] * 3])
    totals = speak(source, tmp_path / "out")
    assert (totals.done, totals.failed) == (3, 0)


@pytest.mark.parametrize(
    "line",
    ["", "{", "[1]", "3", '{"text": 3}', '{"id": "a"}', '{"text": "a", "txet": "b"}',
     '{"text": "a", "id": "../up"}', '{"text": "a", "id": ".hidden"}', '{"text": "a", "id": ""}',
     '{"text": "a", "speed": 99}', '{"text": "a", "speed": "fast"}', '{"text": "a", "seed": -1}',
     '{"text": "a", "seed": 1.5}', '{"text": "a", "voice": 3}', '{"text": "a", "speed": NaN}',
     "[" * 100_000],
)  # fmt: skip
def test_damaged_input_is_refused_with_its_line_and_nothing_is_begun(tmp_path, line):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "Fine.", "id": "fine"}\n' + (line or '{"text": "x", "id": "fine"}'))
    with Manifest(tmp_path / "out") as manifest:
        with pytest.raises(InputError, match="2"):
            manifest.plan(read_lines(source))
        assert manifest.empty


# ---- the next run -------------------------------------------------------------------------------


def test_the_next_run_makes_what_is_new_changed_or_gone_and_nothing_else(tmp_path):
    texts = some_texts(6)
    source = write_lines(tmp_path / "in.jsonl", as_lines(texts))
    speak(source, tmp_path / "out")
    assert speak(source, tmp_path / "out").done == 0
    (tmp_path / "out" / "line-0.wav").unlink()
    texts["line-1"] = "Changed."
    texts["new"] = "New."
    write_lines(source, as_lines(texts))
    before = {id: os.stat(tmp_path / "out" / f"{id}.wav").st_ino for id in ("line-2", "line-3")}
    assert speak(source, tmp_path / "out").done == 3
    assert_complete(tmp_path / "out", texts)
    for id, inode in before.items():
        assert os.stat(tmp_path / "out" / f"{id}.wav").st_ino == inode


def test_one_process_at_a_time_works_in_a_folder(tmp_path):
    with Manifest(tmp_path), pytest.raises(ConfigError, match="another run"):
        Manifest(tmp_path)
    with Manifest(tmp_path):
        pass
    (tmp_path / MANIFEST).write_bytes(b"no database" * 100)
    with pytest.raises(ConfigError, match="not a manifest"):
        Manifest(tmp_path)


def test_a_stopped_run_records_what_was_under_way(tmp_path):
    texts, stop = some_texts(80), threading.Event()
    source = write_lines(tmp_path / "in.jsonl", as_lines(texts))
    stop.set()
    assert speak(source, tmp_path / "out", stop).done == 0
    stop.clear()
    threading.Timer(0.05, stop.set).start()
    first = speak(source, tmp_path / "out", stop).done
    assert speak(source, tmp_path / "out").done == 80 - first
    assert_complete(tmp_path / "out", texts)


# ---- kills --------------------------------------------------------------------------------------


def killed(source: Path, folder: Path, prepare=lambda: None, when=lambda: False) -> bool:
    """Run in a child that is killed, or kills itself as `prepare` set up; False if it finished."""

    def child():
        prepare()
        speak(source, folder)

    process = FORK.Process(target=child, daemon=True)
    process.start()
    for _ in range(12_000):
        process.join(0.005)
        if not process.is_alive() or when():
            break
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def die_in(owner, name, calls, after=False):
    """A `prepare`: the process dies before (or after) the given call of a function."""

    def prepare():
        inner, left = getattr(owner, name), [calls]

        def wrapped(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0 and not after:
                die()
            result = inner(*args, **kwargs)
            if left[0] == 0:
                die()
            return result

        setattr(owner, name, wrapped)

    return prepare


@pytest.mark.skipif(FORK is None, reason="needs fork")
@pytest.mark.parametrize(
    "prepare",
    [die_in(os, "replace", 3), die_in(os, "replace", 3, after=True), die_in(os, "fsync", 4),
     die_in(Manifest, "record", 1), die_in(Manifest, "record", 5, after=True),
     die_in(Manifest, "plan", 1, after=True), die_in(batch, "keep", 2)],
    ids=["before-rename", "after-rename", "in-fsync", "before-record", "after-record", "planned",
         "made"],
)  # fmt: skip
def test_a_kill_at_any_step_loses_and_doubles_nothing(tmp_path, prepare):
    texts = some_texts(30)
    source = write_lines(tmp_path / "in.jsonl", as_lines(texts))
    assert killed(source, tmp_path / "out", prepare)
    recorded = sum(row["status"] == "done" for row in rows(tmp_path / "out").values())
    assert speak(source, tmp_path / "out").done == 30 - recorded
    assert_complete(tmp_path / "out", texts)


def kill_at_random(folder: Path, kills: int, lines: int, rng: random.Random) -> dict[str, int]:
    """Kill a run again and again as files come, then let it finish; nothing is lost or doubled."""
    texts = some_texts(lines)
    source = write_lines(folder / "in.jsonl", as_lines(texts))
    died = recorded = 0
    while died < kills and recorded < lines:
        enough = recorded + rng.randrange(1, 2 * lines // (kills + 1))
        written = lambda: sum(1 for _ in (folder / "out").glob("*.wav"))  # noqa: E731
        died += killed(source, folder / "out", when=lambda: written() >= enough)  # noqa: B023
        done = sum(row["status"] == "done" for row in rows(folder / "out").values())
        assert done >= recorded, "a recorded line was lost"
        recorded = done
    left = speak(source, folder / "out").done
    assert recorded + left == lines
    assert_complete(folder / "out", texts)
    return {"kills": died, "lines": lines, "recorded_before_the_last_run": recorded}


@pytest.mark.skipif(FORK is None, reason="needs fork")
def test_kills_at_random_moments_lose_and_double_nothing(tmp_path):
    assert kill_at_random(tmp_path, 8, 400, random.Random(0))["kills"] >= 4


# ---- the verb, over a tiny engine ---------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return make_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def bulk(tmp_path, weights):
    """Arguments of `clonewave batch` for three texts."""
    voice = tmp_path / "voice.safetensors"
    from engine import Engine, Voice

    engine = Engine(weights, device="cpu")
    Voice(np.ones(16, np.float32), (1.0,), engine.encoder_hash).save(voice)
    source = write_lines(tmp_path / "in.jsonl", ["One.", "Two words.", "And three words."])
    return [
        "batch", str(source), str(tmp_path / "out"), "-v", str(voice), "--weights", str(weights),
        "--device", "cpu",
    ]  # fmt: skip


def test_the_verb_resumes_only_when_asked_and_with_the_same_settings(bulk, tmp_path, capsys):
    assert main([*bulk, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lines"] == {"done": 3}
    assert main(bulk) == 3
    assert "--resume" in capsys.readouterr().err
    assert main([*bulk, "--resume", "--format", "flac"]) == 3
    assert "another format" in capsys.readouterr().err
    assert main([*bulk, "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["now"]["done"] == 0
    assert main([*bulk, "--overwrite", "--format", "flac", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["now"]["done"] == 3
    assert (tmp_path / "out" / "000003.flac").exists()


def test_a_real_process_can_be_killed(bulk, tmp_path):
    texts = [f"This is the line with number {i}, and so on." for i in range(50)]
    write_lines(tmp_path / "in.jsonl", texts)
    process = subprocess.Popen([sys.executable, "-m", "engine", *bulk, "--quiet"])
    while len(list((tmp_path / "out").glob("*.wav"))) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    assert main([*bulk, "--quiet", "--resume"]) == 0
    with sqlite3.connect(tmp_path / "out" / MANIFEST) as db:
        done = db.execute("SELECT file, sha256 FROM lines WHERE status = 'done'").fetchall()
    assert len(done) == 50
    for file, sha256 in done:
        assert files.sha256(tmp_path / "out" / file) == sha256
