import json

import pytest
import torch
from data_store_lab import written  # noqa: F401
from malformed import raw
from safetensors.torch import load_file, save_file

from crafter_pl.data import store
from crafter_pl.errors import UserError


def change(file, **tensors):
    save_file(load_file(file) | tensors, file)


def rewrite(folder, **changes):
    file = folder / store.MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# Damage: each kind has its message, which names the shard and the way out.


def test_missing_store_and_unfinished_store(tmp_path, written):
    with pytest.raises(UserError, match="nowhere"):
        store.read_store(tmp_path / "nowhere")
    (written[0] / store.MANIFEST).unlink()
    with pytest.raises(UserError, match=r"manifest.json is missing"):
        store.read_store(written[0])


def test_missing_shard(written):
    (written[0] / store.shard_name(1)).unlink()
    with pytest.raises(UserError, match=r"shard-00001\S* is missing"):
        store.read_store(written[0])


@pytest.mark.parametrize("keep", [0, 5, 100, -4])
def test_truncated_shard(written, keep):
    file = written[0] / store.shard_name(1)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"shard-00001\S* .*damaged"):
        store.read_store(written[0])


def test_nan(written):
    folder, features, _ = written
    features[6, 0, 1, 1] = float("nan")
    change(folder / store.shard_name(1), features=features[4:8].contiguous())
    with pytest.raises(UserError, match=r"shard-00001.* finite"):
        store.read_store(folder)


def test_duplicate_in_two_shards_and_in_one(written):
    folder, _, _ = written
    change(folder / store.shard_name(2), index=torch.tensor([12, 2]))
    with pytest.raises(UserError, match=r"12 .*00000\S* .*00002"):
        store.read_store(folder)
    change(folder / store.shard_name(2), index=torch.tensor([2, 2]))
    with pytest.raises(UserError, match=r"shard-00002.* twice"):
        store.read_store(folder)


def test_wrong_shape_in_a_shard_and_against_the_encoder(written):
    folder, _, _ = written
    with pytest.raises(UserError, match=r"\[2, 3, 3\].*\[4, 3, 3\]"):
        store.read_store(folder, shape=(4, 3, 3))
    change(folder / store.shard_name(0), features=torch.zeros(4, 2, 3, 4))
    with pytest.raises(
        UserError,
        match=r"00000.*\(2, 3, 4\)",
    ):
        store.read_store(folder)


def test_wrong_count_extra_tensor_wrong_type_and_stranger(written):
    folder, features, index = written
    file = folder / store.shard_name(0)
    change(file, features=features[:3].clone(), index=index[:3].clone())
    with pytest.raises(UserError, match=r"shard-00000.* 3 .* 4"):
        store.read_store(folder)
    change(file, features=features[:4].clone(), index=index[:4].clone(), image=torch.zeros(1))
    with pytest.raises(UserError, match=r"shard-00000.*'image'"):
        store.read_store(folder)
    save_file({"features": features[:4].double(), "index": index[:4].clone()}, file)
    with pytest.raises(UserError, match=r"shard-00000.*'F64'"):
        store.read_store(folder)
    save_file({"features": features[:4].clone(), "index": index[:4].clone()}, file)
    store.read_store(folder)
    store.write_shard(folder, 9, features[:2], index[:2])
    with pytest.raises(UserError, match="shard-00009"):
        store.read_store(folder)


def test_wrong_encoder_split_and_part(written):
    with pytest.raises(UserError, match="encoder_sha256"):
        store.read_store(written[0], encoder_sha256="f" * 64)
    with pytest.raises(UserError, match="split_hash"):
        store.read_store(written[0], split_hash="t" * 64)
    with pytest.raises(UserError, match=r"private_test.*public_val"):
        store.read_store(written[0], split="public_val")


def test_wrong_version_and_broken_manifest(written):
    folder, _, _ = written
    rewrite(folder, format_version=2)
    with pytest.raises(UserError, match="version 2"):
        store.read_store(folder)
    rewrite(folder, format_version=1, count=11)
    with pytest.raises(UserError, match=r"10 features.* 11"):
        store.read_store(folder)
    rewrite(folder, count="ten")
    with pytest.raises(UserError, match=r"'count' .*'ten'"):
        store.read_store(folder)
    rewrite(folder, count=10, shards={"../shard-00000.safetensors": 10})
    with pytest.raises(UserError, match="must map file names"):
        store.read_store(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"count": True}, "'count'"),
        ({"seed": False}, "'seed'"),
        ({"format_version": True}, "'format_version'"),
        ({"shape": [2, 3]}, "three sizes"),
        ({"shape": [2, 3, True]}, "three sizes"),
        ({"shape": [2, 3, 3.0]}, "three sizes"),
        ({"shape": [2, -3, -3]}, "three sizes"),
        ({"shape": [2, 3, 2**40]}, "three sizes"),
        ({"dtype": "float64"}, "dtype"),
        ({"shards": {}}, "must map file names"),
        ({"shards": {f"shard-00000.safetensors{'x' * 10**6}": 10}}, "must map file names"),
        *(
            ({"shards": {name: 10}}, "must map file names")
            for name in ("/etc/passwd", "a/shard-00000.safetensors", "shard-00000.safetensors\0", "..", "")
        ),
        *(({"shards": {store.shard_name(0): c}}, "counts from 1") for c in (-10, 0, True, "10", 2**40, None)),
        ({"shards": {store.shard_name(0): 5, store.shard_name(1): 6}}, "11 features.* 10"),
    ],
)
def test_a_manifest_of_absurd_values_is_one_message(written, changes, words):
    rewrite(written[0], **changes)
    for read in (store.read_manifest, store.read_store):
        with pytest.raises(UserError, match=words) as refused:
            read(written[0])
        assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "text", ['{"format_version": 1', "[" * 200_000, '{"count": NaN}', '{"a": 1, "a": 1}']
)
def test_a_manifest_that_is_no_json(written, text):
    (written[0] / store.MANIFEST).write_text(text)
    with pytest.raises(UserError, match="cannot be read as JSON"):
        store.read_store(written[0])


def test_a_shard_is_read_by_the_rules_of_the_wire(written):
    """Two `index` in a header: which one is meant? The safetensors library takes the last."""
    file = written[0] / store.shard_name(1)
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, data = whole[8 : 8 + length].strip(), whole[8 + length :]
    index = json.loads(header)["index"]
    file.write_bytes(raw(header[:-1] + b',"index":' + json.dumps(index).encode() + b"}", data))
    assert torch.equal(load_file(file)["index"], written[2][4:8])
    for damaged in (
        file.read_bytes(),
        raw(header, data + b"\0"),
        raw(header[:-1] + b',"x":1}', data),
        raw(b"[]", data),
    ):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"shard-00001\S* .*damaged"):
            store.read_store(written[0])
