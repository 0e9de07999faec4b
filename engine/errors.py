"""Typed errors. Every message says what is wrong and what to do about it."""

from engine.kernels import BackendUnavailable as _KernelBackendUnavailable


class EngineError(Exception):
    """Base of every error the engine raises on purpose."""


class InputError(EngineError, ValueError):
    """Text or audio that cannot be used as given."""


class ConfigError(EngineError, ValueError):
    """A configuration with unknown keys or values that contradict each other."""


class VoiceError(EngineError, ValueError):
    """A voice file that is damaged, malformed or made for another encoder."""


class WeightsError(EngineError, ValueError):
    """A checkpoint that is missing, damaged or of another shape than its config says."""


class BackendUnavailable(EngineError, _KernelBackendUnavailable):
    """A named backend cannot run here; the text gives the reason."""


class Overloaded(EngineError):
    """More work is queued than can be done in time. Try again after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: int = 1, reason: str = "queue") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.reason = reason


class DeadlineExceeded(EngineError):
    """The work was not done before its deadline."""


class Cancelled(EngineError):
    """The work was given up because its reader went away or asked for it."""


class Unavailable(EngineError):
    """No new work is taken: still warming up, draining, closed, or the device is broken."""


class SynthesisError(EngineError):
    """The engine failed on this request, and would again; other requests are not affected."""
