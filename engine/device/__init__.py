"""Text to samples without leaving the device: fixed sizes, captured graphs, streams in slots.

`DevicePath` is what `Engine` uses on a GPU. Everything here runs on a CPU too, with the same
results: that is how it is tested.
"""

from engine.device.cloning import Person, clone_many
from engine.device.path import DevicePath

__all__ = ["DevicePath", "Person", "clone_many"]
