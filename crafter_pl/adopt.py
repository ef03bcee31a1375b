"""The verb `adopt`: a trained net of one's own becomes the task model of an experiment, as it is."""

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import torch
from safetensors.torch import save
from torch import nn

from crafter_pl.answers import Kind
from crafter_pl.cli.callbacks import AtomicCheckpointIO
from crafter_pl.cli.resume import plain_settings
from crafter_pl.cli.stage import StageCLI
from crafter_pl.commands import data_options, listed, settings_of, yaml_text
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.framing import measure_frame
from crafter_pl.errors import UserError
from crafter_pl.files import lock, sha256, to_json, write_file
from crafter_pl.limits import PositiveInt
from crafter_pl.memory import peak_memory_mb
from crafter_pl.nets import freeze
from crafter_pl.nets.architectures import expected, folder_weights, lasting
from crafter_pl.nets.encoder import MEAN, STD, Encoder, whole_net
from crafter_pl.nets.layout import Resize
from crafter_pl.nets.places import SHARE, TIMES, Place, fits, places, propose
from crafter_pl.stages.task import TaskModel, agree

_LIBRARIES = ("torch", "torchvision", "timm")  # a net's answers hang on


def adopt(
    arch: str,
    data: FacesDataModule,
    weights: str | None = None,
    cut: str | None = None,
    size: PositiveInt | None = None,
    mean: list[float] | float | None = None,
    std: list[float] | float | None = None,
    task: Kind = "multilabel",
    names: list[str] | str | None = None,
    experiment: str = "synthetic",
    name: str = "task",
    runs_dir: str = "runs",
    download: bool = False,
) -> Path:
    """Make a trained net of your own the task model of an experiment: cut in two, checked, and not trained.

    Every later stage takes RUNS_DIR/EXPERIMENT/NAME as if it had been trained here.

    Args:
        arch: of torchvision, `torchvision:NAME`; of timm, `timm:NAME` or `timm:local-dir:PATH`; or of your
            own code, `package.module:callable` or `file.py:callable`, called without arguments.
        data: the faces: their size, their split, how they frame a face, and the names of their attributes.
        weights: a state dict, `.safetensors` or torch.save's (default: those in the folder of a
            `timm:local-dir`, else what your code makes, else random ones).
        cut: the last node or block on the edge (default: one is proposed).
        size: side of the pictures that the net takes, to which the edge resizes (default: timm's own,
            else that of the data).
        mean: of RGB in [0, 1], taken off; one for all three channels, or one each (default: timm's own, else
            ImageNet's).
        std: by which it then divides (default: likewise).
        task: what the answers are.
        names: of the answers, in order (default: the data's attributes if there are as many, else output_0
            and so on).
        experiment: folder of runs that belong together.
        name: folder of this run.
        runs_dir: folder of all experiments.
        download: fetch timm's or torchvision's pretrained weights, or a net of `timm:hf-hub:`.

    Returns:
        The run's folder.

    Raises:
        UserError: there is such a run, the net cannot be built, cut or traced, the weights are of another, or
            what was cut does not answer as the whole, or all labels of a value are alike.
    """
    folder, began = Path(runs_dir, experiment, name), time.perf_counter()
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds something: choose another --experiment or --name, or delete it")
    if weights is not None and download:
        raise UserError("--weights and --download: give one of them")
    arch = arch if ":" in arch else f"torchvision:{arch}"
    weights = weights or (None if download else folder_weights(arch))
    if weights is None and not download and arch.startswith(("timm:", "torchvision:")):
        print(f"note: no --weights: {arch} keeps the random ones that it begins with", flush=True)
    net = whole_net(arch, "download" if download else weights).eval()
    for key, value in net.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(f"the weights are not finite, {key} first: give those of a net that answers")
    given, arch = expected(net), lasting(arch, net)
    data.setup("fit")
    side = int(size or given.side or data.image_size)
    centre = _three("mean", given.mean if mean is None else listed(mean))
    spread = _three("std", given.std if std is None else listed(std))
    found, (answers,) = places(net, side)
    chosen = _chosen(found, cut, side)
    called = _names(names, answers, list(data.attribute_names))
    shown = ", ".join(called if answers <= 12 else [*called[:8], f"{answers - 8} more"])
    print(f"the net's answers are taken to be, in this order: {shown}; other: --names", flush=True)
    init: dict[str, Any] = {"arch": arch, "cut": chosen, "attribute_names": called, "answers": task}
    init |= {"image_size": data.image_size, "input_size": side, "mean": centre, "std": spread, "freeze": True}
    why = "timm's own figure" if given.side else "as the faces come"
    why = "--size" if size else f"{why}; other: --size"
    print(f"the net takes {side}x{side} ({why}), mean {centre}, std {spread}", flush=True)
    if task == "regression":
        init |= _units(init, net, data)
    stage = TaskModel(**init)
    stage.net.take(net)
    _check(stage, net)
    words = [f"--model.init_args.{key}={yaml_text(value)}" for key, value in init.items()]
    words += ["--experiment", experiment, "--name", name, "--runs_dir", runs_dir, "--trainer.max_epochs", "1"]
    config = StageCLI(["fit", "--model", "TaskModel", *words, *data_options(settings_of(data))]).dump()
    about = {
        **init,
        "weights": None if weights is None else {"file": Path(weights).name, "sha256": sha256(weights)},
        "features": {"shape": list(stage.feature_shape), "were": list(stage.net.layout.given)},
        "edge_share": next((one.share for one in found if one.name == chosen), None),
        "versions": {one: version(one) for one in ("torch", arch.partition(":")[0]) if one in _LIBRARIES},
    }
    with lock(folder, doing="adopting"):
        write_file(folder / "fit.yaml", config)
        write_file(folder / "config.json", to_json(about, indent=2))
        best = _write(stage, folder, data, plain_settings(config))
        summary = {"stage": TaskModel.stage_name, "epochs": 0, "max_epochs": 0}
        summary |= {"seconds": round(time.perf_counter() - began, 1), "metrics": {}}
        summary |= {"peak_memory_mb": round(peak_memory_mb(), 1), "best_sha256": sha256(best)}
        write_file(folder / "summary.json", to_json(summary, indent=2))
    print(f"adopted as {best}; cloud(edge(x)) is the whole net's answer on random pictures", flush=True)
    return folder


