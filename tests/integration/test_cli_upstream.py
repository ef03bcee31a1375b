import json
import os

import pytest
import torch
from tiny_conf import DATA
from tiny_runs import fit, weights

from crafter_pl.cli import main
from crafter_pl.data import datamodule


def test_upstream_stages_are_trained_once_in_order(conf, capsys):
    more = [
        "--experiment",
        "e",
        "--data.people",
        "15",
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs",
        "1",
    ]
    assert fit("top", *more) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "python -m" in line]
    passed = "--experiment e --data.people 15 --trainer.accelerator=cpu"
    assert [line.partition("missing: ")[2] for line in lines] == [
        f"python -m crafter_pl fit --config configs/{name}.yaml {passed}" for name in ("tiny", "other")
    ]
    assert (
        json.load(open("runs/e/tiny/summary.json"))["epochs"] == 4
    )  # --trainer.max_epochs was for top alone
    assert json.load(open("runs/e/top/summary.json"))["epochs"] == 1
    # The seed does not depend on what was trained before in the same process.
    assert fit("top", *more, "--name", "again") == 0
    for key, value in weights("e/top").items():
        assert torch.equal(value, weights("e/again")[key])
    # A changed upstream checkpoint is noticed.
    best = conf.parent / "runs/e/tiny/checkpoints/best.ckpt"
    content = torch.load(best, weights_only=True)
    torch.save({**content, "epoch": 99}, best)
    assert main(["test", "--config", "configs/top.yaml", "--experiment", "e", "--data.people", "15"]) == 2
    assert "mismatch" in capsys.readouterr().err


def test_upstream_stages_on_other_data(conf, capsys):
    text = (conf / "other.yaml").read_text()
    (conf / "other.yaml").write_text(text.replace("data: _data.yaml", f"data: {DATA | {'seed': 3}}"))
    assert fit("top") == 2
    assert "data.seed" in capsys.readouterr().err
    assert fit("top", "--data.seed", "1", "--trainer.max_epochs", "1") == 0  # handed on to all


def test_upstream_stages_share_loaded_data(conf, monkeypatch):
    loads, load = [], datamodule.load_faces
    monkeypatch.setattr(datamodule, "load_faces", lambda data: loads.append(data.people) or load(data))
    text = (conf / "other.yaml").read_text()
    (conf / "other.yaml").write_text(text.replace("data: _data.yaml", f"data: {DATA | {'batch_size': 4}}"))
    assert fit("top", "--trainer.max_epochs", "1") == 0
    assert loads == [14]


def test_interrupted_upstream_stage_goes_on(conf, monkeypatch, capsys):
    monkeypatch.setenv("TINY_SIGNAL", "SIGINT")
    assert fit("tiny") == 130
    monkeypatch.delenv("TINY_SIGNAL")
    assert fit("top", "--trainer.max_epochs", "1") == 0
    assert "configs/tiny.yaml --experiment synthetic --ckpt_path last" in capsys.readouterr().out


@pytest.mark.parametrize("way", ["devices", "WORLD_SIZE", "SLURM_NTASKS"])
def test_several_processes_do_not_train_upstream_stages(way, conf, monkeypatch, capsys):
    if way != "devices":
        monkeypatch.setenv(way, "2")
    assert fit("top", *(["--trainer.devices", "2"] if way == "devices" else [])) == 2
    err = capsys.readouterr().err
    assert 0 < err.index("configs/tiny.yaml") < err.index("configs/other.yaml")
    assert all(line.endswith(" --trainer.devices 1") for line in err.splitlines() if "crafter_pl fit" in line)
    assert not os.path.exists("runs")


def test_upstream_without_a_config(conf, capsys):
    (conf / "other.yaml").unlink()
    assert fit("top") == 2
    assert "--model.init_args.other_ckpt" in capsys.readouterr().err


def test_configs_in_a_folder_below_find_upstream_configs(conf, capsys):
    (conf / "attacks").mkdir()
    text = (conf / "other.yaml").read_text().replace("_trainer", "../_trainer").replace("_data", "../_data")
    (conf / "attacks" / "other.yaml").write_text(text)
    assert fit("attacks/other", "--trainer.max_epochs", "1") == 0
    assert "fit --config configs/tiny.yaml" in capsys.readouterr().out
