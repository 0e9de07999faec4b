# ruff: noqa: RUF001, RUF002 (IPA)
"""Words to ARPABET phones: lexicon, homographs, unknown words, spelling, written pronunciations.

The only importer of gruut, of which the English lexicon, the part-of-speech tagger and the
grapheme-to-phoneme model are used. Its text processor is not: it asks SQLite for every word (over
a second for 1,000 characters) and parses hostile text in quadratic time. gruut is loaded on the
first word.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from engine.errors import InputError
from engine.symbols import PHONES, VOWELS, is_vowel

Phones = tuple[str, ...]

# IPA to ARPABET without stress. The first two lines are gruut's English inventory; the others are
# what people and other lexicons write for the same sounds.
IPA_VOWELS = {
    "ɑ": "AA", "æ": "AE", "ʌ": "AH", "ə": "AH", "ɔ": "AO", "aʊ": "AW", "aɪ": "AY", "ɛ": "EH",
    "ɚ": "ER", "eɪ": "EY", "ɪ": "IH", "i": "IY", "oʊ": "OW", "ɔɪ": "OY", "ʊ": "UH", "u": "UW",
    "ɝ": "ER", "ɜ": "ER", "ɜɹ": "ER", "ɜr": "ER", "əɹ": "ER", "ər": "ER", "ɐ": "AH", "ɒ": "AA",
    "əʊ": "OW", "o": "OW", "e": "EH", "a": "AA", "ᵻ": "IH", "ɨ": "IH", "ʉ": "UW", "ɘ": "AH",
    "A": "EY", "I": "AY", "W": "AW", "Y": "OY", "O": "OW", "Q": "OW",
}  # fmt: skip
IPA_CONSONANTS = {
    "b": "B", "t͡ʃ": "CH", "d": "D", "ð": "DH", "f": "F", "ɡ": "G", "h": "HH", "d͡ʒ": "JH",
    "k": "K", "l": "L", "m": "M", "n": "N", "ŋ": "NG", "p": "P", "ɹ": "R", "s": "S", "ʃ": "SH",
    "t": "T", "θ": "TH", "v": "V", "w": "W", "j": "Y", "z": "Z", "ʒ": "ZH",
    "tʃ": "CH", "ʧ": "CH", "dʒ": "JH", "ʤ": "JH", "g": "G", "r": "R", "ɾ": "T", "ɫ": "L",
    "ʍ": "W", "x": "K", "ɻ": "R", "ʁ": "R", "ɲ": "N", "ɱ": "M", "ç": "HH", "ɦ": "HH",
}  # fmt: skip
IPA_STRESS = {"ˈ": "1", "ˌ": "2", "'": "1"}
IPA_SYLLABIC = {"l̩": ("AH0", "L"), "n̩": ("AH0", "N"), "m̩": ("AH0", "M"), "ᵊl": ("AH0", "L"),
                "ᵊn": ("AH0", "N"), "ᵊ": ("AH0",)}  # fmt: skip
IPA_SILENT = set("ː.‿ʔˑ͡ʰ‖|() \u0325\u0303\u032f\u031a")  # length, ties, finer detail than ours

# gruut's first choice is another than the usual one, or it depends on the neighbours.
PREFERRED: dict[str, Phones] = {
    "hello": ("HH", "AH0", "L", "OW1"),
    "a": ("AH0",),
    "ok": ("OW2", "K", "EY1"),
    "hmm": ("HH", "AH1", "M"),
    "mm": ("AH1", "M"),
    "ugh": ("AH1", "G"),
    "shh": ("SH", "IH1"),
    "hashtag": ("HH", "AE1", "SH", "T", "AE2", "G"),
    "for": ("F", "AO1", "R"),
    "can": ("K", "AE1", "N"),
    "from": ("F", "R", "AH1", "M"),
    "with": ("W", "IH1", "DH"),
    "new": ("N", "UW1"),
    "news": ("N", "UW1", "Z"),
    "really": ("R", "IY1", "L", "IY0"),
    "often": ("AO1", "F", "AH0", "N"),
}
# Little words within a sentence. The lexicon has them as they sound alone; these are the forms
# that American voices give them in running speech.
UNSTRESSED = frozenset(
    "is in and he his you i it that be they are she her this as at we had have if their my will "
    "your when by has there or its it's i'm he's she's that's there's you're they're we're i've "
    "i'll would could those these".split()
)
HALF_STRESSED = frozenset(
    "not but up him who me so over some about them which how us any should our on more into".split()
)
WEAK_FORMS: dict[str, Phones] = {
    "for": ("F", "AO0", "R"), "with": ("W", "IH0", "DH"), "from": ("F", "R", "AH0", "M"),
    "can": ("K", "AE0", "N"), "what": ("W", "AH0", "T"), "am": ("AE0", "M"),
}  # fmt: skip
LETTERS: dict[str, Phones] = {
    letter: tuple(phones.split())
    for letter, phones in (
        line.split(" ", 1)
        for line in (
            "a EY1", "b B IY1", "c S IY1", "d D IY1", "e IY1", "f EH1 F", "g JH IY1", "h EY1 CH",
            "i AY1", "j JH EY1", "k K EY1", "l EH1 L", "m EH1 M", "n EH1 N", "o OW1", "p P IY1",
            "q K Y UW1", "r AA1 R", "s EH1 S", "t T IY1", "u Y UW1", "v V IY1",
            "w D AH1 B AH0 L Y UW0", "x EH1 K S", "y W AY1", "z Z IY1",
        )
    )
}  # fmt: skip
# In capitals these are initials, whatever the lexicon says of the word in small letters.
INITIALS = frozenset(
    "AI AM PM TV PC IT US UK EU UN ID IQ PR HR DJ CD AD BC BA MA VP LA DC GI IP OS VR AR ER IM FM "
    "MIT USA ATM CEO SOS BBC DIY FAQ IRA ISP NBA LED IRS ABC CBS UFO VIP".split()
)
# Coarser tags to try when the lexicon has no entry for the tagger's: "have read" is VBN, not VB.
TAG_FALLBACKS = {
    "VBN": ("VBD", "VB"), "VBZ": ("VB",), "VBP": ("VB",), "VBG": ("VB",), "MD": ("VB",),
    "NNS": ("NN",), "NNP": ("NN",), "NNPS": ("NN",), "JJR": ("JJ",), "JJS": ("JJ",),
}  # fmt: skip
CLITICS: dict[str, Phones] = {
    "'ll": ("AH0", "L"), "'ve": ("AH0", "V"), "'re": ("ER0",), "'d": ("D",), "'m": ("M",),
    "n't": ("AH0", "N", "T"),
}  # fmt: skip
MAX_TAGGED_WORDS = 60  # the tagger looks two words around; more at once buys nothing
MAX_WRITTEN_PHONES = 64


class _English:
    """gruut's lexicon as a dictionary, and its two models behind a lock: they hold state."""

    def __init__(self) -> None:
        import gruut_lang_en
        from gruut.g2p import GraphemesToPhonemes
        from gruut.pos import PartOfSpeechTagger

        folder = Path(gruut_lang_en.get_lang_dir())
        self.lexicon: dict[str, dict[str, str]] = {}  # word -> role -> IPA, first one wins
        database = sqlite3.connect(f"file:{folder / 'lexicon.db'}?mode=ro", uri=True)
        try:
            rows = database.execute(
                "SELECT word, role, phonemes FROM word_phonemes ORDER BY word, pron_order"
            )
            for word, role, ipa in rows:
                self.lexicon.setdefault(word, {}).setdefault(role.removeprefix("gruut:"), ipa)
        finally:
            database.close()
        self._lock = threading.Lock()
        self._guess: Any = GraphemesToPhonemes(folder / "g2p" / "model.crf")
        self._tag: Any = PartOfSpeechTagger(folder / "pos" / "model.crf")

    def guess(self, word: str) -> list[str]:
        with self._lock:
            return list(self._guess(word))

    def tags(self, words: Sequence[str]) -> list[str]:
        with self._lock:
            return list(self._tag(words))


