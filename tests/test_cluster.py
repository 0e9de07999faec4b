"""More than one process under Ray, on this machine; `make cluster` installs what it needs."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from serving import CONSENT, recording, wait_until
from tiny import make_weights
from websockets.sync.client import connect

from engine import Engine, Voice, files
from engine.batch_manifest import MANIFEST

pytest.importorskip("ray")
pytestmark = pytest.mark.cluster
LONG = {
    "input": "This goes on and on for quite a while, as texts sometimes do. " * 12,
    "response_format": "pcm", "seed": 3,
}  # fmt: skip


def descendants(pid: int) -> dict[int, str]:
    """Command lines of a process's children and theirs, by id."""
    parents, names = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (entry / "stat").read_text()
            parents[int(entry.name)] = int(stat[stat.rindex(")") :].split()[2])
            names[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
    found = {pid: ""}
    for _ in range(10):  # generations
        found |= {p: names.get(p, "") for p, parent in parents.items() if parent in found}
    return found


def wait_for_processes(pid: int, kind: str, count: int, but: int = 0) -> list[int]:
    """Ids of Ray's processes of a kind, once there are so many besides `but`."""
    found: list[int] = []

    def there() -> bool:
        found[:] = [p for p, name in descendants(pid).items()
                    if name.startswith(f"ray::{kind}") and p != but]  # fmt: skip
        return len(found) == count

    wait_until(there, 90)
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = make_weights(tmp_path_factory.mktemp("weights"))
    Voice([0.5] * 16, (1.0,), Engine(folder).encoder_hash).save(folder / "voice.safetensors")
    return folder


class Served:
    """`clonewave serve --replicas 2` in a process of its own."""

    def __init__(self, weights: Path, voices: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "engine", "serve", "--replicas", "2", "--port", str(port),
                   "--weights", weights, "--voices", voices, "--drain-lag", "1"]  # fmt: skip
        self.process = subprocess.Popen(command, start_new_session=True)
        self.url = f"http://127.0.0.1:{port}"
        wait_until(self.ready, 120)

    def ready(self) -> bool:
        assert self.process.poll() is None
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def say(self, **body) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/audio/speech", json={**LONG, **body}, timeout=60)

    def replicas(self, but: int = 0) -> list[int]:
        return wait_for_processes(self.process.pid, "ServeReplica", 2, but)


@pytest.fixture(scope="module")
def served(weights, tmp_path_factory):
    served = Served(weights, tmp_path_factory.mktemp("voices"))
    yield served
    if served.process.poll() is None:
        served.process.terminate()
        served.process.wait(60)


class Clients:
    """Clients that ask until they are told to stop, and again when an answer breaks off."""

    def __init__(self, served: Served, whole: bytes, count: int = 4) -> None:
        self.served, self.whole = served, whole
        self.stop = threading.Event()
        self.answers: list[str] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self.stop.is_set():
            self.answers.append(self._one())

    def _one(self) -> str:
        try:
            answer = self.served.say()
        except httpx.HTTPError as error:
            return type(error).__name__
        if answer.status_code == 200:
            return "whole" if answer.content == self.whole else "WRONG"
        return str(answer.status_code)

    def join(self) -> list[str]:
        self.stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        return self.answers


def test_replicas_share_voices_and_say_the_same(served):
    form = {"data": {"name": "Jane", "consent": CONSENT},
            "files": {"audio_sample": ("me.wav", recording())}}  # fmt: skip
    made = httpx.post(f"{served.url}/v1/audio/voices", timeout=60, **form)
    assert made.status_code == 201
    again = httpx.post(f"{served.url}/v1/audio/voices", timeout=60, **form)
    assert again.status_code == 409 and again.json()["error"]["code"] == "voice_exists"
    assert "Traceback" not in again.text
    said = [served.say(input="A short one.", voice=voice) for voice in ["Jane", "default"] * 6]
    assert {answer.status_code for answer in said} == {200}
    assert len({answer.content for answer in said}) == 2  # one sound for each voice
    missing = served.say(voice="nobody")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "voice_not_found"


def test_a_websocket_reaches_a_replica(served):
    url = served.url.replace("http", "ws") + "/v1/audio/speech/stream"
    with connect(url) as socket:
        for message in (
            {"type": "session.config", "seed": 3}, {"type": "input.text", "text": LONG["input"]},
            {"type": "input.done"}, {"type": "session.close"},
        ):  # fmt: skip
            socket.send(json.dumps(message))
        heard = b"".join(message for message in socket if isinstance(message, bytes))
    assert heard == served.say().content


def test_a_killed_replica_breaks_its_answers_off_and_is_replaced(served):
    whole = served.say().content
    victim = served.replicas()[0]
    clients = Clients(served, whole)
    wait_until(lambda: len(clients.answers) > 4, 60)
    os.kill(victim, signal.SIGKILL)
    fresh = served.replicas(but=victim)
    before = len(clients.answers)
    wait_until(lambda: len(clients.answers) > before + 8, 60)
    answers = clients.join()
    assert len(fresh) == 2
    assert "WRONG" not in answers  # cut short, but with an end that looks like one
    assert set(answers[before:]) <= {"whole", "429"}
    lost = [answer for answer in answers if answer not in ("whole", "429")]
    assert len(lost) <= 8, lost  # no more than were under way, and their first repetition


def test_voices_outlive_the_process_that_keeps_them(served):
    (store,) = wait_for_processes(served.process.pid, "VoiceStore", 1)
    os.kill(store, signal.SIGKILL)
    wait_for_processes(served.process.pid, "VoiceStore", 1, but=store)
    wait_until(lambda: served.say(input="Still there.", voice="Jane").status_code == 200, 30)


def test_sigterm_finishes_what_was_accepted(served):
    whole = served.say().content
    clients = Clients(served, whole)
    wait_until(lambda: len(clients.answers) > 4, 60)
    served.process.terminate()
    wait_until(lambda: not served.ready(), 10)
    answers = clients.join()
    assert set(answers) <= {"whole", "429"}, answers
    assert served.process.wait(60) == 0


# ---- bulk ---------------------------------------------------------------------------------------


def bulk(weights: Path, source: Path, folder: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "engine", "batch", source, folder, "--weights", weights,
               "--quiet", *options]  # fmt: skip
    return subprocess.Popen(command, start_new_session=True)


def done(folder: Path) -> dict[str, tuple[str, str]]:
    """By id: hash of the file and words, of lines that are done; each file is what its row says."""
    with contextlib.closing(sqlite3.connect(folder / MANIFEST)) as db:
        rows = db.execute("SELECT id, file, sha256, words FROM lines WHERE status = 'done'")
        found = {id: (file, sha256, words) for id, file, sha256, words in rows}
    assert all(files.sha256(folder / file) == sha256 for file, sha256, _ in found.values())
    return {id: (sha256, words) for id, (_, sha256, words) in found.items()}


def test_bulk_on_a_cluster_loses_and_doubles_nothing_when_processes_die(weights, tmp_path):
    source = tmp_path / "in.jsonl"
    lines = [{"id": f"line-{i}", "text": f"This is line {i}. " + "More. " * (i % 9)}
             for i in range(400)]  # fmt: skip
    lines.append({"id": "no-voice", "text": "Nobody.", "voice": "missing.safetensors"})
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    written = lambda: len(list((tmp_path / "out").glob("*.wav")))  # noqa: E731
    first = bulk(weights, source, tmp_path / "out", "--replicas", "2")
    wait_until(lambda: written() > 20, 120)
    os.kill(wait_for_processes(first.pid, "MapWorker", 2)[0], signal.SIGKILL)
    before = written()
    wait_until(lambda: written() > before + 60, 60)
    first.kill()
    assert first.wait(30) == -signal.SIGKILL
    kept = written()
    assert kept < 400
    second = bulk(weights, source, tmp_path / "out", "--replicas", "2", "--resume")
    assert second.wait(240) == 1  # one line has no voice
    assert bulk(weights, source, tmp_path / "alone").wait(240) == 1
    assert done(tmp_path / "out") == done(tmp_path / "alone")
    assert written() == 400
