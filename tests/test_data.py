"""Data sets on disk: every layout, the decoded cache, what a killed builder leaves behind."""

# ruff: noqa: RUF001 (IPA)
from pathlib import Path

import numpy as np
import pytest
import soundfile
from sounds import tone

from engine import audio, data
from engine.config import AudioConfig
from engine.errors import InputError

RATE = AudioConfig().sample_rate


def put_audio(path: Path, seconds=0.1, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seconds, rate), rate)


def put_text(path: Path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def corpus_line(name: str, text="A cat."):
    speaker = name.split("/")[0]
    return f"{name}\t{speaker}\t0.100\t{text}\tɐ kˈæt.\t1,2,3,4,5,6,7,8,9\t0.25\t0.025\n"


def put_corpus(folder: Path, names: list[str], manifest="manifest.tsv"):
    for name in names:
        put_audio(folder / f"{name}.flac")
        (folder / f"{name}.flac").rename(folder / f"{name}.opus")  # read by content, not by name
    put_text(folder / manifest, "".join(corpus_line(name) for name in names))


def test_own_corpus(tmp_path):
    put_corpus(tmp_path, ["af_heart/000001", "mix000f/000002"])
    stock, mixed = data.load(tmp_path)
    assert stock.path == (tmp_path / "af_heart/000001.opus").resolve()
    assert (stock.speaker, stock.text) == ("af_heart", "A cat.")
    assert stock.durations == data.Durations("ɐ kˈæt.", (1, 2, 3, 4, 5, 6, 7, 8, 9), 0.25, 0.025)
    # mix000f of another build is another speaker
    assert mixed.speaker == f"{tmp_path.name}/mix000f"


def test_own_corpus_in_several_manifests_with_an_audio_folder(tmp_path):
    put_corpus(tmp_path / "audio", ["af_heart/000001", "af_heart/000002"])
    (tmp_path / "audio/manifest.tsv").unlink()
    for worker in (1, 2):
        name = f"af_heart/00000{worker}"
        put_text(tmp_path / f"manifest.7.{worker}.tsv", corpus_line(name))
    assert [u.path.stem for u in data.load(tmp_path)] == ["000001", "000002"]


def test_dropped_audio_is_skipped(tmp_path):
    put_corpus(tmp_path, ["a/1", "a/2"])
    (tmp_path / "a/1.opus").unlink()
    assert [u.path.stem for u in data.load(tmp_path)] == ["2"]


@pytest.mark.parametrize("kept", range(1, len(corpus_line("a/2").encode())))
def test_a_torn_last_line_is_skipped(tmp_path, kept):
    put_corpus(tmp_path, ["a/1", "a/2"])
    whole, torn = corpus_line("a/1").encode(), corpus_line("a/2").encode()
    (tmp_path / "manifest.tsv").write_bytes(whole + torn[:kept])
    found = [u.path.stem for u in data.load(tmp_path)]
    # the last column is torn: too little is missing to be seen, or nothing but the newline
    assert found in (["1"], ["1", "2"])
    assert found == ["1"] or kept > len(torn) - len("0.025\n")


def test_ljspeech(tmp_path):
    folder = tmp_path / "LJSpeech-1.1"
    put_audio(folder / "wavs/LJ001-0001.wav")
    put_text(folder / "metadata.csv", "LJ001-0001|It cost $2.|It cost two dollars.\n"
                                      "LJ001-0002|No audio.|No audio.\n")  # fmt: skip
    (only,) = data.load(folder)
    assert (only.speaker, only.text) == ("LJSpeech-1.1", "It cost two dollars.")
    assert only.durations is None


@pytest.mark.parametrize(
    "path", ["wav48/p225/p225_001.wav", "wav48_silence_trimmed/p225/p225_001_mic1.flac"]
)
def test_vctk(tmp_path, path):
    put_audio(tmp_path / path)
    put_text(tmp_path / "txt/p225/p225_001.txt", "Please call Stella.\n")
    put_text(tmp_path / "txt/p225/p225_002.txt", "Its audio is missing.\n")
    (only,) = data.load(tmp_path)
    assert only.path == (tmp_path / path).resolve()
    assert (only.speaker, only.text) == ("vctk/p225", "Please call Stella.")


def test_libritts(tmp_path):
    for chapter in ("1", "2"):
        stem = f"train-clean-100/84/{chapter}/84_{chapter}_0"
        put_audio(tmp_path / f"{stem}.wav")
        put_text(tmp_path / f"{stem}.normalized.txt", "Words.\n")
        put_text(tmp_path / f"{stem}.original.txt", "Words, as printed.\n")
    found = data.load(tmp_path)
    assert [(u.speaker, u.text, u.path.name) for u in found] == [
        ("libritts/84", "Words.", "84_1_0.wav"), ("libritts/84", "Words.", "84_2_0.wav"),
    ]  # fmt: skip


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(InputError, match="LJSpeech"):
        data.load(tmp_path / "missing")
    put_audio(tmp_path / "something.wav")
    with pytest.raises(InputError, match="not a data set"):
        data.load(tmp_path)
    put_text(tmp_path / "metadata.csv", "a|b|c\n")
    with pytest.raises(InputError, match="none of the audio"):
        data.load(tmp_path)


def test_held_out_is_stable_and_rare():
    def utterance(number, speaker="speaker", folder="here"):
        return data.Utterance(Path(f"{folder}/{number:06d}.opus"), speaker, "text")

    held = [n for n in range(5000) if data.is_held_out(utterance(n))]
    assert held[:4] == [9, 38, 79, 140]  # a change would train on what older runs kept back
    assert 0.015 < len(held) / 5000 < 0.025
    assert held == [n for n in range(5000) if data.is_held_out(utterance(n, folder="there"))]
    assert held != [n for n in range(5000) if data.is_held_out(utterance(n, speaker="other"))]


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that were decoded, in order."""
    names, read = [], audio.read
    monkeypatch.setattr(audio, "read", lambda path: (names.append(Path(path).stem), read(path))[1])
    return names


def test_the_cache_grows_by_what_is_new(tmp_path, decoded):
    put_corpus(tmp_path / "set", ["a/1", "a/2"])
    open_store = lambda: data.open_store(  # noqa: E731
        [tmp_path / "set"], AudioConfig(), tmp_path / "cache", progress=False
    )
    first = open_store()
    assert decoded == ["1", "2"]
    open_store()
    assert decoded == ["1", "2"]
    put_corpus(tmp_path / "set", ["a/0"], "manifest.0.tsv")  # sorts before the ones already there
    grown = open_store()
    assert decoded == ["1", "2", "0"]
    assert [u.path.stem for u in grown.utterances] == ["0", "1", "2"]
    for i in range(2):
        assert np.array_equal(first.samples(i), grown.samples(i + 1))


def test_an_interrupted_decoding_is_done_again(tmp_path, monkeypatch):
    put_corpus(tmp_path / "set", ["a/1", "a/2"])
    arguments = [tmp_path / "set"], AudioConfig(), tmp_path / "cache", False
    read = audio.read

    def interrupted(path):
        if Path(path).stem == "2":
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(audio, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.open_store(*arguments)
    monkeypatch.setattr(audio, "read", read)
    store = data.open_store(*arguments)
    for i in range(2):
        assert np.abs(store.samples(i) - tone(0.1)).max() < 2 / 32768


def test_store_reads_parts_at_the_configured_rate(tmp_path):
    folder = tmp_path / "LJSpeech"
    put_audio(folder / "wavs/a.wav", 0.2, rate=RATE)
    put_audio(folder / "wavs/b.wav", 0.1, rate=48_000)
    put_text(folder / "metadata.csv", "a|x|Text.\nb|x|Text.\n")
    store = data.open_store([folder], AudioConfig(), tmp_path / "cache", progress=False)
    assert store.lengths().tolist() == [RATE // 5, RATE // 10]
    whole = store.samples(1)
    assert np.array_equal(store.samples(1, 100, 300), whole[100:300])
    assert np.array_equal(store.samples(1, 100, 10**9), whole[100:])  # never the next one's
    middle = slice(500, -500)
    assert np.abs(whole[middle] - tone(0.1)[middle]).max() < 0.01
