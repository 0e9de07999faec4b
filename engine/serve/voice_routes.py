"""/v1/audio/voices: clone by upload, list, delete, export."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import FormData, UploadFile

from engine import audio, levels
from engine.engine import Engine
from engine.errors import InputError, VoiceError
from engine.serve.decode import AudioRefused
from engine.serve.problems import RESPONSES, Problem
from engine.serve.schemas import VoiceAnswer, VoiceDeleted, VoiceList
from engine.serve.service import DEFAULT, Service, key_of, missing, require, service_of
from engine.serve.store import (
    SHARED,
    Entry,
    Idempotency,
    StoreFull,
    VoiceExists,
    VoiceMissing,
    check_name,
)
from engine.voice import Voice

router = APIRouter(responses=RESPONSES)
SPEAK, WRITE = Depends(require("speech")), Depends(require("voices:write"))
TEXT_FIELDS = {"name": 64, "consent": 1000, "description": 500, "ref_text": 4096}
LABEL = re.compile(r"labels\[([\w-]{1,32})\]")
MIN_CONSENT = 8  # characters of a statement
FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": {"schema": {
            "type": "object",
            "required": ["name", "audio_sample", "consent"],
            "properties": {
                "name": {"type": "string", "description": "1 to 64 letters, digits, ` _.-`"},
                "audio_sample": {
                    "type": "array", "items": {"type": "string", "format": "binary"},
                    "minItems": 1, "maxItems": 8,
                    "description": "Recordings of one person, 1 to 60 s each; 3 s are enough",
                },
                "consent": {"type": "string", "description": "The speaker's statement"},
                "description": {"type": "string"},
                "ref_text": {"type": "string", "description": "Not needed; ignored"},
            },
        }}},
    },
    "parameters": [{
        "name": "Idempotency-Key", "in": "header", "required": False,
        "schema": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[ -~]+$"},
    }],
}  # fmt: skip


@dataclass(frozen=True)
class CloneForm:
    """What an upload asks for."""

    name: str
    consent: str
    samples: tuple[bytes, ...]
    description: str | None
    labels: dict[str, str]

    def digest(self) -> str:
        """Names the request: the same upload again has the same one."""
        total = hashlib.sha256(repr((self.name, self.consent, self.description,
                                     sorted(self.labels.items()))).encode())  # fmt: skip
        for data in self.samples:
            total.update(hashlib.sha256(data).digest())
        return total.hexdigest()


@router.post(
    "/v1/audio/voices", status_code=201, openapi_extra=FORM, dependencies=[WRITE],
    response_model=VoiceAnswer,
)  # fmt: skip
async def clone_voice(request: Request) -> Response:
    """Clone a voice from recordings; only with the consent of the person who speaks."""
    service, key = service_of(request), key_of(request)
    form = await _form(request, service)
    try:
        idempotency = _idempotency(request, form)
        if idempotency is not None:
            made = await asyncio.to_thread(service.store.replay, key.name, idempotency)
            if made is not None:
                headers = {"Idempotent-Replayed": "true"}
                return JSONResponse(_answer(made).model_dump(), 201, headers)
        async with service.cloning:
            entry = await asyncio.to_thread(_clone, service, form, key.name, idempotency)
    except AudioRefused as error:
        raise Problem(error.status, error.code, str(error), param="audio_sample") from error
    except VoiceExists as error:
        raise Problem(409, "voice_exists", str(error), param="name", retry=False) from error
    except StoreFull as error:
        raise Problem(403, "too_many_voices", str(error)) from error
    return JSONResponse(_answer(entry).model_dump(), 201)


def _idempotency(request: Request, form: CloneForm) -> Idempotency | None:
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 1 <= len(key) <= 128 or not key.isascii() or not key.isprintable():
        text = "Idempotency-Key: 1 to 128 printable ASCII characters"
        raise Problem(400, "invalid_idempotency_key", text)
    return Idempotency(key, form.digest())


async def _form(request: Request, service: Service) -> CloneForm:
    """The form, read within the limits and checked."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Problem(415, "form_expected", "send multipart/form-data with the recordings")
    limits = service.limits
    async with request.form(
        max_files=limits.upload_files, max_fields=limits.form_fields,
        max_part_size=limits.field_bytes,
    ) as form:  # fmt: skip
        texts, labels = _texts(form)
        uploads = [u for u in form.getlist("audio_sample") if isinstance(u, UploadFile)]
        samples = tuple([await upload.read() for upload in uploads])
    if not samples:
        text = "give 1 to 8 recordings as files named audio_sample"
        raise Problem(400, "invalid_audio_sample", text, param="audio_sample")
    try:
        check_name(texts.get("name", ""))
    except InputError as error:
        raise Problem(400, "invalid_name", str(error), param="name") from error
    consent = texts.get("consent", "").strip()
    if len(consent) < MIN_CONSENT:
        text = "give the speaker's statement, for example `I am the speaker and I agree`"
        raise Problem(403, "consent_required", text, param="consent")
    return CloneForm(texts["name"], consent, samples, texts.get("description"), labels)


