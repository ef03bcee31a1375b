import json
import math
import os
import shutil

import pytest
import torch
from experiment import CONF
from pipeline_lab import refused
from safetensors.torch import load_file, save_file

from crafter_pl.cli import main
from crafter_pl.stages import sha256


def damage(store, how):
    """Spoils a store and returns what the message must say."""
    first, second = store / "shard-00001.safetensors", store / "shard-00002.safetensors"
    content = load_file(first)
    if how == "missing shard":
        first.unlink()
        return "shard-00001.safetensors is missing"
    if how == "truncated shard":
        first.write_bytes(first.read_bytes()[:-10])
        return "shard-00001.safetensors is truncated or damaged"
    if how == "not a number":
        content["features"][2, 0, 0, 0] = math.nan
        save_file(content, first)
        return "is not finite"
    if how == "duplicate index":
        save_file({**content, "index": load_file(second)["index"]}, first)
        return "is in the store twice, in shard-00001.safetensors and shard-00002.safetensors"
    if how == "no manifest":
        (store / "manifest.json").unlink()
        return "the store is not finished"
    if how == "another split":
        manifest = json.loads((store / "manifest.json").read_text())
        (store / "manifest.json").write_text(json.dumps({**manifest, "split_hash": "0" * 64}))
        return "made of another split of the data"
    assert how == "absent"
    shutil.rmtree(store)
    return "there is no such sto"


@pytest.mark.parametrize(
    "how",
    [
        "missing shard",
        "truncated shard",
        "not a number",
        "duplicate index",
        "no manifest",
        "another split",
        "absent",
    ],
)
def test_audit_refuses_a_spoiled_store(how, tiny, tiny_store, tmp_path, capsys):
    store = shutil.copytree(tiny_store, tmp_path / "store")
    words = damage(store, how)
    assert words in refused(tiny, capsys, tmp_path, store=store)


def test_audit_refuses_another_encoder(tiny, tiny_store, tmp_path, capsys):
    content = torch.load(tiny.ckpt("task"), weights_only=True)
    content["state_dict"]["net.edge.bn1.bias"] += 0.1
    torch.save(content, tmp_path / "task.ckpt")
    error = refused(tiny, capsys, tmp_path, "--task_ckpt", str(tmp_path / "task.ckpt"))
    assert "made with another encoder" in error and sha256(tmp_path / "task.ckpt") in error


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--data.people", "18"], "split"),
        (["--data.image_size", "16"], "--data.image_size 32"),
        (["--attacks", "[]"], "at least one attack"),
        (["--bootstrap", "0"], "--bootstrap"),
        (["--runs_dir", "elsewhere"], "elsewhere/synthetic/task/checkpoints/best.ckpt"),
    ],
)
def test_audit_refuses_settings_that_do_not_fit(more, words, tiny, tiny_store, tmp_path, capsys):
    assert words in refused(tiny, capsys, tmp_path, *more)


def test_audit_refuses_damaged_and_wrong_checkpoints(tiny, tiny_store, tmp_path, capsys):
    error = refused(tiny, capsys, tmp_path, oracles=[tiny.ckpt("prior")])
    assert "GanPrior" in error
    error = refused(tiny, capsys, tmp_path, oracles=[str(tmp_path / "absent.ckpt")])
    assert "absent.ckpt" in error
    (tmp_path / "half.ckpt").write_bytes(open(tiny.ckpt("black_box"), "rb").read()[:2000])
    decoder = f"[{{class_path: DecoderAttack, init_args: {{ckpt: {tmp_path / 'half.ckpt'}}}}}]"
    assert "half.ckpt" in refused(tiny, capsys, tmp_path, "--attacks", decoder)
    content = torch.load(tiny.ckpt("oracle_plain"), weights_only=True)
    torch.save({**content, "split_hash": "0" * 64}, tmp_path / "elsewhere.ckpt")
    error = refused(tiny, capsys, tmp_path, oracles=[str(tmp_path / "elsewhere.ckpt")])
    assert "elsewhere.ckpt" in error


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--data.source", "celeba"], "--data.root"),
        (["--data.source", "lfw", "--data.root", "absent"], "absent"),
        (["--data.source", "folder", "--data.root", "$NO_SUCH_VARIABLE/x"], "NO_SUCH_VARIABLE"),
        (["--data.private_people", "16"], "people"),
        (["--data.min_private_images", "9"], "pictures"),
        (["--data.image_size", "30"], "30"),
        (["--model.init_args.generator", "G7"], "G1, G2, style"),
        (["--model.init_args.width", "wide"], "width"),
        (["--model.class_path", "Nothing"], "Nothing"),
    ],
)
def test_bad_input_of_a_fit_is_one_message(more, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert (
        main(["fit", "--config", str(CONF / "prior.yaml"), "--runs_dir", str(tmp_path / "runs"), *more]) == 2
    )
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and "Traceback" not in error
    assert not list(tmp_path.rglob("*.ckpt"))


def test_stages_of_other_splits_do_not_mix(tiny, tmp_path, capsys):
    """A prior of another split may have seen people who are private here."""
    command = tiny.command("fit", "amortizer", "--name", "other", "--data.seed", "5")
    assert main(command) == 2
    error = capsys.readouterr().err
    assert tiny.ckpt("task") in error and "split" in error
    assert not os.path.exists(tiny.folder / "other" / "checkpoints")


def test_what_saw_public_people_alone_takes_any_number_of_private_pictures(tiny, capsys):
    one = ("--data.test_images", "1")
    assert main(tiny.command("validate", "task", *one)) == 0
    quick = ("--name", "other", "--trainer.fast_dev_run", "true", *one)
    assert main(tiny.command("fit", "amortizer", *quick)) == 0
    assert main(tiny.command("validate", "oracle_plain", *one)) == 2  # may have learnt these very pictures
    assert "data.test_images: 4 for training, 1 here" in capsys.readouterr().err


def test_a_prior_of_another_source_is_noted(tiny, tmp_path, capsys):
    content = torch.load(tiny.ckpt("prior"), weights_only=True)
    content["split_hash"] = "0" * 64
    content["config"]["data"]["source"] = "lfw"
    torch.save(content, tmp_path / "lfw.ckpt")
    given = ["--model.init_args.prior_ckpt", str(tmp_path / "lfw.ckpt"), "--trainer.fast_dev_run", "true"]
    assert main(tiny.command("fit", "amortizer", "--name", "other", *given)) == 0
    assert f"note: {tmp_path / 'lfw.ckpt'}" in capsys.readouterr().out
