"""Bodies of requests and answers, as OpenAI's clients send and expect them."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from engine.serve.settings import Limits
from engine.synthesize import SPEEDS

MODEL = "clonewave"
# What OpenAI's own clients and Open WebUI name by default; all of them are our one model.
MODELS = (MODEL, "tts-1", "tts-1-hd", "gpt-4o-mini-tts")
Name = Annotated[str, StringConstraints(min_length=1, max_length=100)]
FormatName = Literal["wav", "flac", "mp3", "opus", "pcm"]
TEXT_CHARS = Limits().text_chars


class VoiceId(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: Name


class Spoken(BaseModel):
    """One text to speak. Unknown fields are ignored, and named in `X-Clonewave-Ignored`."""

    model_config = ConfigDict(extra="allow")
    input: Annotated[str, StringConstraints(min_length=1)] = Field(
        description=f"Text, {TEXT_CHARS} characters at most unless the server says otherwise",
    )
    voice: Name | VoiceId = Field(default="default", description="Id, name or `default`")
    model: Name = MODEL
    response_format: FormatName = "mp3"
    speed: float = Field(default=1.0, ge=SPEEDS[0], le=SPEEDS[1])
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="Same seed, same samples")
    language: str | None = Field(default=None, max_length=20, description="`en` or a kind of it")

    @property
    def voice_name(self) -> str:
        return self.voice if isinstance(self.voice, str) else self.voice.id

    @property
    def ignored(self) -> list[str]:
        """Fields that came and mean nothing to us."""
        return sorted(name for name in self.model_extra or {} if name.isidentifier())[:10]


class SpeechRequest(Spoken):
    stream: bool = Field(default=True, description="false: a complete file")
    stream_format: Literal["audio", "sse"] = "audio"
    words: bool = Field(default=False, description="With `sse`: when each word is said")
    deadline_ms: int | None = Field(default=None, ge=1, le=600_000)


class BatchRequest(BaseModel):
    items: list[Spoken] = Field(min_length=1, max_length=Limits().batch_items)
    deadline_ms: int | None = Field(default=None, ge=1, le=600_000)


class BatchResult(BaseModel):
    index: int
    status: int = Field(description="As the HTTP status of this item alone")
    audio: str | None = Field(default=None, description="base64")
    format: str | None = None
    seconds: float | None = None
    error: dict[str, Any] | None = None


class BatchAnswer(BaseModel):
    object: Literal["list"] = "list"
    results: list[BatchResult]


class Quality(BaseModel):
    """Of the recordings: one value each."""

    snr_db: list[float]
    clipped_share: list[float]
    weights: list[float]
    seconds: float = Field(description="Of speech, in all of them")


class VoiceAnswer(BaseModel):
    object: Literal["audio.voice"] = "audio.voice"
    id: str
    name: str
    created_at: int
    shared: bool = False
    description: str | None = None
    labels: dict[str, str] = {}
    consent: str | None = None
    quality: Quality | None = None


class VoiceList(BaseModel):
    object: Literal["list"] = "list"
    voices: list[VoiceAnswer]


class VoiceDeleted(BaseModel):
    object: Literal["audio.voice.deleted"] = "audio.voice.deleted"
    id: str
    deleted: Literal[True] = True


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = MODEL


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]
    models: list[Model]  # where Open WebUI looks


class State(BaseModel):
    status: str


def deadline_s(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def usage(text: str, seconds: float) -> dict[str, Any]:
    """As OpenAI counts: what came in (here characters) and what went out (here mel frames)."""
    frames = math.ceil(seconds * 93.75)
    total = len(text) + frames
    return {"input_tokens": len(text), "output_tokens": frames, "total_tokens": total,
            "audio_seconds": round(seconds, 3)}  # fmt: skip
