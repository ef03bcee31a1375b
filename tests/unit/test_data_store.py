import os
import subprocess
import sys
import threading

import pytest
import torch
from data_store_lab import written  # noqa: F401
from safetensors.torch import load_file
from stores import SHAPE, manifest_of

from crafter_pl import files
from crafter_pl.data import store
from crafter_pl.errors import UserError


def test_round_trip_sorts_by_index(written):
    folder, features, index = written
    got, rows, manifest = store.read_store(
        folder, shape=(2, 3, 3), encoder_sha256="e" * 64, split_hash="s" * 64, split="private_test"
    )
    assert rows.tolist() == sorted(index.tolist())
    assert torch.equal(got, features[index.argsort()]) and got.dtype == torch.float32
    assert manifest["settings"] == {"beta": 4.0} and manifest["count"] == 10
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["manifest.json", *(f"shard-0000{k}.safetensors" for k in range(3))]  # no temporary file


def test_nothing_but_features_and_index_is_in_a_shard(written):
    folder, _, _ = written
    assert set(load_file(folder / store.shard_name(0))) == {"features", "index"}


def test_shard_done_is_for_exactly_these_pictures(written):
    folder, _, index = written
    assert store.shard_done(folder, 0, index[:4])
    assert not store.shard_done(folder, 0, index[[1, 0, 2, 3]])
    assert not store.shard_done(folder, 0, index[:3])
    assert not store.shard_done(folder, 3, index[:4])
    file = folder / store.shard_name(0)
    file.write_bytes(file.read_bytes()[:-10])
    assert not store.shard_done(folder, 0, index[:4])


def test_a_write_that_fails_leaves_the_old_shard(written, monkeypatch):
    folder, features, index = written

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        store.write_shard(folder, 0, features[:4] * 2, index[:4])
    assert torch.equal(load_file(folder / store.shard_name(0))["features"], features[:4])
    assert not list(folder.glob("*.tmp"))


def test_two_writers_at_once(tmp_path):
    def write(number):
        store.write_shard(
            tmp_path, number, torch.full((2, *SHAPE), float(number)), torch.tensor([2, 3]) + number * 2
        )

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    store.write_manifest(tmp_path, manifest_of({store.shard_name(k): 2 for k in range(6)}))
    assert store.read_store(tmp_path)[0][:, 0, 0, 0].tolist() == [k // 2 for k in range(12)]


@pytest.mark.parametrize(
    ("features", "index", "message"),
    [
        (torch.full((2, 2, 3, 3), float("nan")), torch.tensor([0, 1]), "not finite"),
        (torch.zeros(2, 2, 3, 3), torch.tensor([1, 1]), "twice"),
        (torch.zeros(2, 2, 3, 3), torch.tensor([1]), "do not fit"),
        (torch.zeros(2, 18), torch.tensor([0, 1]), "do not fit"),
    ],
)
def test_bad_batches_are_not_written(tmp_path, features, index, message):
    with pytest.raises(ValueError, match=message):
        store.write_shard(tmp_path, 0, features, index)
    assert not list(tmp_path.iterdir())


def test_no_manifest_before_all_shards(written):
    folder, _, _ = written
    shards = {store.shard_name(k): 2 for k in range(5)}
    with pytest.raises(UserError, match="shard-00003"):
        store.write_manifest(folder, manifest_of(shards))
    with pytest.raises(ValueError, match="count says 3"):
        store.write_manifest(folder, manifest_of({store.shard_name(0): 4}, count=3))


def test_what_killed_writers_left_goes_with_the_next_manifest(written):
    folder, _, _ = written
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    names = [f".{store.shard_name(0)}.{pid}.tmp" for pid in (dead.pid, living.pid, os.getpid())]
    for name in (*names, "notes.1.tmp"):
        (folder / name).write_text("half")
    store.write_manifest(folder, store.read_manifest(folder))
    left = sorted(file.name for file in folder.iterdir() if file.name.endswith(".tmp"))
    living.communicate(b"\n")
    assert left == sorted([*names[1:], "notes.1.tmp"])
