"""A store that its tests damage."""

import pytest
import torch
from stores import SHAPE, manifest_of

from crafter_pl.data import store


@pytest.fixture
def written(tmp_path):
    """A store of ten pictures in three shards, written out of order; the features and the folder."""
    index = torch.tensor([40, 7, 12, 3, 99, 5, 6, 8, 1, 2])
    features = torch.randn(10, *SHAPE, generator=torch.Generator().manual_seed(0))
    shards = {}
    for number, rows in ((2, slice(8, 10)), (0, slice(0, 4)), (1, slice(4, 8))):
        file = store.write_shard(tmp_path / "store", number, features[rows], index[rows])
        shards[file.name] = len(index[rows])
    store.write_manifest(tmp_path / "store", manifest_of(shards))
    return tmp_path / "store", features, index
