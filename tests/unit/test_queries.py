"""Queries: crafted once, whoever asks; public pictures alone; the same for any number of processes."""

import copy
import re
import threading
import time

import pytest
import torch
from experiment import DATA, shards
from torch.nn import functional as F

from crafter_pl.attacks.queries import Queries
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.store import read_manifest, read_store, shard_name
from crafter_pl.defenses.options import ProtectOptions
from crafter_pl.errors import UserError

TOLD = ProtectOptions()


class Blur:
    """Stands in for a defence: features say picture and setting; counts what it is asked for."""

    device = torch.device("cpu")

    class task:
        hparams = {"image_size": 32}  # noqa: RUF012

    def __init__(self, shift=0.0, version=1):
        self.shift, self.version, self.asked = shift, version, []

    def manifest(self, split_hash, split, options):
        about = {"format_version": 1, "defense": "blur", "settings": {"shift": self.shift}}
        about |= {"version": self.version}
        about |= {"encoder_sha256": "e", "split_hash": split_hash, "split": split, "shape": [3, 4, 4]}
        return {**about, "dtype": "float32", "seed": 0, "defense_sha256": "w"}

    def protect(self, images, index, options):
        self.asked += index.tolist()
        return F.avg_pool2d(images, 8) + self.shift


@pytest.fixture(scope="module")
def data():
    data = FacesDataModule(**DATA)
    data.setup()
    return data


def test_more_pairs_extend_fewer_and_none_is_crafted_twice(tmp_path, data):
    defense = Blur()
    queries = Queries(tmp_path, defense, TOLD, data, shard_size=4)
    folder = queries.ensure(6)
    assert len(defense.asked) == 8  # whole shards
    before = shards(folder)
    assert queries.ensure(20) == folder == queries.ensure(3)
    assert len(defense.asked) == len(set(defense.asked)) == 20
    assert before.items() <= shards(folder).items() and len(shards(folder)) == 5
    assert defense.asked == queries.order()[:20].tolist()
    # Another attack of another run, on the same defence.
    other = Blur()
    assert Queries(tmp_path, other, TOLD, data, shard_size=4).ensure(20) == folder and not other.asked
    features, images, index = queries.batch(10, "public_train")
    assert index.tolist() == defense.asked[:10]
    assert torch.equal(features, F.avg_pool2d(images, 8))
    assert torch.equal(images, data.dataset("public_train").take(index)["image"])


def test_it_is_a_feature_store(tmp_path, data):
    queries = Queries(tmp_path, Blur(), TOLD, data, shard_size=4)
    for count, held in ((6, 8), (11, 12)):
        features, index, manifest = read_store(queries.ensure(count), split="public_train")
        assert manifest["count"] == held == len(features)
        assert manifest["defense_sha256"] == "w" and manifest["settings"] == {"shift": 0.0}
        assert sorted(index.tolist()) == sorted(queries.order()[:held].tolist())


