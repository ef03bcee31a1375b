"""A trained net is adopted, and the later stages take it as if it had been trained here."""

import json

import pytest
import timm
import torch
from closeness import near
from experiment import CONF, DATA
from safetensors.torch import load_file, save_file

from crafter_pl.cli import main
from crafter_pl.cloud.classifier import classify, load_classifier
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.edge.protector import Protector
from crafter_pl.errors import UserError
from crafter_pl.stages import TaskModel, load_stage
from crafter_pl.stages.base import stages

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
CODE = "import timm\n\ndef net():\n    return timm.create_model('resnet10t', num_classes=17)\n"


def words(runs, *more):
    data = [f"--data.{key}={value}" for key, value in DATA.items()]
    return ["adopt", *data, "--runs_dir", str(runs), *more]


@pytest.fixture(scope="module")
def adopted(tmp_path_factory):
    """A net of timm's with 17 answers, as many as the drawn faces have attributes, adopted."""
    folder = tmp_path_factory.mktemp("adopted")
    torch.manual_seed(0)
    source = timm.create_model("resnet10t", num_classes=17)
    for module in source.modules():  # as if it had been trained: statistics that are not 0 and 1
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_(0, 0.1)
    save_file(source.state_dict(), folder / "mine.safetensors")
    numbers = ["--mean", str(MEAN), "--std", str(STD), "--size", "64"]
    given = ["--arch", "timm:resnet10t", "--weights", str(folder / "mine.safetensors"), *numbers]
    assert main(words(folder / "runs", *given)) == 0
    return folder, source.eval()


