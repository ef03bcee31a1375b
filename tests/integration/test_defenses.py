"""What every defence but Crafter promises: its store, its modules, one picture alone as in a batch."""

import copy
import csv
import json

import pytest
import torch
from closeness import near
from experiment import Told

from crafter_pl.attacks.queries import Queries
from crafter_pl.cli import main
from crafter_pl.crafting.noise import keyed_normal
from crafter_pl.data.store import read_store
from crafter_pl.defenses import load_defense
from crafter_pl.defenses.base import defenses
from crafter_pl.errors import UserError
from crafter_pl.nets import fold_batchnorm
from crafter_pl.plugins import import_stages
from crafter_pl.stages import TaskModel, load_stage, sha256

BACKEND = {  # what each retrains, and the name of its store
    "adversarial_learning": (["encoder", "cloud"], "lambda0.5"),
    "cem": (["encoder", "cloud"], "sigma0.2"),
    "crafter_generator": ([], "features-beta0.1-adversary0.5"),
    "disco": (["encoder", "cloud"], "ratio0.5"),
    "fawkes": ([], "rho0.012"),
    "lowkey": ([], "alpha5"),
    "noise": ([], "laplace0.5"),
    "nopeek": (["encoder", "cloud"], "lambda0.5"),
    "tiprdc": (["encoder", "cloud"], "lambda0.6"),
}
NOISY = ("cem", "crafter_generator", "noise")
CLOAKS = ("fawkes", "lowkey")
UPSTREAM = {  # what each needs beside the task model
    "crafter_generator": ("crafter",),
    "fawkes": ("embedder",),
    "lowkey": ("embedder", "embedder_plain"),
}


CRAFTERS = {"answers", "crafter", "crafter_fast", "crafter_reference", "crafter_z"}  # in test_crafter*.py
ELSEWHERE = CRAFTERS | {"certified"}  # in test_certified.py


def test_none_is_forgotten():
    import_stages()
    ours = {cls.stage_name for cls in defenses().values() if cls.__module__.startswith("crafter_pl.")}
    assert ours - ELSEWHERE - {"stage"} == BACKEND.keys(), (
        "a defence needs a line in BACKEND, and tests/helpers/conf/NAME.yaml"
    )


def command(tiny, verb, name, runs_dir, *more):
    config = tiny.command(verb, name)[2]
    stages = ("task", *UPSTREAM.get(name, ())) if verb == "fit" else ()
    given = [f"--model.init_args.{key}={path}" for key, path in tiny.upstream(*stages).items()]
    return [verb, "--config", config, "--runs_dir", str(runs_dir), *given, *more]


@pytest.fixture(scope="module", params=sorted(BACKEND))
def trained(request, tiny, tmp_path_factory):
    """Name, runs folder and the defence of a short training."""
    runs_dir = tmp_path_factory.mktemp(request.param) / "runs"
    precision = ["--trainer.precision", "bf16-mixed"]  # that of the configs
    assert main(command(tiny, "fit", request.param, runs_dir, *precision)) == 0
    file = runs_dir / "synthetic" / request.param / "checkpoints" / "best.ckpt"
    return request.param, runs_dir, load_defense(file)


@pytest.fixture(scope="module")
def faces(tiny):
    return tiny.data().rows("private_test")


def test_its_store_and_its_modules(tiny, trained, faces):
    name, runs_dir, defense = trained
    retrains, store = BACKEND[name]
    assert main(command(tiny, "predict", name, runs_dir)) == 0
    folder = runs_dir / "synthetic" / name / "features" / f"private_test-{store}"
    task = load_stage(tiny.ckpt("task"), TaskModel)
    features, index, manifest = read_store(folder, shape=task.feature_shape, split="private_test")
    assert manifest["defense"] == name and manifest["retrains"] == retrains
    assert manifest["encoder_sha256"] == sha256(tiny.ckpt("task"))
    assert manifest["defense_sha256"] == defense.weights_hash()
    assert json.loads(json.dumps(Told(defense).settings())) == manifest["settings"]
    images = faces["image"][torch.searchsorted(faces["index"], index)]
    with torch.no_grad():
        clean = defense.edge_module()(images)
        assert torch.equal(defense.cloud_module()(features).isfinite().all(), torch.tensor(True))
        assert near(features, clean, steps=10) == (name not in (*NOISY, *CLOAKS))
        assert near(clean, task.edge(images), steps=10) == ("encoder" not in retrains)
        same = near(defense.cloud_module()(clean), task.cloud(clean), steps=10)
        assert same == ("cloud" not in retrains)
    assert not any(p.requires_grad for p in defense.parameters())


