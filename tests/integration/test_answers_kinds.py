"""Models of every kind, with labels of one's own and without any: certified, audited, served, exported."""

import csv
import json

import pytest
import torch
from cloud_lab import InThread, body
from experiment import CONF
from PIL import Image

from crafter_pl.attacks.base import Attack
from crafter_pl.attacks.gallery_lda import GalleryLDA
from crafter_pl.audit.audit import audit
from crafter_pl.audit.options import Options
from crafter_pl.audit.record import read_report
from crafter_pl.audit.utility import AGREEMENT
from crafter_pl.cli import main
from crafter_pl.cloud.classifier import classify, load_classifier
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.store import read_store
from crafter_pl.data.synthetic import synthetic_faces
from crafter_pl.edge.export import export
from crafter_pl.errors import UserError
from crafter_pl.judges import Recogniser
from crafter_pl.stages import TaskModel, load_stage

MOODS = ("calm", "glad", "spectacled")
DATA = {
    "image_size": 32,
    "private_people": 4,
    "min_private_images": 8,
    "test_images": 4,
    "predict_batch_size": 8,
}


class Grey(Attack):
    """Shows everybody as grey."""

    def __init__(self):
        self.name, self.checkpoints = "grey", {}

    def prepare(self, device):
        """Nothing is loaded."""

    def settings(self):
        return {}

    def reconstruct(self, features):
        return torch.full((len(features), 3, 32, 32), 0.5)


