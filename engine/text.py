# ruff: noqa: RUF001, RUF002 (this module is about look-alike characters)
"""Text to symbols: normalise, split into sentences, verbalise, phonemise, mark the pauses.

Any Unicode text is accepted; what cannot be spoken is dropped with a warning on its sentence. Time
grows linearly with the text. Only English is spoken; accented Latin letters lose their accents.

What users can write: `{HH AH0 L OW1}` or `{həˈloʊ}` for a pronunciation, `/` standing alone for a
short and `%` for a long pause (Deep Voice 3, arXiv:1710.07654, section 3.2).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from engine import pronounce
from engine.errors import InputError
from engine.symbols import CHARACTERS, GAP, LONG_PAUSE, SHORT_PAUSE, START, TERMINALS, text_ids
from engine.verbalize import MAX_DIGITS, MONTH_NAMES, NUMBERED, digits, is_abbreviation, verbalize

__all__ = ["Rng", "Sentence", "Word", "front_end", "pieces", "text_ids"]

MAX_WORD_LETTERS = 40  # longer runs of letters are cut into several words
SPELLED = 3  # letters in a row, from which on each is followed by a short pause
MAX_CHUNK = 200  # longest run without a space that the number rules see
PARAGRAPH = "\u2029"
DROPPED = "\x00"  # stands for one unspeakable character until its sentence is known

# Letters without a Unicode decomposition, signs that are read, and punctuation look-alikes.
TRANSLITERATIONS = {
    "ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "Ae", "ø": "o", "Ø": "O", "œ": "oe", "Œ": "Oe", "ł": "l",
    "Ł": "L", "đ": "d", "Đ": "D", "ð": "th", "Ð": "Th", "þ": "th", "Þ": "Th", "ı": "i", "ħ": "h",
    "Ħ": "H", "ŋ": "ng", "ə": "e", "‘": "'", "’": "'", "ʼ": "'", "ʻ": "'", "′": "'", "″": '"',
    "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‹": '"', "›": '"', "‐": "-", "‑": "-",
    "‒": "-", "–": "-", "—": " -- ", "―": " -- ", "−": "-", "⁄": "/", "∕": "/", "…": "...",
    "。": ".", "、": ",", "،": ",", "؟": "?", "؛": ";", "¿": "", "¡": "", "•": " -- ", "·": " ",
    "£": "£", "€": "€", "¥": "¥", "₹": "₹", "¢": " cents ", "×": "×", "÷": "÷", "±": "±",
    "°": "°", "º": "°", "§": "§", "µ": "micro", "μ": "micro", "©": " copyright ", "®": "", "™": "",
    PARAGRAPH: PARAGRAPH, "\u2028": " ", "‽": "?!",
}  # fmt: skip
CURRENCY_AND_SIGNS = set("£€¥₹×÷±°§" + PARAGRAPH)
SILENT_SIGNS = set("\"'`*_-\\|~^[](){}<>.,;:!?/%@#&+=$")  # ASCII punctuation never warns
STARTERS = frozenset(
    "The A An He She It They We I You But And So If In On At This That These Those There Then When "
    "What Who Why How Where My His Her Our Their Its Your No Yes For As After Before".split()
)


class Rng(Protocol):
    """random.Random or numpy.random.Generator."""

    def random(self) -> float:
        """A number in [0, 1)."""


@dataclass(frozen=True)
class Word:
    """A spoken word.

    text: as read ("three" for "3"); phones: ARPABET; separator: the symbols that follow, one of
    (" ",) no pause, ("/",) short, ("%",) long, or a terminal such as ("?",), which is (".", "%")
    where another sentence follows in the same utterance.
    """

    text: str
    phones: tuple[str, ...]
    separator: tuple[str, ...]

    @property
    def characters(self) -> tuple[str, ...]:
        """The letters as symbols; empty for what is spelled or has a written pronunciation."""
        if len(self.text) > 1 and not any(letter.islower() for letter in self.text):
            return ()
        letters = tuple(self.text.lower())
        return letters if set(letters) <= set(CHARACTERS) else ()


@dataclass(frozen=True)
class Sentence:
    """What the acoustic model speaks in one go. `warnings` tells what was dropped."""

    text: str
    words: tuple[Word, ...]
    warnings: tuple[str, ...] = ()

    def symbols(self, character_probability: float = 0.0, rng: Rng | None = None) -> list[str]:
        """START, then each word's symbols and its separator, the last one terminal.

        Args:
            character_probability: chance of each word to be written in letters, not phones.
            rng: needed if the probability is not 0; one draw a word.
        """
        symbols = [START]
        for units, word in zip(self.units(character_probability, rng), self.words, strict=True):
            symbols += (*units, *word.separator)
        return symbols

    def units(
        self, character_probability: float = 0.0, rng: Rng | None = None
    ) -> list[tuple[str, ...]]:
        """Phones or letters of each word, without separators."""
        if not character_probability:
            return [word.phones for word in self.words]
        if rng is None:
            raise ValueError("character_probability needs an rng")
        # Draw before looking at the word, so that the draws of a text do not depend on its words.
        draws = [rng.random() < character_probability for _ in self.words]
        return [
            (drawn and word.characters) or word.phones
            for drawn, word in zip(draws, self.words, strict=True)
        ]

    def spans(self) -> list[tuple[int, int]]:
        """(first, end) indices of each word's phones in `symbols()`."""
        spans, at = [], 1
        for word in self.words:
            spans.append((at, at + len(word.phones)))
            at += len(word.phones) + len(word.separator)
        return spans


