"""Which implementation of an op runs. The whole mechanism; no maths; imports nothing but stdlib."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ORDER = ("cuda", "triton", "cpp", "reference")  # fastest first; reference accepts everything


class BackendUnavailable(RuntimeError):
    """A named backend cannot run this call; the text gives the reason."""


@dataclass(frozen=True)
class Impl:
    """One implementation: `why_not` returns None if it can run the call, else the reason."""

    run: Callable[..., Any]
    why_not: Callable[..., str | None]


def accepts_everything(*_args: Any) -> None:
    """`why_not` of the reference."""


@dataclass(frozen=True)
class Op:
    """An op and its implementations by backend name."""

    name: str
    impls: dict[str, Impl]

    def select(self, backend: str, *args: Any) -> str:
        """The backend this call will use. "auto" takes the first of ORDER that can.

        Raises:
            BackendUnavailable: the named backend does not exist or cannot run this call.
        """
        if backend == "auto":
            here = (b for b in ORDER if b in self.impls)
            return next(b for b in here if self.impls[b].why_not(*args) is None)
        if backend not in self.impls:
            have = sorted(self.impls)
            raise BackendUnavailable(f"{self.name}: no {backend!r} backend, have {have}")
        if reason := self.impls[backend].why_not(*args):
            raise BackendUnavailable(f"{self.name}: {backend} cannot run: {reason}")
        return backend

    def __call__(self, *args: Any, backend: str = "auto") -> Any:
        return self.impls[self.select(backend, *args)].run(*args)
