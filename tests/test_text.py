# ruff: noqa: RUF001
"""Front end: exact phones, pauses, written pronunciations, hostile text, cutting."""

import random
import subprocess
import sys
import unicodedata

import pytest

from engine import pronounce
from engine.errors import InputError
from engine.symbols import CHARACTERS, PHONES, SYMBOLS, TERMINALS, text_ids
from engine.text import Sentence, front_end
from engine.verbalize import cardinal, ordinal, year

HOSTILE = {
    "one letter": "a" * 20_000,
    "no spaces": "abcdefghij" * 2_000,
    "spaces": "a" + " " * 20_000 + "b",
    "digits": "7" * 5_000,
    "decimal points": "1.1" * 3_000,
    "dots": "a" + "." * 20_000,
    "initials": "a." * 3_000,
    "addresses": "a@" * 3_000,
    "open braces": "{" * 20_000 + "a",
    "accents": "a" + "\u0301\u0323" * 10_000,
    "emoji": "a" + "\U0001f600" * 10_000,
    "direction marks": "a" + "\u202e\u200f" * 10_000 + "b",
    "lone surrogates": "a" + "\ud800" * 10_000 + " b",
    "controls": "a\x00\x01\x02 b" * 2_000,
    "one sign into many": "a" + "\ufdfa" * 5_000,
    "blank lines": "a" + "\n" * 20_000 + "b",
    "other scripts": "漢字 текст عربى a",
}


def phones(text: str) -> list[str]:
    """Phones of each word of a one-sentence text, as strings."""
    (sentence,) = front_end(text)
    return [" ".join(word.phones) for word in sentence.words]


def read(text: str) -> str:
    """The words as read, with pauses and terminals."""
    (sentence,) = front_end(text, split=False)
    return "".join(word.text + "".join(word.separator) for word in sentence.words)


def test_symbol_table_is_stable():
    assert SYMBOLS[:8] == ("_", "^", " ", "/", "%", ".", "?", "!")
    assert len(SYMBOLS) == len(set(SYMBOLS)) == 8 + 15 * 3 + 24 + 27
    assert text_ids(["_", "^", "AA0", "ZH", "a", "'"]) == [0, 1, 8, 76, 77, 103]
    with pytest.raises(InputError, match="'QQ'"):
        text_ids(["QQ"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello", ["HH AH0 L OW1"]),
        ("The apple", ["DH IY0", "AE1 P AH0 L"]),
        ("The dog", ["DH AH0", "D AO1 G"]),
        ("I have read it", ["AY0", "HH AE0 V", "R EH1 D", "IH1 T"]),
        ("I will read it", ["AY0", "W IH0 L", "R IY1 D", "IH1 T"]),
        ("the record", ["DH AH0", "R EH1 K ER0 D"]),
        ("plan A", ["P L AE1 N", "EY1"]),
        ("A cat", ["AH0", "K AE1 T"]),
        ("Smith's churches", ["S M IH1 TH S", "CH ER1 CH IH0 Z"]),
        ("NASA", ["N AE1 S AH0"]),
        ("AI", ["EY1 AY1"]),
        ("the FBI", ["DH IY0", "EH1 F B IY1 AY1"]),
        ("brr", ["B IY1 AA1 R AA1 R"]),
        ("café", ["K AE0 F EY1"]),
    ],
)
def test_exact_phones(text, expected):
    assert phones(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$3.50 in 1999", "three dollars and fifty cents in nineteen ninety nine."),
        ("At 3:30pm", "At three thirty PM."),
        ("10,000 on the 3rd", "ten thousand on the third."),
        ("Dr. Smith, e.g. him", "doctor Smith/for example him."),
        ("St. John on Main St.", "Saint John on Main Street."),
        ("see www.example.com/a", "see example dot com slash a."),
        ("Jan. 5, 2020", "January fifth/twenty twenty."),
        ("2020-03-04", "March fourth/twenty twenty."),
        ("the '80s, 50% of 5kg", "the eighties/fifty percent of five kilograms."),
        ("1/2 or 2 3/4", "one half or two and three quarters."),
        ("World War II", "World War two."),
        ("-5 to 007", "minus five to zero zero seven."),
        ("v1.2.3", "v one point two point three."),
        ("½ café №5 ﬁne", "one half cafe No five fine."),
    ],
)
def test_numbers_and_abbreviations_are_read(text, expected):
    assert read(text) == expected


def test_number_words():
    assert cardinal(1_234_567) == (
        "one million two hundred thirty four thousand five hundred sixty seven"
    )
    assert [ordinal(n) for n in (1, 12, 20, 21, 100)] == [
        "first", "twelfth", "twentieth", "twenty first", "one hundredth",
    ]  # fmt: skip
    assert [year(n) for n in (1905, 2000, 2005, 1900, 2026)] == [
        "nineteen oh five", "two thousand", "two thousand five", "nineteen hundred",
        "twenty twenty six",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("well, no", "well/no."),
        ("well (no) yes", "well/no/yes."),
        ("well — no", "well/no."),
        ("well... no?!", "well%no?"),
        ("well / no % yes", "well/no%yes."),
        ("and/or 50 % now", "and or fifty percent now."),
        ("Yes. Why? Oh!", "Yes.%Why?%Oh!"),
        ("Yes / ", "Yes."),
        ("spelled A B, C", "spelled A B/C."),
        ("spelled A B C I D", "spelled A/B/C/I/D."),
        ("A B C % D E F", "A/B/C%D/E/F."),
        ("555-018-2234 or", "five five five/zero one eight/two two three four or."),
        ("...", None),
    ],
)
def test_pauses(text, expected):
    if expected is None:
        with pytest.raises(InputError, match="empty"):
            front_end(text)
    else:
        assert read(text) == expected


