"""The application: the same under uvicorn, in tests, and on every replica of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from engine import __version__
from engine.engine import Engine
from engine.errors import EngineError
from engine.serve import plain_routes, problems, socket_routes, speech_routes, voice_routes
from engine.serve.guard import Guard
from engine.serve.scheduler import Scheduler
from engine.serve.service import Service
from engine.serve.settings import Settings
from engine.serve.store import VoiceStore


def build_app(
    engine: Engine,
    scheduler: Scheduler | None = None,
    settings: Settings | None = None,
    store: VoiceStore | None = None,
) -> FastAPI:
    """The ASGI application. `app.state.service` holds its parts.

    Args:
        engine: what clones voices, and speaks where no scheduler is given.
        scheduler: what speaks; None makes one over the engine. It is drained at shutdown.
        settings: keys, voice folder, limits; `Settings()` has no keys and serves the loopback.
        store: of voices; None opens the folder that the settings name.
    Raises:
        ConfigError: the key file cannot be used.
        StoreUnavailable: the voice folder cannot be used.
    """
    settings = settings or Settings()
    service = Service(engine, scheduler or Scheduler(engine), settings, store)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.draining = True
        await asyncio.to_thread(service.scheduler.close, True, settings.drain_s)
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="Clonewave", version=__version__, lifespan=lifespan, redoc_url=None, docs_url=None,
        description="Speech in a cloned voice, with the routes of OpenAI's speech API.",
        exception_handlers={
            HTTPException: problems.on_http_exception,
            RequestValidationError: problems.on_invalid,
            EngineError: problems.on_engine_error,
            Exception: problems.on_bug,
        },
    )  # fmt: skip
    app.state.service = service
    for module in (speech_routes, voice_routes, socket_routes, plain_routes):
        app.include_router(module.router)
    app.add_middleware(Guard, service=service)
    return app


