import importlib.util
import json
import math
import os
import signal
from contextlib import suppress

import pytest
import torch
from closeness import near
from experiment import CONF, Told
from torch import nn

from crafter_pl.answers import ATTRIBUTES
from crafter_pl.cli import main
from crafter_pl.crafting.channel import Channel
from crafter_pl.crafting.codebook import Codebook
from crafter_pl.crafting.noise import keyed_normal
from crafter_pl.defenses import load_defense
from crafter_pl.defenses.baselines.noise import Noise
from crafter_pl.edge import export as verb
from crafter_pl.nets import ChannelPruner, Noisy
from crafter_pl.nets.certified import PoolPass
from crafter_pl.stages import sha256

needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs onnxruntime")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of Laplace noise, which is no graph, and of Gaussian noise, which is one."""
    runs_dir = tmp_path_factory.mktemp("export") / "runs"
    fit = ["fit", "--config", str(CONF / "noise.yaml"), "--runs_dir", str(runs_dir)]
    assert main(fit) == 0
    assert main([*fit, "--name", "gaussian", "--model.init_args.kind", "gaussian"]) == 0
    return runs_dir / "synthetic"


@pytest.fixture
def go(runs, tmp_path, monkeypatch):
    """`go(run, ...)` exports the checkpoint of a run to `tmp_path / "edge"`."""
    monkeypatch.setattr(verb, "_TIMED", 2)

    def run(name, *more):
        file = runs / name / "checkpoints" / "best.ckpt"
        return main(["export", "--checkpoint", str(file), "--out", str(tmp_path / "edge"), *more])

    return run


def made(folder):
    return json.loads((folder / verb.MANIFEST).read_text())


def pictures(count):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))


