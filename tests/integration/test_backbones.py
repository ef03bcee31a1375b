"""The paper's other backbone, VGG16 after its second pooling, from the task model to the audit."""

import json
import shutil

import pytest
from experiment import Experiment
from torch import nn
from torchvision.models import vgg

from crafter_pl.cli import main
from crafter_pl.data.store import read_manifest
from crafter_pl.stages.base import load_stage
from crafter_pl.stages.task import TaskModel


class Narrow(vgg.VGG):
    """VGG with a head of a thousandth of its weights: the others, half a gigabyte, lie behind the cut."""

    def __init__(self, features, num_classes=1000, **_):
        nn.Module.__init__(self)
        self.features, self.avgpool = features, nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(nn.Linear(512 * 7 * 7, 4), nn.ReLU(), nn.Linear(4, num_classes))


@pytest.mark.filterwarnings("ignore")
def test_vgg16_is_crafted_and_attacked(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(vgg, "VGG", Narrow)
    made = Experiment(tmp_path / "runs")
    arch = ["--model.init_args.arch", "vgg16_bn", "--model.init_args.cut", "pool2"]
    assert main(made.command("fit", "task", *arch)) == 0
    task = load_stage(made.ckpt("task"), TaskModel)
    assert task.hparams["arch"] == "vgg16_bn" and task.feature_shape == (128, 8, 8)
    shutil.copytree(tiny.folder / "prior", made.folder / "prior")  # it knows no task model
    assert main(made.command("fit", "crafter")) == 0  # and on the way the amortizer
    assert main(made.command("predict", "crafter", "--protect.beta", "1")) == 0
    manifest = read_manifest(made.store())
    assert manifest["shape"] == [128, 8, 8] and manifest["count"] == 16
    command = made.command(
        "audit", "audit", "--features", f"[{made.store()}]", "--out", str(tmp_path / "out")
    )
    command += ["--oracles", f"[{tiny.ckpt('oracle_resnet')}]"]
    command += ["--attacks", "[{class_path: WhiteBoxAttack, init_args: {steps: 2, restarts: 1}}]"]
    assert main(command) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    none, crafted = report["defenses"]
    assert none["attacks"]["white_box"]["psnr"] != crafted["attacks"]["white_box"]["psnr"]