def _texts(form: FormData) -> tuple[dict[str, str], dict[str, str]]:
    """Fields of text and labels; a field that means nothing is an error, not silence."""
    texts: dict[str, str] = {}
    labels: dict[str, str] = {}
    for name, value in form.multi_items():
        label = LABEL.fullmatch(name)
        limit = 100 if label else TEXT_FIELDS.get(name)
        if name == "audio_sample" and isinstance(value, UploadFile):
            continue
        if limit is None or not isinstance(value, str) or len(value) > limit:
            shown = name[:40] if name.isprintable() else "field"
            text = f"{shown}: not a field of this form, not text, or too long"
            raise Problem(400, "invalid_form", text, param=shown)
        if label:
            labels[label[1]] = value
        else:
            texts[name] = value
    return texts, labels


def _clone(
    service: Service, form: CloneForm, owner: str, idempotency: Idempotency | None
) -> Entry:
    """Decode, clone, keep. Blocks; runs in a thread."""
    decoded = [service.decoder.decode(data) for data in form.samples]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # noise is told by `quality`
            voice = clone_decoded(service.engine, decoded, form.name, form.consent)
    except (InputError, VoiceError) as error:
        raise AudioRefused(422, "audio_unusable", str(error)) from error
    details = {
        "consent": form.consent, "consent_at": int(time.time()), "description": form.description,
        "labels": form.labels, "quality": quality(voice, decoded),
        "samples_sha256": [hashlib.sha256(data).hexdigest() for data in form.samples],
    }  # fmt: skip
    store = service.store
    return store.add(
        voice, owner=owner, name=form.name, details=details, idempotency=idempotency
    )


def clone_decoded(
    engine: Engine, decoded: Sequence[tuple[np.ndarray, int]], name: str, consent: str
) -> Voice:
    """`Engine.clone` of (samples, Hz) pairs; those of another rate follow the first."""
    rate = decoded[0][1]
    same = [samples if r == rate else audio.resample(samples, r, rate) for samples, r in decoded]
    return engine.clone(same, rate, name=name, consent=consent)


def quality(voice: Voice, decoded: Sequence[tuple[np.ndarray, int]]) -> dict[str, Any]:
    """What the recordings were worth; see schemas.Quality."""
    return {
        "snr_db": [float(x) for x in voice.metadata["snr_db"].split(",")],
        "clipped_share": [round(levels.clipped(x) / len(x), 4) for x, _ in decoded],
        "weights": [round(w, 4) for w in voice.weights],
        "seconds": float(voice.metadata["seconds"]),
    }


def _answer(entry: Entry) -> VoiceAnswer:
    details = entry.details
    return VoiceAnswer(
        id=entry.id, name=entry.name, created_at=entry.created_at, shared=entry.owner == SHARED,
        description=details.get("description"), labels=details.get("labels") or {},
        consent=details.get("consent"), quality=details.get("quality"),
    )  # fmt: skip


@router.get("/v1/audio/voices", dependencies=[SPEAK])
async def list_voices(request: Request) -> VoiceList:
    """The default voice, those of this key, and those shared with every key."""
    service = service_of(request)
    entries = await asyncio.to_thread(service.store.entries, key_of(request).name)
    default = VoiceAnswer(id=DEFAULT, name=DEFAULT, created_at=service.started_at, shared=True)
    return VoiceList(voices=[default, *map(_answer, entries)])


@router.get("/v1/audio/voices/{voice_id}", dependencies=[SPEAK])
async def get_voice(voice_id: str, request: Request) -> VoiceAnswer:
    """One voice, by id or name."""
    return _answer(await service_of(request).entry(voice_id, key_of(request)))


@router.delete("/v1/audio/voices/{voice_id}", dependencies=[WRITE])
async def delete_voice(voice_id: str, request: Request) -> VoiceDeleted:
    """Forget a voice and its file."""
    service, key = service_of(request), key_of(request)
    entry = await service.entry(voice_id, key)
    if entry.owner == SHARED and not key.allows("admin"):
        raise Problem(403, "shared_voice", "only an admin may delete a shared voice")
    try:
        await asyncio.to_thread(service.store.delete, entry)
    except VoiceMissing:
        raise missing(voice_id) from None
    return VoiceDeleted(id=entry.id)


@router.get(
    "/v1/audio/voices/{voice_id}/export", dependencies=[SPEAK], response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "Voice file"}},
)  # fmt: skip
async def export_voice(voice_id: str, request: Request) -> Response:
    """The voice file (safetensors), as `clonewave say --voice` and `Voice.load` take it."""
    service = service_of(request)
    entry = await service.entry(voice_id, key_of(request))
    try:
        data = await asyncio.to_thread(service.store.data, entry)
    except VoiceMissing:
        raise missing(voice_id) from None
    headers = {"Content-Disposition": f'attachment; filename="{entry.id}.safetensors"'}
    return Response(data, 200, headers, "application/octet-stream")
