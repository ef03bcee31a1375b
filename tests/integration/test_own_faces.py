"""A net and faces of one's own that nobody has named or labelled: adopted, attacked, audited, certified."""

import json

import pytest
import torch
from experiment import CONF
from torch import nn
from torchvision.utils import save_image

from crafter_pl.cli import main
from crafter_pl.data.synthetic import synthetic_faces
from crafter_pl.stages import TaskModel, load_stage

CODE = """
import torch
from torch import nn

def net():
    torch.manual_seed(3)
    block = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU())
    return nn.Sequential(block, nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(8 * 64, 2))
"""


class Mean(nn.Module):
    """A recogniser that sees the mean colour."""

    def forward(self, images):
        return images.mean((2, 3))


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """Options of the data, of the runs, and of a judge, after the net has been adopted."""
    folder = tmp_path_factory.mktemp("mine")
    faces = synthetic_faces(people=20, images_per_person=1, image_size=32, seed=3).images
    for number, face in enumerate(faces):
        (place := folder / ("ours" if number < 6 else "others")).mkdir(exist_ok=True)
        save_image(face.float() / 255, place / f"{number}.png")
    (folder / "own.py").write_text(CODE)
    data = {
        "source": "folder",
        "root": folder / "ours",
        "public_root": folder / "others",
        "identities": "none",
    }
    words = [f"--data.{key}={value}" for key, value in {**data, "image_size": 32, "batch_size": 4}.items()]
    words += ["--runs_dir", str(folder / "runs"), "--experiment", "mine"]
    net = ["--arch", f"{folder / 'own.py'}:net", "--task", "regression", "--names", "[0, height]"]
    assert main(["adopt", *net, *words]) == 0
    batch = {"images": {0: torch.export.Dim.AUTO}}
    program = torch.export.export(Mean(), (torch.rand(4, 3, 8, 8),), dynamic_shapes=batch)
    torch.export.save(program, folder / "judge.pt2")
    return folder, words


def test_a_regression_has_units_of_its_own_answers(mine):
    task = load_stage(mine[0] / "runs/mine/task/checkpoints/best.ckpt", TaskModel)
    assert len(task.hparams["answer_mean"]) == 2 and min(task.hparams["answer_std"]) > 0
    assert task.hparams["attribute_names"] == ["0", "height"] and task.answers.kind == "regression"


def test_an_audit_without_names_and_labels(mine):
    folder, words = mine
    assert main(["fit", "--config", str(CONF / "black_box.yaml"), *words]) == 0
    judge = {"path": str(folder / "judge.pt2"), "size": 8, "align": False, "name": "colour"}
    recogniser = json.dumps([{"class_path": "TorchProgram", "init_args": judge}])
    readers = "[{class_path: GalleryLDA}, {class_path: LinkLDA}]"
    asked = ["--features", "[]", "--attacks", "[{class_path: DecoderAttack}]", "--rulers", readers]
    asked += ["--recognisers", recogniser, "--oracles", "null", "--bootstrap", "20", "--device", "cpu"]
    assert main(["audit", *asked, *words, "--out", str(folder / "audit")]) == 0
    report = json.loads((folder / "audit" / "report.json").read_text())
    (entry,) = report["defenses"]
    assert entry["utility"]["main"] == "r2" and entry["utility"]["agreement"] is True
    assert entry["utility"]["r2"]["value"] == pytest.approx(1)
    assert report["data"]["identities"] == report["data"]["images"] == 6
    assert report["oracles"][0]["accuracy_on_originals"] == 1, "each is found again by itself"
    assert entry["rulers"].keys() == {"gallery_lda"}
    assert any("link_lda" in note for note in report["notes"])
    assert main(["audit", *asked, *words, "--drawn_images", "2", "--out", str(folder / "other")]) == 2
