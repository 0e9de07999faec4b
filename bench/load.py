"""Open-loop load on a scheduler or a server: goodput, refusals and first audio against demand.

    python bench/load.py --seconds 20                            # this engine, in this process
    python bench/load.py --url http://127.0.0.1:8000 --key K     # a running server
    python bench/load.py --url ... --soak PID --seconds 1800     # its memory, under mixed load

First the capacity is measured (so many clients that the device is never idle), then requests arrive
at random moments (Poisson) at multiples of it, whether or not earlier ones were answered: a server
that stalls is not spared the requests that would have come meanwhile. Goodput is the audio of
requests that were answered whole within the deadline.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from results import record

import engine
from engine import Engine
from engine.errors import EngineError, Overloaded
from engine.serve.scheduler import Scheduler

TEXTS = (
    "Yes, of course.",
    "The road to the harbour was quiet in the morning.",
    "She carried two letters and a map of the coast. Nobody had seen the boat since the storm.",
    "At noon the wind turned, and the clouds went away. He asked the old man what it might mean. "
    "It took them the whole evening to find an answer.",
)
RATE = 24_000
FORMATS = ("pcm", "wav", "flac", "mp3", "opus")


@dataclass
class Answer:
    """One request: seconds count from the moment it was due to be sent."""

    outcome: str  # ok, refused, or what went wrong
    total_s: float
    first_s: float | None = None
    audio_s: float = 0.0
    retry_after: bool = False


Ask = Callable[..., Awaitable[Answer]]


def ask_scheduler(scheduler: Any, voice: Any, deadline_s: float) -> Ask:
    """Requests to a Scheduler in this process."""

    async def ask(text: str) -> Answer:
        begin = time.monotonic()
        since = lambda: time.monotonic() - begin  # noqa: E731
        try:
            job = await asyncio.to_thread(scheduler.submit, text, voice, deadline_s=deadline_s)
            first, samples = None, 0
            async for chunk in job:
                first = since() if first is None else first
                samples += len(chunk)
            return Answer("ok", since(), first, samples / job.sample_rate)
        except Overloaded as error:
            return Answer("refused", since(), retry_after=error.retry_after_s >= 1)
        except EngineError as error:
            return Answer(type(error).__name__, since())

    return ask


def ask_server(client: Any, deadline_s: float) -> Ask:
    """Requests to a server, by an aiohttp.ClientSession with its address and headers."""

    async def ask(text: str, format: str = "pcm") -> Answer:
        begin = time.monotonic()
        since = lambda: time.monotonic() - begin  # noqa: E731
        body = {
            "model": "clonewave", "input": text, "voice": "default", "response_format": format,
            "deadline_ms": round(1000 * deadline_s),
        }  # fmt: skip
        try:
            async with client.post("/v1/audio/speech", json=body) as response:
                if response.status != 200:
                    await response.read()
                    refused = response.status == 429
                    outcome = "refused" if refused else f"HTTP {response.status}"
                    return Answer(outcome, since(), None, 0.0, "retry-after" in response.headers)
                first, size = None, 0
                async for data in response.content.iter_any():
                    first = since() if first is None else first
                    size += len(data)
            return Answer("ok", since(), first, size / 2 / RATE if format == "pcm" else 0.0)
        except aiohttp.ClientError as error:
            return Answer(type(error).__name__, since())

    return ask


def ask_mixed(client: Any, deadline_s: float) -> Ask:
    """What a server meets in a day: every format, listeners who leave, voices made and deleted."""
    speak, turns = ask_server(client, deadline_s), itertools.count(1)
    recording = (Path(engine.__file__).parent / "samples" / "austen.flac").read_bytes()

    async def clone(name: str) -> Answer:
        begin = time.monotonic()
        form = aiohttp.FormData({"name": name, "consent": "I am the speaker and I agree"})
        form.add_field("audio_sample", recording, filename="me.flac")
        made = await client.post("/v1/audio/voices", data=form)
        gone = await client.delete(f"/v1/audio/voices/{name}")
        bad = [answer.status for answer in (made, gone) if not answer.ok]
        since = time.monotonic() - begin
        return Answer(f"HTTP {bad[0]}" if bad else "voice", since)

    async def leave(text: str) -> Answer:
        begin = time.monotonic()
        body = {"input": text, "response_format": "pcm"}
        async with client.post("/v1/audio/speech", json=body) as response:
            await response.content.readany()
            response.close()
        return Answer("left", time.monotonic() - begin)

    async def ask(text: str) -> Answer:
        turn = next(turns)
        if turn % 40 == 0:
            return await clone(f"voice {turn}")
        return await (leave(text) if turn % 10 == 0 else speak(text, FORMATS[turn % len(FORMATS)]))

    return ask


async def closed_loop(ask: Ask, clients: int, seconds: float, seed: int = 0) -> list[Answer]:
    """Clients that ask again as soon as they are answered (or, if refused, after a moment)."""
    end = time.monotonic() + seconds

    async def client(number: int) -> list[Answer]:
        rng, answers = random.Random(seed + number), []
        while time.monotonic() < end:
            answers.append(await ask(rng.choice(TEXTS)))
            if answers[-1].outcome != "ok":
                await asyncio.sleep(0.2)
        return answers

    return [a for each in await asyncio.gather(*map(client, range(clients))) for a in each]


async def open_loop(ask: Ask, per_s: float, seconds: float, seed: int = 0) -> list[Answer]:
    """Requests at random moments, `per_s` on average, whatever becomes of them."""
    rng, tasks = random.Random(seed), []
    begin, due = time.monotonic(), 0.0
    while (due := due + rng.expovariate(per_s)) < seconds:
        await asyncio.sleep(max(0.0, begin + due - time.monotonic()))
        tasks.append(asyncio.create_task(ask(rng.choice(TEXTS))))
    return list(await asyncio.gather(*tasks))


def quantile(values: list[float], share: float) -> float | None:
    """The value that this share stays under."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else None


