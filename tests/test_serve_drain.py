"""SIGTERM under load: what was accepted is finished, then the process ends with 0."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

TEXT = "A sentence that takes a while. And a second one, which takes as long as the first."
BODY = {"input": TEXT, "seed": 5, "response_format": "pcm"}


class Servers:
    """Servers of one forking process, one after the other."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("serve_process.py")
        command = [sys.executable, script]
        self._process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)

    def start(self, lag: float) -> tuple[int, int]:
        """(pid, port) of a server that is ready."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._process.stdin.write(f"{port} {lag}\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline().split()[1])
        for _ in range(600):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                    return pid, port
            threading.Event().wait(0.05)
        raise AssertionError("the server does not get ready")

    def ended(self) -> int:
        """Exit status of the server, when it has ended."""
        return int(self._process.stdout.readline().split()[1])

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


_servers: Servers | None = None


def servers() -> Servers:
    global _servers
    if _servers is None:
        _servers = Servers()
    return _servers


@pytest.fixture(scope="module", autouse=True)
def _close():
    yield
    if _servers is not None:
        _servers.close()


class Clients:
    """Four clients that ask as a balancer would: only a server that says it is ready."""

    def __init__(self, port: int, stream: bool) -> None:
        self.url, self.stream = f"http://127.0.0.1:{port}", stream
        self.answers: list[tuple[int, bytes]] = []
        self.lost: list[str] = []
        self.begun = threading.Barrier(5)  # the clients and who stops the server
        self._threads = [threading.Thread(target=self._run) for _ in range(4)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        with httpx.Client(timeout=60) as http:
            http.get(f"{self.url}/readyz")
            self.begun.wait(60)
            self._ask(http)
            while True:
                try:
                    if http.get(f"{self.url}/readyz").status_code != 200:
                        return
                except httpx.HTTPError:  # idle connections are closed in the end
                    return
                self._ask(http)

    def _ask(self, http: httpx.Client) -> None:
        try:
            body = {**BODY, "stream": self.stream}
            answer = http.post(f"{self.url}/v1/audio/speech", json=body)
            self.answers.append((answer.status_code, answer.content))
        except httpx.HTTPError as error:
            self.lost.append(repr(error))

    def join(self) -> None:
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive()


def drain_once(folder: Path, rng: random.Random) -> int:
    """Stop a server under load; how many requests it had accepted. None may be lost."""
    pid, port = servers().start(lag=1.5)
    clients = Clients(port, stream=rng.random() < 0.5)
    clients.begun.wait(60)
    threading.Event().wait(rng.uniform(0, 0.5))
    os.kill(pid, signal.SIGTERM)
    clients.join()
    assert servers().ended() == 0
    assert not clients.lost, clients.lost
    assert clients.answers and {status for status, _ in clients.answers} == {200}
    sounds = {sound for _, sound in clients.answers}
    assert len(sounds) == 1 and len(sounds.pop()) > 2000  # all the same, none cut short
    return len(clients.answers)


@pytest.mark.parametrize("seed", range(2))
def test_a_drain_loses_nothing(tmp_path, seed):
    assert drain_once(tmp_path, random.Random(seed)) >= 4


def test_not_ready_at_once_and_a_second_signal_ends_it_now():
    pid, port = servers().start(lag=60.0)
    with httpx.Client() as http:
        os.kill(pid, signal.SIGTERM)
        for _ in range(100):
            answer = http.get(f"http://127.0.0.1:{port}/readyz")
            if answer.status_code == 503:
                break
            threading.Event().wait(0.05)
        assert answer.json() == {"status": "draining"}
        assert http.get(f"http://127.0.0.1:{port}/livez").status_code == 200
        spoken = http.post(f"http://127.0.0.1:{port}/v1/audio/speech", json=BODY)
        assert spoken.status_code == 200 and spoken.headers["connection"] == "close"
    os.kill(pid, signal.SIGTERM)
    assert servers().ended() != 0
