"""Long runs: `python bench/fuzz.py audio|text|kills|drains|api|bulk|cancels|all`.

Writes what was really done, as counts, to bench/results/serving-<date>.json. The same checks run
in the tests, a few of each.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import resource
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import damage  # noqa: E402
import test_serve_fuzz  # noqa: E402
from results import record  # noqa: E402

from engine.serve.decode import Decoder  # noqa: E402

COUNTS = {"audio": 100_000, "text": 20_000, "kills": 200, "drains": 50, "api": 3_000, "bulk": 50,
          "cancels": 250}  # fmt: skip


def audio(count: int, seed: int) -> dict:
    """Damaged files, and every bomb, through the decoder."""
    ends: collections.Counter[str] = collections.Counter()
    failures: list[str] = []
    slowest, killed = 0.0, []
    whole = damage.seeds()
    with Decoder(workers=2, on_kill=lambda: killed.append(1)) as decoder:

        def one(number: int) -> None:
            nonlocal slowest
            rng = random.Random(seed * 1_000_003 + number)
            data = damage.damaged(rng.choice(whole), rng, rng.choice(whole))
            begin = time.monotonic()
            try:
                ends[test_serve_fuzz.try_one(decoder, data)] += 1
            except Exception as error:
                failures.append(f"{number}: {error!r}")
            slowest = max(slowest, time.monotonic() - begin)

        for name, data in damage.bombs():
            if test_serve_fuzz.try_one(decoder, data) == "decoded":
                failures.append(f"bomb decoded: {name}")
        before = _memory()
        numbers = tqdm(range(count), mininterval=10)
        lock, turns = threading.Lock(), iter(numbers)

        def work() -> None:  # no pool: its 100,000 futures would be what grows
            while True:
                with lock:
                    number = next(turns, None)
                if number is None:
                    return
                one(number)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        grown = _memory() - before
    bombs = sum(1 for _ in damage.bombs())
    return {
        **_verdict(count + bombs, failures), "ends": dict(ends), "bombs": bombs,
        "decoders_killed": len(killed), "slowest_s": round(slowest, 2), "memory_grew_mb": grown,
    }  # fmt: skip


def text(count: int, seed: int) -> dict:
    """Hostile texts through the front end."""
    rng, failures, characters = random.Random(seed), [], 0
    begin = time.process_time()
    for number in tqdm(range(count), mininterval=10):
        hostile = damage.hostile_text(rng)
        characters += len(hostile)
        try:
            test_serve_fuzz.speak_or_refuse(hostile)
        except Exception as error:
            failures.append(f"{number}: {error!r}: {hostile[:200]!r}")
    cost = 1e6 * (time.process_time() - begin) / max(1, characters)
    verdict = _verdict(count, failures)
    return {**verdict, "characters": characters, "cpu_ms_per_1000_characters": round(cost, 2)}


def kills(count: int, seed: int) -> dict:
    """SIGKILLs of a process that writes to the voice store."""
    import test_serve_store

    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        try:
            acknowledged = test_serve_store.kill_writers(store, count, random.Random(seed))
        except AssertionError as error:
            return _verdict(count, [repr(error)])
    return {**_verdict(count, []), "acknowledged": acknowledged, "lost": 0}


def drains(count: int, seed: int) -> dict:
    """SIGTERMs of a server under load."""
    import test_serve_drain

    failures, accepted = [], 0
    for number in tqdm(range(count), mininterval=10):
        with tempfile.TemporaryDirectory() as folder:
            try:
                accepted += test_serve_drain.drain_once(Path(folder), random.Random(seed + number))
            except AssertionError as error:
                failures.append(f"{number}: {error!r}"[:500])
    return {**_verdict(count, failures), "accepted": accepted}


def api(count: int, seed: int) -> dict:
    """Requests that schemathesis makes from the OpenAPI schema."""
    import test_serve_schema

    sent, failures = test_serve_schema.run_schema(count, seed)
    return _verdict(sent, failures)


def _verdict(count: int, failures: list[str]) -> dict:
    summary = f"{count - len(failures)} passed, {len(failures)} failed"
    return {"summary": summary, "failures": failures[:20]}


def _memory() -> float:
    """Peak of this process, MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def cancels(count: int, seed: int) -> dict:
    """Clients that hang up at a random byte: until the device and the queue are idle."""
    import serving

    from engine import Engine
    from engine.serve.app import build_app
    from engine.serve.settings import Limits, Settings

    rng, idle_s = random.Random(seed), []
    text = "This goes on and on for quite a while, as texts sometimes do. " * 12
    with tempfile.TemporaryDirectory() as folder:
        limits = Limits(requests_per_minute=0)
        app = build_app(Engine(), settings=Settings(voices=Path(folder), limits=limits))
        scheduler = app.state.service.scheduler
        scheduler.wait_ready()
        with serving.running(app) as port:
            for _ in tqdm(range(count), mininterval=10):
                _hang_up(port, text, rng.randrange(20_000))
                begin = time.monotonic()
                while (now := scheduler.stats())["jobs"] or now["streams"]:
                    time.sleep(0.002)
                idle_s.append(time.monotonic() - begin)
        serving.close(app)
    late = [f"{s:.3f} s" for s in idle_s if s > 0.3]
    idle_s.sort()
    verdict = _verdict(count, late)
    return {**verdict, "idle_after_p50_s": round(idle_s[count // 2], 3),
            "idle_after_p99_s": round(idle_s[int(0.99 * count)], 3),
            "idle_after_most_s": round(idle_s[-1], 3)}  # fmt: skip


def _hang_up(port: int, text: str, size: int) -> None:
    """Ask for a long text, read so many bytes of it, and leave."""
    body = json.dumps({"input": text, "response_format": "pcm"}).encode()
    head = (
        "POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(head.encode() + body)
        while size > 0 and (part := client.recv(4096)):
            size -= len(part)


def bulk(count: int, seed: int) -> dict:
    """SIGKILLs of a bulk run of 10,000 lines."""
    import test_batch

    with tempfile.TemporaryDirectory() as folder:
        try:
            found = test_batch.kill_at_random(Path(folder), count, 10_000, random.Random(seed))
        except AssertionError as error:
            return _verdict(count, [repr(error)[:500]])
    return {**_verdict(found["kills"], []), **found, "lost": 0, "doubled": 0}


RUNS: dict[str, Callable[[int, int], dict]] = {
    "audio": audio, "text": text, "kills": kills, "drains": drains, "api": api,
    "bulk": bulk, "cancels": cancels,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=(*RUNS, "all"))
    parser.add_argument("--count", type=int, help=f"default: {COUNTS}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    args = parser.parse_args()
    failed = False
    for name in RUNS if args.what == "all" else (args.what,):
        begin = time.monotonic()
        result = RUNS[name](args.count or COUNTS[name], args.seed)
        result["seconds"], result["seed"] = round(time.monotonic() - begin), args.seed
        failed |= bool(result["failures"])
        path = record(name, result, args.results)
        print(f"{name}: {result['summary']} in {result['seconds']} s -> {path}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
