"""uvicorn around the application: bounded waits on every connection, and an orderly end.

SIGTERM: not ready at once; accepting a little longer, because a balancer needs to notice; then what
is in flight is finished; exit 0. A second signal ends it now.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from engine.serve.service import Service
from engine.serve.settings import Limits, Settings

SPARE_DESCRIPTORS = 256  # for voices, uploads and libraries
DEVICE_BROKEN = 70  # exit status: a supervisor should start us again
SIGNALS = (signal.SIGTERM, signal.SIGINT)
log = logging.getLogger("clonewave.serve")


def protocol(limits: Limits) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1, which waits for ever for headers and for readers; this one does not."""

    class BoundedProtocol(H11Protocol):
        _headers_due: asyncio.TimerHandle | None = None
        _write_due: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.connections:  # before descriptors run out
                transport.abort()
                return
            self._expect_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            busy = self.cycle is not None and not self.cycle.response_complete
            if busy or self.transport.get_protocol() is not self:  # a WebSocket now
                self._stop_waiting()
            elif self._headers_due is None:  # a second request, begun on this connection
                self._expect_headers()

        def on_response_complete(self) -> None:
            self._stop_waiting()
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            self._write_resumed()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch_writing(self.transport.get_write_buffer_size() + 1)

        def resume_writing(self) -> None:
            self._write_resumed()
            super().resume_writing()

        def _expect_headers(self) -> None:
            self._headers_due = self.loop.call_later(limits.header_s, self.transport.abort)

        def _stop_waiting(self) -> None:
            if self._headers_due is not None:
                self._headers_due.cancel()
                self._headers_due = None

        def _watch_writing(self, before: int) -> None:
            """Slow is fine, standing still is not."""
            now = self.transport.get_write_buffer_size()
            if now >= before:
                self.transport.abort()
                return
            self._write_due = self.loop.call_later(limits.write_stall_s, self._watch_writing, now)

        def _write_resumed(self) -> None:
            if self._write_due is not None:
                self._write_due.cancel()
                self._write_due = None

    return BoundedProtocol


class Server(uvicorn.Server):
    """uvicorn's server with our signals: it drains, and its exit status is 0."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service, self.status = service, 0
        self._wyoming: Any = None  # a WyomingServer, where one is asked for

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        settings = self.service.settings
        if self.started and settings.wyoming_port:
            from engine.serve.stored_voices import StoredVoices
            from engine.serve.wyoming import WyomingServer

            voices = StoredVoices(self.service)
            self._wyoming = WyomingServer(
                self.service.scheduler, lambda: voices, settings.wyoming_host,
                settings.wyoming_port,
            )  # fmt: skip
            await self._wyoming.begin()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self.service.draining:
            log.warning("second signal: ending now")
            os._exit(1)
        log.info("draining")
        self.service.draining = True
        lag = self.service.settings.drain_lag_s
        asyncio.get_running_loop().call_later(lag, self._stop)

    def _stop(self) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: Any = None) -> None:
        """Finish what was accepted, as long as `drain_s`; then give up the rest, in words."""
        for server in self.servers:
            server.close()
        loop, service = asyncio.get_running_loop(), self.service
        service.draining = True
        give_up = loop.create_task(self._give_up())
        if self._wyoming is not None:
            await self._wyoming.end()
        while service.sounding:  # uvicorn would close WebSockets in the middle of a word
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)
        give_up.cancel()

    async def _give_up(self) -> None:
        await asyncio.sleep(self.service.settings.drain_s)
        log.warning("giving up what is not done")
        await asyncio.to_thread(self.service.scheduler.close, drain=False)

    async def on_tick(self, counter: int) -> bool:
        if self.service.scheduler.broken is not None and not self.should_exit:
            log.error("device broken: %s", self.service.scheduler.broken)
            self.status, self.service.draining, self.should_exit = DEVICE_BROKEN, True, True
        return await super().on_tick(counter)


def make_server(app: FastAPI, settings: Settings, **options: Any) -> Server:
    """A server of the application, not yet started."""
    limits = settings.limits
    config = uvicorn.Config(
        app, host=settings.host, port=settings.port, http=protocol(limits), ws="websockets-sansio",
        loop="asyncio",  # uvicorn's choice depends on what else is installed
        timeout_keep_alive=round(limits.keep_alive_s), server_header=False, access_log=False,
        timeout_graceful_shutdown=round(settings.drain_s + 5), log_level="warning",
        limit_concurrency=2 * limits.requests, backlog=128, ws_max_size=limits.field_bytes,
        lifespan="on", proxy_headers=False, **options,
    )  # fmt: skip
    return Server(config, app.state.service)


def allow_descriptors(count: int) -> None:
    """Raise what the system lets us open if it is too little; asyncio spins when none is left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        if most < count:
            log.warning("only %d open files are allowed, %d may be needed", most, count)


def serve(app: FastAPI, settings: Settings, **options: Any) -> int:
    """Serve until a signal comes; the exit status."""
    server = make_server(app, settings, **options)
    allow_descriptors(settings.limits.connections + SPARE_DESCRIPTORS)
    stop_metrics = None
    if settings.metrics_port:
        metrics = app.state.service.metrics
        stop_metrics = metrics.listen(settings.metrics_host, settings.metrics_port)
    try:
        server.run()
    finally:
        if stop_metrics is not None:
            stop_metrics()
    return server.status
