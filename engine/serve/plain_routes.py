"""Models, health, and the page."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from engine.serve.problems import RESPONSES, Problem
from engine.serve.schemas import MODELS, Model, ModelList, State
from engine.serve.service import require, service_of

PAGE = Path(__file__).with_name("page")
# The only files that are served, by name: no path is ever made from a request.
PAGE_FILES = {
    "page.js": "text/javascript", "recorder.js": "text/javascript", "page.css": "text/css",
}  # fmt: skip
router = APIRouter()


@router.get("/v1/models", responses=RESPONSES, dependencies=[Depends(require("speech"))])
@router.get("/v1/audio/models", responses=RESPONSES, dependencies=[Depends(require("speech"))])
async def list_models(request: Request) -> ModelList:
    """One model under the names that clients ask for."""
    created = service_of(request).started_at
    models = [Model(id=name, created=created) for name in MODELS]
    return ModelList(data=models, models=models)


@router.get("/livez", responses={503: {"model": State}})
async def live() -> State:
    """The process answers."""
    return State(status="ok")


@router.get("/readyz", response_model=State, responses={503: {"model": State}})
async def ready(request: Request) -> Response:
    """Send traffic here? Not while it warms up, is full, drains, or its device is broken."""
    service = service_of(request)
    if service.ready:
        return JSONResponse({"status": "ready"})
    scheduler = service.scheduler
    broken = "device broken" if scheduler.broken is not None else "warming up or full"
    status = "draining" if service.draining else broken
    return JSONResponse({"status": status}, 503, {"Retry-After": "2"})


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    return FileResponse(PAGE / "index.html", media_type="text/html")


@router.get("/page/{name}", include_in_schema=False)
async def page_file(name: str) -> FileResponse:
    if name not in PAGE_FILES:
        raise Problem(404, "not_found", "no such file")
    return FileResponse(PAGE / name, media_type=PAGE_FILES[name])
