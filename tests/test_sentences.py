"""Text in pieces: the sentences come out early, and are those of the whole text."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.errors import InputError
from engine.serve.sentences import Sentences
from engine.text import front_end

TEXT = (
    "Dr. Fox paid $3.50 to Mr. J. Smith at 7 a.m. in St. Ives. Did he? Yes! It was etc. and so "
    "on... “Really?” he asked. (No.) The U.S. Navy left.\n\nA new one. {HH AH0 L OW1} he said."
)
PIECES = st.lists(
    st.sampled_from(
        ["Hello", "Mr", ".", " ", "?", "!", "...", "\n\n", '"', "3", "St", "A", "The", "etc", ")"]
    ),
    max_size=25,
)


def cut(text: str, sizes: list[int]) -> tuple[list[str], list[int]]:
    """What comes out, and how much of the text had gone in when it did."""
    sentences, out, when, at = Sentences(), [], [], 0
    for size in [*sizes, len(text)]:
        piece = text[at : at + size]
        at += len(piece)
        if whole := sentences.add(piece):
            out.append(whole)
            when.append(at)
    return [*out, sentences.rest()], when


def spoken(text: str) -> list:
    try:
        return [(s.text, s.words) for s in front_end(text)]
    except InputError:
        return []


@settings(max_examples=25, deadline=None)
@example(list(TEXT), [1] * len(TEXT))
@example(list(TEXT), [])
@given(PIECES, st.lists(st.integers(0, 9)))
def test_pieces_of_any_size_give_the_sentences_of_the_whole_text(parts, sizes):
    text = "".join(parts)
    out, _ = cut(text, sizes)
    assert "".join(out) == text
    assert [s for piece in out for s in spoken(piece)] == spoken(text)


def test_long_runs_of_abbreviations_take_no_quadratic_time():
    """Only bounded stretches are looked at; the whole rest each time would take minutes here."""
    sentences = Sentences()
    assert sentences.add("Mr. " * 2_000) == ""
    assert len(sentences.rest()) == 8_000


def test_a_sentence_comes_out_with_the_word_after_it():
    out, when = cut("One. Two words. Three words here. And the last", [1] * 100)
    assert out == ["One. ", "Two words. ", "Three words here. ", "And the last"]
    assert when == [len("One. Two "), len("One. Two words. Three "),
                    len("One. Two words. Three words here. And ")]  # fmt: skip


def test_abbreviations_numbers_and_pronunciations_hold_a_sentence_together():
    out, _ = cut(TEXT, [1] * len(TEXT))
    assert out[0] == "Dr. Fox paid $3.50 to Mr. J. Smith at 7 a.m. in St. Ives. "
    assert all("{HH AH0 L OW1}" in piece for piece in out if "{" in piece)
