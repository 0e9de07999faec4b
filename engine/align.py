# ruff: noqa: RUF001 (IPA)
"""Give our symbols the times at which a teacher voice spoke them.

The teacher reports the length of each of its own IPA characters. Its phones and ours are aligned
by dynamic programming over phonetic similarity; pauses become the separators that were heard, not
those that were written. Used for training only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from engine.pronounce import IPA_CONSONANTS, IPA_STRESS, IPA_VOWELS
from engine.symbols import GAP, LONG_PAUSE, SHORT_PAUSE, START, TERMINALS, VOWELS
from engine.text import Rng, Sentence, front_end

if TYPE_CHECKING:
    from engine.data import Store

SECONDS = (1.0, 12.0)  # shortest and longest utterance that is used

# Seconds between two words. In the corpus gaps up to 0.075 s are mostly closures of stops within
# running speech (-28 dB), from 0.1 s on they are silence (-42 dB and less). Half of the sentence
# ends within an utterance, and a quarter of the commas, are long pauses.
SHORT_PAUSE_S = 0.09
LONG_PAUSE_S = 0.25
# Recordings are trimmed this close to the first and last sound, but the teacher counts the silence
# after the last phone as its own.
EDGE_S = 0.03
# Before a pause, too, the teacher counts silence as its last phone: measured, the sound stops about
# 0.11 s into a consonant and 0.17 s into a vowel, and what is longer than this is silent.
LAST_CONSONANT_S = 0.12
LAST_VOWEL_S = 0.18
LAST_SLACK_S = 0.05
MIN_PHONE_S = 0.01
MAX_COST = 0.08  # per phone; half of the corpus is below 0.03, wrongly read words are above

FLAP = "DX"  # teacher's ɾ, either T or D of ours
_TEACHER = {**IPA_CONSONANTS, **IPA_VOWELS, "ɾ": FLAP, "ᵊ": "AH", "ʔ": "T", "n̩": "N"}
_LENGTH_MARKS = "ː̩̃"

_REDUCED = {"AH", "IH", "EH", "ER", "UH", "IY"}
_NEAR_VOWELS = ({"AA", "AO", "AH"}, {"OW", "AO"}, {"EH", "AE", "EY"}, {"IY", "IH", "EY"},
                {"UW", "UH"}, {"AH", "UH"}, {"AE", "AA"})  # fmt: skip
_NEAR_CONSONANTS = (
    {"T", "D", FLAP}, {"S", "Z"}, {"SH", "ZH", "CH", "JH"}, {"F", "V"}, {"TH", "DH", "T", "D"},
    {"K", "G"}, {"P", "B"}, {"N", "NG", "M"}, {"S", "SH"}, {"Z", "ZH"}, {"D", "JH"}, {"T", "CH"},
)  # fmt: skip
_ELIDED = {"R": 0.3, "AH": 0.35, "IH": 0.45, "T": 0.4, "D": 0.4, "Y": 0.3, "HH": 0.4, FLAP: 0.4}
_ER_AS_TWO = 0.05  # our ER against the teacher's vowel + ɹ
_WORD_EDGE = 0.15  # only one of the two phones begins a word


@dataclass(frozen=True)
class TeacherPhone:
    """phone: ARPABET without stress (or FLAP); times in seconds; pause_s: pause just before it."""

    phone: str
    start_s: float
    end_s: float
    begins_word: bool


@dataclass(frozen=True)
class Aligned:
    """sentence: ours, its separators the measured pauses; times: len(symbols) + 1 boundaries in
    seconds, not decreasing, from 0 to the utterance's end; cost: edit cost per phone."""

    sentence: Sentence
    times: tuple[float, ...]
    cost: float

    def with_characters(self, probability: float, rng: Rng) -> tuple[list[str], list[float]]:
        """(symbols, boundaries) with some words as letters, which share the word's time evenly."""
        times = [self.times[0], self.times[1]]
        symbols = [START]
        chosen = self.sentence.units(probability, rng)
        for units, word, (first, end) in zip(
            chosen, self.sentence.words, self.sentence.spans(), strict=True
        ):
            if units == word.phones:
                times += self.times[first + 1 : end + 1]
            else:
                start_s, end_s = self.times[first], self.times[end]
                step = (end_s - start_s) / len(units)
                times += [start_s + step * i for i in range(1, len(units))] + [end_s]
            times += self.times[end + 1 : end + 1 + len(word.separator)]
            symbols += (*units, *word.separator)
        return symbols, times


