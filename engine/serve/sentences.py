"""Text that comes in pieces -> whole sentences, as soon as nothing that follows can change them."""

from __future__ import annotations

import re
from dataclasses import replace

from engine.errors import InputError
from engine.text import Sentence, front_end

LOOK_AHEAD = 24  # characters after a full stop by which the front end knows it for an end
_END = re.compile(r"[.?!…。][\"')\]}\u00bb\u201d\u2019]*\s+(?=\S)|\n\s*\n(?=\s*\S)")


class Sentences:
    """Cuts a growing text so that the pieces, spoken one by one, give what the whole text gives."""

    def __init__(self) -> None:
        self._text = ""
        self._seen = 0  # ends before this were judged

    def add(self, text: str) -> str:
        """The whole sentences that are known with this piece; "" if none is."""
        self._text += text
        cut = 0
        for match in _END.finditer(self._text, self._seen):
            if not _known(self._text[match.end() :]):
                break
            self._seen = match.end()
            if _parts_here(self._text[cut:], match.end() - cut):
                cut = match.end()
        whole, self._text = self._text[:cut], self._text[cut:]
        self._seen = max(0, self._seen - cut)
        return whole

    def rest(self) -> str:
        """What is left when the text is complete."""
        rest, self._text, self._seen = self._text, "", 0
        return rest


def _known(following: str) -> bool:
    """Is enough known of what follows an end? The next word, or as much as anyone looks at."""
    return len(following) >= LOOK_AHEAD or re.match(r"\W*\w+\W", following) is not None


def _parts_here(text: str, at: int) -> bool:
    """Does the front end part the text at `at`?"""
    try:
        both = front_end(text[:at]) + front_end(text[at:])
        return _plain(both) == _plain(front_end(text))
    except InputError:
        return False


def _plain(sentences: list[Sentence]) -> list[Sentence]:
    return [replace(sentence, warnings=()) for sentence in sentences]
