"""`clonewave train vocoder|encoder|generator`: data sets and options -> a task and its run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import algebra, checkpoint, kernels, spectrum
from engine import train as training
from engine.config import (
    AcousticConfig,
    EncoderConfig,
    LossConfig,
    RecogniserConfig,
    TrainConfig,
    VerifierConfig,
    VocoderConfig,
    from_dict,
    to_dict,
)
from engine.crops import SpeakerSampler
from engine.data import Store, open_store
from engine.engine import Engine
from engine.errors import ConfigError, InputError, WeightsError
from engine.generator_task import AcousticTask, generated_mels
from engine.judge_tasks import judge_task
from engine.models.acoustic import Acoustic
from engine.models.speaker_encoder import SpeakerEncoder
from engine.recogniser_task import RecogniserTask
from engine.tasks import EncoderTask, VocoderTask

MEAN_OF = 200  # recordings behind the mean voice
GENERATED = 1200  # utterances whose mels are made for fine-tuning the vocoder: 180 MB
JUDGES = ("verifier", "classifier")
WHAT = ("vocoder", "encoder", "generator", "recogniser", *JUDGES, "directions", "export", "plot")
DEFAULTS: dict[str, dict[str, Any]] = {
    "vocoder": {"steps": 100_000, "batch_size": 4},
    "encoder": {"steps": 2_000, "batch_size": 48, "ema_decay": 0.99, "validate_every": 100},
    "generator": {"steps": 20_000, "batch_size": 8},
    "recogniser": {
        "steps": 2_000, "batch_size": 16, "ema_decay": 0.99, "validate_every": 250,
        "bfloat16": False,
    },
    "verifier": {
        "steps": 600, "batch_size": 32, "ema_decay": 0.99, "validate_every": 100, "bfloat16": False,
    },
    "classifier": {
        "steps": 300, "batch_size": 32, "ema_decay": 0.95, "validate_every": 100, "bfloat16": False,
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train one of the three models, in this order: vocoder (any time), encoder, generator "
        "(tunes the encoder along). `recogniser` is what adaptation hears phones with. `verifier` "
        "and `classifier` train the judges of `evaluate --paper`; the verifier also weighs cloning "
        "samples. `directions` adds to a folder of weights "
        "what its voices are like: class averages for morphs, the average spectrum for clones. "
        "`export` writes the weights an Engine loads; `plot` draws the curves of runs. A run that "
        "was stopped goes on where it was when started again."
    )
    parser.add_argument("what", choices=WHAT)
    parser.add_argument(
        "paths", nargs="+",
        help="data sets: Clonewave corpora, LJSpeech, VCTK, LibriTTS folders; "
        "for export and plot: run folders",
    )  # fmt: skip
    parser.add_argument("-o", "--out", required=True, help="folder of the run (export: weights)")
    parser.add_argument("-c", "--config", help="JSON file with `model` and `train` sections")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="change one value, e.g. steps=5000, learning_rate=3e-4 or model.layers=18",
    )  # fmt: skip
    parser.add_argument("--encoder", metavar="RUN", help="generator: start from this encoder run")
    parser.add_argument(
        "--freeze-encoder", action="store_true",
        help="generator: leave the encoder as it is (the paper's encoder without fine-tuning)",
    )  # fmt: skip
    parser.add_argument(
        "--start", metavar="FOLDER",
        help="start from the weights of this run, or of a folder that `export` wrote",
    )  # fmt: skip
    parser.add_argument(
        "--generator", metavar="RUN",
        help="vocoder: train on the mels that this run's generator makes, not on true ones",
    )  # fmt: skip
    parser.add_argument(
        "--voices", metavar="DATA",
        help="export: data set whose mean voice `encoder.contrast` moves away from; `--set` then "
        "takes KIND.KEY=VALUE, e.g. encoder.contrast=2, vocoder.temperature=0.9",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, help="of torch (default: all cores)")
    parser.add_argument("--cache", help="decoded audio (default: ~/.cache/clonewave)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    """Train, export or plot."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.what == "plot":
        from engine import plots

        plots.curves([Path(p) for p in args.paths], Path(args.out))
        print(args.out)
        return 0
    if args.what == "export":
        return export(args)
    if args.what == "directions":
        return directions(args)
    model_values, train_values = _settings(args)
    train = from_dict(TrainConfig, {"progress": not args.quiet, **train_values})
    audio = from_dict(VocoderConfig, {}).audio
    store = open_store(args.paths, audio, _cache(args), progress=not args.quiet)
    hours = store.lengths().sum() / audio.sample_rate / 3600
    print(f"{len(store)} utterances, {hours:.2f} h", file=sys.stderr)
    task = _task(args, model_values, train, store)
    figures = training.run(task, train, args.out)
    print(json.dumps(figures))
    return 0


