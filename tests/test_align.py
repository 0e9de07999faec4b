# ruff: noqa: RUF001
"""Alignment of a teacher's durations with our symbols, on three real lines and one false one."""

import random

import pytest

from engine.align import EDGE_S, LONG_PAUSE_S, SHORT_PAUSE_S, align
from engine.symbols import PAUSES, TERMINALS, text_ids
from engine.text import front_end

# text, phonemes, durations, offset_s, frame_s, seconds
LINES = [
    ("An impressionable youngster. The frozen North.",
     "ɐn ɪmpɹˈɛʃənəbᵊl jˈʌŋstəɹ. ðə fɹˈOzən nˈɔɹθ.",
     "9,2,1,1,2,3,2,1,2,2,2,1,2,2,2,2,2,2,2,2,2,3,3,2,3,4,2,2,1,1,3,2,2,3,3,3,2,2,2,1,3,3,4,16,"
     "8,1", 0.2004, 0.025, 2.310),
    ("Anyone can do any amount of work provided it isn't the work he is supposed to be doing at "
     "the moment.",
     "ˈɛnɪwˌʌn kæn dˈu ˌɛni ɐmˈWnt ʌv wˈɜk pɹəvˈIdᵻd ɪɾ ˌɪzənt ðə wˈɜk hi ɪz səpˈOzd təbi dˌuɪŋ "
     "æt ðə mˈOmənt.",
     "14,2,1,2,3,2,2,2,2,2,2,2,1,2,1,3,4,3,2,2,2,2,2,3,2,3,2,1,1,1,2,2,2,2,3,3,2,2,2,1,2,2,3,2,2,"
     "2,2,2,3,9,4,2,2,2,1,1,1,1,1,2,2,2,3,3,3,2,2,2,2,2,1,2,2,3,3,4,4,2,1,2,1,2,2,2,3,1,2,4,2,2,2,"
     "1,1,1,1,1,2,2,3,3,2,2,3,23,8,1", 0.3254, 0.025, 5.670),
    ("I would have the studies elective.",
     "I wʊdhɐv ðə stˈʌdiz ᵻlˈɛktɪv.",
     "11,2,2,2,2,3,4,3,2,2,1,2,3,3,2,2,2,3,4,3,3,3,2,2,2,3,4,4,20,7,1", 0.2504, 0.025, 1.888),
]  # fmt: skip


def aligned(line):
    text, phonemes, durations, offset_s, frame_s, seconds = line
    return align(text, phonemes, [int(d) for d in durations.split(",")], offset_s, frame_s, seconds)


@pytest.mark.parametrize("line", LINES)
def test_times_cover_the_utterance_in_order(line):
    result = aligned(line)
    symbols = result.sentence.symbols()
    assert text_ids(symbols)
    assert len(result.times) == len(symbols) + 1
    assert result.times[0] == 0 and result.times[-1] == line[-1]
    assert list(result.times) == sorted(result.times)
    assert result.cost < 0.08
    words = [w.text for w in front_end(line[0], split=False)[0].words]
    assert [w.text for w in result.sentence.words] == words


@pytest.mark.parametrize("line", LINES)
def test_every_phone_has_time(line):
    result = aligned(line)
    for first, end in result.sentence.spans():
        spans = [result.times[k + 1] - result.times[k] for k in range(first, end)]
        assert min(spans) > 0.0099 and max(spans) < 0.4


def test_exact_times_of_the_first_word():
    # Characters 0 and 1: [9, 11) and [11, 12) frames, of which 0.2004 s are cut off; START has at
    # least EDGE_S.
    result = aligned(LINES[0])
    assert result.sentence.symbols()[:4] == ["^", "AH0", "N", " "]
    edges = [EDGE_S, *(frames * 0.025 - 0.2004 for frames in (11, 12, 13))]
    assert result.times[1:5] == pytest.approx(edges)


