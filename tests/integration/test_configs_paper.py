import os

import pytest
from configs_lab import CONTENT, DATA, ROOT, STAGES, command_line
from experiment import CONF

from crafter_pl.cli import main
from crafter_pl.data.store import read_store


def test_the_papers_crafter_runs(tiny, tmp_path):
    """The config as it is, but for its pictures, its steps and the critic's width."""
    given = [
        f"--model.init_args.{key}={path}" for key, path in tiny.upstream("task", "prior", "amortizer").items()
    ]
    few = [
        f"--model.init_args.craft.{key}=2" for key in ("steps", "inner_steps", "iterations", "critic_steps")
    ]
    more = ["--data", str(CONF / "synthetic.yaml"), "--data.predict_batch_size", "16", *given, *few]
    more += [
        "--runs_dir",
        str(tmp_path),
        "--trainer.accelerator",
        "cpu",
        "--model.init_args.critic_width",
        "4",
    ]
    for verb in ("fit", "predict"):
        assert main([verb, "--config", str(ROOT / "configs/paper/crafter.yaml"), *more]) == 0
    store = tmp_path / "paper/crafter/features/private_test-beta1-per_batch"
    features, _, manifest = read_store(store)
    assert len(features) == 16 and manifest["settings"]["critic"] == "per_batch"
    assert manifest["settings"]["alpha"] == 9.54e-7 and manifest["settings"]["solver"] == "neumann"


@pytest.mark.parametrize("path", DATA, ids=str)
def test_data_configs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRAFTER_DATA", "/faces")
    cli = command_line(STAGES[0], "--data", str(ROOT / path))
    for key, value in CONTENT[path].items():
        wanted = os.path.expandvars(value) if isinstance(value, str) else value
        assert cli.options.data.init_args[key] == wanted, key
