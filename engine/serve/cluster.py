"""The application on many machines: replicas under Ray Serve, and one store of voices for all.

Ray's proxies take requests and give each to the replica with the least under way; admission, limits
and refusals are each replica's own. A replica that dies is started again; what it was speaking
breaks off without an end, and the same request may be sent again.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any, cast

from fastapi import FastAPI

from engine import cluster
from engine.cluster import Cluster
from engine.serve.app import build_app
from engine.serve.settings import Settings, default_voices
from engine.serve.store import StoreUnavailable, VoiceStore

NAME = "clonewave"
STORE_S = 10.0  # for an answer of the store
log = logging.getLogger("clonewave.serve")


class RemoteStore:
    """A VoiceStore in another process, on the machine that serves: same methods, same errors."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        import ray

        method = getattr(self._actor, name)

        def call(*args: Any, **options: Any) -> Any:
            try:
                return ray.get(method.remote(*args, **options), timeout=STORE_S)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None  # what the store raised
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
                raise StoreUnavailable(f"the voices' process does not answer: {error}") from error

        return call

    def close(self) -> None:
        """It belongs to the cluster."""


def serve(settings: Settings, of: Cluster, **options: Any) -> int:
    """Serve until a signal comes; the exit status.

    Args:
        options: more of Ray Serve's HTTPOptions, for example ssl_certfile.
    Raises:
        ConfigError: see `cluster.join`.
    """
    ray = cluster.join(of)
    from ray import serve as ray_serve

    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # Ray has set its own
        signal.signal(number, lambda *_: os._exit(1) if stopped.is_set() else stopped.set())
    keep_alive = round(settings.limits.keep_alive_s)
    http = {"host": settings.host, "port": settings.port, "keep_alive_timeout_s": keep_alive}
    ray_serve.start(
        proxy_location="EveryNode", http_options={**http, **options},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )  # fmt: skip
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    store = ray.remote(VoiceStore).options(
        num_cpus=0, max_restarts=-1, scheduling_strategy=here
    ).remote(settings.voices or default_voices(), settings.limits)  # fmt: skip
    nodes = deployment(settings, of, store)
    ray_serve.run(nodes.bind(), name=NAME)
    log.info("http://%s:%d  %d replicas", settings.host, settings.port, of.replicas)
    stopped.wait()
    log.info("draining")
    drained = {"draining": True}  # not ready, at once; the same replicas go on answering
    ray_serve.run(nodes.options(user_config=drained).bind(), name=NAME)
    threading.Event().wait(settings.drain_lag_s)
    ray_serve.delete(NAME)  # finishes what was accepted
    ray_serve.shutdown()
    ray.shutdown()
    return 0


def deployment(settings: Settings, of: Cluster, store: Any) -> Any:
    """The replicas, in Ray Serve's words."""
    from ray import serve as ray_serve

    def build() -> FastAPI:
        engine, scheduler = of.scheduler()
        return build_app(engine, scheduler, settings, cast(VoiceStore, RemoteStore(store)))

    @ray_serve.ingress(build)
    class Node:
        app: FastAPI  # Ray Serve sets it

        def reconfigure(self, config: dict[str, bool]) -> None:
            self.app.state.service.draining = config["draining"]

        def check_health(self) -> None:
            """Raise for a device that never works again; Ray Serve then replaces the replica."""
            if (broken := self.app.state.service.scheduler.broken) is not None:
                raise RuntimeError(f"device broken: {broken}")

    most = settings.limits.requests
    return ray_serve.deployment(Node).options(
        name=NAME, num_replicas=of.replicas, ray_actor_options=of.resources(_on_gpu(of)),
        user_config={"draining": False},
        # The application refuses what it cannot do in time; these only bound what waits before it.
        max_ongoing_requests=most, max_queued_requests=most,
        backpressure_config={"status_code": 429, "retry_after_s": 2},
        graceful_shutdown_timeout_s=settings.drain_s + 5, graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5, health_check_timeout_s=30,
    )  # fmt: skip


def _on_gpu(of: Cluster) -> bool:
    return of.engine[1] == "cuda"
