"""`clonewave wyoming`. What needs the wyoming extra is imported when it runs, not for `--help`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from pathlib import Path
from typing import Any

from engine import commands
from engine.errors import ConfigError
from engine.serve.scheduler import Scheduler
from engine.voice import Voice

PORT = 10200
log = logging.getLogger("clonewave.wyoming")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add = parser.add_argument
    add("-v", "--voice", action="append", default=[], metavar="FILE",
        help="voice file, or a recording to clone; may be given again; the first is the default "
        "(default: the voice that comes with the model)")  # fmt: skip
    add("--host", default="127.0.0.1", help="0.0.0.0 for every machine: the protocol knows no "
        "keys, whoever reaches it may speak (default: 127.0.0.1)")  # fmt: skip
    add("--port", type=int, default=PORT, help=f"default: {PORT}")
    add("--zeroconf", action="store_true", help="let Home Assistant find it by itself")
    commands._engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or ctrl-c; answers that were begun are finished."""
    try:
        import wyoming.server  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is missing: pip install 'clonewave[wyoming]'") from error
    level = logging.WARNING if args.quiet else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    engine = commands._engine(args)
    voices: dict[str, Voice] = {}
    for name in args.voice or [None]:
        voice = commands._voice(engine, name)
        label = "default" if name is None else voice.metadata.get("name") or Path(name).stem
        if label in voices:
            raise ConfigError(f"two voices named {label!r}: give one of them another name")
        voices[label] = voice
    with Scheduler(engine) as scheduler:
        scheduler.wait_ready()
        asyncio.run(_serve(scheduler, voices, args))
    return 0


async def _serve(scheduler: Scheduler, voices: dict[str, Voice], args: argparse.Namespace) -> None:
    from engine.serve.wyoming import WyomingServer

    server = WyomingServer(scheduler, lambda: voices, args.host, args.port)
    port = await server.begin()
    found: Any = await _advertise(port) if args.zeroconf else None
    log.info("tcp://%s:%d  voices: %s", args.host, port, ", ".join(voices))
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    log.info("finishing what was begun")
    if found is not None:
        await found._aiozc.async_close()
    await server.end()


async def _advertise(port: int) -> Any:
    try:
        from wyoming.zeroconf import HomeAssistantZeroconf
    except ImportError as error:
        raise ConfigError("--zeroconf: pip install 'wyoming[zeroconf]'") from error
    found = HomeAssistantZeroconf(port, name="clonewave")
    await found.register_server()
    return found
