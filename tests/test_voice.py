"""Voice files: exact round trips, and nothing damaged or foreign is ever accepted."""

import json
import pickle
import random

import numpy as np
import pytest
import torch

from engine import checkpoint
from engine.errors import VoiceError
from engine.voice import Voice, blend

ENCODER = "ab" * 32
OTHER = "cd" * 32


def make_voice(seed=0, encoder=ENCODER, **metadata):
    embedding = np.random.default_rng(seed).standard_normal(256).astype(np.float32)
    return Voice(embedding, (0.25, 0.75), encoder, metadata or {"name": f"v{seed}"})


@pytest.fixture
def saved(tmp_path):
    voice = make_voice(name="Ada", consent="I am the speaker", created="2024-05-01")
    path = tmp_path / "ada.safetensors"
    voice.save(path)
    return voice, path


def test_round_trip_is_exact_and_small(saved):
    voice, path = saved
    again = Voice.load(path, encoder=ENCODER)
    assert again.embedding.dtype == np.float32
    assert again.embedding.tobytes() == voice.embedding.tobytes()
    assert again.weights == voice.weights
    assert (again.encoder, again.metadata) == (voice.encoder, voice.metadata)
    assert path.stat().st_size < 10_000
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary left


def test_files_of_every_length_are_read_again(tmp_path):
    """A header of 640, 896 or 1,152 bytes has the first bytes of a pickle."""
    lengths = set()
    for size in range(0, 840, 8):
        path = tmp_path / "v.safetensors"
        make_voice(name="n" * (size + 1)).save(path)
        lengths.add(int.from_bytes(path.read_bytes()[:8], "little"))
        assert Voice.load(path).metadata["name"] == "n" * (size + 1)
    assert {640, 896, 1152} <= lengths


def test_largest_metadata_still_fits_in_10_kb(tmp_path):
    voice = make_voice(name="n", consent="é" * 2000)
    voice.save(tmp_path / "v.safetensors")
    assert (tmp_path / "v.safetensors").stat().st_size < 10_000
    with pytest.raises(VoiceError, match="metadata"):
        make_voice(consent="é" * 3000)


def test_another_encoder_is_refused_with_both_hashes(saved):
    with pytest.raises(VoiceError) as caught:
        Voice.load(saved[1], encoder=OTHER)
    assert ENCODER[:8] in str(caught.value) and OTHER[:8] in str(caught.value)
    assert "clone" in str(caught.value)


def test_values_are_frozen_and_voices_are_dict_keys():
    voice, twin = make_voice(), make_voice()
    assert len({voice: 1, twin: 2}) == 2
    with pytest.raises(ValueError):
        voice.embedding[0] = 1.0
    source = np.ones(16, np.float32)
    made = Voice(source, (1.0,), ENCODER)
    source[:] = 5
    assert made.embedding[0] == 1.0  # a copy
    assert len(repr(voice)) < 100 and "v0" in repr(voice)


@pytest.mark.parametrize(
    "change",
    [
        {"embedding": np.zeros(256)},
        {"embedding": np.full(256, np.nan)},
        {"embedding": np.full(256, 1e4)},
        {"embedding": np.ones(15)},
        {"embedding": np.ones(4097)},
        {"embedding": np.ones((2, 128))},
        {"weights": ()},
        {"weights": (float("nan"),)},
        {"weights": (-0.5, 1.5)},
        {"weights": (1 / 65,) * 65},
        {"encoder": "abc"},
        {"metadata": {"seconds": 3.0}},
        {"metadata": {"kind": "mine"}},
        {"metadata": {"name": "\ud800"}},
    ],
)
def test_impossible_voices_cannot_be_made(change):
    values = {"embedding": np.ones(256), "weights": (1.0,), "encoder": ENCODER, "metadata": {}}
    Voice(**values)
    with pytest.raises(VoiceError):
        Voice(**{**values, **change})


def embedding_file(path, embedding, weights=None, **metadata):
    """A file that is whole by its own sha256, with contents of the caller's choice."""
    own = {"format": "1", "kind": "clonewave-voice", "encoder": ENCODER, **metadata}
    weights = torch.ones(1) if weights is None else weights
    checkpoint.save_tensors(path, {"embedding": embedding, "weights": weights}, own)


