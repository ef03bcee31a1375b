import csv
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from crafter_lab import crafter, loaded  # noqa: F401

from crafter_pl.cli import main
from crafter_pl.crafting.settings import CraftSettings
from crafter_pl.defenses import Crafter
from crafter_pl.errors import UserError

# Fit


def test_validation_logs_what_crafting_does(tiny):
    with open(tiny.folder / "crafter" / "metrics.csv", newline="") as file:
        row = {k: float(v) for k, v in next(csv.DictReader(file)).items()}
    wanted = {
        "emd",
        "emd_unprotected",
        "utility_loss",
        "privacy_loss",
        "hypergradient_norm",
        "residual",
        "inner_loss",
    }
    assert {f"val/{name}" for name in wanted} <= row.keys()
    assert all(math.isfinite(value) for value in row.values())
    assert row["val/utility_loss"] > 0 and row["val/hypergradient_norm"] > 0 and 0 < row["val/residual"] < 1
    tags = (tiny.folder / "crafter").glob("events.out.tfevents.*")
    assert any(b"original_unprotected_crafted" in path.read_bytes() for path in tags)


def test_fit_teaches_the_critic_and_remembers(tiny, crafter):
    stage = crafter()
    torch.manual_seed(0)
    steps, faces = stage.craft_settings.steps, 8
    assert int(stage.remembered) == 2 * steps * faces  # two batches, every outer step
    assert stage.memory.shape == (16, 8) and (stage.memory.norm(dim=1) > 0).all()
    last = Path(tiny.ckpt("crafter")).with_name("last.ckpt")
    state = torch.load(last, weights_only=True)["optimizer_states"][0]
    assert state["state"][0]["step"] == 2 * steps * stage.craft_settings.critic_steps


def test_fit_of_several_processes_is_refused(crafter):
    stage = crafter().stage
    stage._trainer = SimpleNamespace(world_size=2)
    with pytest.raises(UserError, match=r"--trainer\.devices 1"):
        stage.on_fit_start()


# Settings


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--protect.critic", "clever"], "fixed, adapted, per_batch"),
        (["--protect.beta", "-1"], "beta"),
        (["--protect.steps", "-1"], "steps"),
        (["--data.predict_split", "everyone"], "'everyone'"),
    ],
)
def test_options_that_cannot_be_meant(option, words, tiny, tmp_path, capsys):
    command = tiny.command("predict", "crafter", "--protect.out", str(tmp_path / "store"), *option)
    assert main(command) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "store").exists()


def test_settings_out_of_range(tiny):
    for bad in ({"beta": -1.0}, {"steps": -1}, {"lr": 0.0}, {"inner_steps": -1}, {"iterations": 0}):
        with pytest.raises(UserError, match=f"{next(iter(bad))} .* must be a"):
            replace(CraftSettings(), **bad)
    upstream = tiny.upstream("task", "prior", "amortizer")
    with pytest.raises(UserError, match="critic 'clever'"):
        Crafter(**upstream, critic="clever").options()
