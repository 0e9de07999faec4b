"""The symbol table of the acoustic model: pauses, punctuation, ARPABET phones and letters.

A word is written either as its phones or as its letters (mixed representation of Deep Voice 3,
arXiv:1710.07654, section 3.2). Phones are upper case, letters lower case, so they never collide.
The order is part of every checkpoint: append, never reorder.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.errors import InputError

PADDING = "_"  # index 0, never part of an utterance
START = "^"  # first symbol of every utterance; spans the silence before the first word
GAP = " "  # next word without a pause
SHORT_PAUSE = "/"
LONG_PAUSE = "%"
TERMINALS = (".", "?", "!")
PAUSES = (GAP, SHORT_PAUSE, LONG_PAUSE)

VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
CONSONANTS = (
    "B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG", "P", "R", "S", "SH",
    "T", "TH", "V", "W", "Y", "Z", "ZH",
)  # fmt: skip
PHONES = tuple(f"{vowel}{stress}" for vowel in VOWELS for stress in "012") + CONSONANTS
CHARACTERS = tuple("abcdefghijklmnopqrstuvwxyz'")

SYMBOLS = (PADDING, START, *PAUSES, *TERMINALS, *PHONES, *CHARACTERS)
SYMBOL_IDS = {symbol: index for index, symbol in enumerate(SYMBOLS)}


def text_ids(symbols: Iterable[str]) -> list[int]:
    """Indices into SYMBOLS.

    Raises:
        InputError: a symbol is not in the table.
    """
    try:
        return [SYMBOL_IDS[symbol] for symbol in symbols]
    except KeyError as error:
        raise InputError(f"{error.args[0]!r} is not a symbol; see engine.symbols.SYMBOLS") from None


def is_vowel(phone: str) -> bool:
    """True for a vowel phone, which ends in its stress digit."""
    return phone[-1] in "012"