def test_the_run_has_what_other_stages_look_for(adopted):
    folder, source = adopted
    run = folder / "runs/synthetic/task"
    task, data = load_stage(run / "checkpoints" / "best.ckpt", TaskModel), FacesDataModule(**DATA)
    data.setup()
    images = data.rows("private_test")["image"]
    shown = torch.nn.functional.interpolate(images, (64, 64), mode="bilinear", align_corners=False)
    shown = (shown - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        answers = task.cloud(task.edge(images))
        assert near(answers, source(shown), steps=3)
    assert task.trained_on == (data.public_hash, "synthetic")
    assert task.hparams["attribute_names"] == list(data.attribute_names)
    about = json.loads((run / "config.json").read_text())
    assert about["features"]["shape"] == list(task.feature_shape) and 0 < about["edge_share"] < 0.5
    edge, cloud = load_file(run / "edge.safetensors"), load_file(run / "cloud.safetensors")
    state = source.state_dict()
    trunk = {key.removeprefix("edge."): one for key, one in edge.items() if key.startswith("edge.")}
    assert trunk.keys() | cloud.keys() == state.keys() and not trunk.keys() & cloud.keys()
    assert all(torch.equal(one, state[key]) for key, one in {**trunk, **cloud}.items())
    assert edge["mean"].flatten().tolist() == pytest.approx(MEAN)


def test_other_verbs_take_it(adopted, capsys):
    folder, _ = adopted
    run = folder / "runs/synthetic/task"
    assert main(["validate", "--config", str(run / "fit.yaml")]) == 0
    before = {file: file.read_bytes() for file in sorted(run.rglob("*")) if file.is_file()}
    assert main(words(folder / "runs", "--arch", "timm:resnet10t")) == 2  # nothing is overwritten
    assert main(["fit", "--config", str(run / "fit.yaml")]) == 2
    assert all(file.read_bytes() == content for file, content in before.items() if "events" not in file.name)


def test_attacks_defences_the_device_and_the_cloud_take_it(adopted, capsys):
    folder, _ = adopted
    runs, home = ["--runs_dir", str(folder / "runs")], folder / "runs/synthetic"
    for stage in ("black_box", "noise"):
        assert main(["fit", "--config", str(CONF / f"{stage}.yaml"), *runs]) == 0
    task = load_stage(home / "task/checkpoints/best.ckpt", TaskModel)
    assert all(not parameter.requires_grad for parameter in task.parameters())
    decoder = load_stage(home / "black_box/checkpoints/best.ckpt", stages()["BlackBox"])
    protector = Protector.load(home / "noise/checkpoints/best.ckpt", faces="none")
    features = protector.protect(torch.rand(3, 50, 50))
    assert features.shape == (1, *task.feature_shape)
    assert decoder.reconstruct(features).shape == (1, 3, 32, 32)
    net, facts, _ = load_classifier(home / "task/checkpoints/best.ckpt")
    assert facts.attributes == tuple(task.hparams["attribute_names"]) and facts.shape == task.feature_shape
    with torch.no_grad():
        assert near(classify(net, features, 64), task.cloud(features).sigmoid(), steps=3, at_least=1)


def test_code_that_has_changed_is_noticed(adopted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)
    given = [
        "--arch",
        "mine.py:net",
        "--size",
        "32",
        "--cut",
        "layer2",
        "--names",
        str([*"abcdefghijklmnopq"]),
    ]
    assert main(words(tmp_path / "runs", *given)) == 0
    file = tmp_path / "runs/synthetic/task/checkpoints/best.ckpt"
    task = load_stage(file, TaskModel)  # whatever weights the code begins with
    assert task.hparams["cut"] == "layer2" and task.hparams["attribute_names"][:2] == ["a", "b"]
    (tmp_path / "mine.py").write_text(CODE.replace("17)", "17, act_layer='silu')"))
    with pytest.raises(UserError):
        load_stage(file, TaskModel)


@pytest.mark.parametrize(
    "given",
    [
        ["--arch", "timm:resnet10t", "--weights", "WEIGHTS", "--cut", "layer2.0.conv1"],
        ["--arch", "timm:resnet10t", "--weights", "WEIGHTS", "--cut", "layer9"],
        ["--arch", "timm:resnet14t", "--weights", "WEIGHTS"],
        ["--arch", "timm:resnet10t", "--weights", "WEIGHTS", "--names", "[a, b]"],
        ["--arch", "timm:resnet10t", "--weights", "WEIGHTS", "--std", "[1, 1, 0]"],
        ["--arch", "timm:resnet10t", "--weights", "WEIGHTS", "--download", "true"],
        ["--arch", "timm:resnet10t", "--weights", "nowhere.pt"],
    ],
    ids=lambda given: " ".join(given[1:2] + given[-2:]),
)
def test_what_is_wrong_leaves_nothing(given, adopted, tmp_path, capsys):
    weights = str(adopted[0] / "mine.safetensors")
    size = ["--size", "64"]
    assert main(words(tmp_path / "runs", *[word.replace("WEIGHTS", weights) for word in given], *size)) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not (tmp_path / "runs").exists()


def test_weights_that_are_not_finite_are_refused(adopted, tmp_path, capsys):
    state = {key: value.clone() for key, value in adopted[1].state_dict().items()}
    state["bn1.running_var"][3] = float("inf")
    save_file(state, tmp_path / "bad.safetensors")
    given = ["--arch", "timm:resnet10t", "--weights", str(tmp_path / "bad.safetensors"), "--size", "64"]
    assert main(words(tmp_path / "runs", *given)) == 2
    assert "bn1.running_var" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def fit(runs, *settings):
    given = [f"--model.init_args.{one}" for one in settings]
    return main(["fit", "--config", str(CONF / "task.yaml"), "--runs_dir", str(runs), *given])


def test_weights_that_are_kept_do_not_move(adopted, tmp_path, capsys):
    folder, source = adopted
    weights = f"weights={folder / 'mine.safetensors'}"
    own = ["arch=timm:resnet10t", "cut=layer1", "freeze=true"]
    assert fit(tmp_path / "none", *own) == 2  # no weights
    assert fit(tmp_path / "bare", "arch=vgg16", "cut=pool2", "freeze=true", weights) == 2
    assert fit(tmp_path / "runs", *own, weights) == 0
    task = load_stage(tmp_path / "runs/synthetic/task/checkpoints/best.ckpt", TaskModel)
    state = {**task.net.edge.state_dict(), **task.net.cloud.state_dict()}
    kept = source.state_dict()
    assert state.keys() == kept.keys()
    assert all(torch.equal(one, kept[key]) for key, one in state.items())  # statistics of batch norms, too
    metrics = json.loads((tmp_path / "runs/synthetic/task/summary.json").read_text())["metrics"]
    assert "val/mean_auc" in metrics