@pytest.mark.parametrize(
    ("embedding", "weights", "metadata"),
    [
        (torch.ones(256, dtype=torch.float16), None, {}),
        (torch.ones(256).double(), None, {}),
        (torch.ones(1, 256), None, {}),
        (torch.zeros(256), None, {}),
        (torch.full((256,), float("inf")), None, {}),
        (torch.ones(8), None, {}),
        (torch.ones(256), torch.tensor(1.0), {}),
        (torch.ones(256), torch.tensor([float("nan")]), {}),
        (torch.ones(256), None, {"format": "2"}),
        (torch.ones(256), None, {"kind": "vocoder"}),
        (torch.ones(256), None, {"encoder": "../../etc"}),
    ],
)
def test_whole_files_with_wrong_contents_are_refused(tmp_path, embedding, weights, metadata):
    path = tmp_path / "v.safetensors"
    embedding_file(path, torch.ones(256))
    Voice.load(path)
    embedding_file(path, embedding, weights, **metadata)
    with pytest.raises(VoiceError, match=r"v\.safetensors"):
        Voice.load(path)


def test_extra_tensors_are_refused(tmp_path):
    tensors = {"embedding": torch.ones(256), "weights": torch.ones(1), "more": torch.ones(1)}
    metadata = {"format": "1", "kind": "clonewave-voice", "encoder": ENCODER}
    checkpoint.save_tensors(tmp_path / "v.safetensors", tensors, metadata)
    with pytest.raises(VoiceError, match="more"):
        Voice.load(tmp_path / "v.safetensors")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        b"\0" * 200,
        b"hello, not a voice" * 20,
        pickle.dumps(Bomb()),
        (1 << 62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"null",
        (60_000).to_bytes(8, "little") + b"[" * 60_000,
        b"\0" * ((1 << 20) + 1),
    ],
    ids=["empty", "7 bytes", "zeros", "text", "pickle", "huge header", "no metadata", "list",
         "null", "deep", "over 1 MB"],
)  # fmt: skip
def test_files_that_are_no_voices(tmp_path, data):
    path = tmp_path / "evil.safetensors"
    path.write_bytes(data)
    with pytest.raises(VoiceError, match=r"evil\.safetensors"):
        Voice.load(path)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(VoiceError, match="no such file"):
        Voice.load(tmp_path / "none.safetensors")
    with pytest.raises(VoiceError):
        Voice.load(tmp_path)
    with pytest.raises(VoiceError, match="folder"):
        make_voice().save(tmp_path / "none" / "v.safetensors")


def replace(path, data):
    path.unlink(missing_ok=True)  # some file systems sync when a file is truncated and rewritten
    path.write_bytes(data)


