"""From faces to a report: all stages on 16 tiny faces by `main([...])`, and what may go wrong."""

import csv
import json
import math
import re
import shutil

import attack_spy
import pytest
import torch
import yaml
from experiment import CONF, STAGES, in_subprocess
from pipeline_lab import refused

from crafter_pl.cli import main
from crafter_pl.stages import IdentityOracle, load_stage, sha256


@pytest.fixture(scope="module")
def report(tiny, tiny_store, tmp_path_factory):
    """The folder of an audit of the tiny experiment."""
    out = tmp_path_factory.mktemp("audit")
    assert main(tiny.audit("--out", str(out))) == 0
    return out


@pytest.fixture(scope="module")
def told(report):
    return json.loads((report / "report.json").read_text())


def weights(folder, name):
    return torch.load(folder / "synthetic" / name / "checkpoints" / "last.ckpt", weights_only=True)


def rows(folder, name):
    with open(folder / "synthetic" / name / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


# Training


def test_fit_of_crafter_alone_trains_what_it_needs(tiny):
    lines = [line for line in tiny.printed.splitlines() if "missing: " in line]
    assert [line.partition(" missing: ")[0] for line in lines] == [
        f"[{i}/3] needed by crafter, and" for i in (1, 2, 3)
    ]
    runs = f"--experiment synthetic --runs_dir {tiny.runs_dir}"
    assert [line.partition(" missing: ")[2] for line in lines] == [
        f"python -m crafter_pl fit --config {CONF / name}.yaml {runs}"
        for name in ("task", "prior", "amortizer")
    ]


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_leaves_its_run(name, tiny):
    folder = tiny.folder / name
    files = {path.name for path in folder.iterdir()}
    assert {"fit.yaml", "metrics.csv", "split.csv", "summary.json", "checkpoints"} <= files
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert any(name.startswith("events.out.tfevents.") for name in files)
    assert len(rows(tiny.runs_dir, name)) == 1
    figures = json.loads((folder / "summary.json").read_text())["metrics"]
    assert figures and all(math.isfinite(value) for value in figures.values())
    assert (folder / "split.csv").read_text() == (tiny.folder / "task" / "split.csv").read_text()
    config = yaml.safe_load((folder / "fit.yaml").read_text())
    for key, value in config["model"]["init_args"].items():
        if key.endswith("_ckpt"):
            stage = key.removesuffix("_ckpt")
            assert value.endswith(f"/synthetic/{stage}/checkpoints/best.ckpt")
            assert sha256(value) == sha256(tiny.ckpt(stage))


def test_a_second_fit_is_refused_and_a_finished_one_says_so(tiny, capsys):
    assert main(tiny.command("fit", "prior")) == 2
    assert "--ckpt_path last" in capsys.readouterr().err
    before = sha256(tiny.ckpt("prior"))
    assert main(tiny.command("fit", "prior", "--ckpt_path", "last")) == 0
    assert "prior is finished" in capsys.readouterr().out
    assert sha256(tiny.ckpt("prior")) == before


# The report


def test_files_of_a_report(report):
    for name in ("report.json", "report.html", "table.csv", "tradeoff.png", "reconstructions.png"):
        assert (report / name).stat().st_size > 100, name
    page = (report / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert not re.search(
        r"""(src|href)\s*=\s*["']?(https?:|//|[\w./]+\.(png|css|js))""", page
    )  # self-contained
    for name in ("tradeoff.png", "reconstructions.png"):
        assert (report / name).read_bytes().startswith(b"\x89PNG")
    with open(report / "table.csv", newline="") as file:
        assert len(list(csv.reader(file))) > 2


def assert_figure(figure, low, high, where):
    assert {"value", "ci95"} <= figure.keys(), where
    a, b = figure["ci95"]
    assert low <= a <= b <= high and low <= figure["value"] <= high, (where, figure)


def test_report_is_as_designed(told, tiny, tiny_store):
    data = tiny.data()
    assert told["schema"] == 1
    expected = {
        "source": "synthetic",
        "split_hash": data.split_hash,
        "image_size": 32,
        "identities": 4,
        "images": 16,
        "chance": 0.25,
    }
    assert expected.items() <= told["data"].items()
    assert [oracle["name"] for oracle in told["oracles"]] == ["resnet", "plain_grey"]
    assert all(0 <= oracle["accuracy_on_originals"] <= 1 for oracle in told["oracles"])
    assert [entry["name"] for entry in told["defenses"]] == ["none", "crafter"]
    for entry in told["defenses"]:
        utility = entry["utility"]
        assert_figure(utility["mean_auc"], 0, 1, "mean_auc")
        assert 5 < len(utility["per_attribute"]) <= len(data.attribute_names)
        for name, figure in utility["per_attribute"].items():
            assert name in data.attribute_names
            assert_figure(figure, 0, 1, name)
        assert entry["attacks"].keys() == {"white_box", "black_box"}
        for attack in entry["attacks"].values():
            for name in ("eval_acc", "eval_acc_top5"):
                assert_figure(attack[name], 0, 1, name)
            assert attack["by_oracle"].keys() == {"resnet", "plain_grey"}
            for name, figure in attack["by_oracle"].items():
                assert_figure(figure, 0, 1, name)
            assert_figure(attack["identity_similarity"], -1, 1, "similarity")
            assert_figure(attack["ssim"], -1, 1, "ssim")
            assert_figure(attack["psnr"], 0, 60, "psnr")
            assert attack["eval_acc"]["value"] == attack["by_oracle"]["resnet"]["value"]
            assert attack["eval_acc_top5"]["value"] == 1.0  # there are but four people
        assert_figure(entry["worst_case"]["eval_acc"], 0, 1, "worst case")
        worst = entry["worst_case"]["eval_acc"]["value"]
        assert all(
            worst >= figure["value"]
            for attack in entry["attacks"].values()
            for figure in attack["by_oracle"].values()
        )
        assert {"seconds_per_image", "peak_memory_mb"} <= entry["cost"].keys()
    manifest = json.loads((tiny_store / "manifest.json").read_text())
    assert told["defenses"][1]["settings"] == manifest["settings"]
    assert told["defenses"][1]["cost"] == manifest["cost"]


def test_figures_of_a_report_are_those_of_the_stages(told, tiny, capsys):
    """The same, computed along other paths."""
    images, oracle = tiny.data().rows("private_test"), load_stage(tiny.ckpt("oracle_resnet"), IdentityOracle)
    with torch.no_grad():
        named = oracle.logits(images["image"]).argmax(1)
    accuracy = (named == oracle.classes(images["identity"])).float().mean().item()
    assert told["oracles"][0]["accuracy_on_originals"] == pytest.approx(accuracy)
    assert main(tiny.command("test", "task")) == 0
    found = re.search(r"test/mean_auc\W+([\d.]+)", capsys.readouterr().out)
    assert float(found[1]) == pytest.approx(told["defenses"][0]["utility"]["mean_auc"]["value"], abs=1e-5)


def test_an_audit_again(report, told, tiny, tiny_store, capsys):
    again = tiny.audit("--out", str(report))
    assert main(again) == 2
    assert "--overwrite true" in capsys.readouterr().err
    cache = {path: path.stat().st_mtime_ns for path in (report / "cache").rglob("*")}
    assert main([*again, "--overwrite", "true"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (report / "cache").rglob("*")} == cache
    second = json.loads((report / "report.json").read_text())
    assert second["origin"]["command"] == f"{told['origin']['command']} --overwrite true"
    assert {k: v for k, v in second.items() if k not in ("created", "origin")} == {
        k: v for k, v in told.items() if k not in ("created", "origin")
    }


TWO = ["--device", "cpu", "--devices", "2", "--batch_size", "4"]


def test_two_processes_share_the_attacks_of_an_audit(tiny, tiny_store, tmp_path):
    """An adaptive one among them, whose rounds are attacks, too."""
    assert main(tiny.command("fit", "adaptive_black_box", "--name", "adaptive_audited")) == 0
    adaptive = ["--attacks+={class_path: AdaptiveDecoderAttack, init_args: {name: adaptive_audited}}"]
    adaptive += ["--adapted", tiny.ckpt("adaptive_audited")]  # other files' tests train others
    assert main(tiny.audit("--out", str(tmp_path / "one"), "--batch_size", "4", *adaptive)) == 0
    two = in_subprocess(tiny.audit("--out", str(tmp_path / "two"), *TWO, *adaptive), twin=True)
    assert two.returncode == 0, two.stderr
    assert "2 processes" in two.stdout and two.stdout.count("\nAudit of") == 1
    one, other = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    for part in ("defenses", "attacks", "oracles", "panel", "data", "warnings"):
        assert one[part] == other[part], part
    history = one["defenses"][1]["history"]["adaptive_audited"]
    assert [moment["round"] for moment in history] == [0, 1]
    files = one["defenses"][1]["attacks"]["adaptive_audited"]["files"]
    assert files == {"adaptive_audited": tiny.ckpt("adaptive_audited")}
    pictures = [
        {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name / "cache").rglob("*.s*")
        }
        for name in ("one", "two")
    ]
    # Three attacks on two sets, and two rounds; on unprotected features the adaptive one is the decoder.
    assert pictures[0] == pictures[1] and len(pictures[0]) == (3 * 2 + 2 - 1) * 4


def test_a_process_that_dies_ends_the_audit_which_goes_on(tiny, tiny_store, tmp_path):
    attacks = "[{class_path: DecoderAttack}, {class_path: attack_spy.Dies, init_args: {on_rank: '%s'}}]"
    args = tiny.audit("--out", str(tmp_path), *TWO, "--attacks")
    dead = in_subprocess([*args, attacks % 1], twin=True)
    assert dead.returncode not in (0, 2) and not (tmp_path / "report.json").exists()
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert made and main([*args[:-5], "--batch_size", "4", "--attacks", attacks % "none"]) == 0
    assert {path: path.stat().st_mtime_ns for path in made} == made


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--devices", "0"], "--devices 0"),
        (["--device", "cuda:1", "--devices", "2"], "--device cuda:1"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--device", "nonsense"], "--device nonsense"),
        (["--device", "nonsense", "--devices", "2"], "--device nonsense"),
    ],
)
def test_audit_refuses_processes_that_cannot_be(more, words, tiny, tiny_store, tmp_path, capsys):
    assert words in refused(tiny, capsys, tmp_path, *more)


def test_anyone_can_audit_a_store_that_they_got(tiny, tiny_store, tmp_path):
    """With the published checkpoints: the defence behind the store is found and handed to attacks."""
    store = shutil.copytree(tiny_store, tmp_path / "got" / "store")
    args = tiny.audit("--out", str(tmp_path / "out"), "--attacks", "null", "--budget", "quick")
    args[args.index("--features") + 1] = str(store)
    args += ["--budgets", "{quick: [{class_path: DecoderAttack}, {class_path: attack_spy.Spy}]}"]
    attack_spy.seen.clear()
    assert main(args) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["settings"]["budget"] == "quick" and list(report["attacks"]) == ["black_box", "spy"]
    assert report["notes"] == [] and report["defenses"][1]["store"] == str(store)
    none, target = attack_spy.seen[0], attack_spy.seen[-1]
    assert none is None and target.defense.weights_hash() == target.manifest["defense_sha256"]
    settings = json.loads((store / "manifest.json").read_text())["settings"]
    assert "seed" not in target.manifest["settings"] and settings.pop("seed") == 0
    protection = json.loads(json.dumps(target.defense.settings(target.options)))
    assert protection.pop("seed") not in (None, 0) and protection == settings == target.manifest["settings"]
    assert report["attacks"]["spy"]["adaptive"] and "false_security" in report["defenses"][1]


def test_an_outsider_names_the_defence_and_hears_all_that_is_missing_at_once(
    tiny, tiny_store, tmp_path, capsys, monkeypatch
):
    """A store and a checkpoint from elsewhere, with attacks that adapt: what to train, for each of them."""
    store = shutil.copytree(tiny_store, tmp_path / "got" / "store")
    published = tmp_path / "published.ckpt"
    shutil.copy(tiny.folder / "crafter" / "checkpoints" / "best.ckpt", published)
    hidden = tiny.folder / "crafter" / "checkpoints" / "best.hidden"
    (tiny.folder / "crafter" / "checkpoints" / "best.ckpt").rename(hidden)
    try:
        args = tiny.audit("--out", str(tmp_path / "out"), "--attacks", "[{class_path: attack_spy.Spy}]")
        args[args.index("--features") + 1] = str(store)
        attack_spy.seen.clear()
        assert main(args) == 0
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert attack_spy.seen[-1].defense is None and "give it as --defenses" in report["notes"][0]
        args += ["--defenses", f"[{published}]", "--overwrite", "true", "--adapted", "[]"]
        assert main(args) == 0
        assert attack_spy.seen[-1].defense is not None and attack_spy.seen[-1].checkpoint == str(published)
        args[args.index("--attacks") + 1] = (
            "[{class_path: AdaptiveDecoderAttack}, {class_path: ThroughDefenceAttack}]"
        )
        capsys.readouterr()
        assert main(args) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: the attacks are not ready:\n- attack adaptive_black_box: ")
        lines = [line for line in error.splitlines() if "train it first" in line]
        assert len(lines) == 2 and all(str(published) in line for line in lines)
        assert "adaptive_black_box.yaml" in lines[0] and "surrogate.yaml" in lines[1]
        args[args.index("--defenses") + 1] = f"[{tmp_path / 'none.ckpt'}]"
        assert main(args) == 2 and "none.ckpt: there is no" in capsys.readouterr().err
    finally:
        hidden.rename(tiny.folder / "crafter" / "checkpoints" / "best.ckpt")