def front_end(text: str, *, split: bool = True, max_symbols: int = 240) -> list[Sentence]:
    """Sentences of a text, ready for `text_ids(sentence.symbols())`.

    Args:
        text: English in any Unicode; see the module's head for pauses and pronunciations.
        split: one Sentence per sentence; False puts the whole text into a single one.
        max_symbols: longer sentences are cut at their best pause or word gap (split only). A word
            is never cut.
    Returns:
        At least one Sentence; their words are those of the text, in order.
    Raises:
        InputError: nothing speakable in the text, or a bad pronunciation in braces.
    """
    if not isinstance(text, str):
        raise InputError(f"text must be str, not {type(text).__name__}")
    sentences: list[Sentence] = []
    warnings: list[str] = []  # of pieces without words, kept for the next sentence
    for piece, terminal, written, dropped in pieces(text):
        words = _words(piece, terminal, written)
        warnings += _warnings(dropped)
        if words:
            shown = _show(piece, written) + terminal
            sentences.append(Sentence(shown, tuple(words), tuple(warnings)))
            warnings = []
    if not sentences:
        raise InputError(
            "text is empty or holds nothing that can be spoken"
            + "".join(f"; {warning}" for warning in warnings[:1])
        )
    if warnings:
        sentences[-1] = replace(sentences[-1], warnings=sentences[-1].warnings + tuple(warnings))
    if not split:
        return [_join(sentences)]
    return [part for sentence in sentences for part in _cut(sentence, max_symbols)]


# ---- cleaning -----------------------------------------------------------------------------------


def _clean(raw: str, dropped: list[str]) -> str:
    """ASCII and the signs that verbalize knows; appends to `dropped` what DROPPED stands for."""
    table = {char: _spoken_form(char) for char in set(raw)}
    if any(form == DROPPED for form in table.values()):
        dropped += [char for char in raw if table[char] == DROPPED]
    return "".join([table[char] for char in raw])


def _spoken_form(char: str) -> str:
    """Replacement of one character; DROPPED if it is something that cannot be said."""
    if char.isascii() and (char.isprintable() or char.isspace()):
        return char
    if char in TRANSLITERATIONS:
        return TRANSLITERATIONS[char]
    category = unicodedata.category(char)
    if category in ("Cc", "Cf", "Cs") or category.startswith("M"):
        return " " if char.isspace() else ""  # controls, zero-width, lone surrogates, accents
    if char.isspace():
        return " "
    if category == "Nd":
        return str(unicodedata.digit(char))
    parts = unicodedata.normalize("NFKD", char)
    if parts == char:
        return '"' if category in ("Pi", "Pf", "Ps", "Pe") else DROPPED
    plain = "".join(
        part if part.isascii() or part in CURRENCY_AND_SIGNS else TRANSLITERATIONS.get(part, "")
        for part in parts
        if not unicodedata.category(part).startswith("M")
    )
    if not plain.strip():
        return DROPPED
    return f" {plain} " if category == "No" else plain


def _warnings(dropped: list[str]) -> list[str]:
    if not dropped:
        return []
    kinds = list(dict.fromkeys(dropped))
    names = ", ".join(
        f"{char!r} ({unicodedata.name(char, f'U+{ord(char):04X}')})" for char in kinds[:5]
    )
    more = f" and {len(kinds) - 5} more kinds" if len(kinds) > 5 else ""
    return [f"{len(dropped)} symbols that cannot be spoken were dropped: {names}{more}"]