def damaged(data, rng):
    """One random damage: flipped bits, a cut, a changed header, bytes inserted or removed."""
    data = bytearray(data)
    header = 8 + int.from_bytes(data[:8], "little")
    kind = rng.randrange(6)
    if kind == 0:
        for _ in range(rng.choice((1, 1, 1, 3, 20))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[rng.randrange(len(data)) :]
    elif kind == 2:
        at = rng.randrange(8, header)
        data[at] = rng.choice(b'{}[]":,0123456789aeEtfn -')
    elif kind == 3:
        data[:8] = rng.choice((rng.getrandbits(64), rng.randrange(4096))).to_bytes(8, "little")
    elif kind == 4:
        at = rng.randrange(len(data))
        data[at:at] = rng.randbytes(rng.randrange(1, 9))
    else:
        at = rng.randrange(len(data))
        del data[at : at + rng.randrange(1, 9)]
    return bytes(data)


def make_adapted():
    """A voice with a weight difference, which the loader must distrust as much."""
    rng, changes = np.random.default_rng(5), {}
    for name, (out, rank, inner) in {"spread": (12, 2, 9), "converter.0.conv": (8, 2, 20)}.items():
        shapes = {"up": (out, rank), "down": (rank, inner), "bias": (out,)}
        changes |= {f"{name}.{k}": rng.standard_normal(s).astype("f2") for k, s in shapes.items()}
    metadata = {"name": "Ada", "method": "adapt-model"}
    return Voice(
        rng.standard_normal(64), (0.25, 0.75), ENCODER, metadata, OTHER, changes,
        rng.uniform(-1, 1, 10),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["encoded", "adapted"])
def test_random_damage_is_refused_or_harmless(saved, kind, tmp_path, pytestconfig):
    count = pytestconfig.getoption("--damaged-files")
    voice, path = (saved[0], saved[1]) if kind == "encoded" else (make_adapted(), tmp_path / "a")
    voice.save(path)
    data, rng = path.read_bytes(), random.Random(20180214)
    target, refused = tmp_path / "damaged.safetensors", 0
    for _ in range(count):
        replace(target, broken := damaged(data, rng))
        try:
            again = Voice.load(target)
        except VoiceError:
            refused += 1
            continue
        # what loads must be the very same voice (say, a header byte replaced by itself)
        assert again.embedding.tobytes() == voice.embedding.tobytes(), broken
        assert (again.weights, again.encoder) == (voice.weights, voice.encoder)
        assert (again.metadata, again.acoustic) == (voice.metadata, voice.acoustic)
        assert again.equaliser.tobytes() == voice.equaliser.tobytes()
        assert {k: a.tobytes() for k, a in again.adaptation.items()} == {
            k: a.tobytes() for k, a in voice.adaptation.items()
        }
    assert refused > 0.97 * count


def test_every_single_bit_of_the_tensors_is_protected(saved, tmp_path):
    data = saved[1].read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    target = tmp_path / "flipped.safetensors"
    for at in range(header, len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        replace(target, flipped)
        with pytest.raises(VoiceError, match="damaged"):
            Voice.load(target)


def test_edited_metadata_is_refused(saved, tmp_path):
    data = saved[1].read_bytes()
    assert b"I am the speaker" in data
    path = tmp_path / "forged.safetensors"
    path.write_bytes(data.replace(b"I am the speaker", b"I'm not speaking"))
    with pytest.raises(VoiceError, match="damaged"):
        Voice.load(path)
    json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])  # plain JSON, any reader can look


def test_distance_is_the_cosine_distance():
    def along(*head):
        embedding = np.zeros(16, np.float32)
        embedding[: len(head)] = head
        return Voice(embedding, (1.0,), ENCODER)

    assert along(2).distance(along(5)) == 0.0
    assert along(1).distance(along(0, 3)) == pytest.approx(1.0)
    assert along(1).distance(along(-4)) == pytest.approx(2.0)
    assert along(1).distance(along(1, 1)) == pytest.approx(1 - 2**-0.5)
    with pytest.raises(VoiceError, match="encoder"):
        make_voice().distance(make_voice(encoder=OTHER))


def test_blend_is_the_weighted_mean(tmp_path):
    a, b = make_voice(1, name="a", consent="yes"), make_voice(2, name="b", consent="also")
    mixed = blend({a: 3, b: 1})
    expected = 0.75 * a.embedding.astype(np.float64) + 0.25 * b.embedding
    np.testing.assert_allclose(mixed.embedding, expected, rtol=1e-6, atol=1e-7)
    assert mixed.weights == (0.75, 0.25) and mixed.encoder == ENCODER
    assert mixed.metadata["method"] == "blend"
    assert mixed.metadata["blend"] == "0.750 a + 0.250 b"
    assert mixed.metadata["consent"] == "yes; also"
    mixed.save(tmp_path / "mixed.safetensors")
    assert Voice.load(tmp_path / "mixed.safetensors").weights == (0.75, 0.25)
    assert "consent" not in blend({a: 1, make_voice(3): 1}).metadata


@pytest.mark.parametrize("shares", [(), (0.0, 0.0), (1.0, -0.5), (float("nan"), 1.0)])
def test_blend_refuses_shares_that_make_no_voice(shares):
    voices = [make_voice(i) for i in range(len(shares))]
    with pytest.raises(VoiceError):
        blend(dict(zip(voices, shares, strict=True)))


def test_blend_refuses_two_encoders():
    with pytest.raises(VoiceError, match="encoder"):
        blend({make_voice(1): 1, make_voice(2, encoder=OTHER): 1})
