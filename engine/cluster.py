"""A Ray cluster to work on: many machines, or a few processes on this one. Extra `cluster`.

Ray routes and restarts; what speaks in each process is the same engine and scheduler as without it.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import Any

from engine.engine import Engine
from engine.errors import ConfigError
from engine.serve.device import Device, EngineDevice
from engine.serve.scheduler import Limits, Scheduler

OBJECT_STORE_BYTES = 256 << 20  # of a cluster on this machine alone; what is on its way, no more


@dataclass(frozen=True)
class Cluster:
    """How many processes of how many cores each, and what each of them loads.

    address: of a running Ray cluster ("auto": the one of this machine); None starts one on this
        machine, behind a token, that ends with this process.
    engine: arguments of `Engine`; a folder of weights must be there on every machine.
    """

    replicas: int
    cpus: int = 1
    address: str | None = None
    engine: tuple[str | None, str, str | None, str] = (None, "auto", None, "auto")

    def resources(self, on_gpu: bool) -> dict[str, float]:
        """Of one process, in Ray's words."""
        return {"num_cpus": self.cpus, "num_gpus": 1 if on_gpu else 0}

    def scheduler(self, limits: Limits | None = None) -> tuple[Engine, Scheduler]:
        """Called in a process of the cluster: its engine, and a warm scheduler over it."""
        engine = Engine(*self.engine)
        device: Device = engine.path or EngineDevice(engine, self.cpus)
        scheduler = Scheduler(device, limits)
        if not scheduler.wait_ready(600):
            raise RuntimeError(f"the device does not get ready: {scheduler.broken}")
        return engine, scheduler


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verbs that can use a cluster."""
    add = parser.add_argument
    add("--replicas", type=int, metavar="N", help="processes under Ray, on this machine or those "
        "of --ray; needs the extra `cluster` (default: one process, without Ray)")  # fmt: skip
    add("--replica-cpus", type=int, default=1, metavar="N", help="cores of each (default: 1)")
    add("--ray", metavar="ADDRESS", help="of a running Ray cluster, or auto (default: start one on "
        "this machine)")  # fmt: skip


def of_arguments(args: argparse.Namespace) -> Cluster | None:
    """What the options ask for; None for one process without Ray.

    Raises:
        ConfigError: options that do not fit each other.
    """
    if args.replicas is None:
        if args.ray is not None:
            raise ConfigError("--ray: say how many processes, with --replicas N")
        return None
    if args.replicas < 1 or args.replica_cpus < 1:
        raise ConfigError("--replicas and --replica-cpus: at least 1")
    engine = (args.weights, args.device, args.backend, args.precision)
    return Cluster(args.replicas, args.replica_cpus, args.ray, engine)


def join(cluster: Cluster) -> Any:
    """Connect to the cluster, or start it; returns the module `ray`.

    Raises:
        ConfigError: ray is not installed, or no cluster answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere unless asked
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is missing: pip install 'clonewave[cluster]'") from error
    options: dict[str, Any] = {"address": cluster.address}
    if cluster.address is None:
        options = {
            "address": "local", "include_dashboard": False,
            "num_cpus": max(os.cpu_count() or 1, cluster.replicas * cluster.cpus),
            "object_store_memory": OBJECT_STORE_BYTES,
        }  # fmt: skip
    try:
        ray.init(**options, namespace="clonewave", log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"--ray {cluster.address}: {error}") from error
    return ray