_load_lock = threading.Lock()
_english: _English | None = None


def _load() -> _English:
    global _english
    with _load_lock:
        if _english is None:
            _english = _English()
        return _english


def known(word: str) -> bool:
    """True if the lexicon has the word, in lower case."""
    return word in PREFERRED or word in _load().lexicon


def phones_of(words: Sequence[str], pauses: Collection[int] = ()) -> list[Phones]:
    """ARPABET phones of each word of a sentence; homographs by part of speech.

    Args:
        words: letters and apostrophes, any case. Short unknown words in capitals are spelled.
        pauses: indices of words that a pause follows; they keep their full forms.
    """
    english = _load()
    tags: dict[int, str] = {}
    ambiguous = [i for i, w in enumerate(words) if len(english.lexicon.get(w.lower(), ())) > 1]
    for start in sorted({i - i % MAX_TAGGED_WORDS for i in ambiguous}):
        piece = list(words[start : start + MAX_TAGGED_WORDS])
        tags.update((start + i, tag) for i, tag in enumerate(english.tags(piece)))
    phones = [_word_phones(word, tags.get(i, "")) for i, word in enumerate(words)]
    return [_in_context(words, phones, i, i in pauses) for i in range(len(words))]


def _in_context(words: Sequence[str], phones: list[Phones], at: int, pause: bool) -> Phones:
    """Weak forms within the sentence; `the` and `to` depend on the sound that follows."""
    word = words[at].lower()
    following = phones[at + 1] if at + 1 < len(words) and not pause else ()
    if word == "a" and _is_letter_a(words, at, bool(following)):
        return LETTERS["a"]
    if not following:
        return ("T", "UW1") if word == "to" else phones[at]
    if word in ("the", "to") and is_vowel(following[0]):
        return ("DH", "IY0") if word == "the" else ("T", "UW0")
    if words[at] in INITIALS:
        return phones[at]
    if word in WEAK_FORMS:
        return WEAK_FORMS[word]
    weaker = "0" if word in UNSTRESSED else "2" if word in HALF_STRESSED else "1"
    if weaker == "1":
        return phones[at]
    return tuple(phone[:-1] + weaker if phone[-1] == "1" else phone for phone in phones[at])


