"""Stores as training data: the order, the shares of processes, bounded memory."""

import json
import subprocess
import sys

import pytest
import torch
from experiment import DATA

from crafter_pl.data import store
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.features import PublicPictures, StoreBatches, store_loader
from crafter_pl.errors import UserError


def write(folder, sizes, shape=(1, 2, 2)):
    """A store whose features say which picture they are of."""
    start, shards = 0, {}
    for number, size in enumerate(sizes):
        index = torch.arange(start, start + size)
        features = index.float().view(-1, 1, 1, 1).expand(-1, *shape)
        shards[store.write_shard(folder, number, features, index).name] = size
        start += size
    about = {"format_version": 1, "defense": "d", "settings": {}, "encoder_sha256": "", "split_hash": ""}
    about |= {"split": "public_train", "shape": list(shape), "dtype": "float32", "seed": 0}
    store.write_manifest(folder, {**about, "count": start, "shards": shards})
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "store", [5] * 9 + [3])  # 48 features


def epoch(batches, number=0):
    return list(store_loader(batches, number))


def order(batches, number=0):
    return torch.cat([batch["index"] for batch in epoch(batches, number)]).tolist()


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("buffer", [1, 3, 100])
def test_processes_share_the_batches_of_one(folder, world, buffer):
    for number in range(2):
        one = epoch(StoreBatches(folder, 12, seed=7, buffer=buffer), number)
        shares = [
            epoch(StoreBatches(folder, 12 // world, seed=7, rank=r, world=world, buffer=buffer), number)
            for r in range(world)
        ]
        assert len(one) == 4 and {len(share) for share in shares} == {4}
        for whole, *parts in zip(one, *shares, strict=True):
            for key in ("index", "features"):
                assert torch.equal(whole[key], torch.cat([part[key] for part in parts]))
            assert torch.equal(whole["features"][:, 0, 0, 0].long(), whole["index"])
        assert sorted(i for batch in one for i in batch["index"].tolist()) == list(range(48))


def test_the_order_is_a_function_of_seed_and_epoch(folder):
    batches = StoreBatches(folder, 4, seed=1, buffer=2)
    first = order(batches, 0)
    assert order(batches, 1) != first and order(batches, 0) == first
    assert order(StoreBatches(folder, 4, seed=1, buffer=2), 0) == first
    assert order(StoreBatches(folder, 4, seed=2, buffer=2), 0) != first


def test_lightnings_set_epoch_moves_on(folder):
    loader = store_loader(StoreBatches(folder, 4))
    first = [batch["index"].tolist() for batch in loader]
    loader.sampler.set_epoch(1)
    second = [batch["index"].tolist() for batch in loader]
    assert second == [batch["index"].tolist() for batch in epoch(StoreBatches(folder, 4), 1)] != first


def test_features_are_mixed_within_and_across_shards(folder):
    """Neighbours come from different shards, whose order is another one in each epoch."""
    orders = torch.tensor([order(StoreBatches(folder, 48, buffer=3), e) for e in range(20)]) // 5
    assert (orders[:, 1:] != orders[:, :-1]).float().mean() > 0.5
    assert len({tuple(row[:3].tolist()) for row in orders}) > 10
    # Without a buffer to mix in, shards come one after another.
    alone = torch.tensor(order(StoreBatches(folder, 48, buffer=1))) // 5
    assert int((alone[1:] != alone[:-1]).sum()) == 9


def test_only_the_first_count(folder):
    assert sorted(order(StoreBatches(folder, 1, count=13))) == list(range(13))
    batches = StoreBatches(folder, 5, count=13)
    assert len(batches) == 2 and len(set(order(batches))) == 10  # the last three do not fill a batch
    assert len(order(StoreBatches(folder, 100, count=13))) == 13  # unless they are the only one
    with pytest.raises(UserError, match=r"49 .* 48"):
        StoreBatches(folder, 4, count=49)
    with pytest.raises(UserError, match=r"1 features .*2 processes"):
        StoreBatches(folder, 4, count=1, world=2)


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"rank": 2, "world": 2}, {"buffer": 0}])
def test_nonsense(folder, bad):
    with pytest.raises(ValueError, match="of"):
        StoreBatches(folder, **({"batch_size": 4} | bad))
    with pytest.raises(IndexError):
        StoreBatches(folder, 48)[0, 1]


def test_a_damaged_shard_is_named(folder):
    file = folder / store.shard_name(4)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="shard-00004"):
        order(StoreBatches(folder, 4))
    assert len(order(StoreBatches(folder, 4, count=20))) == 20  # shards that are not needed are not read


def test_pictures_are_of_public_people_alone():
    data = FacesDataModule(**DATA)
    data.setup()
    images = PublicPictures(data)
    rows = data.dataset("public").index[[5, 0, 3]]
    assert torch.equal(images(rows), data.faces.images[rows].float() / 255)
    for bad in (data.dataset("private_test").index[:1], torch.tensor([-1]), torch.tensor([10**6])):
        with pytest.raises(UserError, match="not of a public person"):
            images(torch.cat([rows, bad]))


READER = """
import json, resource, sys
from crafter_pl.data.features import StoreBatches, store_loader
peaks, seen = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss], []
for folder in sys.argv[1:]:
    seen.append(sum(len(batch["index"]) for batch in store_loader(StoreBatches(folder, 64, buffer=4))))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps([seen, [peak / 1024 for peak in peaks]]))
"""


def test_memory_does_not_grow_with_the_store(tmp_path):
    """100,000 features of 1 KB are 100 MB; reading them after 10,000 raises no peak."""
    counts = (10_000, 100_000)
    folders = [write(tmp_path / str(n), [500] * (n // 500), (16, 4, 4)) for n in counts]
    command = [sys.executable, "-c", READER, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    seen, (imports, small, large) = json.loads(done.stdout)
    assert seen == [count // 64 * 64 for count in counts]
    assert large < small + 5 and large < imports + 30, "megabytes"
