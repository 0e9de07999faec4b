"""`clonewave samples`: a static page on which people and their clones can be heard.

People are folders as for `clonewave evaluate`. Beside a recording may lie its text (00.txt for
00.opus), beside them about.txt, a line about the person. The last recording is the original: the
engine never hears it, and where its text is known the clones say the same. The page needs no
network and no script but its own few lines, which move a line over the picture of the sound.
"""

from __future__ import annotations

import argparse
import html
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from engine import audio
from engine.commands import DEFAULT_TEXT
from engine.config import AudioConfig
from engine.errors import InputError
from engine.evaluate import Speaker, find_speakers
from engine.files import atomic_file
from engine.judges import need
from engine.models.layers import log_mel

SECONDS = (1.0, 3.0, 10.0)  # of cloning audio
CLIPS = "clips"  # folder beside the page
COLOURS = 64  # of a picture, a byte a pixel
METHOD_NAMES = {
    "encode": "speaker encoding",
    "encode-finetuned": "speaker encoding, tuned with the generator",
    "adapt-embedding": "embedding adapted",
    "adapt-model": "model adapted",
}


@dataclass(frozen=True)
class Clip:
    """One sound on the page; `file` without its suffix, which .mp3 and .png share."""

    title: str
    text: str
    file: str
    seconds: float


@dataclass(frozen=True)
class Section:
    """One person: who it is, the original, and the clones."""

    name: str
    about: str
    original: Clip
    clones: tuple[Clip, ...]


