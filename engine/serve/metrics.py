"""Prometheus metrics of one server, on a listener of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.errors import ConfigError

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 1, 2, 5, 10, 30, 60)
SPEEDS = (0.5, 1, 2, 4, 8, 16, 32, 64, 128)
disable_created_metrics()


class Metrics:
    """Counters of one server. scheduler_stats: `Scheduler.stats`; voices: how many are stored."""

    def __init__(
        self, scheduler_stats: Callable[[], dict[str, Any]], voices: Callable[[], int]
    ) -> None:
        self.registry = CollectorRegistry()
        make: dict[str, Any] = {"registry": self.registry, "namespace": "clonewave"}
        self.requests = Counter("requests", "Requests answered", ("route", "code"), **make)
        self.ttfa = Histogram(
            "ttfa_seconds", "From accepted to first audio", buckets=SECONDS, **make
        )
        self.queue = Histogram(
            "queue_seconds", "From accepted to taken up", buckets=SECONDS, **make
        )
        self.speed = Histogram(
            "realtime_speedup", "Audio seconds a second of waiting", buckets=SPEEDS, **make
        )
        self.cancelled = Counter("cancelled", "Given up by the client", ("stage",), **make)
        self.rejected = Counter("rejected", "Refused", ("reason",), **make)
        self.decode_killed = Counter("decode_killed", "Upload decoders killed or crashed", **make)
        self.audio = Counter("audio_seconds", "Audio sent", **make)
        self.registry.register(_Scheduler(scheduler_stats, voices))

    def job(self, job: Any) -> None:
        """Count a job that has ended."""
        timing = job.timing
        for histogram, value in ((self.ttfa, timing.first_audio_s), (self.queue, timing.queue_s)):
            if value is not None:
                histogram.observe(value)
        if timing.total_s and job.seconds:
            self.speed.observe(job.seconds / timing.total_s)
        self.audio.inc(job.seconds)

    def listen(self, host: str, port: int) -> Callable[[], None]:
        """Serve /metrics in a thread; the returned function ends it.

        Raises:
            ConfigError: the port is taken.
        """
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            message = f"metrics on {host}:{port}: {error.strerror}; give another --metrics-port"
            raise ConfigError(message) from error

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop


class _Scheduler(Collector):
    """The scheduler's own figures, read when they are asked for."""

    def __init__(self, stats: Callable[[], dict[str, Any]], voices: Callable[[], int]) -> None:
        self._stats, self._voices = stats, voices

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        gauges = {
            "queue_cost_seconds": ("Work accepted and not done, predicted", stats["work_s"]),
            "queue_wait_seconds": ("Wait of a new sentence, predicted", stats["queue_s"]),
            "jobs": ("Requests being spoken or queued", stats["jobs"]),
            "streams": ("Sentences being spoken", stats["streams"]),
            "voices": ("Voices stored", self._voices()),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"clonewave_{name}", text, value)
        yield CounterMetricFamily(
            "clonewave_device_seconds", "Time the device worked", stats["device_s"]
        )
        jobs = CounterMetricFamily("clonewave_jobs_ended", "Requests by outcome", labels=("how",))
        for how, count in stats["counts"].items():
            jobs.add_metric((how,), count)
        yield jobs
        batches = CounterMetricFamily(
            "clonewave_batches", "Steps by number of sentences", labels=("size",)
        )
        for size, count in stats["batches"].items():
            batches.add_metric((str(size),), count)
        yield batches