def _bounded(text: str) -> str:
    """Cut long runs, so that no later pattern can be driven into quadratic time."""
    text = re.sub(r"\s+", _gap, text)
    text = re.sub(rf"\d{{{MAX_DIGITS + 1},}}", lambda m: f" {digits(m.group(0))} ", text)
    text = re.sub(r"([A-Za-z])\1{3,}", r"\1\1", text)
    text = re.sub(rf"[A-Za-z']{{{MAX_WORD_LETTERS}}}(?=[A-Za-z'])", r"\g<0> ", text)
    return re.sub(rf"\S{{{MAX_CHUNK}}}(?=\S)", r"\g<0> ", text)


def _gap(match: re.Match[str]) -> str:
    """One space; a blank line parts paragraphs."""
    space = match.group(0)
    return PARAGRAPH if PARAGRAPH in space or space.count("\n") > 1 else " "


# ---- sentences ----------------------------------------------------------------------------------

_OVERRIDE = re.compile(r"\{([^{}]*)\}")
_PLACEHOLDER = "\x01"  # one written pronunciation, in order
_END = re.compile(r"(?:(?<!\.)\.(?!\.)|\.*[?!][.?!]*)[\"')\]]*(?=\s|$)|\u2029")


def pieces(text: str) -> Iterator[tuple[str, str, list[tuple[str, ...]], list[str]]]:
    """(sentence without its terminal, terminal, written pronunciations, dropped characters).

    Cheap: nothing is looked up yet. Raises InputError for a bad pronunciation in braces.
    """
    dropped: list[str] = []
    written: list[tuple[str, ...]] = []
    cleaned: list[str] = []
    at = 0
    for match in _OVERRIDE.finditer(text):
        cleaned += (_clean(text[at : match.start()], dropped), f" {_PLACEHOLDER} ")
        written.append(pronounce.written_phones(match.group(1)))
        at = match.end()
    # The placeholder itself is a control character, so the text cannot contain one by now.
    cleaned.append(_clean(text[at:], dropped))
    body = _bounded("".join(cleaned)).strip(f" {PARAGRAPH}")
    for piece, terminal in _split_sentences(body):
        uses, drops = piece.count(_PLACEHOLDER), piece.count(DROPPED)
        yield piece, terminal, written[:uses], dropped[:drops]
        del written[:uses], dropped[:drops]


def _split_sentences(text: str) -> Iterator[tuple[str, str]]:
    start = 0
    for match in _END.finditer(text):
        mark = match.group(0)
        if mark.startswith(".") and "?" not in mark and "!" not in mark:
            if not _ends_sentence(text, match.start(), match.end()):
                continue
        terminal = "?" if "?" in mark else "!" if "!" in mark else "."
        yield text[start : match.start()].strip(), terminal
        start = match.end()
    if start < len(text):
        yield text[start:].strip(), "."


def _ends_sentence(text: str, at: int, end: int) -> bool:
    """Does the full stop at `at` end a sentence, or belong to an abbreviation?"""
    following = re.match(r"\s*[\"'(\[]*([A-Za-z0-9]*)", text[end : end + 24])
    after = following.group(1) if following else ""
    if not after:
        return True
    before = re.search(r"[A-Za-z.]*$", text[max(0, at - 12) : at])
    word = before.group(0) if before else ""
    lower = word.lower()
    if lower in NUMBERED and after[0].isdigit():
        return False
    if lower in MONTH_NAMES and word[:1].isupper() and (after[0].isdigit() or after[0].islower()):
        return False
    if lower in ("etc", "inc", "ltd", "co", "corp", "jr", "sr", "a.m", "p.m", "ave", "blvd", "rd"):
        return after in STARTERS
    if is_abbreviation(word) or lower == "st":
        return False
    if len(word) == 1 and word.isupper() and word != "I":
        return after in STARTERS  # an initial
    if "." in word:
        return after in STARTERS
    return True


# ---- words --------------------------------------------------------------------------------------

_TOKEN = re.compile(r"'?[A-Za-z]+(?:'[A-Za-z]+)*|\x01|\.{2,}|[,;:()\[\]]|--+|\s-+(?=\s)")


