"""The voice store: nothing acknowledged is lost, whatever kills it; rows and files agree."""

import itertools
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule

from engine import Voice
from engine.errors import InputError
from engine.serve.settings import Limits
from engine.serve.store import (
    SHARED,
    Idempotency,
    StoreFull,
    StoreUnavailable,
    VoiceExists,
    VoiceMissing,
    VoiceStore,
)

ENCODER = "0" * 64
WRITER = Path(__file__).with_name("store_writer.py")


def voice(seed=0):
    rng = np.random.default_rng(seed)
    return Voice(rng.standard_normal(16).astype("f4"), (1.0,), ENCODER, {"consent": "yes"})


@pytest.fixture
def store(tmp_path):
    with VoiceStore(tmp_path / "store") as made:
        yield made


def test_a_voice_comes_back_as_it_was_after_a_restart(tmp_path):
    details = {"consent": "I agree", "labels": {"a": "b"}}
    with VoiceStore(tmp_path) as store:
        entry = store.add(voice(1), owner="me", name="Jane Doe", details=details)
    with VoiceStore(tmp_path) as store:
        assert store.find("Jane Doe", "me") == entry == store.find(entry.id, "me")
        assert entry.details == details and store.count() == 1
        loaded = store.load(entry, ENCODER)
        np.testing.assert_array_equal(loaded.embedding, voice(1).embedding)
        assert store.fsck_report == {
            "voices": 1, "unfinished": 0, "deleted": 0, "orphans": 0, "damaged": 0, "missing": 0
        }  # fmt: skip


def test_owners_see_their_own_and_what_is_shared(store):
    mine = store.add(voice(), owner="me", name="Ann")
    other = store.add(voice(), owner="you", name="Ann")
    shared = store.add(voice(), owner=SHARED, name="Everyone")
    assert store.find("Ann", "me") == mine and store.find("Ann", "you") == other
    assert store.find("Everyone", "me") == shared
    for name in (other.id, "Bob", "", "../voices.sqlite", "\ud800", "a\0b"):
        with pytest.raises(VoiceMissing):
            store.find(name, "me")
    assert [e.id for e in store.entries("me")] == [mine.id, shared.id]
    assert len(store.entries()) == 3
    with pytest.raises(VoiceMissing) as hidden:
        store.find(other.id, "me")
    with pytest.raises(VoiceMissing) as unknown:
        store.find("v_" + "0" * 32, "me")
    text = str(hidden.value).replace(other.id, "X")
    assert text == str(unknown.value).replace("v_" + "0" * 32, "X")


@pytest.mark.parametrize(
    "name", ["", " ", "a/b", "..\\x", "a" * 65, "a\nb", "default", "v_" + "0" * 32, "x\ud800", ".."]
)
def test_names_that_are_no_labels_are_refused(store, name):
    with pytest.raises(InputError):
        store.add(voice(), owner="me", name=name)
    assert store.count() == 0 and not list(store.voices.iterdir())


def test_names_and_idempotency_keys_are_used_once(store):
    once = Idempotency("k", "digest")
    entry = store.add(voice(), owner="me", name="Ann", idempotency=once)
    assert store.replay("me", once) == entry
    assert store.replay("you", once) is None
    with pytest.raises(VoiceExists):
        store.replay("me", Idempotency("k", "other"))
    with pytest.raises(VoiceExists):
        store.add(voice(), owner="me", name="Ann")
    with pytest.raises(VoiceExists):
        store.add(voice(), owner="me", name="Bob", idempotency=once)
    assert len(list(store.voices.iterdir())) == store.count() == 1
    store.delete(entry)
    assert store.replay("me", once) is None and not list(store.voices.iterdir())
    with pytest.raises(VoiceMissing):
        store.delete(entry)
    store.add(voice(), owner="me", name="Ann", idempotency=once)


def test_room_is_limited_by_owner_and_in_all(tmp_path):
    with VoiceStore(tmp_path, Limits(voices=3, voices_per_key=2)) as store:
        for owner, name in (("a", "1"), ("a", "2"), ("b", "1")):
            store.add(voice(), owner=owner, name=name)
        for owner in ("a", "b"):
            with pytest.raises(StoreFull):
                store.add(voice(), owner=owner, name="more")