def align(
    text: str,
    phonemes: str,
    durations: Sequence[int],
    offset_s: float,
    frame_s: float,
    seconds: float,
) -> Aligned | None:
    """Times of our symbols in an utterance of the teacher.

    Args:
        text: what was spoken.
        phonemes: the teacher's IPA, a character a token.
        durations: frames per token, with one silence token before and one after.
        offset_s: the audio is this much ahead of the durations, seconds.
        frame_s: seconds per frame.
        seconds: length of the audio.
    Returns:
        None where the strings do not match: more than MAX_COST a phone.
    Raises:
        ValueError: durations and phonemes of different lengths.
        InputError: text with nothing speakable.
    """
    sentence = front_end(text, split=False)[0]
    teacher = _teacher_phones(phonemes, durations, offset_s, frame_s, seconds)
    ours = [phone.rstrip("012") for word in sentence.words for phone in word.phones]
    starts = _word_starts(sentence)
    if not teacher or not 0.5 < len(ours) / len(teacher) < 2.0:
        return None
    cost, pairs = _edit(ours, starts, teacher)
    cost /= len(ours)
    if cost > MAX_COST:
        return None
    spans = _without_silence(_spans(len(ours), starts, teacher, pairs), ours, starts)
    return _timed(sentence, spans, seconds, cost)


def align_all(store: Store, sample_rate: int) -> dict[int, Aligned]:
    """The utterances of a data set of 1 to 12 s whose durations fit their text, by index."""
    found = {}
    for i, (u, samples) in enumerate(zip(store.utterances, store.lengths(), strict=True)):
        seconds = float(samples) / sample_rate
        if u.durations is None or not SECONDS[0] < seconds < SECONDS[1]:
            continue
        d = u.durations
        one = align(u.text, d.phonemes, d.frames, d.offset_s, d.frame_s, seconds)
        if one is not None:
            found[i] = one
    return found


def _word_starts(sentence: Sentence) -> set[int]:
    starts, at = set(), 0
    for word in sentence.words:
        starts.add(at)
        at += len(word.phones)
    return starts


def _teacher_phones(
    phonemes: str, durations: Sequence[int], offset_s: float, frame_s: float, seconds: float
) -> list[TeacherPhone]:
    """Phones with their times; a stress mark's goes to the next, a length mark's to the last."""
    if len(durations) != len(phonemes) + 2:
        raise ValueError(f"{len(durations)} durations for {len(phonemes)} phonemes, need two more")
    phones: list[TeacherPhone] = []
    edges = [0]
    for frames in durations:
        edges.append(edges[-1] + frames)
    at_s = [min(max(edge * frame_s - offset_s, 0.0), seconds) for edge in edges]
    begins_word, pending = True, None
    for i, char in enumerate(phonemes):
        start_s, end_s = at_s[i + 1], at_s[i + 2]
        if char in _TEACHER:
            begin_s = start_s if pending is None else pending
            phones.append(TeacherPhone(_TEACHER[char], begin_s, end_s, begins_word))
            begins_word, pending = False, None
        elif char in IPA_STRESS:
            pending = start_s if pending is None else pending
        elif char in _LENGTH_MARKS and phones:
            phones[-1] = replace(phones[-1], end_s=end_s)
        else:
            begins_word, pending = True, None
    return phones


@cache
def _difference(ours: str, teacher: str) -> float:
    """Cost of one of our phones standing for one of the teacher's, 0 to 1."""
    if ours == teacher:
        return 0.0
    if ours in VOWELS and teacher in VOWELS:
        if {ours, teacher} <= _REDUCED or any({ours, teacher} <= near for near in _NEAR_VOWELS):
            return 0.15
        return 0.3
    if {ours, teacher} == {"ER", "R"}:
        return 0.2
    if any({ours, teacher} <= near for near in _NEAR_CONSONANTS):
        return 0.1 if FLAP in (ours, teacher) else 0.3
    return 1.0 if (ours in VOWELS) == (teacher in VOWELS) else 1.3


def _edit(
    ours: list[str], starts: set[int], teacher: list[TeacherPhone]
) -> tuple[float, list[tuple[int, int, int]]]:
    """Cheapest alignment: (cost, [(our phone, first teacher phone, end teacher phone)])."""
    rows, columns = len(ours), len(teacher)
    band = abs(rows - columns) + 12  # the path of a usable pair stays near the diagonal
    skip_ours = [_ELIDED.get(phone, 0.6) for phone in ours]
    skip_teacher = [_ELIDED.get(unit.phone, 0.6) for unit in teacher]
    infinite = float("inf")
    best = [[infinite] * (columns + 1) for _ in range(rows + 1)]
    back = [[""] * (columns + 1) for _ in range(rows + 1)]
    best[0][0] = 0.0
    for j in range(1, min(columns, band) + 1):
        best[0][j], back[0][j] = best[0][j - 1] + skip_teacher[j - 1], "teacher"
    for i in range(1, rows + 1):
        above, row, trace = best[i - 1], best[i], back[i]
        phone, begins, skip = ours[i - 1], (i - 1) in starts, skip_ours[i - 1]
        middle = i * columns // rows
        for j in range(max(0, middle - band), min(columns, middle + band) + 1):
            cost, move = above[j] + skip, "ours"
            if j:
                if row[j - 1] + skip_teacher[j - 1] < cost:
                    cost, move = row[j - 1] + skip_teacher[j - 1], "teacher"
                unit = teacher[j - 1]
                edge = _WORD_EDGE if begins != unit.begins_word else 0.0
                paired = above[j - 1] + _difference(phone, unit.phone) + edge
                if paired <= cost:
                    cost, move = paired, "pair"
                if phone == "ER" and j > 1 and unit.phone == "R" and teacher[j - 2].phone in VOWELS:
                    if above[j - 2] + _ER_AS_TWO < cost:
                        cost, move = above[j - 2] + _ER_AS_TWO, "two"
            row[j], trace[j] = cost, move
    return best[rows][columns], _path(back, rows, columns)