def test_what_features_depend_on_names_the_folder(tmp_path, data):
    folders = {
        Queries(tmp_path, Blur(shift), TOLD, data, seed=seed, shard_size=size).folder
        for shift, seed, size in ((0, 0, 4), (0, 0, 4), (1, 0, 4), (0, 1, 4), (0, 0, 8))
    }
    for name, value in (("crop", "none"), ("source", "folder"), ("version", 9)):
        changed = copy.copy(data)
        setattr(changed, name, value)
        folders.add(Queries(tmp_path, Blur(), TOLD, changed, shard_size=4).folder)
    folders.add(Queries(tmp_path, Blur(version=2), TOLD, data, shard_size=4).folder)
    assert len(folders) == 4 + 4 and {folder.parent for folder in folders} == {tmp_path}
    orders = [Queries(tmp_path, Blur(), TOLD, data, seed=seed).order().tolist() for seed in (0, 1)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


@pytest.mark.parametrize("split", ["private_test", "private_train", "all_private", "oracle", "public"])
def test_private_pictures_are_no_queries(tmp_path, data, split):
    defense = Blur()
    queries = Queries(tmp_path, defense, TOLD, data, shard_size=4)
    for ask in (
        lambda: queries.ensure(4, split),
        lambda: queries.batch(4, split),
        lambda: queries.loader(4, split, batch_size=2),
    ):
        with pytest.raises(UserError, match=f"split '{split}'"):
            ask()
    assert not defense.asked and not list(tmp_path.iterdir())


def test_refusals(tmp_path, data):
    queries = Queries(tmp_path, Blur(), TOLD, data, shard_size=4)
    there = len(data.dataset("public_val"))
    with pytest.raises(UserError, match=f"{there + 1} .* {there} "):
        queries.ensure(there + 1, "public_val")
    with pytest.raises(UserError, match="0 queries"):
        queries.ensure(0)
    with pytest.raises(ValueError, match="barrier"):
        queries.ensure(4, world=2)


def together(make, world, count):
    """`ensure` by `world` threads with a barrier, as processes do it; their defences."""
    barrier, queries = threading.Barrier(world), [make() for _ in range(world)]
    threads = [
        threading.Thread(target=own.ensure, args=(count, "public_train", rank, world, barrier.wait))
        for rank, own in enumerate(queries)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [own.defense for own in queries]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_crafting_and_write_the_same_bytes(tmp_path, data, world):
    alone = Queries(tmp_path / "alone", Blur(), TOLD, data, shard_size=4)
    for count in (14, 30):
        expected = alone.ensure(count)
        made = together(lambda: Queries(tmp_path / "shared", Blur(), TOLD, data, shard_size=4), world, count)
        folder = tmp_path / "shared" / alone.key / "public_train"
        assert shards(folder) == shards(expected)
        assert read_manifest(folder) == read_manifest(expected)
        asked = [index for defense in made for index in defense.asked]
        assert len(asked) == len(set(asked)) == 16  # of 32: nobody crafts what is there
        sizes = [len(defense.asked) for defense in made]
        assert max(sizes) - min(sizes) <= 4


@pytest.mark.parametrize("world", [1, 2])
def test_another_run_waits_and_finds_the_pairs(tmp_path, data, world, capfd):
    """Two runs ask for the same pairs at once: the second one waits, and nobody crafts twice."""
    slow = Queries(tmp_path, Blur(), TOLD, data, shard_size=4)
    begun, go_on = threading.Event(), threading.Event()
    protect = slow.defense.protect

    def waits(images, index, options):
        begun.set()
        assert go_on.wait(60)
        return protect(images, index, options)

    slow.defense.protect = waits
    first = threading.Thread(target=slow.ensure, args=(12,))
    first.start()
    assert begun.wait(60)
    made = []
    second = threading.Thread(
        target=lambda: made.extend(
            together(lambda: Queries(tmp_path, Blur(), TOLD, data, shard_size=4), world, 16)
        )
    )
    second.start()
    said, end = "", time.monotonic() + 60
    while "another run is querying" not in said and time.monotonic() < end:
        said += capfd.readouterr().out
        time.sleep(0.1)
    assert not made
    go_on.set()
    for thread in (first, second):
        thread.join(60)
    asked = [index for defense in (slow.defense, *made) for index in defense.asked]
    assert len(slow.defense.asked) == 12 and sorted(asked) == sorted(slow.order()[:16].tolist())
    assert said.count(f"another run is querying {slow.folder / 'public_train'}: waiting for it") == 1


def test_interrupted_and_damaged_stores_are_completed(tmp_path, data):
    whole = Queries(tmp_path / "whole", Blur(), TOLD, data, shard_size=4).ensure(20)
    queries = Queries(tmp_path / "cut", Blur(), TOLD, data, shard_size=4)
    protect = queries.defense.protect

    def dies(images, index, options):
        if len(queries.defense.asked) == 8:
            raise KeyboardInterrupt
        return protect(images, index, options)

    queries.defense.protect = dies
    with pytest.raises(KeyboardInterrupt):
        queries.ensure(20)
    queries.defense.protect = protect
    folder = queries.ensure(20)
    assert shards(folder) == shards(whole) and len(queries.defense.asked) == 20
    # A shard that is deleted, as the message on a damaged one says, is crafted again; it alone.
    (folder / shard_name(1)).write_bytes(b"")
    with pytest.raises(UserError, match=r"shard-00001.* damaged"):
        list(queries.loader(20, batch_size=4))
    (folder / shard_name(1)).unlink()
    queries.ensure(20)
    assert shards(folder) == shards(whole) and len(queries.defense.asked) == 24


def test_loader_and_epochs(tmp_path, data):
    queries = Queries(tmp_path, Blur(), TOLD, data, shard_size=4)
    queries.ensure(24)
    epochs = [list(queries.loader(24, batch_size=8, epoch=number)) for number in (0, 1)]
    for batches in epochs:
        assert len(batches) == 3
        for batch in batches:
            assert torch.equal(batch["features"], F.avg_pool2d(batch["image"], 8))
        seen = torch.cat([batch["index"] for batch in batches])
        assert sorted(seen.tolist()) == sorted(queries.order()[:24].tolist())
    assert epochs[0][0]["index"].tolist() != epochs[1][0]["index"].tolist()
    halves = [list(queries.loader(24, batch_size=4, rank=rank, world=2)) for rank in (0, 1)]
    for whole, *parts in zip(epochs[0], *halves, strict=True):
        assert torch.equal(whole["index"], torch.cat([part["index"] for part in parts]))


def test_progress_is_told(tmp_path, data, capsys):
    Queries(tmp_path, Blur(), TOLD, data, shard_size=4).ensure(8)
    assert re.search(r"public_train .*2/2", capsys.readouterr().out)