@torch.no_grad()
def _units(init: dict[str, Any], net: nn.Module, data: FacesDataModule) -> dict[str, list[float]]:
    """Mean and deviation of a regression's values: of the labels, else of its own for public faces."""
    if data.labels_kind == "regression" and list(data.attribute_names) == init["attribute_names"]:
        values = data.faces.attributes[data.dataset("labelled_train").index]
        if not bool((values.std(0) > 0).all()):
            raise UserError(
                "a value's labels are the same for all public faces, and say nothing of it: leave it out "
                "(--data.attribute_columns), or give no labels"
            )
    else:
        centre, spread = (torch.tensor(init[key]).view(3, 1, 1) for key in ("mean", "std"))
        side = init["input_size"]
        whole = Encoder(net, centre, spread, None if side == data.image_size else Resize(side), None)
        faces = data.dataset("public").spread(256)["image"]
        values = torch.cat([whole(part) for part in faces.split(16)])
    std, mean = torch.std_mean(values, 0, correction=0)
    return {"answer_mean": mean.tolist(), "answer_std": std.clamp(min=1e-6).tolist()}


def _three(option: str, given: list[float] | None) -> list[float]:
    """A number for each of the channels."""
    if given is None:
        given = list(MEAN if option == "mean" else STD)
        print(f"note: no --{option}: ImageNet's, {given}", flush=True)
    given = given * 3 if len(given) == 1 else given
    if len(given) != 3 or (option == "std" and min(given) <= 0):
        above = " above 0" * (option == "std")
        raise UserError(f"--{option} {given}: give three numbers{above}, of red, green and blue")
    return [float(one) for one in given]


def _chosen(found: list[Place], cut: str | None, side: int) -> str:
    """Where to cut; prints the places, and what each costs."""
    chosen = propose(found, side).name if cut is None else cut
    width = max(len(one.name) for one in found) if found else 0
    print(f"  {'block':{width}}  {'feature':>14}  {'float16':>10}  edge's share of the multiply-adds")
    for one in found:
        shape, mark = "x".join(map(str, one.shape)), "  <- cut" if one.name == chosen else ""
        print(f"  {one.name:{width}}  {shape:>14}  {one.bytes:>8,} B  {one.share:6.1%}{mark}")
    if cut is None:
        rule = f"a share of at most {SHARE:.0%} and a feature of at most {TIMES} times the picture's numbers"
        fitting = any(fits(one, side) for one in found)
        how = f"the last with {rule}" if fitting else f"the least share; none has {rule}"
        print(f"note: no --cut: {chosen}, {how}", flush=True)
    return chosen


def _names(given: list[str] | str | None, answers: int, attributes: list[str]) -> list[str]:
    """What the answers are called; a list of numbers, or of yes and no, has come as its text."""
    if isinstance(given, str):
        given = [one.strip() for one in given.removeprefix("[").removesuffix("]").split(",")]
    made = attributes if len(attributes) == answers else [f"output_{place}" for place in range(answers)]
    names = made if given is None else given
    if len(names) != answers or len(set(names)) < len(names):
        raise UserError(
            f"--names: {len(set(names))} different names for {answers} answers; give one for each"
        )
    return names


@torch.no_grad()
def _check(stage: TaskModel, net: nn.Module) -> None:
    """Whether both halves together answer as the net, also once they are frozen, as defences use them.

    Raises:
        UserError: they do not.
    """
    pictures = stage.examples
    known = net.eval()(stage.net.shown(pictures))
    features = stage.edge(pictures)
    sent = features.clone()
    frozen = freeze(stage.net.encoder_module()), freeze(stage.net.cloud)
    for made in (stage.cloud(features), frozen[1](frozen[0](pictures))):
        if not agree(made, known) or not torch.equal(features, sent):
            raise UserError(
                f"{stage.hparams['arch']} cut at {stage.hparams['cut']} does not answer as the whole net: "
                "what it does hangs on something besides its input, a counter, random numbers or what it has "
                "seen; make that constant in eval mode"
            )
    stage.known = known


def _write(stage: TaskModel, folder: Path, data: FacesDataModule, settings: dict[str, Any]) -> Path:
    """Writes both halves, the split, and both checkpoints as `fit` would have; returns the best one."""
    data.write_split_csv(folder / "split.csv")
    for part, module in (("edge", stage.net.encoder_module()), ("cloud", stage.net.cloud)):
        tensors = {key: value.clone().contiguous() for key, value in module.state_dict().items()}
        write_file(folder / f"{part}.safetensors", save(tensors))
    stage.frame = measure_frame(data.dataset("public").spread(64)["image"])
    content: dict[str, Any] = {"state_dict": stage.state_dict(), "hyper_parameters": dict(stage.hparams)}
    stage.on_save_checkpoint(content)
    content |= {
        "split_hash": data.public_hash,
        "config": {part: settings[part] for part in ("model", "data")},
    }
    content |= {"pytorch-lightning_version": lightning.__version__, "epoch": 0, "global_step": 0}
    for kept in ("last", "best"):
        AtomicCheckpointIO().save_checkpoint(content, folder / "checkpoints" / f"{kept}.ckpt")
    return folder / "checkpoints" / "best.ckpt"