def _is_letter_a(words: Sequence[str], at: int, followed: bool) -> bool:
    """In "plan A", "A and B", "A T and T", but not in "A man"."""
    if not followed:
        return len(words) > 1 or words[at] == "A"
    neighbours = [words[i] for i in (at - 1, at + 1) if 0 <= i < len(words)]
    return words[at] == "A" and (
        words[at + 1] in ("and", "or", "is", "to")
        or any(len(word) == 1 and word.isupper() and word != "I" for word in neighbours)
    )


@lru_cache(maxsize=32_768)
def _word_phones(word: str, tag: str) -> Phones:
    lower = word.lower()
    if word in INITIALS or (len(lower) == 1 and lower != "a"):
        return spelled(word)
    if lower in PREFERRED:
        return PREFERRED[lower]
    roles = _load().lexicon.get(lower)
    if roles is None and "'" in lower:
        return _with_clitic(word, tag)
    if roles is None:
        return _unknown(word)
    for role in (tag, *TAG_FALLBACKS.get(tag, ()), ""):
        if role in roles:
            return ipa_phones(roles[role])
    return ipa_phones(next(iter(roles.values())))


def _with_clitic(word: str, tag: str) -> Phones:
    lower = word.lower()
    for clitic, ending in CLITICS.items():
        if lower.endswith(clitic) and len(lower) > len(clitic):
            base = _word_phones(word[: -len(clitic)], tag)
            if clitic == "'d" and base and base[-1] in ("T", "D"):
                return (*base, "AH0", "D")
            return base + ending
    if lower.endswith("'s") and len(lower) > 2:
        base = _word_phones(word[:-2], tag)
        if base and base[-1] in ("S", "Z", "SH", "ZH", "CH", "JH"):
            return (*base, "IH0", "Z")
        return (*base, "S" if base and base[-1] in ("P", "T", "K", "F", "TH") else "Z")
    parts = [part for part in word.split("'") if part]
    if len(parts) == 1 and parts[0] == word:
        return _unknown(word)
    return tuple(phone for part in parts for phone in _word_phones(part, tag))


