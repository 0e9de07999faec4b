"""Forks, at every line of its input, a real server with a fake device; says its port and its end.

Forked, because a start of Python with torch takes longer than all the rest.
"""

import os
import sys
import tempfile
from pathlib import Path

from serving import Slow
from sounds import talk
from tiny import make_weights

from engine import Engine
from engine.serve.app import build_app
from engine.serve.scheduler import Scheduler
from engine.serve.server import serve
from engine.serve.settings import Settings


def run(engine: Engine, port: int, lag: float) -> int:
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(port=port, voices=Path(folder), drain_lag_s=lag, drain_s=20)
        app = build_app(engine, Scheduler(Slow()), settings)
        return serve(app, settings)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(make_weights(Path(folder)))
        engine.clone(talk(3.0), 24_000).save(Path(folder) / "voice.safetensors")
        for line in sys.stdin:
            port, lag = line.split()
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    status = run(engine, int(port), float(lag))
                finally:
                    os._exit(status)
            print("started", pid, flush=True)
            _, status = os.waitpid(pid, 0)
            print("ended", os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
