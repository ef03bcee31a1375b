"""The examples of docs/extend.md: dropped into the package's folders, they are fitted, audited and read."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from crafter_pl import attacks, defenses
from crafter_pl.attacks.base import Target
from crafter_pl.audit.find import find_attacks
from crafter_pl.cli import main
from crafter_pl.cli.functions import parsed
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.store import read_store
from crafter_pl.data.synthetic import synthetic_faces
from crafter_pl.errors import UserError
from crafter_pl.stages import TaskModel, load_stage

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def dropped_in(tmp_path, monkeypatch):
    """The defence and the attacks as if they lay in `crafter_pl/defenses` and `crafter_pl/attacks`."""
    for package, name in ((defenses, "rounding"), (attacks, "nearest"), (attacks, "linear")):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(EXAMPLES / f"{name}.py", folder)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])


def test_a_defence_and_attacks_are_found_by_name_fitted_and_audited(dropped_in, tiny, tmp_path):
    config = tmp_path / "rounding.yaml"
    config.write_text(
        "model: {class_path: Rounding, init_args: {step: 0.5}}\n"
        f"data: {tiny.command('fit', 'synthetic')[2]}\n"
        "trainer: {accelerator: cpu, max_epochs: 1}\n"
    )
    runs = ["--config", str(config), "--runs_dir", str(tiny.runs_dir)]
    assert main(["fit", *runs]) == 0 and main(["predict", *runs]) == 0
    store = tiny.folder / "rounding" / "features" / "private_test-step0.5"
    features, index, manifest = read_store(store)
    task, faces = load_stage(tiny.ckpt("task"), TaskModel), tiny.data().rows("private_test")
    order = faces["index"].argsort()
    with torch.no_grad():
        plain = task.edge(faces["image"][order])
    assert torch.equal(index, faces["index"][order]) and manifest["settings"] == {"step": 0.5}
    assert torch.equal(features, (features * 2).round() / 2) and (features - plain).abs().max() <= 0.2501

    out = tmp_path / "audit"
    linear = "{class_path: LinearDecoder, init_args: {pairs: 70}}"
    both = f"[{{class_path: NearestFace, init_args: {{draws: 70}}}}, {linear}]"
    command = [*tiny.audit("--out", str(out), "--attacks", both), "--features", f"[{store}]"]
    assert main(command) == 0
    report = json.loads((out / "report.json").read_text())
    assert [entry["label"] for entry in report["defenses"]] == ["none", "rounding"]
    assert report["attacks"]["nearest"]["settings"] == {"draws": 70}
    own = report["defenses"][1]
    assert {"eval_acc", "ssim"} <= set(own["attacks"]["nearest"]) and not own["attacks"]["nearest"]["learnt"]
    assert own["attacks"]["linear"]["learnt"] and own["false_security"]["strongest"] == "linear"


def test_the_nearest_face_is_found_again(dropped_in, tiny):
    from crafter_pl.attacks.nearest import NearestFace

    attack = NearestFace(draws=70)
    attack = attack.against(None, tiny.commands)
    attack.prepare("cpu")
    rows = torch.tensor([3, 66, 0])
    shape = load_stage(tiny.ckpt("task"), TaskModel).feature_shape
    found = attack.reconstruct(attack.keys[rows].view(3, *shape))
    assert torch.equal(found, attack.faces[rows])


def test_the_linear_decoder_learns_from_the_defence_that_it_is_aimed_at(dropped_in, tiny):
    from crafter_pl.attacks.linear import LinearDecoder

    task, seen = load_stage(tiny.ckpt("task"), TaskModel), []

    class Turned:  # a defence by which no decoder of unprotected features gets anything
        def protect(self, images, index, options):
            seen.append((index, options))
            return 3 - task.edge(images)

    target = Target({"defense": "turned"}, Turned(), options="its own")
    bound = [LinearDecoder(pairs=70).against(one, tiny.commands) for one in (None, target)]
    for attack in bound:
        attack.prepare("cpu")
    features = task.edge(tiny.data().rows("public_val")["image"][:5])
    plain, adapted = (
        attack.reconstruct(own) for attack, own in zip(bound, (features, 3 - features), strict=True)
    )
    assert plain.std() > 0.05 and (plain - adapted).abs().max() < 1e-3
    keys = torch.cat([index for index, _ in seen])
    assert (
        len(keys.unique()) == 70 and keys.min() >= 2**40 and {options for _, options in seen} == {"its own"}
    )
    with pytest.raises(UserError, match="--defenses"):
        LinearDecoder().against(Target({"defense": "turned"}, None), tiny.commands)


def test_a_budget_and_a_line_of_ones_own_are_beside_the_others(dropped_in, tmp_path, monkeypatch, capsys):
    defence, shown = re.findall(r"```yaml\n(.*?)```", (EXAMPLES.parent / "extend.md").read_text(), re.DOTALL)
    (line,) = re.findall(r"```yaml\n(.*?)```", (EXAMPLES.parent / "benchmark.md").read_text(), re.DOTALL)
    shutil.copytree(EXAMPLES.parents[1] / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "audit_mine.yaml").write_text(shown)
    _, mine = parsed(["audit", "--config", "configs/audit_mine.yaml"])
    _, known = parsed(["audit", "--config", "configs/audit.yaml"])
    found = [attack.describe() for attack in find_attacks(None, mine.budgets, mine.budget)]
    others = [attack.describe() for attack in known.budgets["benchmark"]]
    assert found[: len(others)] == others
    assert [one["class"] for one in found[len(others) :]] == ["NearestFace", "LinearDecoder"]
    (tmp_path / "configs" / "rounding.yaml").write_text(defence)
    (tmp_path / "grid.yaml").write_text(line)
    grid = ["benchmark", "--config", "configs/benchmark/synthetic.yaml", "--config", "grid.yaml"]
    own = ["--audit", "configs/audit_mine.yaml", "--budget", "mine", "--plan", "true"]
    assert main([*grid, *own]) == 0
    plan = capsys.readouterr().out
    cells = re.findall(r"^cell-(.*):$", plan, re.MULTILINE)
    assert cells == ["rounding-step0.5", "rounding-step1"] and "--budget mine" in plan
    assert plan.count("--model.init_args.pairs_per_round 1720") == 2


def test_faces_of_ones_own_are_read_with_their_labels(tmp_path):
    faces = synthetic_faces(people=6, images_per_person=4, image_size=32, seed=3)
    pictures, labels, root = tmp_path / "pictures", tmp_path / "labels.csv", tmp_path / "root"
    pictures.mkdir()
    with labels.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "person", *faces.attribute_names])
        for number, image in enumerate(faces.images):
            name = f"my face {number}.PNG"
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(pictures / name)
            writer.writerow(
                [name, f"person {faces.identity[number]}", *faces.attributes[number].int().tolist()]
            )
    subprocess.run([sys.executable, EXAMPLES / "own_faces.py", labels, pictures, root], check=True)
    data = FacesDataModule(
        source="celeba", root=str(root), image_size=32, private_people=2, min_private_images=4, test_images=1
    )
    data.setup()
    assert torch.equal(data.faces.images, faces.images)
    assert torch.equal(data.faces.attributes, faces.attributes)
    assert data.attribute_names == faces.attribute_names
    same = data.faces.identity[:, None] == data.faces.identity[None]
    assert torch.equal(same, faces.identity[:, None] == faces.identity[None])


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.name)
def test_an_example_is_short_and_included_in_the_page(file):
    assert len(file.read_text().splitlines()) < 50
    assert f'--8<-- "docs/examples/{file.name}"' in (EXAMPLES.parent / "extend.md").read_text()
