"""What the corpus says: WordNet's example sentences, fortunes, and sentences made from templates.

Found sentences are mostly plain statements of medium length. Templates add what they lack:
questions, exclamations, very short utterances, and numbers, dates and sums written out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.errors import InputError
from engine.verbalize import MONTHS, cardinal, ordinal, year

INSTALLED = (Path("/usr/share/wordnet"), Path("/usr/share/games/fortunes"))
HOW_TO_GET = (
    "install the Debian packages wordnet-base and fortunes, or unpack them without installing "
    "(apt-get download wordnet-base fortunes; dpkg -x FILE.deb texts) and give --texts texts"
)
_SPEAKABLE = re.compile(r"[A-Za-z][A-Za-z ,'\-;:?!.]*")
_SKIPPED = ("ascii-art", "drugs", "ethnic", "men-women")  # pictures, and what few want said
_LENGTHS = ((0.15, 2, 5), (0.5, 6, 13), (0.35, 14, 26))  # share of utterances, words from, to

_QUESTIONS = (
    "Where did you put the {noun}?",
    "Is this your {noun}, or does it belong to {name}?",
    "Have you ever seen such a {adjective} {noun}?",
    "Why is the {noun} so {adjective} today?",
    "Do you know how to get to {place} from here?",
    "How much did you pay for the {noun}?",
    "When will {name} come back from {place}?",
    "Would you rather have the {noun} or the other one?",
    "Could you please show me the {adjective} one?",
    "What time does the train to {place} leave?",
    "Are you sure that {name} said {cardinal}, and not {cardinal}?",
    "Who told you about the {noun}?",
    "Can we talk about the {noun} tomorrow?",
    "Did anyone call while I was in {place}?",
)
_EXCLAMATIONS = (
    "What a {adjective} {noun}!",
    "Look at that {adjective} {noun}!",
    "Don't touch the {noun}!",
    "I can't believe that {name} won!",
    "Please hurry, {name}, the {noun} is gone!",
    "We are going to {place}!",
    "That is the best {noun} I have ever seen!",
    "Happy birthday, {name}!",
    "Watch out for the {noun}!",
    "How {adjective} of you!",
)
_NUMBERS = (
    "The meeting starts at {clock} on {date}.",
    "It costs {cardinal} dollars and {below_hundred} cents.",
    "My number is {digits}, and the code is {digits}.",
    "{name} was born in {year}.",
    "She turned {below_hundred} on {date}.",
    "About {below_hundred} percent of them live in {place}.",
    "The {noun} weighs {cardinal} grams.",
    "He finished {ordinal} out of {cardinal}.",
    "Take the {ordinal} street on the left, then drive for {below_hundred} miles.",
    "Between {year} and {year}, the price of a {noun} doubled.",
    "It is {clock} in {place}, and {below_hundred} degrees.",
    "Flight {digits} to {place} leaves from gate {below_hundred}.",
    "There are {cardinal} pages, but I only read the {ordinal} one.",
    "The population of {place} was {cardinal} in {year}.",
)
_SHORT = (
    "Yes.", "No.", "Of course.", "Not today.", "Thank you very much.", "Good morning, {name}.",
    "See you tomorrow.", "I don't think so.", "That's right.", "Just a moment.", "Never mind.",
    "Is that so?", "Really?", "What for?", "Are you sure?", "And then?", "Me too!", "Stop!",
    "Wonderful!", "Well done, {name}!", "Good night.", "Excuse me.", "The {noun}, please.",
    "A {adjective} {noun}.", "At {clock}.", "In {year}.", "On {date}.", "{name} and {name}.",
    "Maybe {cardinal}.", "Why not?", "Come in!", "Only {below_hundred} left.",
)  # fmt: skip
_NAMES = (
    "Anna Ben Clara David Emma Frank Grace Henry Isabel Jack Kate Leo Maria Nathan Olivia Peter "
    "Rachel Sam Tina Victor William Zoe Doctor_Brown Missus_Green Mister_Hall Aunt_Lucy"
).replace("_", " ").split(" ")  # fmt: skip
_PLACES = (
    "London", "Paris", "Chicago", "New York", "Boston", "Berlin", "Tokyo", "Texas", "Canada",
    "Rome", "Dublin", "Sydney", "Edinburgh", "Madrid", "California", "the airport", "the city",
)  # fmt: skip


@dataclass(frozen=True)
class Texts:
    """Sentences by kind, and common words for the templates; all sorted."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    exclamations: tuple[str, ...]
    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]