def test_fsck_sweeps_and_sets_aside_but_removes_no_voice(tmp_path):
    with VoiceStore(tmp_path) as store:
        good, bad, lost = (store.add(voice(i), owner="me", name=str(i)) for i in range(3))
        gone = store.add(voice(3), owner="me", name="gone")
        data = store.path(gone.id).read_bytes()
        store.delete(gone)
    folder = tmp_path / "voices"
    (folder / f"{gone.id}.safetensors").write_bytes(data)  # killed before the file went
    (folder / f"v_{'f' * 32}.safetensors").write_bytes(data)  # killed before its row came
    (folder / ".v_x.safetensors.ab12.tmp").write_bytes(b"half")
    (folder / f"{bad.id}.safetensors").write_bytes(b"damaged")
    (folder / f"{lost.id}.safetensors").unlink()
    with VoiceStore(tmp_path) as store:
        assert store.fsck_report == {
            "voices": 3, "unfinished": 1, "deleted": 1, "orphans": 1, "damaged": 1, "missing": 2
        }  # fmt: skip
        assert [p.name for p in folder.iterdir()] == [f"{good.id}.safetensors"]
        assert len(list((tmp_path / "quarantine").iterdir())) == 2
        for entry in (bad, lost):
            with pytest.raises(StoreUnavailable):
                store.load(entry)
        store.load(good)


def test_a_second_process_does_not_sweep_what_the_first_is_writing(tmp_path):
    with VoiceStore(tmp_path):
        half = tmp_path / "voices" / ".x.tmp"
        half.write_bytes(b"")
        with VoiceStore(tmp_path) as second:
            assert half.exists() and not second.fsck_report
    with VoiceStore(tmp_path):
        assert not half.exists()


def test_two_stores_of_one_folder_agree_at_once(tmp_path):
    with VoiceStore(tmp_path) as one, VoiceStore(tmp_path) as two:
        entry = one.add(voice(), owner="me", name="Ann")
        assert two.find("Ann", "me") == entry
        with pytest.raises(VoiceExists):
            two.add(voice(), owner="me", name="Ann")
        two.delete(entry)
        with pytest.raises(VoiceMissing):
            one.data(entry)


def test_four_writers_lose_nothing(tmp_path):
    stores = [VoiceStore(tmp_path) for _ in range(2)]
    made: list[str] = []

    def write(number):
        for i in range(5):
            made.append(stores[number % 2].add(voice(), owner=str(number), name=str(i)).id)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 20 and {e.id for e in stores[0].entries()} == set(made)
    for store in stores:
        store.close()


@pytest.mark.parametrize("damage", ["garbage", "newer", "file"])
def test_a_store_that_cannot_be_used_says_so(tmp_path, damage):
    with VoiceStore(tmp_path):
        pass
    path = tmp_path / "voices.sqlite"
    if damage == "garbage":
        path.write_bytes(b"garbage" * 1000)
    elif damage == "newer":
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version=99")
        db.close()
    else:
        shutil.rmtree(tmp_path / "voices")
        (tmp_path / "voices").write_bytes(b"")
    with pytest.raises(StoreUnavailable, match=r"voices|File exists"):
        VoiceStore(tmp_path)


@pytest.mark.parametrize("error", [28, 5, 30, 24], ids=["ENOSPC", "EIO", "EROFS", "EMFILE"])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_acknowledges_nothing_and_loses_nothing(tmp_path, monkeypatch, error, call):
    with VoiceStore(tmp_path) as store:
        kept = store.add(voice(), owner="me", name="kept")

        def fail(*_):
            raise OSError(error, os.strerror(error))

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(StoreUnavailable, match=os.strerror(error)):
                store.add(voice(), owner="me", name="new")
        assert [e.id for e in store.entries()] == [kept.id]
        store.add(voice(), owner="me", name="new")


