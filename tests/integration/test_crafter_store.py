import errno
import json
import os
import shutil

import pytest
import torch
from crafter_lab import audited, crafter, distance, loaded, variant  # noqa: F401
from experiment import Told, in_subprocess, shards
from safetensors.torch import load_file

from crafter_pl.cli import main
from crafter_pl.crafting.settings import CraftSettings
from crafter_pl.data.store import read_store
from crafter_pl.defenses import Crafter, CrafterZ
from crafter_pl.errors import UserError
from crafter_pl.stages import sha256

# The store


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_without_instructions_for_it_is_noted_once(fast, tiny, audited, monkeypatch, capsys):
    images, index = audited
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    stage = Crafter(**tiny.upstream("task", "prior", "amortizer"), craft=CraftSettings(steps=1))
    Told(stage).protect(images[:1], index[:1])
    assert "bf16" not in capsys.readouterr().out
    for _ in range(2):
        Told(stage, precision="bf16").protect(images[:1], index[:1])
    note = "note: no instructions for bf16 here: crafting in float32 is much faster\n"
    assert capsys.readouterr().out == ("" if fast else note)


def test_predict_writes_the_store(tiny, tiny_store, crafter, audited):
    images, index = audited
    features, stored, manifest = read_store(
        tiny_store,
        shape=(64, 8, 8),
        encoder_sha256=sha256(tiny.ckpt("task")),
        split_hash=tiny.data().split_hash,
        split="private_test",
    )
    assert torch.equal(stored, index.sort().values) and len(stored) == 16
    assert manifest["defense"] == "crafter" and manifest["seed"] == 0
    settings = manifest["settings"]
    assert settings["beta"] == 1.0 and settings["steps"] == 3 and settings["critic"] == "fixed"
    assert manifest["cost"]["seconds_per_image"] > 0 and manifest["cost"]["peak_memory_mb"] > 10
    # What is in it is what `protect` gives, to the byte, and nothing else is there.
    stage = crafter()
    for number in range(4):
        shard = load_file(tiny_store / f"shard-{number:05d}.safetensors")
        part = slice(4 * number, 4 * number + 4)
        assert shard.keys() == {"features", "index"} and torch.equal(shard["index"], index[part])
        assert torch.equal(shard["features"], stage.protect(images[part], index[part]))
    names = {f"shard-{number:05d}.safetensors" for number in range(4)} | {"manifest.json", "fingerprint"}
    assert {path.name for path in tiny_store.iterdir()} == names
    clean = stage.task.edge(images)
    assert distance(features, clean[index.argsort()]).min() > 0.01  # crafted, not passed on
    text = json.dumps(manifest)
    assert not any(name in text for name in tiny.data().faces.file_names)


def test_predict_again_has_nothing_to_do(tiny, tiny_store, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in tiny_store.iterdir()}
    assert main(tiny.command("predict", "crafter")) == 0
    assert {path.name: path.stat().st_mtime_ns for path in tiny_store.iterdir()} == before
    assert "complete" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["deleted", "truncated", "unfinished", "manifest", "manifest and shard"])
def test_predict_goes_on_where_it_stopped(damage, tiny, tiny_store, tmp_path):
    store, before = shutil.copytree(tiny_store, tmp_path / "store"), shards(tiny_store)
    victim = store / "shard-00002.safetensors"
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-100])
    elif damage != "manifest":
        victim.unlink()
    if damage.startswith("manifest"):  # as the messages about a damaged store advise
        (store / "manifest.json").unlink()
    if damage == "unfinished":  # the last shard and the manifest were never written
        for path in (store / "manifest.json", *sorted(store.glob("shard-*"))[2:]):
            path.unlink(missing_ok=True)
        assert sorted(shards(store)) == ["shard-00000.safetensors", "shard-00001.safetensors"]
    kept = {path.name: path.stat().st_mtime_ns for path in store.glob("shard-0000[01]*")}
    assert main(tiny.command("predict", "crafter", "--protect.out", str(store))) == 0
    assert shards(store) == before
    assert {path.name: path.stat().st_mtime_ns for path in store.glob("shard-0000[01]*")} == kept
    read_store(store)


@pytest.mark.parametrize(
    "option",
    [["--protect.beta", "2"], ["--protect.critic", "per_batch"], ["--protect.seed", "1"], ["--ckpt_path"]],
)
def test_a_store_of_other_settings_is_refused(option, tiny, tiny_store, tmp_path, capsys):
    store = shutil.copytree(tiny_store, tmp_path / "store")
    if option == ["--ckpt_path"]:  # the same settings, but another critic
        content = torch.load(tiny.ckpt("crafter"), weights_only=True)
        content["state_dict"]["critic.layers.0.bias"] += 1
        torch.save(content, tmp_path / "other.ckpt")
        option = ["--ckpt_path", str(tmp_path / "other.ckpt")]
    assert main(tiny.command("predict", "crafter", "--protect.out", str(store), *option)) == 2
    error = capsys.readouterr().err
    assert str(store) in error and "--protect.out" in error
    assert shards(store) == shards(tiny_store)
    assert (store / "manifest.json").read_bytes() == (tiny_store / "manifest.json").read_bytes()


def test_a_new_folder_for_every_set_of_settings(crafter, variant):
    names = {
        "beta1": {},
        "beta0.5": {"beta": 0.5},
        "beta2-per_batch": {"beta": 2.0, "critic": "per_batch"},
        "beta1-adapted": {"critic": "adapted"},
    }
    for name, options in names.items():
        assert crafter(**options).store_name() == name
    assert variant(CrafterZ, precision="float64").store_name() == "beta1-float64"


def test_killed_predict_goes_on(tiny, tiny_store, tmp_path):
    command = tiny.command("predict", "crafter", "--protect.out", str(tmp_path / "store"))
    killed = in_subprocess([*command, "--trainer.callbacks+=kill.Kill"])
    assert killed.returncode == -9, killed.stderr
    before = shards(tmp_path / "store")
    assert sorted(before) == ["shard-00000.safetensors", "shard-00001.safetensors"]
    with pytest.raises(UserError, match="the store is not finished"):
        read_store(tmp_path / "store")
    assert main(command) == 0
    assert shards(tmp_path / "store") == shards(tiny_store)
    assert read_store(tmp_path / "store")[2]["fingerprint"] == read_store(tiny_store)[2]["fingerprint"]


def test_a_full_disk_leaves_nothing_by_halves(tiny, tmp_path, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(tiny.command("predict", "crafter", "--protect.out", str(tmp_path / "store"))) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("shard-*"))


def test_two_processes_write_the_same_bytes(tiny, tiny_store, tmp_path):
    more = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    command = tiny.command("predict", "crafter", "--protect.out", str(tmp_path / "store"), *more)
    made = in_subprocess(command, twin=True)
    assert made.returncode == 0, made.stderr
    assert "batch 2/2" in made.stdout  # each had two of the four
    assert shards(tmp_path / "store") == shards(tiny_store)
    ours, theirs = read_store(tmp_path / "store")[2], read_store(tiny_store)[2]
    assert ours.pop("cost") and theirs.pop("cost") and ours == theirs