def load_texts(folders: Iterable[Path]) -> Texts:
    """Every sentence under `folders` that can be read aloud as it stands.

    Raises:
        InputError: there is no WordNet in them; says how to get it.
    """
    sentences: set[str] = set()
    nouns: set[str] = set()
    adjectives: set[str] = set()
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        kind = path.parent.name
        if kind == "wordnet" and path.stem == "data":
            sentences.update(_examples(path))
        elif kind == "fortunes" and path.is_file() and not path.suffix:
            sentences.update(_fortunes(path) if path.name not in _SKIPPED else ())
        elif kind == "wordnet" and path.name == "index.noun":
            nouns.update(_common(path))
        elif kind == "wordnet" and path.name == "index.adj":
            adjectives.update(_common(path))
    by_end = {end: tuple(sorted(s for s in sentences if s[-1] == end)) for end in ".?!"}
    if not (by_end["."] and nouns and adjectives):
        raise InputError(f"no WordNet texts found; {HOW_TO_GET}")
    return Texts(by_end["."], by_end["?"], by_end["!"], tuple(sorted(nouns)),
                 tuple(sorted(adjectives)))  # fmt: skip


def compose(texts: Texts, rng: random.Random) -> str:
    """One utterance: one to a few sentences, short, medium or long."""
    _, low, high = rng.choices(_LENGTHS, [share for share, *_ in _LENGTHS])[0]
    chosen: list[str] = []
    words = 0
    for _ in range(40):
        sentence = _sentence(texts, rng, short=high < 6)
        if words + len(sentence.split()) <= high:
            chosen.append(sentence)
            words += len(sentence.split())
        if words >= low:
            break
    return " ".join(chosen) or _filled(rng.choice(_SHORT), texts, rng)


def _sentence(texts: Texts, rng: random.Random, short: bool) -> str:
    if short and rng.random() < 0.6:
        return _filled(rng.choice(_SHORT), texts, rng)
    kinds: list[tuple[float, tuple[str, ...]]] = [
        (0.62, texts.statements), (0.08, texts.questions), (0.06, texts.exclamations),
        (0.08, _QUESTIONS), (0.06, _EXCLAMATIONS), (0.10, _NUMBERS),
    ]  # fmt: skip
    kinds = [kind for kind in kinds if kind[1]]
    sentence = rng.choice(rng.choices([k for _, k in kinds], [share for share, _ in kinds])[0])
    return _filled(sentence, texts, rng)


def _filled(template: str, texts: Texts, rng: random.Random) -> str:
    """A template with every slot drawn anew; sentences without slots come back as they are."""
    slots: dict[str, Callable[[], str]] = {
        "noun": lambda: rng.choice(texts.nouns),
        "adjective": lambda: rng.choice(texts.adjectives),
        "name": lambda: rng.choice(_NAMES),
        "place": lambda: rng.choice(_PLACES),
        # as many numbers of one digit as of six
        "cardinal": lambda: cardinal(int(10 ** rng.uniform(0.31, 6))),
        "below_hundred": lambda: cardinal(rng.randrange(2, 100)),
        "ordinal": lambda: ordinal(rng.randrange(1, 100)),
        "year": lambda: year(rng.randrange(1750, 2040)),
        "digits": lambda: " ".join(cardinal(rng.randrange(10)) for _ in range(rng.choice((3, 4)))),
        "date": lambda: f"{rng.choice(MONTHS)} {ordinal(rng.randrange(1, 29))}",
        "clock": lambda: _clock(rng.randrange(1, 13), rng.choice((0, *range(10, 60, 5)))),
    }
    text = re.sub(r"\{(\w+)\}", lambda slot: slots[slot.group(1)](), template)
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text) if text != template else text
    return text[0].upper() + text[1:]


def _clock(hour: int, minute: int) -> str:
    return f"{cardinal(hour)} {cardinal(minute)}" if minute else f"{cardinal(hour)} o'clock"


def _examples(path: Path) -> Iterator[str]:
    """Quoted example sentences of a WordNet data file, made into sentences."""
    for line in path.open(encoding="latin-1"):
        for quote in re.findall(r'"([^"]+)"', line.partition("|")[2]):
            quote = quote.strip(" ,;:")
            if _SPEAKABLE.fullmatch(quote) and 3 <= len(quote.split()) <= 22:
                quote = quote[0].upper() + quote[1:]
                yield quote if quote[-1] in ".?!" else f"{quote}."


def _fortunes(path: Path) -> Iterator[str]:
    """Plain sentences out of a file of fortunes, without their authors."""
    for block in path.read_text("utf-8", errors="ignore").split("\n%\n"):
        words = re.sub(r"\s+--\s.*$", "", re.sub(r"\s+", " ", block))
        for sentence in re.split(r"(?<=[.!?])\s+", words):
            plain = _SPEAKABLE.fullmatch(sentence) and re.fullmatch(r"[A-Z][^.?!]+[.?!]", sentence)
            if plain and "--" not in sentence and 3 <= len(sentence.split()) <= 24:
                yield sentence


def _common(path: Path) -> Iterator[str]:
    """Words of a WordNet index that its tagged texts use in at least two senses."""
    for line in path.open(encoding="latin-1"):
        fields = line.split()
        if line.startswith(" ") or not re.fullmatch(r"[a-z]{3,10}", fields[0]):
            continue  # the licence, phrases and names
        if int(fields[5 + int(fields[3])]) >= 2:  # after the pointers: senses, tagged senses
            yield fields[0]