def test_stores_and_queries_hang_on_its_version(tiny, trained, tmp_path, monkeypatch, capsys):
    """What `predict` calls complete and what attackers have crafted are never of two versions."""
    name, runs_dir, defense = trained
    go = command(tiny, "predict", name, runs_dir, "--protect.out", str(tmp_path / "store"))
    key = Queries(tmp_path, defense, defense.options(), tiny.data()).key
    assert main(go) == 0 and main(go) == 0 and "is complete already" in capsys.readouterr().out
    monkeypatch.setattr(type(defense), "version", 99)
    assert main(go) == 2 and "versions of the defence" in capsys.readouterr().err
    assert Queries(tmp_path, defense, defense.options(), tiny.data()).key != key


def test_one_picture_alone_is_protected_as_in_a_batch(trained, faces):
    defense = Told(trained[2])
    whole = defense.protect(faces["image"], faces["index"])
    alone = defense.protect(faces["image"][3:4], faces["index"][3:4])
    assert near(alone, whole[3:4], steps=10) and not whole.requires_grad
    assert torch.equal(whole, defense.protect(faces["image"], faces["index"]))


def test_its_graph_does_what_it_does(trained, faces):
    name, defense = trained[0], Told(trained[2])
    graph = defense.edge_graph(defense.options)
    assert (graph is None) == (name in ("noise", *CLOAKS))  # Laplace noise
    if graph is not None:
        seed, count = defense.options.seed if defense.edge_noise else 0, defense.edge_noise
        noise = keyed_normal(seed, faces["index"], count)
        inputs = [faces["image"], *([noise] if count else [])]
        assert near(graph(*inputs), defense.protect(faces["image"], faces["index"]), steps=10)


def test_attackers_can_trace_its_encoder(trained, faces):
    """As the white-box attack does."""
    _, _, defense = trained
    with torch.no_grad():
        encoder = copy.deepcopy(defense.edge_module()).double()
        assert near(fold_batchnorm(encoder)(faces["image"].double()), encoder(faces["image"].double()))


def test_the_seed_keys_the_noise(trained, faces):
    name, defense = trained[0], Told(trained[2])
    image, index = faces["image"], faces["index"]
    if name not in (*NOISY, "fawkes"):
        with pytest.raises(UserError, match=r"seed.*transport"):
            Told(trained[2], seed=7)
    else:
        same = torch.equal(defense.protect(image, index), Told(trained[2], seed=7).protect(image, index))
        assert same == (name not in NOISY)
    same_face = defense.protect(image[:1].expand(2, -1, -1, -1), index[:2])
    assert near(same_face[0], same_face[1], steps=10) == (name not in NOISY)


def test_utility_is_watched(trained):
    name, runs_dir, _ = trained
    rows = list(csv.DictReader((runs_dir / "synthetic" / name / "metrics.csv").open()))
    if name == "noise":
        assert float(rows[-1]["train/deviation"]) > 0
    elif name in CLOAKS:
        assert 0 < float(rows[-1]["val/dssim"]) < 0.1 and float(rows[-1]["val/cosine"]) < 1
    else:
        assert 0 <= float(rows[-1]["val/mean_auc"]) <= 1


def test_options_of_crafter_are_refused(tiny, trained, tmp_path, capsys):
    name, runs_dir, defense = trained
    for option, value in (("steps", 3), ("critic", "fixed"), ("method", "crafter"), ("precision", "bf16")):
        with pytest.raises(UserError, match=f"option {option}"):
            defense.options(**{option: value})
    out = ["--protect.out", str(tmp_path / "store")]
    assert main(command(tiny, "predict", name, runs_dir, "--protect.beta", "0.5", *out)) == 2
    said = capsys.readouterr().err
    assert "option beta" in said and said.count("\n") == 1
    assert not (tmp_path / "store").exists()