def summary(answers: list[Answer], wall_s: float, deadline_s: float) -> dict[str, Any]:
    """Counts and quantiles of one phase, in seconds."""
    good = [a for a in answers if a.outcome == "ok" and a.total_s <= deadline_s]
    refused = [a for a in answers if a.outcome == "refused"]
    firsts = [a.first_s for a in answers if a.first_s is not None]
    return {
        "requests": len(answers),
        "outcomes": dict(Counter(a.outcome for a in answers)),
        "good": len(good),
        "goodput_audio_s_per_s": sum(a.audio_s for a in good) / wall_s,
        "first_audio_p50_s": quantile(firsts, 0.5),
        "first_audio_p99_s": quantile(firsts, 0.99),
        "total_p99_s": quantile([a.total_s for a in answers if a.outcome == "ok"], 0.99),
        "refusal_p99_s": quantile([a.total_s for a in refused], 0.99),
        "refused_without_retry_after": sum(not a.retry_after for a in refused),
    }


async def measure(
    ask: Ask, multiples: list[float], seconds: float, deadline_s: float, clients: int = 16
) -> dict[str, Any]:
    """Capacity, then every multiple of it."""
    begin = time.monotonic()
    answers = await closed_loop(ask, clients, seconds)
    wall_s = time.monotonic() - begin
    capacity = sum(a.outcome == "ok" for a in answers) / wall_s
    phases = {"closed": {"per_s": capacity, **summary(answers, wall_s, deadline_s)}}
    for multiple in multiples:
        begin = time.monotonic()
        answers = await open_loop(ask, multiple * capacity, seconds, seed=round(100 * multiple))
        wall_s = time.monotonic() - begin  # until the last was answered
        per_s = multiple * capacity
        phases[f"{multiple:g}x"] = {"per_s": per_s, **summary(answers, wall_s, deadline_s)}
    return {"capacity_per_s": capacity, "phases": phases}


