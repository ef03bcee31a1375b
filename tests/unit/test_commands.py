"""Commands that messages name: they run as they stand, on the experiment's own data."""

import json
from pathlib import Path

import yaml

from crafter_pl import commands
from crafter_pl.cli.stage import StageCLI
from crafter_pl.commands import Commands, origin, running, settings_of, shipped, trained
from crafter_pl.data.datamodule import FacesDataModule


def data(file, **changes):
    return FacesDataModule(**{**yaml.safe_load(Path(file).read_text()), **changes})


def parsed(command):
    """The command's options, read as the command line reads them."""
    args = command.partition("#")[0].split()[3:]
    return StageCLI(args)


def test_the_data_are_the_experiments_own(tmp_path):
    for file in ("configs/small.yaml", "configs/synthetic.yaml", "configs/celeba.yaml"):
        commands = Commands(tmp_path / "mine", settings_of(data(file)))
        assert commands.args("fit", "prior")[-2:] == ["--data", file]
    mine = data("configs/small.yaml", people=44, seed=3, root="~/x")
    cli = parsed(Commands(tmp_path / "mine", settings_of(mine)).fit("oracle_resnet"))
    told = cli.settings()["data"]
    for name, value in settings_of(mine).items():
        assert told[name] == value or (name == "order_seed" and told[name] is None) or name == "root"
    assert Path(told["root"]).name == "x"
    assert cli.run_dir == tmp_path / "mine" / "oracle_resnet"


def test_a_config_of_the_experiments_own_comes_first():
    assert Commands(Path("runs/celeba")).config("prior") == Path("configs/celeba/prior.yaml")
    assert Commands(Path("runs/demo")).config("black_box") == Path("configs/attacks/black_box.yaml")
    assert Commands(Path("runs/demo")).config("nothing") is None
    mine = Commands(Path("runs/mine"), {"source": "folder"})
    assert mine.config("prior") == Path("configs/celeba/prior.yaml"), "photographs are of CelebA's size"
    assert mine.config("tune") == Path("configs/tune.yaml")
    assert Commands(Path("runs/demo"), {"source": "synthetic"}).config("prior") == Path("configs/prior.yaml")
    args = ["fit", "--config", "configs/task.yaml"]
    assert Commands(Path("runs/synthetic")).args("fit", "task") == args


def test_an_interrupted_run_goes_on_and_minutes_are_known(tmp_path):
    home = tmp_path / "e"
    for run, seconds in (("prior", 300.0), ("prior_other", None)):
        (home / run / "checkpoints").mkdir(parents=True)
        (home / run / "checkpoints" / "best.ckpt").touch()
        summary = {"stage": "prior", **({} if seconds is None else {"seconds": seconds})}
        (home / run / "summary.json").write_text(json.dumps(summary))
    (home / "prior" / "checkpoints" / "last.ckpt").touch()
    assert trained(home, "prior") == [
        home / run / "checkpoints" / "best.ckpt" for run in ("prior", "prior_other")
    ]
    said = Commands(home).fit("prior")
    assert "--ckpt_path last" in said and f"# about 5 min, as {home / 'prior'} took" in said
    assert "about 5 min" in Commands(tmp_path / "other").fit("prior", "--name", "mine")
    assert "#" not in Commands(home).fit("oracle_resnet")
    (home / "prior" / "summary.json").write_text("{")
    assert trained(home, "prior") == [home / "prior_other" / "checkpoints" / "best.ckpt"]


def test_outside_a_clone_the_packages_own_configs_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in ("crafter", "configs/crafter.yaml", "celeba/crafter", "configs/celeba/attacks/student.yaml"):
        assert yaml.safe_load(Path(shipped(given)).read_text()), given
    assert Path(shipped("configs/celeba")).is_dir()
    assert shipped("nosuch.yaml") == "nosuch.yaml"
    Path("crafter").touch()
    assert shipped("crafter") == "crafter", "one's own comes first"


def test_a_report_says_what_it_comes_from(tmp_path, monkeypatch):
    told = running.set(["audit", "--out", "a b"])
    try:
        found = origin()
    finally:
        running.reset(told)
    assert found["command"] == "python -m crafter_pl audit --out 'a b'"
    clone = Path(commands.__file__).parents[1] / ".git"
    assert ("commit" in found) == clone.exists() and "command" not in origin()
    monkeypatch.setattr(commands, "__file__", str(tmp_path / "package" / "commands.py"))
    assert origin() == {}
