"""`clonewave voices`: the store of a server, and voice files. SUBCOMMANDS is the table."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from engine import commands
from engine import voice_files_command as files
from engine.errors import InputError
from engine.files import atomic_file
from engine.serve.settings import default_voices
from engine.serve.store import SHARED, Entry, VoiceStore
from engine.voice import Voice


class Subcommand(NamedTuple):
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def run(args: argparse.Namespace) -> int:
    """Run the subcommand."""
    return SUBCOMMANDS[args.subcommand].run(args)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every subcommand with its own options."""
    choices = parser.add_subparsers(dest="subcommand", metavar="SUBCOMMAND", required=True)
    for name, subcommand in SUBCOMMANDS.items():
        text = subcommand.help
        one = choices.add_parser(name, help=text, description=text.capitalize() + ".")
        subcommand.add_arguments(one)


def _store(args: argparse.Namespace) -> VoiceStore:
    return VoiceStore(args.voices or default_voices())


def _store_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--voices", type=Path, metavar="DIR", help="the store (default: that of `clonewave serve`)"
    )
    parser.add_argument(
        "--owner", default=SHARED, metavar="KEY",
        help="name of the API key whose voice it is (default: shared by all)",
    )  # fmt: skip


def _output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="result as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no summary")


def _row(entry: Entry) -> dict[str, Any]:
    return {"id": entry.id, "name": entry.name, "owner": entry.owner,
            "created_at": entry.created_at, **entry.details}  # fmt: skip


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    _store_arguments(parser)
    _output_arguments(parser)


def list_voices(args: argparse.Namespace) -> int:
    """One line a voice."""
    with _store(args) as store:
        entries = store.entries()
    if args.json:
        print(json.dumps([_row(entry) for entry in entries]))
        return 0
    for entry in entries:
        day = time.strftime("%Y-%m-%d", time.gmtime(entry.created_at))
        print(f"{entry.id}  {day}  {entry.owner or 'shared':12}  {entry.name}")
    if not entries and not args.quiet:
        print("no voices yet; `clonewave voices add NAME RECORDING`", file=sys.stderr)
    return 0


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="1 to 64 letters, digits, spaces, _ . or -")
    parser.add_argument("recordings", nargs="+", help="3 s or more each, of one person")
    parser.add_argument(
        "--consent", required=True, help='the speaker\'s statement, e.g. "I am the speaker"'
    )
    _store_arguments(parser)
    commands._engine_arguments(parser)


def add(args: argparse.Namespace) -> int:
    """Clone recordings into the store."""
    engine = commands._engine(args)
    voice = engine.clone(args.recordings, name=args.name, consent=args.consent)
    with _store(args) as store:
        entry = store.add(
            voice, owner=args.owner, name=args.name, details={"consent": args.consent}
        )
    commands._tell(args, f"{entry.id}: {entry.name}", _row(entry))
    return 0


def _remove_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="voice", help="name or id")
    _store_arguments(parser)
    _output_arguments(parser)


def remove(args: argparse.Namespace) -> int:
    """Delete voices."""
    with _store(args) as store:
        entries = [_find(store, name, args.owner) for name in args.names]
        for entry in entries:
            store.delete(entry)
    gone = [entry.id for entry in entries]
    commands._tell(args, "\n".join(f"{id}: deleted" for id in gone), {"deleted": gone})
    return 0


def _find(store: VoiceStore, name: str, owner: str) -> Entry:
    """By id whoever owns it: whoever may use this command may read the files anyway."""
    whose = next((e.owner for e in store.entries() if e.id == name), owner)
    return store.find(name, whose)


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="voice", help="name or id")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: NAME.safetensors")
    _store_arguments(parser)
    _output_arguments(parser)


def export(args: argparse.Namespace) -> int:
    """Write a voice as a file that `say --voice` and `import` take."""
    with _store(args) as store:
        entry = _find(store, args.name, args.owner)
        data = store.data(entry)
    path = Path(args.output or f"{entry.name}.safetensors")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder does not exist; create it first")
    with atomic_file(path) as file:
        file.write(data)
    commands._tell(args, str(path.resolve()), {"file": str(path.resolve()), **_row(entry)})
    return 0


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", help="voice files (.safetensors)")
    parser.add_argument("--name", help="for one file (default: the name in it, else its own)")
    parser.add_argument("--consent", help="the speaker's statement, for files that hold none")
    _store_arguments(parser)
    _output_arguments(parser)


def import_voices(args: argparse.Namespace) -> int:
    """Take voice files into the store; those of another store, too."""
    if args.name and len(args.files) > 1:
        raise InputError("--name is for one file")
    voices = [(Path(file), Voice.load(file)) for file in args.files]
    for path, voice in voices:
        if not (args.consent or voice.metadata.get("consent")):
            raise InputError(f"{path}: holds no consent; give --consent STATEMENT")
    made = []
    with _store(args) as store:
        for path, voice in voices:
            name = args.name or voice.metadata.get("name") or path.stem
            details = {"consent": args.consent or voice.metadata["consent"]}
            made.append(store.add(voice, owner=args.owner, name=name, details=details))
    lines = "\n".join(f"{entry.id}: {entry.name}" for entry in made)
    commands._tell(args, lines, {"voices": [_row(entry) for entry in made]})
    return 0


SUBCOMMANDS = {
    "list": Subcommand("voices in the store", _list_arguments, list_voices),
    "add": Subcommand("clone recordings into the store", _add_arguments, add),
    "rm": Subcommand("delete voices from the store", _remove_arguments, remove),
    "export": Subcommand("write a voice of the store to a file", _export_arguments, export),
    "import": Subcommand("take voice files into the store", _import_arguments, import_voices),
    "show": Subcommand("what voice files hold, how far apart", files.show_arguments, files.show),
    "blend": Subcommand("mix voice files", files.blend_arguments, files.blend_files),
    "morph": Subcommand(
        "move a voice file to another sex or accent", files.morph_arguments, files.morph_file
    ),
    "map": Subcommand("draw voices among the trained", files.map_arguments, files.draw_map),
}
