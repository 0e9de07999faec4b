"""The voices of a server for a protocol without keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from engine.serve.keys import LOCAL, Key
from engine.serve.service import DEFAULT, Service
from engine.serve.store import SHARED
from engine.voice import Voice


class StoredVoices(Mapping[str, Voice]):
    """The default voice and those of the store that need no key, as they are at the moment."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def _names(self) -> list[str]:
        entries = self._service.store.entries(self._owner().name)
        return list(dict.fromkeys([DEFAULT, *(entry.name for entry in entries)]))

    def _owner(self) -> Key:
        return LOCAL if self._service.keys is None else Key(SHARED, frozenset())

    def __getitem__(self, name: str) -> Voice:
        return self._service.load(name, self._owner())[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def __contains__(self, name: object) -> bool:
        return name in self._names()