def build(
    folder: Path,
    out: Path,
    *,
    synthesize: Callable[..., Any],
    clone: Callable[..., Any],
    methods: Sequence[str] = ("encode",),
    speakers: Sequence[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Writes index.html and its sounds and pictures into `out`; returns the page's path.

    Args:
        synthesize: called as synthesize(text, voice, seed=seed).
        clone: called as clone(samples, sample_rate=rate, method=method) with float32 [samples].
        methods: of cloning. Encoding is shown for SECONDS of cloning audio, others for the longest.
    Raises:
        InputError: folders or recordings that cannot be used.
        EngineError: matplotlib is missing; whatever clone and synthesize raise.
    """
    people = find_speakers(folder, speakers)
    (out / CLIPS).mkdir(parents=True, exist_ok=True)
    sections = []
    with tqdm(people, disable=not progress, unit="person") as bar:
        for person in bar:
            bar.set_postfix_str(person.name)
            sections.append(_section(person, out, synthesize, clone, methods, seed))
    wanted = {c.file for s in sections for c in (s.original, *s.clones)}
    for old in (out / CLIPS).iterdir():  # of an earlier page
        if old.suffix in (".mp3", ".png") and old.stem not in wanted:
            old.unlink()
    page = out / "index.html"
    with atomic_file(page) as file:
        file.write(render(sections).encode())
    return page


def _section(
    person: Speaker,
    out: Path,
    synthesize: Callable[..., Any],
    clone: Callable[..., Any],
    methods: Sequence[str],
    seed: int,
) -> Section:
    *cloned, last = person.files
    said = _text(last.with_suffix(".txt"))
    samples, rate = audio.read(last)
    original = _keep(out, f"{person.name}-original", "original", said, samples, rate)
    prepared = [audio.prepare(path, config=AudioConfig()) for path in cloned]
    speech = np.concatenate([p.samples for p in prepared])
    rate = prepared[0].sample_rate
    texts = [said, DEFAULT_TEXT] if said else [DEFAULT_TEXT]
    clones = []
    for method in methods:
        for seconds in SECONDS if method == "encode" else SECONDS[-1:]:
            cut = speech[: round(seconds * rate)]
            voice = _clone(clone, speech, rate, seconds, method)
            title = f"{METHOD_NAMES.get(method, method)}, {len(cut) / rate:.0f} s"
            for i, text in enumerate(texts):
                spoken = synthesize(text, voice, seed=seed)
                name = f"{person.name}-{method}-{seconds:g}s-{i}"
                clones.append(_keep(out, name, title, text, spoken.samples, spoken.sample_rate))
    about = _text(person.files[0].parent / "about.txt")
    return Section(person.name, about, original, tuple(clones))


def _clone(
    clone: Callable[..., Any], speech: np.ndarray, rate: int, seconds: float, method: str
) -> Any:
    """The voice; a second with too little speech in it is drawn out, by half a second at most."""
    for longer_s in (0.0, 0.25, 0.5):
        cut = speech[: round((seconds + longer_s) * rate)]
        try:
            return clone(cut, sample_rate=rate, method=method)
        except InputError:
            if longer_s == 0.5:
                raise


def _text(path: Path) -> str:
    return path.read_text("utf-8").strip() if path.is_file() else ""


def _keep(
    out: Path, name: str, title: str, text: str, samples: np.ndarray, sample_rate: int
) -> Clip:
    """Writes the sound and its picture."""
    path = out / CLIPS / name
    audio.write(path.with_suffix(".mp3"), samples, sample_rate)
    with atomic_file(path.with_suffix(".png")) as file:
        _picture(samples, sample_rate).save(file, format="PNG", optimize=True)
    return Clip(title, text, name, len(samples) / sample_rate)


def _picture(samples: np.ndarray, sample_rate: int) -> Any:
    """The log-mel, low bands below, a pixel a frame, as an image with a palette."""
    config = AudioConfig()
    wave = torch.from_numpy(audio.resample(samples, sample_rate, config.sample_rate))
    mel = log_mel(wave[None].float(), config, "auto")[0].numpy()  # [n_mels, frames]
    low, high = np.percentile(mel, (5, 99.8))
    level = ((mel - low) / max(high - low, 1e-6)).clip(0, 1) * (COLOURS - 1)
    image = need("PIL.Image").fromarray(level[::-1].round().astype(np.uint8), "P")
    colours = need("matplotlib").colormaps["magma"](np.linspace(0, 1, COLOURS))[:, :3]
    image.putpalette((colours * 255).round().astype(np.uint8).ravel().tolist())
    return image


def render(sections: Sequence[Section]) -> str:
    """The page, as HTML."""
    body = "\n".join(_render_section(section) for section in sections)
    return _PAGE.replace("@STYLE@", _STYLE).replace("@SCRIPT@", _SCRIPT).replace("@BODY@", body)


def _render_section(section: Section) -> str:
    name = html.escape(section.name.replace("_", " "))
    about = f"<p>{html.escape(section.about)}</p>" if section.about else ""
    by_text: dict[str, list[Clip]] = {}
    for clip in section.clones:
        by_text.setdefault(clip.text, []).append(clip)
    same = by_text.pop(section.original.text, [])
    first = _render_row(section.original.text, [section.original, *same])
    rows = [first, *(_render_row(text, clips) for text, clips in by_text.items())]
    return f'<section id="{name}">\n<h2>{name}</h2>\n{about}\n' + "\n".join(rows) + "\n</section>"


def _render_row(text: str, clips: Sequence[Clip]) -> str:
    quote = f"<blockquote>{html.escape(text)}</blockquote>\n" if text else ""
    cards = "\n".join(_render_clip(clip) for clip in clips)
    return f'{quote}<div class="row">\n{cards}\n</div>'


def _render_clip(clip: Clip) -> str:
    title, file = html.escape(clip.title), html.escape(f"{CLIPS}/{clip.file}")
    kind = "original" if clip.title == "original" else "clone"
    return (
        f'<figure class="{kind}"><figcaption>{title}</figcaption>'
        f'<div class="mel"><img src="{file}.png" alt="Mel spectrogram: {title}"><i></i></div>'
        f'<audio controls preload="metadata" src="{file}.mp3"></audio></figure>'
    )


_STYLE = """
:root { color-scheme: light dark; --line: #8884; --accent: #c2185b; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 66rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .25rem; text-transform: capitalize; }
p { margin: .25rem 0 .75rem; max-width: 46rem; }
blockquote { margin: 1.25rem 0 .5rem; padding-left: .75rem; border-left: 3px solid var(--line); }
.row { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
figure { margin: 0; padding: .5rem; border: 1px solid var(--line); border-radius: .5rem; }
figure.original { border-color: var(--accent); }
figcaption { font-weight: 600; font-size: .9rem; margin-bottom: .35rem; }
.mel { position: relative; background: #000004; border-radius: .25rem; overflow: hidden; }
.mel img { display: block; width: 100%; height: 6rem; cursor: pointer; }
.mel i { position: absolute; top: 0; bottom: 0; left: 0; width: 2px; background: #fff; opacity: 0; }
audio { display: block; width: 100%; height: 2.5rem; margin-top: .4rem; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); font-size: .9rem; }
"""

_SCRIPT = """
for (const figure of document.querySelectorAll("figure")) {
  const sound = figure.querySelector("audio"), line = figure.querySelector("i");
  const move = () => {
    line.style.left = 100 * sound.currentTime / sound.duration + "%";
    line.style.opacity = 1;
    if (!sound.paused) requestAnimationFrame(move);
  };
  sound.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== sound) other.pause();
    move();
  });
  sound.addEventListener("seeked", move);
  figure.querySelector("img").addEventListener("click", event => {
    if (!sound.duration) return;
    sound.currentTime = sound.duration * event.offsetX / event.target.clientWidth;
    sound.play();
  });
}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Clonewave: samples</title>
<style>@STYLE@</style>
</head>
<body>
<h1>Clonewave: samples</h1>
<p>Each clone was made from the first seconds of other recordings of the same person; the engine
never heard the original beside it. Below each title is the mel spectrogram of the sound: click into
it to play from there. Everything except the originals is synthetic speech.</p>
@BODY@
<footer><p>Made by <code>clonewave samples</code>. How good the clones are, in numbers:
<a href="../quality.md">quality.md</a>. Clone only people who agreed to it.</p></footer>
<script>@SCRIPT@</script>
</body>
</html>
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `clonewave samples`."""
    parser.add_argument("folder", type=Path, help="holds a folder of recordings for each person")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the page")
    parser.add_argument(
        "--methods", default="encode", help="of cloning, divided by commas (default: encode)"
    )
    parser.add_argument("--speakers", help="only these, divided by commas")
    parser.add_argument("--weights", type=Path, help="folder of model weights (default: shipped)")
    parser.add_argument("--backend", help="kernel backend (default auto)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the synthesis (default 0)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Runs `clonewave samples`: the page's path to stdout, progress to stderr."""
    import engine  # here, not above: the package itself imports this module's neighbours

    cloner = engine.Engine(weights=args.weights, backend=args.backend)
    page = build(
        args.folder, args.out, synthesize=cloner.synthesize, clone=cloner.clone,
        methods=args.methods.split(","), seed=args.seed, progress=not args.quiet,
        speakers=args.speakers.split(",") if args.speakers else None,
    )  # fmt: skip
    size = sum(f.stat().st_size for f in args.out.rglob("*") if f.suffix in (".mp3", ".png"))
    print(f"{size / 1e6:.2f} MB of sounds and pictures", file=sys.stderr)
    print(page)
    return 0