def _unknown(word: str) -> Phones:
    """Guess, but spell short capitals and what has no vowel letter."""
    if word.isupper() and len(word) <= 4:
        return spelled(word)
    if len(word) <= 5 and not set(word.lower()) & set("aeiouy"):
        return spelled(word)
    guessed = ipa_phones(" ".join(_load().guess(word.lower())))
    return guessed or spelled(word[:8])


def spelled(word: str) -> Phones:
    """The names of the letters, one after the other."""
    return tuple(phone for letter in word.lower() for phone in LETTERS.get(letter, ()))


def ipa_phones(ipa: str) -> Phones:
    """ARPABET of an IPA string; a stress mark belongs to the next vowel, unmarked vowels get 0.

    Raises:
        InputError: a symbol that is not English IPA, named in the message.
    """
    phones: list[str] = []
    stress, at = "0", 0
    while at < len(ipa):
        for length in (3, 2, 1):
            unit = ipa[at : at + length]
            if unit in IPA_SYLLABIC:
                phones.extend(IPA_SYLLABIC[unit])
            elif unit in IPA_VOWELS:
                phones.append(IPA_VOWELS[unit] + stress)
                stress = "0"
            elif unit in IPA_CONSONANTS:
                phones.append(IPA_CONSONANTS[unit])
            elif unit in IPA_STRESS:
                stress = IPA_STRESS[unit]
            elif unit not in IPA_SILENT:
                continue
            at += length
            break
        else:
            raise InputError(f"{ipa[at]!r} is not an IPA symbol of English (in {ipa[:40]!r})")
    return tuple(phones)


def written_phones(content: str) -> Phones:
    """Phones of a pronunciation that a user wrote in braces, ARPABET or IPA.

    Args:
        content: "HH AH0 L OW1", "HH AH L OW", "/həˈloʊ/" or "həˈloʊ".
    Raises:
        InputError: empty, too long, or a symbol of neither alphabet, named in the message.
    """
    content = content.strip()
    slashes = len(content) > 1 and content[0] + content[-1] in ("//", "[]")
    tokens = content.split()
    if not slashes and tokens and _looks_like_arpabet(tokens):
        phones = tuple(_arpabet(token) for token in tokens)
        marked = any(token[-1] in "012" for token in tokens)
    else:
        phones = ipa_phones(content[1:-1] if slashes else content)
        marked = any(mark in content for mark in IPA_STRESS)
    if not phones:
        raise InputError("a pronunciation in braces is empty; write {HH AH0 L OW1} or {həˈloʊ}")
    if len(phones) > MAX_WRITTEN_PHONES:
        raise InputError(f"a pronunciation has {len(phones)} phones, at most {MAX_WRITTEN_PHONES}")
    return phones if marked else _with_stress(phones)


def _looks_like_arpabet(tokens: list[str]) -> bool:
    if all(token.isascii() and token.isupper() for token in tokens):
        return True
    bare = [token.upper().rstrip("012") for token in tokens]
    return len(tokens) > 1 and all(token in VOWELS or token in PHONES for token in bare)


def _arpabet(token: str) -> str:
    token = token.upper()
    if token in VOWELS:
        return token + "0"
    if token in PHONES:
        return token
    raise InputError(f"{token!r} is not an ARPABET phone; see engine.symbols.PHONES")


def _with_stress(phones: Phones) -> Phones:
    """Stress the first full vowel, or the first vowel where all are reduced."""
    vowels = [i for i, phone in enumerate(phones) if is_vowel(phone)]
    full = [i for i in vowels if phones[i] not in ("AH0", "ER0")] or vowels
    if not full:
        return phones
    first = full[0]
    return (*phones[:first], phones[first][:-1] + "1", *phones[first + 1 :])