@pytest.mark.parametrize("line", LINES)
def test_silence_after_the_last_phone_is_the_terminal(line):
    times = aligned(line).times
    assert times[1] >= EDGE_S and times[-1] - times[-2] >= EDGE_S - 1e-9


def test_separators_are_the_measured_pauses():
    for line in LINES:
        result = aligned(line)
        at = 1
        for word in result.sentence.words[:-1]:
            at += len(word.phones)
            pause_s = result.times[at + len(word.separator)] - result.times[at]
            expected = PAUSES[(pause_s >= SHORT_PAUSE_S) + (pause_s >= LONG_PAUSE_S)]
            assert word.separator[-1] == expected
            at += len(word.separator)
    # The written full stop stays in front of the pause that was heard there.
    first = aligned(LINES[0]).sentence.words
    assert [w.separator for w in first if w.text in ("youngster", "North")] == [(".", "/"), (".",)]


def test_written_comma_without_a_pause_is_a_gap():
    text, *rest = LINES[2]
    result = aligned(("I would have, the studies elective.", *rest))
    assert {w.separator for w in result.sentence.words} == {(" ",), (".",)}
    assert aligned((text, *rest)).times == result.times


def test_words_that_run_together_touch():
    result = aligned(LINES[2])  # "wʊdhɐv"
    would = result.sentence.spans()[1][1]
    assert result.times[would] == result.times[would + 1]


def test_another_text_is_refused():
    assert aligned(("Something quite different was said here today.", *LINES[2][1:])) is None
    assert aligned(("I would have the studies.", *LINES[2][1:])) is None


def test_extra_and_missing_phones_stay_in_their_word():
    # The teacher says an r after "saw" that we do not write, and drops the h of "him".
    phonemes = "ðA sˈɔɹ ɪm ɐɡˈɛn ɔn mˈʌndA."
    durations = [2] * (len(phonemes) + 2)
    result = align("They saw him again on Monday.", phonemes, durations, 0.0, 0.025, 1.45)
    assert result.sentence.symbols()[4:10] == ["S", "AO1", " ", "HH", "IH2", "M"]
    frames = [8, 10, 16, 18, 19, 20, 22]  # S, stress + ɔ + ɹ, gap, half of the vowel each, M
    assert result.times[4:11] == pytest.approx([0.025 * frame for frame in frames])


def test_silence_in_the_last_phone_before_a_pause_is_the_pause():
    # 24 frames (0.6 s) of k before a space of 2: 0.12 s of k, the rest and the space are the pause.
    phonemes = "blˈik mˈæn ɪn ðə pˈɑɹk."
    durations = [2] * (len(phonemes) + 2)
    durations[phonemes.index("k") + 1] = 24
    result = align("bleak man in the park.", phonemes, durations, 0.0, 0.025, 1.75)
    word = result.sentence.words[0]
    assert word.separator == ("%",)
    _, end = result.sentence.spans()[0]
    assert result.times[end] - result.times[end - 1] == pytest.approx(0.12)
    assert result.times[end + 1] - result.times[end] == pytest.approx(0.48 + 0.05)


def test_durations_must_fit():
    with pytest.raises(ValueError, match="durations"):
        align("hi", "hˈI", [1, 2, 3], 0.0, 0.025, 1.0)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_letters_share_the_time_of_their_word(probability):
    result = aligned(LINES[1])
    symbols, times = result.with_characters(probability, random.Random(3))
    assert symbols == result.sentence.symbols(probability, random.Random(3))
    assert len(times) == len(symbols) + 1
    assert times == sorted(times) and (times[0], times[-1]) == (0.0, LINES[1][-1])
    if probability == 0.0:
        assert times == list(result.times)
    if probability == 1.0:
        first, end = result.sentence.spans()[0]
        assert symbols[1:7] == list("anyone")
        step = (result.times[end] - result.times[first]) / 6
        assert times[1:8] == pytest.approx([result.times[first] + step * k for k in range(7)])
        assert not [s for s in symbols[:-1] if s in TERMINALS]
