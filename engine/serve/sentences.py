"""Text that comes in pieces -> whole sentences, as soon as nothing that follows can change them."""

from __future__ import annotations

import re

from engine.errors import InputError
from engine.text import pieces

LOOK_AHEAD = 24  # characters after a full stop by which the front end knows it for an end
CONTEXT = 40  # characters before it that matter
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
            at = match.end()
            before = self._text[max(cut, at - CONTEXT) : at]
            after = self._text[at : at + LOOK_AHEAD]
            if not _known(after):
                break
            self._seen = at
            in_braces = self._text.rfind("{", cut, at) > self._text.rfind("}", cut, at)
            if not in_braces and _parts(before, after):
                cut = at
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


def _parts(before: str, after: str) -> bool:
    """Does the front end part a text between these two?"""
    try:
        both = list(pieces(before + after))
        return len(both) > 1 and [*pieces(before), *pieces(after)] == both
    except InputError:
        return False