def test_symbols_and_spans():
    (sentence,) = front_end("Hello, Bob!")
    symbols = sentence.symbols()
    assert symbols == ["^", "HH", "AH0", "L", "OW1", "/", "B", "AA1", "B", "!"]
    assert [symbols[a:b] for a, b in sentence.spans()] == [list(w.phones) for w in sentence.words]


def test_sentences_end_where_people_end_them():
    texts = [
        s.text for s in front_end("Mr. J. K. Low met Dr. No. He ran! 3.5 is it?\n\nThe U.S. Army")
    ]
    assert texts == ["Mr. J. K. Low met Dr. No.", "He ran!", "3.5 is it?", "The U.S. Army."]


@pytest.mark.parametrize("written", ["HH AH0 L OW1", "HH AH L OW", "/həˈloʊ/", "həˈloʊ", "[həloʊ]"])
def test_written_pronunciation(written):
    (sentence,) = front_end(f"Say {{{written}}}, please")
    assert sentence.words[1].phones == ("HH", "AH0", "L", "OW1")
    assert sentence.words[1].separator == ("/",)


@pytest.mark.parametrize(
    ("written", "named"), [("HH XX", "'XX'"), ("/h§/", "'§'"), ("", "empty"), ("B " * 65, "65")]
)
def test_bad_pronunciation_names_the_symbol(written, named):
    with pytest.raises(InputError, match=named):
        front_end(f"Say {{{written}}} please")


def test_pronunciation_keeps_its_stress_digits():
    assert pronounce.written_phones("DH AH0") == ("DH", "AH0")
    assert pronounce.written_phones("B AH N AE1 N AH") == ("B", "AH0", "N", "AE1", "N", "AH0")


def test_mapping_covers_lexicon_and_guesser():
    from gruut.g2p import GraphemesToPhonemes

    english = pronounce._load()
    units = {u for roles in english.lexicon.values() for ipa in roles.values() for u in ipa.split()}
    for label in english._guess.crf_tagger.labels():
        units |= set(GraphemesToPhonemes.decode_string(label).split("|"))
    units.discard("_")  # the guesser's empty phoneme
    assert len(units) > 60
    for unit in units:
        (phone,) = pronounce.ipa_phones(unit)
        assert phone in PHONES


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_text_survives(kind):
    sentences = front_end(HOSTILE[kind])
    for sentence in sentences:
        assert text_ids(sentence.symbols())
        assert len(sentence.symbols()) <= 240
        assert sentence.words[-1].separator[0] in TERMINALS


def test_random_unicode_survives():
    rng = random.Random(5)
    for _ in range(60):
        text = "".join(
            chr(rng.randrange(0x110000 if rng.random() < 0.3 else 0x250)) for _ in range(80)
        )
        for sentence in front_end(text.replace("{", "") + " a"):
            text_ids(sentence.symbols())


def test_unspeakable_is_dropped_with_a_warning_on_its_sentence():
    first, second = front_end("Hi \U0001f600 there. Привет you.")
    assert [w.text for w in first.words + second.words] == ["Hi", "there", "you"]
    assert "GRINNING FACE" in first.warnings[0]
    assert second.warnings[0].startswith("6 symbols") and "CYRILLIC" in second.warnings[0]
    assert front_end("Plain “quotes”, zero\u200bwidth e\u0301.")[0].warnings == ()


@pytest.mark.parametrize("text", ["", "   ", "\u200b\n", "漢字", "?!", '"()"'])
def test_nothing_to_speak(text):
    with pytest.raises(InputError, match="text is empty"):
        front_end(text)


def test_text_must_be_str():
    with pytest.raises(InputError, match="bytes"):
        front_end(b"hello")


def test_decomposed_text_reads_like_composed():
    text = "naïve café"
    assert front_end(unicodedata.normalize("NFD", text)) == front_end(text)


def test_cutting_keeps_all_words_in_order():
    text = " ".join(f"the {name} of it," * (i % 3) + f" green {name}" for i, name in
                    enumerate(["house", "river", "garden", "mountain"] * 12))  # fmt: skip
    (whole,) = front_end(text, split=False)
    parts = front_end(text, max_symbols=60)
    assert len(parts) > 5
    assert all(len(part.symbols()) <= 60 for part in parts)
    assert [w.text for part in parts for w in part.words] == [w.text for w in whole.words]
    # Where there is a comma in the second half of a part, the cut is at a comma.
    assert sum(part.words[-1].text == "it" for part in parts) > len(parts) // 3


def test_unsplit_and_split_say_the_same():
    text = "One, two. Three? " * 5
    words = [w.phones for s in front_end(text) for w in s.words]
    assert [w.phones for w in front_end(text, split=False)[0].words] == words


def test_characters_are_drawn_by_word():
    (sentence,) = front_end("Don't tell NASA {HH AH0 L OW1} now")
    letters = sentence.symbols(1.0, random.Random(0))
    assert letters[:13] == ["^", *"don't", " ", *"tell", " ", "N"]  # NASA stays phones
    assert "HH" in letters and letters[-4:] == ["n", "o", "w", "."]
    assert sentence.symbols(0.5, random.Random(7)) == sentence.symbols(0.5, random.Random(7))
    mixed = {tuple(sentence.symbols(0.5, random.Random(seed))) for seed in range(20)}
    assert 4 < len(mixed) <= 8  # of 2 ** 3 ways to write three words
    assert not set(CHARACTERS) & set(sentence.symbols())
    with pytest.raises(ValueError, match="rng"):
        sentence.symbols(0.5)


def test_sentence_is_a_value():
    assert front_end("Hello.")[0] == Sentence(*vars(front_end("Hello.")[0]).values())


def test_importing_does_not_load_gruut():
    code = "import sys, engine.text; print('gruut' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