def _words(piece: str, terminal: str, written: list[tuple[str, ...]]) -> list[Word]:
    """Words of a sentence with their pauses; empty if there are none."""
    text = piece.replace(DROPPED, " ")
    text = re.sub(r"(?<!\S)(?<!\d )%(?!\S)", "..", text)  # "50 %" is a percentage
    # The full stop is back for abbreviations; as a token it means nothing.
    text = verbalize(re.sub(r"(?<!\S)/(?!\S)", ",", text) + ("." if terminal == "." else ""))
    names: list[str] = []
    separators: list[tuple[str, ...]] = []
    overrides = iter(written)
    spoken: dict[int, tuple[str, ...]] = {}
    shouting = _is_shouting(text)
    for match in _TOKEN.finditer(text):
        token = match.group(0)
        if token == _PLACEHOLDER:
            spoken[len(names)] = next(overrides)
            names.append("{" + " ".join(spoken[len(names)]) + "}")
            separators.append((GAP,))
        elif token[-1].isalpha():
            names.append(_as_word(token, shouting))
            separators.append((GAP,))
        elif separators and separators[-1] != (LONG_PAUSE,):
            separators[-1] = (LONG_PAUSE,) if token.startswith("..") else (SHORT_PAUSE,)
    if not names:
        return []
    for i in _spelled(names, separators):
        separators[i] = (SHORT_PAUSE,)
    separators[-1] = (terminal,)
    phones = _phones(names, separators, spoken)
    return [Word(*parts) for parts in zip(names, phones, separators, strict=True)]


def _spelled(names: list[str], separators: list[tuple[str, ...]]) -> Iterator[int]:
    """Words within a run of letters said one by one, such as a name spelled out."""
    single = [len(name) == 1 and name.isupper() for name in names]
    start = 0
    for i in range(1, len(names) + 1):
        if i < len(names) and single[i] and single[i - 1] and separators[i - 1] == (GAP,):
            continue
        if i - start >= SPELLED:
            yield from range(start, i - 1)
        start = i


def _phones(
    names: list[str], separators: list[tuple[str, ...]], spoken: dict[int, tuple[str, ...]]
) -> list[tuple[str, ...]]:
    lexical = [i for i in range(len(names)) if i not in spoken]
    pauses = {k for k, i in enumerate(lexical) if separators[i] != (GAP,)}
    found = pronounce.phones_of([names[i] for i in lexical], pauses)
    by_index = dict(zip(lexical, found, strict=True)) | spoken
    return [by_index[i] for i in range(len(names))]


def _as_word(token: str, shouting: bool) -> str:
    if token.startswith("'") and not pronounce.known(token.lower()):
        token = token[1:]
    return token.lower() if shouting and len(token) > 1 else token


def _is_shouting(text: str) -> bool:
    """Capitals throughout are emphasis, not acronyms."""
    words = re.findall(r"[A-Za-z]{2,}", text)
    return len(words) > 2 and sum(word.isupper() for word in words) > 0.7 * len(words)


def _show(piece: str, written: Iterable[tuple[str, ...]]) -> str:
    """The sentence as cleaned, for people to read."""
    phones = iter(written)
    shown = re.sub(_PLACEHOLDER, lambda _: "{" + " ".join(next(phones)) + "}", piece)
    return re.sub(r"\s+", " ", shown.replace(DROPPED, " ")).strip()


# ---- joining and cutting ------------------------------------------------------------------------


def _join(sentences: list[Sentence]) -> Sentence:
    words: list[Word] = []
    for sentence in sentences:
        if words:
            words[-1] = replace(words[-1], separator=(*words[-1].separator[:1], LONG_PAUSE))
        words += sentence.words
    return Sentence(
        " ".join(sentence.text for sentence in sentences),
        tuple(words),
        tuple(warning for sentence in sentences for warning in sentence.warnings),
    )


def _cut(sentence: Sentence, max_symbols: int) -> Iterator[Sentence]:
    """Parts of at most max_symbols, cut at the longest pause in the second half of each."""
    words = list(sentence.words)
    sizes = [len(word.phones) + len(word.separator) for word in words]
    if 1 + sum(sizes) <= max_symbols:
        yield sentence
        return
    strength: dict[tuple[str, ...], int] = {(GAP,): 0, (SHORT_PAUSE,): 1, (LONG_PAUSE,): 2}
    start, warnings = 0, sentence.warnings
    while start < len(words):
        end, total = start, 1
        while end < len(words) and (end == start or total + sizes[end] <= max_symbols):
            total += sizes[end]
            end += 1
        if end < len(words):
            middle = start + (end - start) // 2
            end = max(range(middle, end), key=lambda i: (strength[words[i].separator], i)) + 1
        part = words[start:end]
        if part[-1].separator[0] not in TERMINALS:
            part[-1] = replace(part[-1], separator=(".",))
        yield Sentence(" ".join(word.text for word in part), tuple(part), warnings)
        start, warnings = end, ()
