"""Every config parses, its class can be built, and what it refers to is there."""

import functools
import inspect
import math
import re
from pathlib import Path

import pytest
import torch
from configs_lab import ADOPT, AUDITS, BENCHMARKS, CONTENT, DATA, ROOT, STAGES, command_line

from crafter_pl.audit import audit as audit_module
from crafter_pl.audit.find import find_attacks, left_out
from crafter_pl.cli import main
from crafter_pl.cli.functions import parsed
from crafter_pl.cli.run import build
from crafter_pl.commands import Commands
from crafter_pl.crafting.reference import HYPERGRADIENT_WEIGHT
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.defenses.base import defenses
from crafter_pl.defenses.crafter_variants import RELEASED
from crafter_pl.nets.architectures import build_net
from crafter_pl.nets.places import SHARE, places, propose
from crafter_pl.stages import Embedder, GanPrior, IdentityOracle, Stage, TaskModel


def test_there_are_configs_of_every_kind():
    experiments = {CONTENT[path].get("experiment", "synthetic") for path in STAGES}
    assert {"synthetic", "celeba", "paper", "paper_lfw"} <= experiments and len(AUDITS) >= 2
    assert {Path("configs/synthetic.yaml"), Path("configs/celeba.yaml")} <= set(DATA)
    named = {CONTENT[path]["model"]["class_path"] for path in STAGES}
    others = {
        "ReconstructionOracle",
        "AdversarialLearning",
        "Cem",
        "Certified",
        "CrafterGenerator",
        "Disco",
        "Embedder",
        "Fawkes",
        "LowKey",
        "NoPeek",
        "Answers",
        "CrafterFast",
        "CrafterReference",
        "CrafterZ",
        "Noise",
        "Tiprdc",
        "CloudClassifier",
        "FeatureToIdentity",
        "AdaptiveBlackBox",
        "AdaptiveWhiteBox",
        "DefenseSurrogate",
        "Student",
        "AdaptiveStudent",
    }
    first = {"TaskModel", "GanPrior", "Amortizer", "IdentityOracle", "BlackBox", "Crafter"}
    assert named == first | others


@pytest.fixture(scope="module")
def with_student(tiny):
    """The experiment with a student and a style prior more: `tiny` is shared by files."""
    assert main(tiny.command("fit", "student", "--name", "student_of_configs")) == 0
    style = ["--name", "prior_of_configs", "--model.init_args.generator", "style"]
    assert main(tiny.command("fit", "prior", *style, "--trainer.max_epochs", "1")) == 0
    return tiny


