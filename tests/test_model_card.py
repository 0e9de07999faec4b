"""The model card says what the files say, and only about the weights beside it."""

import json
import shutil

import pytest

from engine import model_card
from engine.engine import DEFAULT_WEIGHTS
from engine.errors import InputError, WeightsError

ROW = {"wer": 0.1234, "sim": 0.5, "ovrl": 2.0, "sig": 3.0, "bak": 4.0}


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(DEFAULT_WEIGHTS, folder)
    (folder / "README.md").write_text("# Mine\n\nBy hand.\n")
    return folder


def write_results(folder, models):
    folder.mkdir(exist_ok=True)
    document = {
        "speakers": [{"speaker": "ann", **ROW}], "total": ROW,
        "settings": {"models": models, "sentences": 2, "seconds": 3.0},
    }  # fmt: skip
    (folder / "evaluate.json").write_text(json.dumps(document))
    return folder


def test_written_twice_is_the_same_and_keeps_what_is_by_hand(weights, tmp_path):
    results = write_results(tmp_path / "results", model_card.hashes(weights))
    path = model_card.write(weights, results)
    first = path.read_text()
    assert first.startswith("# Mine\n\nBy hand.\n")
    assert "| ann" in first and "0.123" in first
    for kind, digest in model_card.hashes(weights).items():
        assert f"{kind}.safetensors" in first and digest in first
    path.write_text(first + "\nAnd after.\n")
    assert model_card.write(weights, results).read_text() == first + "\nAnd after.\n"


def test_scores_of_other_weights_are_refused(weights, tmp_path):
    other = {kind: "0" * 12 for kind in model_card.KINDS}
    with pytest.raises(WeightsError, match="evaluate again"):
        model_card.write(weights, write_results(tmp_path / "results", other))
    with pytest.raises(InputError, match="no evaluate"):
        model_card.write(weights, tmp_path)
    assert (weights / "README.md").read_text() == "# Mine\n\nBy hand.\n"