class Colours(Recogniser):
    """Knows people by their picture's colours."""

    name, checkpoint, sha256 = "colours", "", "0" * 64

    def prepare(self, device, examples):
        return []

    def embed(self, images):
        return torch.nn.functional.avg_pool2d(images, 8).flatten(1) - 0.5


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A folder a person, and beside it a table of moods for all pictures."""
    root = tmp_path_factory.mktemp("people") / "faces"
    faces = synthetic_faces(people=14, images_per_person=8, image_size=32, seed=5)
    smiles, glasses = (faces.attributes[:, faces.attribute_names.index(n)] for n in ("Smiling", "Eyeglasses"))
    moods = (smiles + 2 * glasses).clamp(max=2).long().tolist()
    with (root.parent / "moods.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "mood"])
        for row, image in enumerate(faces.images):
            name = root / f"p{faces.identity[row]}" / f"{row}.png"
            name.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(name)
            table.writerow([f"{name.parent.name}/{name.name}", MOODS[moods[row]]])
    return root


def settings(root, **more):
    return {"source": "folder", "root": str(root), **more}


def run(verb, name, runs, data, *more):
    given = [part for key, value in data.items() for part in (f"--data.{key}", value)]
    place = ["--runs_dir", str(runs), "--experiment", "faces"]
    assert main([verb, "--config", str(CONF / f"{name}.yaml"), *place, *given, *more]) == 0


def certified(tiny, runs, data, *more):
    """Fitted, and its store of the private people."""
    init = {"prior_ckpt": tiny.ckpt("prior"), "needs": "all", "work": "null", "pool": "4", "steps": "2"}
    run("fit", "certified", runs, data, *(f"--model.init_args.{k}={v}" for k, v in init.items()), *more)
    run("predict", "certified", runs, data)
    (store,) = (runs / "faces" / "certified" / "features").iterdir()
    return store


def report(runs, store, data, out, **more):
    data = FacesDataModule(**data, **DATA)
    judges = {"recognisers": [Colours()], "rulers": [GalleryLDA()]}
    made = {
        "data": data,
        "features": [str(store)],
        "attacks": [Grey()],
        "runs_dir": str(runs),
        "out": str(out),
    }
    page = audit(Options(**made, **judges, experiment="faces", bootstrap=20, device="cpu", **more))
    return read_report(out), json.loads((out / "report.json").read_text()), page.read_text()


@pytest.fixture(scope="module")
def moods(tiny, people, tmp_path_factory):
    """A model of three classes, learnt from a labels file, and certified."""
    runs = tmp_path_factory.mktemp("moods")
    data = settings(people, labels=str(people.parent / "moods.csv"), labels_kind="multiclass")
    run("fit", "task", runs, data, "--model.init_args.answers=multiclass")
    return runs, data, certified(tiny, runs, data)


def task_of(runs):
    return runs / "faces" / "task" / "checkpoints" / "best.ckpt"


def test_classes_are_learnt_by_their_names(moods):
    runs, data, _ = moods
    task = load_stage(task_of(runs), TaskModel)
    assert task.hparams["attribute_names"] == sorted(MOODS) and task.answers.kind == "multiclass"
    with open(runs / "faces" / "task" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert 0 <= float(rows[-1]["val/accuracy"]) <= 1 and "val/mean_auc" not in rows[-1]
    place = ["--runs_dir", str(runs), "--experiment", "other"]
    given = [part for key, value in data.items() for part in (f"--data.{key}", value)]
    assert main(["fit", "--config", str(CONF / "task.yaml"), *place, *given]) == 2, "they are no attributes"


def test_an_audit_of_classes(moods, tmp_path):
    runs, data, store = moods
    found, plain, page = report(runs, store, data, tmp_path / "labelled")
    for entry in found.defenses:
        figures = entry.utility.figures
        assert list(figures) == ["accuracy", "macro_f1", "mean_auc"] and entry.utility.agreement is None
        assert all(0 <= one.low <= one.high <= 1 for one in figures.values())
    assert (
        "accuracy" in plain["defenses"][1]["change"]
        and "needs_accuracy" in plain["defenses"][1]["certificate"]
    )
    assert "macro-F1" in page and "mean AUC over" not in page
    certificate = found.defenses[1].certificate
    assert certificate.needs == sorted(MOODS) and certificate.bits <= 2 and not certificate.exceeded
    for rare in certificate.rare:
        assert sum(rare.says.values()) == pytest.approx(1)


def test_without_labels_it_agrees_with_itself(moods, people, tmp_path):
    runs, _, store = moods
    found, plain, page = report(runs, store, settings(people), tmp_path / "plain", groups=["Smiling"])
    none, protected = found.defenses
    assert none.utility.agreement and none.kept == 1 and 0 <= protected.kept <= 1
    assert plain["defenses"][0]["utility"]["accuracy"]["value"] == 1 and AGREEMENT in page
    net, _, answers = load_classifier(task_of(runs))
    sent, index, _ = read_store(store)
    data = FacesDataModule(**settings(people), **DATA)
    data.setup()
    task = load_stage(task_of(runs), TaskModel)
    own = task.net(data.dataset("private_test").take(index)["image"]).argmax(1)
    said = classify(net, sent, 8, answers).argmax(1)
    assert protected.kept == pytest.approx(float((own == said).double().mean()))


def test_classes_are_served_and_exported(moods, tmp_path):
    runs, _, store = moods
    file = runs / "faces" / "certified" / "checkpoints" / "best.ckpt"
    net, facts, answers = load_classifier(file)
    sent, index, _ = read_store(store)
    hashes = {"encoder": facts.encoder_sha256, "defense_sha256": facts.defense_sha256}
    with InThread(lambda features: classify(net, features, 8, answers), facts) as server:
        status, said, _ = server.ask("/classify", body(sent, index=index.tolist(), **hashes))
        assert status == 200, said
        schema = server.ask("/openapi.json")[1]
    rows = [list(one["classes"].values()) for one in said["answers"]]
    assert list(said["answers"][0]["classes"]) == sorted(MOODS)
    assert torch.allclose(torch.tensor(rows).sum(1), torch.ones(len(sent)), atol=1e-5)
    assert "Classes" in schema["components"]["schemas"]
    folder = export(str(tmp_path / "graphs"), str(file), format="torch")
    made = json.loads((folder / "export.json").read_text())
    assert made["answers"] == "multiclass" and made["protects"]
    assert max(made["graphs"]["protect"]["max_difference"].values()) < 1e-4


def test_some_classes_alone_cannot_be_needed(tiny, moods):
    from crafter_pl.defenses import Certified

    files = {"task_ckpt": str(task_of(moods[0])), "prior_ckpt": tiny.ckpt("prior")}
    for wrong in ({"needs": ["glad"]}, {"needs": "all", "levels": 2}):
        with pytest.raises(UserError):
            Certified(**files, **wrong)


def saved(file, root, kind):
    """A task model of random weights, whose answers differ from face to face, as a checkpoint."""
    data = FacesDataModule(**settings(root), **DATA)
    data.setup()
    torch.manual_seed(0)
    scale = {"answer_mean": [30.0, 2.0, 0.0], "answer_std": [9.0, 0.1, 1.0]} if kind == "regression" else {}
    names = ["one", "two", "three"]
    task = TaskModel("quick:slim", answers=kind, attribute_names=names, image_size=32, **scale)
    images = data.rows("public_train")["image"]
    with torch.no_grad():
        for _ in range(20):
            task.net(images)
        outputs, last = task.eval().net(images), task.net.cloud.get_submodule("fc")
        aim = (
            torch.tensor(scale.get("answer_mean", [0.0] * 3)),
            torch.tensor(scale.get("answer_std", [1.0] * 3)),
        )
        factor = aim[1] / outputs.std(0)
        last.bias.copy_(aim[0] + factor * (last.bias - outputs.mean(0)))
        last.weight.mul_(factor[:, None])
    content = {
        "stage_class": "TaskModel",
        "split_hash": data.split_hash,
        "hyper_parameters": dict(task.hparams),
    }
    torch.save({**content, "state_dict": task.state_dict()}, file)
    return task


@pytest.mark.parametrize("kind", ["multilabel", "regression", "embedding"])
def test_a_folder_without_labels_suffices(tiny, people, tmp_path, kind):
    runs, main_figure = (
        tmp_path / "runs",
        {"multilabel": "mean_auc", "regression": "r2", "embedding": "cosine"}[kind],
    )
    file = tmp_path / "task.ckpt"
    task = saved(file, people, kind)
    more = [f"--model.init_args.task_ckpt={file}", *["--model.init_args.work=3.0"] * (kind == "regression")]
    store = certified(tiny, runs, settings(people), *more)
    found, plain, page = report(runs, store, settings(people), tmp_path / "out", task_ckpt=str(file))
    none, protected = found.defenses
    assert none.utility.agreement and none.kept == pytest.approx(1) and protected.kept < 1
    assert protected.certificate.agreement and protected.certificate.needs_kept == protected.utility.kept
    assert main_figure in plain["defenses"][1]["utility"] and AGREEMENT in page
    assert (main_figure == "mean_auc") == ("mean_auc" in plain["defenses"][1]["utility"])
    net, facts, answers = load_classifier(file)
    sent = read_store(store)[0]
    rows = classify(net, sent, 8, answers)
    assert torch.allclose(rows, task.answers.answer(task.net.cloud(sent)), atol=1e-4)
    assert facts.kind == kind and (facts.named([1.0, 2.0, 3.0]) == [1, 2, 3]) == (kind == "embedding")