@pytest.mark.parametrize("path", STAGES, ids=str)
def test_stage_configs_build(path, with_student, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRAFTER_DATA", str(tmp_path))
    upstream = [key for key in command_line(path).options.model.init_args.keys() if key.endswith("_ckpt")]
    others = {"defense": "crafter", "student": "student_of_configs"}
    settings = CONTENT[path]["model"].get("init_args", {})
    others |= {"prior": "prior_of_configs"} if settings.get("space") == "w+" else {}
    named = {key: others.get(key.removesuffix("_ckpt"), key.removesuffix("_ckpt")) for key in upstream}
    given = [f"--model.init_args.{key}={with_student.ckpt(name)}" for key, name in named.items()]
    cli = command_line(path, "--trainer.accelerator", "cpu", *given)
    size, told = cli.settings()["data"]["image_size"], cli.options.model.init_args
    known = {"attribute_names": ["a", "b"], "image_size": size, "identities": [3, 5], "people": [3, 5]}
    fresh = {name: value for name, value in known.items() if name in told}
    monkeypatch.setattr(cli.stage, "from_data", classmethod(lambda cls, data, given: fresh))
    monkeypatch.setattr(FacesDataModule, "setup", lambda *_: None)
    model, _data, trainer = build(cli, None, {})
    assert isinstance(model, Stage) and type(model).__name__ == CONTENT[path]["model"]["class_path"]
    assert trainer.max_epochs == CONTENT[path]["trainer"]["max_epochs"] >= 1
    for key, value in CONTENT[path]["model"].get("init_args", {}).items():
        if key.endswith("_ckpt"):
            continue
        built = model.hparams[key]
        assert value == built or (isinstance(value, dict) and value.items() <= built.items()), key
    assert set(model.upstream) == {key.removesuffix("_ckpt") for key in upstream}
    # The nets fit the pictures that the config names.
    images = torch.rand(2, 3, size, size)
    model.eval()
    with torch.no_grad():
        if isinstance(model, TaskModel):
            assert model.cloud(model.edge(images)).shape == (2, 2)
        elif isinstance(model, GanPrior):
            assert model.generator(torch.randn(2, model.latent_dim)).shape == images.shape
            assert model.critic(images).shape == (2,)
        elif isinstance(model, IdentityOracle):
            assert model.logits(images).shape == (2, 2)
        elif isinstance(model, Embedder):
            assert model.embed(images).shape == (2, model.hparams["embedding"])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("path", STAGES, ids=str)
def test_missing_upstream_stages_can_be_trained(path, tmp_path, monkeypatch):
    """On a fresh checkout: the configs beside it, on the same data, each after what it needs."""
    monkeypatch.chdir(tmp_path)
    cli = command_line(path)
    found = cli.missing_upstream({})
    names = [folder.name for folder in found]
    needed = {
        "TaskModel": [],
        "GanPrior": [],
        "IdentityOracle": [],
        "ReconstructionOracle": ["task", "black_box"],
        "BlackBox": ["task"],
        "AdversarialLearning": ["task"],
        "Cem": ["task"],
        "CrafterGenerator": ["task", "prior", "amortizer", "crafter"],
        "Disco": ["task"],
        "Embedder": [],
        "Fawkes": ["task", "embedder"],
        "LowKey": ["task", "embedder", "embedder_plain"],
        "NoPeek": ["task"],
        "Noise": ["task"],
        "Tiprdc": ["task"],
        "CloudClassifier": ["task"],
        "FeatureToIdentity": ["task"],
        "Amortizer": ["task", "prior"],
        "Certified": ["task", "prior"],
        "Crafter": ["task", "prior", "amortizer"],
        "Answers": ["task", "prior"],
        "CrafterFast": ["task", "prior", "amortizer", "crafter"],
        "CrafterReference": ["task", "prior", "amortizer", "crafter"],
        "CrafterZ": ["task", "prior", "amortizer", "crafter"],
        "AdaptiveBlackBox": ["task", "prior", "amortizer", "crafter", "black_box"],
        "AdaptiveWhiteBox": ["task", "prior", "amortizer", "crafter"],
        "DefenseSurrogate": ["task", "prior", "amortizer", "crafter"],
        "Student": ["task"],
        "AdaptiveStudent": ["task", "prior", "amortizer", "crafter", "student"],
    }
    runs = CONTENT[path]["model"].get("init_args", {})  # an upstream stage may be another run: prior_g2
    stages = needed[CONTENT[path]["model"]["class_path"]]
    assert names == [runs.get(f"{stage}_ckpt", stage) for stage in stages]
    experiment = CONTENT[path].get("experiment", "synthetic")
    assert {folder.parent.name for folder in found} <= {experiment}
    for args in found.values():
        config = Path(args[args.index("--config") + 1]).relative_to(ROOT)
        assert config in STAGES and CONTENT[config].get("experiment", "synthetic") == experiment


@pytest.mark.parametrize(
    ("folder", "betas"), [("paper", (0.5, 1, 2, 10)), ("paper/lfw", (3.5, 4, 4.5, 6, 7))]
)
def test_the_papers_settings(folder, betas):
    """Algorithm 1 has the released constants; alpha is the released one on our loss, which is not scaled."""
    configs = Path("configs") / folder
    crafter = CONTENT[configs / "crafter.yaml"]
    init = dict(crafter["model"]["init_args"])
    craft = dict(init.pop("craft"))
    assert init == {"betas": list(betas), "critic": "per_batch", "critic_width": 64}
    assert craft.pop("beta") in betas
    data = CONTENT[(ROOT / configs / crafter["data"]).resolve().relative_to(ROOT.resolve())]
    task = CONTENT[configs / "task.yaml"]["model"]["init_args"]
    stage = TaskModel(**task, attribute_names=["a", "b"], image_size=data["image_size"])
    assert stage.feature_shape == {"paper": (64, 16, 16), "paper/lfw": (128, 32, 32)}[folder]
    scale = HYPERGRADIENT_WEIGHT / (data["predict_batch_size"] * math.prod(stage.feature_shape))
    assert craft.pop("alpha") == pytest.approx(RELEASED.alpha * scale, rel=5e-3)
    assert {key: getattr(RELEASED, key) for key in craft} == craft
    assert {
        "steps",
        "lr",
        "update",
        "inner_steps",
        "inner_lr",
        "solver",
        "iterations",
        "penalty",
    } < craft.keys()
    prior = dict(CONTENT[configs / "prior.yaml"]["model"]["init_args"])
    assert prior.pop("latent_dim") == {"paper": 500, "paper/lfw": 3000}[folder]
    defaults = inspect.signature(GanPrior).parameters  # the paper's
    assert all(value == defaults[key].default for key, value in prior.items()) and data["batch_size"] == 64


@pytest.mark.parametrize("path", AUDITS, ids=str)
def test_audit_configs(path, tmp_path, monkeypatch):
    """They parse, and name the files that the other configs' commands write."""
    calls = []

    @functools.wraps(audit_module.audit)
    def record(asked):
        calls.append(asked)

    monkeypatch.setattr(audit_module, "audit", record)
    monkeypatch.chdir(tmp_path)
    assert main(["audit", "--config", str(ROOT / path)]) == 0
    (asked,) = calls
    experiment = asked.experiment
    assert experiment == CONTENT[path].get("experiment", "synthetic")
    assert asked.data.predict_split == "private_test" and asked.budget == "standard"
    drawn = ["training", "generators"]  # whose checkpoints have configs for drawn faces alone
    budgets = ["first", "quick", "standard", "adaptive", "benchmark", *drawn, "exhaustive"]
    assert list(asked.budgets) == budgets and asked.attacks is None
    for budget in asked.budgets:
        attacks = find_attacks(None, asked.budgets, budget)
        asked.check(attacks, asked.rulers or [])
        assert len(attacks) >= 1 + (budget != "first")
        note = " ".join(left_out(attacks, asked.budgets))
        every = {attack.name for own in asked.budgets.values() for attack in own}
        missing = every - {attack.name for attack in attacks}
        assert bool(note) == bool(missing) and all(name in note for name in missing)
    configs = [p for p in STAGES if CONTENT[p].get("experiment", "synthetic") == experiment]
    named = {CONTENT[p].get("name") for p in configs}
    assert len(asked.oracles) >= 2 and set(asked.oracles) <= named
    data = [CONTENT[p]["data"] for p in configs]
    assert {Path(file).name for file in data} == {Path(CONTENT[path]["data"]).name}
    own = [name for name in budgets if name not in drawn or experiment == "synthetic"]
    for attack in (attack for name in own for attack in asked.budgets[name]):
        bound = attack.against(None, Commands(Path("runs") / experiment))
        stages = {Path(file).parts[2] for file in bound.checkpoints.values()}
        assert stages <= {"task", "prior", "amortizer", "black_box", *named}


def test_the_config_of_adopt_names_a_net_that_can_be_cut(monkeypatch):
    monkeypatch.chdir(ROOT)
    _, options = parsed(["adopt", "--config", str(ADOPT)])
    found, _ = places(build_net(options["arch"]), options["data"].image_size)
    assert propose(found, options["data"].image_size).share <= SHARE and options["weights"] is None


@pytest.mark.parametrize("path", BENCHMARKS, ids=str)
def test_benchmarks_plan_all_that_they_need(path, tmp_path, monkeypatch, capsys):
    """Every defence is in the grid, and every stage is trained before what needs it."""
    monkeypatch.setenv("CRAFTER_DATA", str(tmp_path))
    monkeypatch.chdir(ROOT)
    runs = tmp_path / "runs"
    assert main(["benchmark", "--config", str(path), "--runs_dir", str(runs), "--plan", "true"]) == 0
    jobs = [block.splitlines() for block in capsys.readouterr().out.split("\n") if block]
    names = [line[0][:-1] for line in jobs if not line[0].startswith("  ")]
    content = CONTENT[path]
    assert len(names) == len(set(names)) and names[-1] == "audit-seed0"
    order = ["fit-task", "fit-prior", "fit-amortizer", "fit-crafter", "cell-crafter"]
    places = [next(i for i, name in enumerate(names) if name.startswith(one)) for one in order]
    assert places == sorted(places)
    fits = {name.removeprefix("fit-") for name in names}
    assert fits >= {*content["oracles"], "black_box", "black_box_answers", "amortizer"}
    assert ("cloud" in fits) == content["training"]
    stages = {p.stem: CONTENT[p]["model"]["class_path"] for p in STAGES}
    kinds = defenses().keys() & set(stages.values())
    kinds -= {"CrafterFast", "CrafterReference"}  # the one is Crafter with less work, the other with far more
    assert {stages[line["stage"]] for line in content["defenses"]} == kinds
    options = CONTENT[Path(content["audit"])]["budgets"][content["budget"]]
    named = {attack["class_path"] for attack in options}
    assert named == {"WhiteBoxAttack", "DecoderAttack", "AdaptiveDecoderAttack"}
    assert content["attackers"] == ["attacks/adaptive_black_box"]


def test_configs_that_texts_name_are_there():
    texts = [
        *ROOT.glob("*.md"),
        *ROOT.glob("scripts/*"),
        *ROOT.glob("benchmarks/*"),
        *ROOT.glob("docs/*.md"),
        ROOT / "Makefile",
        *ROOT.glob(".ci/*"),
    ]
    named = set()
    for text in texts:
        if text.is_file() and text.suffix not in (".png", ".jpg"):
            named |= set(re.findall(r"(?<![\w/])configs/[\w/]+\.yaml", text.read_text()))
    own = ("mine", "rounding", "audit_mine")  # examples of configs of one's own
    named -= {f"configs/{name}.yaml" for name in own}
    assert named and not [name for name in sorted(named) if not (ROOT / name).is_file()]