def test_a_backup_is_a_whole_database(store, tmp_path):
    entry = store.add(voice(), owner="me", name="Ann")
    store.backup(tmp_path / "copy.sqlite")
    db = sqlite3.connect(tmp_path / "copy.sqlite")
    assert db.execute("SELECT id FROM voices").fetchall() == [(entry.id,)]
    db.close()


def kill_writers(folder: Path, times: int, rng: random.Random) -> int:
    """Kill a writer at a random moment, so often; how many voices it had acknowledged.

    After each the store is checked against what was acknowledged.
    """
    lines: list[str] = []
    command = [sys.executable, WRITER, folder]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as writer:
        for _ in range(times):
            writer.stdin.write("\n")
            writer.stdin.flush()
            pid = int(next(one for one in writer.stdout if one.startswith("started")).split()[1])
            lines += itertools.islice(writer.stdout, rng.randrange(4))  # so far at least
            threading.Event().wait(rng.uniform(0, 0.05))
            os.kill(pid, signal.SIGKILL)
            for line in writer.stdout:
                if line.startswith("ended"):
                    break
                lines.append(line)
            check_acknowledged(folder, lines)
        writer.stdin.close()
    return sum(line.startswith("added") for line in lines)


def check_acknowledged(folder: Path, lines: list[str]) -> None:
    """Every `added` without a later `deleting` is there and whole; every `deleted` is gone."""
    lines = [line for line in lines if line.endswith("\n")]  # the last may be cut
    added, deleting, deleted = (
        {line.split()[1] for line in lines if line.startswith(word + " ")}
        for word in ("added", "deleting", "deleted")
    )
    with VoiceStore(folder) as store:
        there = {entry.id for entry in store.entries()}
        assert added - deleting <= there
        assert not deleted & there
        assert store.fsck_report["damaged"] == store.fsck_report["missing"] == 0
        for entry in store.entries():
            store.load(entry, ENCODER)
        files = {p.name for p in store.voices.iterdir()}
        assert files == {f"{id}.safetensors" for id in there}


def test_kills_at_random_lose_no_acknowledged_voice(tmp_path):
    assert kill_writers(tmp_path / "store", 10, random.Random(0)) >= 1


class StoreMachine(RuleBasedStateMachine):
    """The store against a dict, with restarts in between."""

    voices = Bundle("voices")

    @initialize()
    def start(self):
        import tempfile

        self.folder = tempfile.mkdtemp()
        self.store = VoiceStore(self.folder, Limits(voices_per_key=4))
        self.model: dict[tuple[str, str], str] = {}

    @rule(target=voices, owner=st.sampled_from(["", "a", "b"]), name=st.sampled_from("xyzuvw"))
    def add(self, owner, name):
        full = sum(o == owner for o, _ in self.model) >= 4
        try:
            entry = self.store.add(voice(), owner=owner, name=name)
        except VoiceExists:
            assert (owner, name) in self.model
        except StoreFull:
            assert full
        else:
            assert not full and (owner, name) not in self.model
            self.model[owner, name] = entry.id
        return owner, name

    @rule(key=voices, asked_by=st.sampled_from(["a", "b", "c"]))
    def find(self, key, asked_by):
        wanted = self.model.get((asked_by, key[1])) or self.model.get((SHARED, key[1]))
        try:
            assert self.store.find(key[1], asked_by).id == wanted
        except VoiceMissing:
            assert wanted is None

    @rule(key=voices)
    def delete(self, key):
        if key in self.model:
            self.store.delete(self.store.find(self.model.pop(key), key[0]))

    @rule()
    def restart(self):
        self.store.close()
        self.store = VoiceStore(self.folder, Limits(voices_per_key=4))
        assert self.store.fsck_report["voices"] == len(self.model)

    def teardown(self):
        if hasattr(self, "store"):
            assert {(e.owner, e.name): e.id for e in self.store.entries()} == self.model
            self.store.close()
            shutil.rmtree(self.folder)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = hypothesis_settings(
    max_examples=10, stateful_step_count=20, deadline=None
)