async def soak(ask: Ask, seconds: float, memory_mb: Callable[[], float]) -> dict[str, Any]:
    """Mixed load for long: memory at the start (after a warm-up), in the middle and at the end."""
    marks, counts = [], Counter()  # type: ignore[var-annotated]
    slice_s = max(10.0, seconds / 20)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for answer in await closed_loop(ask, 8, slice_s, seed=len(marks)):
            counts[answer.outcome] += 1
        marks.append(round(memory_mb(), 1))
        left = max(0.0, end - time.monotonic())
        print(f"{left:7.0f} s left  {marks[-1]:.0f} MB  {dict(counts)}", flush=True)
    return {"outcomes": dict(counts), "rss_mb": marks, "growth_mb": marks[-1] - marks[0]}


def rss_mb(pid: int) -> float:
    """Resident memory of a process (Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1024


def table(found: dict[str, Any]) -> str:
    """The phases of `measure`, a line each."""
    lines = [f"{'':8}{'req/s':>7}{'sent':>6}{'good':>6}{'refused':>8}{'other':>6}{'goodput':>9}"
             f"{'first p50':>10}{'first p99':>10}{'refusal p99':>12}"]  # fmt: skip
    number = lambda x: "-" if x is None else f"{1000 * x:.0f} ms"  # noqa: E731
    for name, p in found["phases"].items():
        refused = p["outcomes"].get("refused", 0)
        other = p["requests"] - refused - p["outcomes"].get("ok", 0)
        lines.append(
            f"{name:8}{p['per_s']:7.2f}{p['requests']:6}{p['good']:6}{refused:8}{other:6}"
            f"{p['goodput_audio_s_per_s']:8.1f}x{number(p['first_audio_p50_s']):>10}"
            f"{number(p['first_audio_p99_s']):>10}{number(p['refusal_p99_s']):>12}"
        )
    return "\n".join(lines)


async def main(args: argparse.Namespace) -> dict[str, Any]:
    multiples = [float(m) for m in args.multiples.split(",")]
    if args.url:
        headers = {"authorization": f"Bearer {args.key}"} if args.key else {}
        async with aiohttp.ClientSession(
            args.url, headers=headers, connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(120),
        ) as client:  # fmt: skip
            if args.soak:
                memory = partial(rss_mb, args.soak)
                return await soak(ask_mixed(client, args.deadline), args.seconds, memory)
            ask = ask_server(client, args.deadline)
            if args.alone:
                return await alone(ask, args.seconds)
            return await measure(ask, multiples, args.seconds, args.deadline)
    with Scheduler(Engine(args.weights)) as scheduler:
        scheduler.wait_ready()
        ask = ask_scheduler(scheduler, Engine(args.weights).default_voice(), args.deadline)
        return await measure(ask, multiples, args.seconds, args.deadline)


async def alone(ask: Ask, seconds: float) -> dict[str, Any]:
    """One client at a time, with a pause between: first audio of an idle server."""
    end, firsts = time.monotonic() + seconds, []
    for text in itertools.cycle(TEXTS):
        if time.monotonic() > end:
            break
        answer = await ask(text)
        assert answer.outcome == "ok" and answer.first_s is not None, answer
        firsts.append(answer.first_s)
        await asyncio.sleep(0.05)
    shares = {f"first_audio_p{round(100 * q)}_s": quantile(firsts, q) for q in (0.5, 0.9, 0.99)}
    return {"requests": len(firsts), **shares}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", help="of a running server; without it, an engine in this process")
    parser.add_argument("--key", help="API key of the server")
    parser.add_argument("--weights", help="voice model, for the engine in this process")
    parser.add_argument("--multiples", default="1,2,4", help="of the capacity (default: 1,2,4)")
    parser.add_argument("--seconds", type=float, default=20, help="a phase (default: 20)")
    parser.add_argument("--deadline", type=float, default=15, help="seconds (default: 15)")
    parser.add_argument("--alone", action="store_true", help="one client: only first audio")
    parser.add_argument("--soak", type=int, metavar="PID", help="8 clients of all kinds, for "
        "--seconds, and the memory of the server's process")  # fmt: skip
    parser.add_argument("--record", metavar="NAME", help="keep the result in bench/results")
    return parser.parse_args()


if __name__ == "__main__":
    asked = arguments()
    result = asyncio.run(main(asked))
    print(table(result) if "phases" in result else json.dumps(result), file=sys.stderr)
    if asked.record:
        print(record(asked.record, result))