def _path(back: list[list[str]], i: int, j: int) -> list[tuple[int, int, int]]:
    pairs = []
    while i or j:
        move = back[i][j]
        if move in ("pair", "two"):
            width = 2 if move == "two" else 1
            pairs.append((i - 1, j - width, j))
            i, j = i - 1, j - width
        elif move == "ours":
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


def _spans(
    count: int, starts: set[int], teacher: list[TeacherPhone], pairs: list[tuple[int, int, int]]
) -> list[tuple[float, float]]:
    """[start, end) seconds of each of our phones.

    Teacher phones without a partner lengthen a neighbour in the same word; ours without one share
    the time of a neighbour in theirs.
    """
    groups: list[list[int]] = []  # first of ours, end of ours, first teacher, end teacher
    for mine, first, end in pairs:
        if groups:
            last = groups[-1]
            while last[3] < first and not teacher[last[3]].begins_word:
                last[3] += 1
            last[1] = next((k for k in range(last[1], mine) if k in starts), mine)
            groups.append([last[1], mine + 1, last[3], end])
        else:
            groups.append([0, mine + 1, 0, end])
    if not groups:
        return [(teacher[0].start_s, teacher[-1].end_s)] * count
    groups[-1][1], groups[-1][3] = count, len(teacher)
    spans = []
    for first_mine, end_mine, first, end in groups:
        start_s, end_s = teacher[first].start_s, teacher[end - 1].end_s
        step = (end_s - start_s) / (end_mine - first_mine)
        spans += [
            (start_s + step * k, start_s + step * (k + 1)) for k in range(end_mine - first_mine)
        ]
    return spans


def _without_silence(
    spans: list[tuple[float, float]], ours: list[str], starts: set[int]
) -> list[tuple[float, float]]:
    """Shorten the last phone before a pause by the silence in it."""
    out = list(spans)
    for k in range(len(spans) - 1):
        start_s, end_s = spans[k]
        longest = LAST_VOWEL_S if ours[k] in VOWELS else LAST_CONSONANT_S
        # Words that run together have no gap; there a long phone is a long sound.
        if k + 1 in starts and spans[k + 1][0] > end_s > start_s + longest + LAST_SLACK_S:
            out[k] = (start_s, start_s + longest)
    return out


def _timed(
    sentence: Sentence, spans: list[tuple[float, float]], seconds: float, cost: float
) -> Aligned:
    """Boundaries of all symbols; the separators become the measured pauses."""
    times = [0.0, spans[0][0]]
    words, at = [], 0
    for word in sentence.words:
        end = at + len(word.phones)
        # A pause inside a word belongs to the phone before it.
        times += [spans[k + 1][0] for k in range(at, end - 1)] + [spans[end - 1][1]]
        if end == len(spans):
            times.append(seconds)
            words.append(replace(word, separator=word.separator[:1]))
        else:
            start_s, stop_s = spans[end - 1][1], spans[end][0]
            separator: tuple[str, ...] = (pause(stop_s - start_s),)
            if word.separator[0] in TERMINALS:
                separator = (word.separator[0], *separator)
                times.append((start_s + stop_s) / 2)
            times.append(stop_s)
            words.append(replace(word, separator=separator))
        at = end
    heard = replace(sentence, words=tuple(words))
    return Aligned(heard, tuple(_with_room(heard, times)), cost)


def _with_room(sentence: Sentence, times: list[float]) -> list[float]:
    """Move boundaries by what START, the last terminal and each phone lack of their shortest."""
    least = [EDGE_S]
    for word in sentence.words:
        least += [MIN_PHONE_S] * len(word.phones) + [0.0] * len(word.separator)
    least[-1] = EDGE_S
    scale = min(1.0, times[-1] / sum(least))
    out = list(times)
    for k in range(len(least) - 1):
        out[k + 1] = max(out[k + 1], out[k] + scale * least[k])
    for k in range(len(least) - 1, 0, -1):
        out[k] = min(out[k], out[k + 1] - scale * least[k])
    out[0] = 0.0
    return [max(second, 0.0) for second in out]


def pause(seconds: float) -> str:
    """The separator of two words so far apart."""
    if seconds < SHORT_PAUSE_S:
        return GAP
    return SHORT_PAUSE if seconds < LONG_PAUSE_S else LONG_PAUSE
