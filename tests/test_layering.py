"""Imports go one way: engine -> engine.kernels -> csrc. Parsed, not run."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENGINE = sorted((ROOT / "engine").rglob("*.py"))
KERNELS = sorted((ROOT / "kernels").glob("*.py"))
# The only file that may import a library, so that its quirks have one home.
OWNERS = {
    "soundfile": "engine/audio.py",  # and the process that decodes uploads, apart from engine
    "soxr": "engine/audio.py",
    "safetensors": "engine/checkpoint.py",
    "gruut": "engine/pronounce.py",
    "gruut_lang_en": "engine/pronounce.py",
}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, names taken from a package included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", KERNELS, ids=name_of)
def test_kernels_need_nothing_of_the_engine(path):
    outside = {
        name for name in imports(path)
        if name.split(".")[0] == "engine" and not name.startswith("engine.kernels")
    }  # fmt: skip
    assert not outside
    allowed = {"torch", "numpy", "triton", "engine", "__future__"}
    third = {name.split(".")[0] for name in imports(path)} - allowed
    assert third <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", ENGINE, ids=name_of)
def test_engine_sees_the_kernels_package_only_from_its_root(path):
    deeper = {
        name for name in imports(path)
        if name.startswith("engine.kernels.") and name.split(".")[2][0].islower()
    }  # fmt: skip
    modules = {f"engine.kernels.{kernel.stem}" for kernel in KERNELS}
    assert not deeper & modules
    assert not {"pybind11", "triton", "tests", "bench"} & {n.split(".")[0] for n in imports(path)}


@pytest.mark.parametrize("path", ENGINE + KERNELS, ids=name_of)
def test_libraries_with_quirks_have_one_importer(path):
    if name_of(path) == "engine/serve/decode_child.py":
        return
    for name in {name.split(".")[0] for name in imports(path)} & set(OWNERS):
        assert OWNERS[name] == name_of(path), f"{name_of(path)} imports {name}"


def test_dispatch_is_only_standard_library():
    third = {name.split(".")[0] for name in imports(ROOT / "kernels/dispatch.py")}
    assert third <= {"__future__", "collections", "dataclasses", "typing"}


def test_only_native_names_the_compiled_module():
    users = [p for p in ENGINE + KERNELS if re.search(r"kernels\._c(pu|uda)", p.read_text("utf-8"))]
    assert [name_of(path) for path in users] == ["kernels/native.py"]


def includes(path: Path) -> set[str]:
    return set(re.findall(r"#include\s+[<\"]([^>\"]+)[>\"]", path.read_text("utf-8")))


def test_only_bindings_know_python_and_nothing_knows_torch():
    for path in [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cpp")]:
        named = includes(path)
        assert not any("torch" in name or "ATen" in name for name in named)
        if any("pybind11" in name or name == "Python.h" for name in named):
            assert path.name.startswith("bind"), path


def test_code_compiled_per_instruction_set_takes_no_inline_functions_from_the_library():
    """A std:: template compiled with AVX-512 could be the one copy that the linker keeps."""
    c_headers = {"immintrin.h", "math.h", "stdint.h", "string.h", "stddef.h", "stdlib.h"}
    todo = list((ROOT / "csrc/cpu").glob("isa_*.cpp"))
    seen = set()
    while todo:
        path = todo.pop().resolve()
        if path in seen or path.name in ("ops.h", "wavenet.h", "decoder.h"):
            continue
        seen.add(path)
        for name in includes(path):
            if (path.parent / name).exists():
                todo.append(path.parent / name)
            else:
                assert name in c_headers, f"{path.name} includes {name}"
    assert any(path.name == "wavenet_isa.h" for path in seen)
    for path in seen:
        code = re.sub(r"//.*", "", path.read_text("utf-8"))
        assert "std::" not in code, path.name