def by_onnxruntime(file, *inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return torch.from_numpy(session.run(None, given)[0])


@needs_onnx
def test_the_encoder_alone_is_exported_with_a_warning(go, runs, tmp_path, capsys):
    assert go("noise") == 0
    out, folder = capsys.readouterr().out, tmp_path / "edge"
    files = {"encoder.pt2", "encoder.onnx", "export.json", "README.md"}
    assert {file.name for file in folder.iterdir()} == files and list(tmp_path.iterdir()) == [folder]
    about, defense = made(folder), load_defense(runs / "noise" / "checkpoints" / "best.ckpt")
    for text in (out, (folder / "README.md").read_text(), about["warning"]):
        assert "THE ENCODER ALONE DOES NOT PROTECT" in text
    assert about["protects"] is False and about["opset"] == 18 and about["input_range"] == [0, 1]
    assert about["defense"] == "noise" and about["settings"] == {"kind": "laplace", "scale": 0.5}
    assert about["encoder_sha256"] == sha256(runs / "task" / "checkpoints" / "best.ckpt")
    assert about["attribute_names"] == defense.task.hparams["attribute_names"]
    assert about["files"] == {name: sha256(folder / name) for name in ("encoder.onnx", "encoder.pt2")}
    graph = about["graphs"]["encoder"]
    assert graph["inputs"] == {"images": ["N", 3, 32, 32]}
    assert graph["outputs"] == {"features": ["N", *defense.task.feature_shape]}
    assert set(graph["max_difference"]) == {"torch.export", "onnxruntime"}
    assert max(graph["max_difference"].values()) <= about["tolerance"] == 1e-4
    assert set(graph["latency_ms_one_core"]) == {"torch", "torch.export", "onnxruntime"}
    assert min(graph["latency_ms_one_core"].values()) > 0

    program = torch.export.load(folder / "encoder.pt2").module()
    for count in (1, 2, 7):
        with torch.no_grad():
            expected = defense.task.edge(pictures(count))
            assert near(program(pictures(count)), expected, steps=10)
        got = by_onnxruntime(folder / "encoder.onnx", pictures(count))
        assert near(got, expected, steps=10)

    # The same again is there already; another one is not written over it.
    before = (folder / verb.MANIFEST).read_bytes()
    assert go("noise") == 0 and "complete already" in capsys.readouterr().out
    assert go("gaussian") == 2 and go("noise", "--format", "torch") == 2
    assert "--out" in capsys.readouterr().err
    assert (folder / verb.MANIFEST).read_bytes() == before


@needs_onnx
def test_a_defence_of_one_forward_pass_is_exported(go, runs, tmp_path, capsys):
    assert go("gaussian") == 0
    folder, about = tmp_path / "edge", made(tmp_path / "edge")
    assert "warning" not in capsys.readouterr().out and "warning" not in about and about["protects"]
    assert set(about["files"]) == {
        f"{name}.{kind}" for name in ("encoder", "protect") for kind in ("onnx", "pt2")
    }
    readme = (folder / "README.md").read_text()
    assert "THE ENCODER ALONE DOES NOT PROTECT" in readme and "that nobody can predict" in readme
    defense = load_defense(runs / "gaussian" / "checkpoints" / "best.ckpt")
    assert about["frame"] == defense.task.frame._asdict() and "the eyes are 0." in readme
    size = math.prod(defense.task.feature_shape)
    assert about["graphs"]["protect"]["inputs"] == {"images": ["N", 3, 32, 32], "noise": ["N", size]}
    program = torch.export.load(folder / "protect.pt2").module()
    for count in (1, 2, 7):
        images, index = pictures(count), torch.arange(count)
        noise = keyed_normal(defense.options().seed, index, size).float()
        expected = Told(defense).protect(images, index)
        assert (expected - defense.task.edge(images)).abs().max() > 0.1
        with torch.no_grad():
            assert near(program(images, noise), expected, steps=10)
        got = by_onnxruntime(folder / "protect.onnx", images, noise)
        assert near(got, expected, steps=10)


@needs_onnx
def test_a_net_that_prunes_is_exported(tmp_path):
    """Disco's: with sorting in it."""
    net = Noisy(ChannelPruner(6, 0.5), 0.1).eval().requires_grad_(False)
    about = verb._write(tmp_path, "disco", net, {"images": [6, 8, 8], "noise": [6 * 64]}, onnx=True)
    assert max(about["max_difference"].values()) < 1e-5


def pool_pass():
    torch.manual_seed(0)
    answer = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    codebook = Codebook(torch.rand(5, 2).double(), torch.ones(2).double(), ATTRIBUTES)
    return PoolPass(answer, Channel(codebook, 1.0), torch.randn(5, 3, 6, 2, 2)).eval().requires_grad_(False)


@needs_onnx
def test_a_place_in_the_pool_is_checked_as_the_feature_is(tmp_path):
    net, inputs = pool_pass(), {"images": [3, 4, 4], "noise": [2]}
    about = verb._write(tmp_path, "protect", net, inputs, onnx=True)
    assert about["outputs"] == {"features": ["N", 6, 2, 2], "place": ["N"]}
    given = verb._examples(inputs, 40)
    features, place = verb._session(tmp_path / "protect.onnx")(*given)
    assert torch.equal(features, net.pool[place]) and torch.equal(place, net(*given)[1])
    assert len(place.unique()) > 5, "else this shows nothing"
    beside = lambda *given: (net(*given)[0], net(*given)[1] + 1)  # noqa: E731
    assert verb._difference(net, beside, given) >= 1


def test_torch_alone(go, tmp_path, monkeypatch, capsys):
    plain = importlib.util.find_spec
    absent = ("onnx", "onnxruntime")
    monkeypatch.setattr(
        verb.importlib.util, "find_spec", lambda name: None if name in absent else plain(name)
    )
    assert go("noise") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert all(part in err for part in ("onnx", "onnxruntime", "--format torch"))
    assert not list(tmp_path.iterdir())
    (tmp_path / "edge").mkdir()  # an empty folder is in nobody's way
    assert go("noise", "--format", "torch") == 0
    assert made(tmp_path / "edge")["opset"] is None
    assert {file.name for file in (tmp_path / "edge").iterdir()} == {
        "encoder.pt2",
        "export.json",
        "README.md",
    }


@pytest.mark.parametrize("there", ["edge", "edge/photo.jpg", "edge/export.json"])
def test_what_is_there_is_left_alone(there, go, tmp_path, capsys):
    file = tmp_path / there
    file.parent.mkdir(exist_ok=True)
    file.write_text("[]")
    assert go("noise", "--format", "torch") == 2
    assert "holds something else" in capsys.readouterr().err and file.read_text() == "[]"


def test_refusals(go, runs, tmp_path, capsys):
    torch.save({"stage_class": "GanPrior"}, tmp_path / "prior.ckpt")
    for more, words in (
        (["--checkpoint", str(tmp_path / "prior.ckpt")], "is a checkpoint of GanPrior, not of a defence"),
        (["--checkpoint", str(runs / "task/checkpoints/best.ckpt")], "of TaskModel, not of a defence"),
        (["--checkpoint", str(tmp_path / "absent.ckpt")], "no checkpoint"),
        (["--protect.seed", "3"], "each device draws its own noise"),
        (["--protect.beta", "3"], "noise has no option beta"),
        (["--format", "coreml"], "coreml"),
    ):
        assert go("noise", "--format", "torch", *more) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and words in err and "Traceback" not in err
    assert not (tmp_path / "edge").exists()


class Unfaithful(torch.nn.Module):
    """Does something else once it is exported."""

    def forward(self, images, noise):
        return images + float(torch.compiler.is_compiling())


def test_what_a_killed_export_left_is_removed(go, runs, tmp_path):
    """By the next one of the same OUT; that of a living process stays."""
    there = tmp_path / f".edge.{os.getppid()}.tmp"
    there.mkdir()
    killed = os.fork()
    if not killed:
        with suppress(BaseException):  # this process is a copy of the tests': it ends here
            verb._write = lambda part, *_: (
                (part / "encoder.pt2").write_bytes(b"x") and os.kill(os.getpid(), 9)
            )
            go("noise", "--format", "torch")
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(killed, 0)[1])
    assert code == -signal.SIGKILL and len(list(tmp_path.glob(".edge.*.tmp/encoder.pt2"))) == 1
    assert go("noise", "--format", "torch") == 0
    assert sorted(tmp_path.iterdir()) == [there, tmp_path / "edge"]


def test_a_full_disk_is_one_message_that_names_out(go, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(verb.os, "fsync", full)
    assert go("noise", "--format", "torch") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path / 'edge'}: No space left") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_graph_that_does_something_else_is_not_written(go, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Noise, "edge_graph", lambda self, options: Unfaithful())
    assert go("noise", "--format", "torch") == 2
    assert "torch.export" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