def _task(
    args: argparse.Namespace, model: dict[str, Any], train: TrainConfig, store: Store
) -> training.Task:
    if args.what == "vocoder":
        return _vocoder_task(args, model, train, store)
    if args.what == "encoder":
        task = EncoderTask(store, from_dict(EncoderConfig, model), train)
        if args.start:
            task.model.encoder.load_state_dict(_start(args.start, "encoder")[0])
        return task
    if args.what == "recogniser":
        return RecogniserTask(store, from_dict(RecogniserConfig, model), train)
    if args.what in JUDGES:
        return judge_task(args.what, store, model, train)
    encoder = EncoderConfig()
    weights = None
    if source := args.encoder or args.start:
        weights, values = _start(source, "encoder")
        encoder = from_dict(EncoderConfig, values)
    losses = from_dict(LossConfig, model.pop("losses", {}))
    config = from_dict(AcousticConfig, model)
    generator = AcousticTask(store, config, encoder, train, losses=losses)
    if args.start:
        _begin(generator.model.acoustic, args.start)
    if weights is not None:
        generator.start_encoder(weights)
    if args.freeze_encoder:
        generator.model.encoder.requires_grad_(False)
        generator.extra["encoder_tuned"] = False
    return generator


def _begin(model: Acoustic, folder: str) -> None:
    """Start from weights of before the pitch came, too.

    Raises:
        WeightsError: they lack anything else, or are of another size.
    """
    try:
        missing, unknown = model.load_state_dict(_start(folder, "acoustic")[0], strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{folder}: weights of another configuration ({error})") from error
    if wrong := unknown + [name for name in missing if not name.startswith("pitch_")]:
        raise WeightsError(f"{folder}: weights of another model; {', '.join(wrong[:3])} do not fit")


def _vocoder_task(
    args: argparse.Namespace, model: dict[str, Any], train: TrainConfig, store: Store
) -> VocoderTask:
    mels = None
    if args.generator:
        weights, values = _start(args.generator, "acoustic")
        heard, encoder = _start(args.generator, "encoder")
        generator = AcousticTask(
            store, from_dict(AcousticConfig, values), from_dict(EncoderConfig, encoder), train
        )
        generator.model.acoustic.load_state_dict(weights)
        generator.start_encoder(heard)
        mels = generated_mels(generator, GENERATED, progress=not args.quiet)
    task = VocoderTask(store, from_dict(VocoderConfig, model), train, mels=mels)
    if args.start:
        task.model.load_state_dict(_start(args.start, "vocoder")[0])
    return task


def _settings(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model and train values: defaults, then the config file, then --set."""
    model: dict[str, Any] = {}
    # without instructions for it, bfloat16 takes ten times as long as float32
    train = {"bfloat16": kernels.isas().get("avx512_bf16", "") is None, **DEFAULTS[args.what]}
    if args.config:
        try:
            values = json.loads(Path(args.config).read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{args.config}: {error}") from error
        model |= values.get("model", {})
        train |= values.get("train", {})
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    for item in args.set:
        key, _, text = item.partition("=")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        if key in known:
            train[key] = value
        elif key.startswith("model."):
            model[key.removeprefix("model.")] = value
        elif key.startswith("losses.") and args.what == "generator":
            model.setdefault("losses", {})[key.removeprefix("losses.")] = value
        else:
            raise ConfigError(
                f"--set {item}: use model.KEY=..., losses.KEY=... (generator) or one of "
                f"{sorted(known)}"
            )
    return model, train


def _averaged(run_folder: Path, prefix: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Averaged weights under `prefix` and the state document of a run's newest checkpoint."""
    newest = checkpoint.latest(run_folder)
    if newest is None:
        raise InputError(f"{run_folder}: no checkpoint; is this a run folder?")
    tensors, _ = checkpoint.load_tensors(newest / "ema.safetensors")
    found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return found, json.loads((newest / "state.json").read_text())


def _start(folder: str, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and config values of one model, out of an exported folder or a run."""
    exported = Path(folder) / f"{kind}.safetensors"
    if exported.exists():
        weights, values, _ = checkpoint.load_model(exported, kind)
        return weights, values
    weights, state = _averaged(Path(folder), "" if kind == "vocoder" else f"{kind}.")
    of_generator = kind == "encoder" and "encoder" in state["extra"]
    return weights, state["extra"]["encoder"] if of_generator else state["config"]


def export(args: argparse.Namespace) -> int:
    """Write the averaged weights of run folders as float16 model files an Engine loads."""
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    chosen: dict[str, dict[str, Any]] = {}
    for item in args.set:
        key, _, text = item.partition("=")
        kind, _, name = key.partition(".")
        chosen.setdefault(kind, {})[name] = json.loads(text)
    for path in map(Path, args.paths):
        everything, state = _averaged(path, "")
        steps = {"steps": str(state["step"])}
        if any(name.startswith("acoustic.") for name in everything):
            kinds = {"acoustic": AcousticConfig, "encoder": EncoderConfig}
        elif "within" in everything:
            kinds = {"verifier": VerifierConfig}
        elif "leave.weight" in everything:
            kinds = {"recogniser": RecogniserConfig}
        else:
            kinds = {"vocoder": VocoderConfig}
        for kind, config_type in kinds.items():
            prefix = f"{kind}." if kind in ("acoustic", "encoder") else ""
            weights, _ = _averaged(path, prefix)
            values = state["config"] if kind != "encoder" else state["extra"].get("encoder", {})
            values = values | chosen.get(kind, {})
            if kind == "encoder" and args.voices:
                weights["centre"] = _mean_voice(args, from_dict(EncoderConfig, values), weights)
            config = to_dict(from_dict(config_type, values))
            target = out / f"{kind}.safetensors"
            extra = dict(steps)
            if kind == "encoder":
                extra["tuned"] = "true" if state["extra"].get("encoder_tuned", True) else "false"
            checkpoint.save_model(target, weights, config, extra, kind=kind, dtype=torch.float16)
            print(f"{target}: {target.stat().st_size / 1e6:.2f} MB, {steps['steps']} steps")
    if args.voices and (out / "encoder.safetensors").is_file():
        _directions(out, args.voices, args)
    return 0


def directions(args: argparse.Namespace) -> int:
    """Write the class averages of a data set's labelled speakers beside the weights in `out`."""
    if len(args.paths) != 1:
        raise InputError("directions are measured on one data set; give its folder")
    _spectrum(Path(args.out), args.paths[0], args)
    if not _directions(Path(args.out), args.paths[0], args):
        raise InputError(
            f"{args.paths[0]}: no speakers of known sex and accent in it, so no morphs; the "
            "average spectrum is written"
        )
    return 0


def _spectrum(weights: Path, data: str, args: argparse.Namespace) -> None:
    """Write what the generator of these weights sounds like on average."""
    engine = Engine(weights)
    store = open_store(
        [data], engine.config.encoder.audio, _cache(args), progress=not args.quiet
    )
    found = spectrum.measure(engine, store, progress=not args.quiet)
    found.save(weights / spectrum.FILE)
    print(f"{weights / spectrum.FILE}: {spectrum.RECORDINGS} voices")


def _directions(weights: Path, data: str, args: argparse.Namespace) -> bool:
    """Whether the data knew its speakers and directions were written."""
    classes = algebra.labels(Path(data))
    if not classes:
        return False
    path = weights / "encoder.safetensors"
    state, values, _ = checkpoint.load_model(path, "encoder")
    encoder = SpeakerEncoder(from_dict(EncoderConfig, values))
    encoder.load_state_dict(state)
    store = open_store([data], encoder.config.audio, _cache(args), progress=not args.quiet)
    found = algebra.measure(encoder.eval(), checkpoint.sha256(path), store, classes)
    found.save(weights / algebra.FILE)
    print(f"{weights / algebra.FILE}: {len(found.classes)} speakers")
    return True


@torch.no_grad()
def _mean_voice(
    args: argparse.Namespace, config: EncoderConfig, weights: dict[str, torch.Tensor]
) -> torch.Tensor:
    """[speaker_dim] mean embedding of `MEAN_OF` random recordings, before any contrast."""
    encoder = SpeakerEncoder(dataclasses.replace(config, contrast=1.0))
    encoder.load_state_dict(weights)
    encoder.eval()
    store = open_store([args.voices], config.audio, _cache(args), progress=not args.quiet)
    sampler = SpeakerSampler(store, np.arange(len(store)), config)
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(store))[:MEAN_OF]
    crops = [[sampler.crop(int(i), 4.0, rng, degraded=0.0)] for i in chosen]
    return encoder(*sampler.collate(crops))[0].mean(0)


def _cache(args: argparse.Namespace) -> Path:
    """Where decoded audio is kept."""
    if args.cache:
        return Path(args.cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "clonewave"
