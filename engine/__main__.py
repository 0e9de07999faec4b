"""`clonewave` and `python -m engine`: argparse only; the verbs do the work."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence

from engine import (
    __version__,
    batch_command,
    bench,
    commands,
    corpus,
    evaluate,
    samples_page,
    serve_command,
    train_command,
    voices_command,
    wyoming_command,
)
from engine.errors import (
    BackendUnavailable,
    ConfigError,
    EngineError,
    InputError,
    VoiceError,
    WeightsError,
)

OK, USAGE, BAD_INPUT, MISSING, DEVICE, INTERRUPTED = 0, 2, 3, 4, 5, 130
NOT_BUILT = ("detect", "audit")

VERBS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable]] = {
    "say": ("speak text in a voice", commands.add_say, commands.say),
    "clone": ("make a voice file from recordings", commands.add_clone, commands.clone),
    "info": ("models, sizes, configuration", commands.add_info, commands.info),
    "doctor": ("what works on this machine, and why not", commands.add_doctor, commands.doctor),
    "serve": ("speech for other programs", serve_command.add_arguments, serve_command.run),
    "voices": ("voice files and stores", voices_command.add_arguments, voices_command.run),
    "batch": ("speak a file of texts, resumable", batch_command.add_arguments, batch_command.run),
    "wyoming": ("speech for Home Assistant", wyoming_command.add_arguments, wyoming_command.run),
    "train": ("train a model", train_command.add_arguments, train_command.run),
    "corpus": ("build a training corpus", corpus.add_arguments, corpus.run),
    "evaluate": ("judge clones of a folder of people", evaluate.add_arguments, evaluate.run),
    "samples": ("a page to hear clones", samples_page.add_arguments, samples_page.run),
    "bench": ("measure speed on this machine", bench.add_arguments, bench.run),
}


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="clonewave",
        description="Clone a voice from three seconds of audio and speak any text in it.",
        epilog="`clonewave VERB --help` tells more. Clone only people who agreed to it.",
    )
    top.add_argument("--version", action="version", version=f"clonewave {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (help_text, add_arguments, run) in VERBS.items():
        one = verbs.add_parser(name, help=help_text, description=help_text.capitalize() + ".")
        add_arguments(one)
        one.set_defaults(run=run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status (3 bad input, 4 model or voice missing, 5 device)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in NOT_BUILT:
        print(f"clonewave {arguments[0]}: not built yet", file=sys.stderr)
        return USAGE
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    args = parser().parse_args(arguments)
    try:
        return int(args.run(args) or OK)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `clonewave say ... -o - | head`
        sys.stderr.close()
        return OK
    except EngineError as error:
        if getattr(args, "json", False):
            print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        print(f"clonewave {args.verb}: {error}", file=sys.stderr)
        return _status(error)


def _status(error: EngineError) -> int:
    if isinstance(error, (VoiceError, WeightsError)):
        return MISSING
    if isinstance(error, BackendUnavailable):
        return DEVICE
    return BAD_INPUT if isinstance(error, (InputError, ConfigError)) else 1


if __name__ == "__main__":
    sys.exit(main())
