"""`export`: what runs on the edge as graphs that need none of this code, checked against torch and timed."""

import importlib.util
import io
import json
import os
import shutil
import statistics
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crafter_pl.data.pictures import quiet, shown
from crafter_pl.data.pool import Pool
from crafter_pl.data.provenance import seedless
from crafter_pl.defenses.base import load_defense
from crafter_pl.defenses.certified import Certified, CertifiedOptions
from crafter_pl.edge.export_readme import UNPROTECTED, figures, readme
from crafter_pl.errors import UserError
from crafter_pl.files import expand, read_json, sha256, tidy, to_json, write_file
from crafter_pl.nets.certified import PoolPass

FORMAT_VERSION = 2
MANIFEST = "export.json"
OPSET = 18
TOLERANCE = (
    1e-4  # of the largest difference to torch, where features are larger than 1 as a share of the largest
)
BATCHES = (1, 2, 5)  # pictures at a time with which graphs are checked
_WARM_UP, _TIMED = 5, 30  # calls

Graph = Callable[..., Tensor | tuple[Tensor, ...]]


def export(
    out: str,
    checkpoint: str | None = None,
    experiment: str = "synthetic",
    runs_dir: str = "runs",
    protect: dict[str, Any] | None = None,
    format: Literal["all", "torch"] = "all",
) -> Path:
    """Write the edge encoder, which ALONE DOES NOT PROTECT, and the defence if it is one forward pass.

    OUT holds `encoder` and `protect`, each as `.pt2` (torch.export) and `.onnx`, export.json and a README; of
    a certified defence with a pool also `place`, which says where in the pool, without the pool in it. The
    first dimension of every input and output is the number of pictures, from 1. Of a defence that protects
    by an optimisation, as Crafter does, there is the encoder alone.

    Args:
        out: folder to be made; one that is there already is refused, unless it holds this very export.
        checkpoint: of a defence of any kind (default: RUNS_DIR/EXPERIMENT/certified/checkpoints/best.ckpt).
        experiment: folder under runs_dir where the default checkpoint is looked for.
        runs_dir: folder of all runs.
        protect: the defence's own options; without a seed, since devices draw their own noise.
        format: all needs `pip install onnx onnxscript onnxruntime`; torch writes no ONNX.

    Returns:
        The folder.

    Raises:
        UserError: a package is missing, it is no checkpoint of a defence, OUT holds something else, or a
            graph does not do what torch does.
        OSError: the disk is full, the place is read-only, ...; it names OUT.
    """
    onnx = format == "all"
    names = ("onnx", "onnxscript", "onnxruntime") if onnx else ()
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"ONNX needs {' and '.join(missing)}: pip install {' '.join(missing)}, or give --format torch"
        )
    if (protect or {}).get("seed") is not None:
        raise UserError("--protect.seed: a graph has none, each device draws its own noise; leave it out")
    defense = load_defense(
        checkpoint or Path(runs_dir, experiment, Certified.stage_name, "checkpoints", "best.ckpt")
    )
    options = defense.options(**(protect or {}))
    task, graph = defense.task, defense.edge_graph(options)
    made: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "defense": defense.stage_name,
        "settings": seedless(defense.settings(options)),
        "defense_sha256": defense.weights_hash(),
        "encoder_sha256": defense.upstream_files["task"][1],
        "opset": OPSET if onnx else None,
    }
    folder = Path(os.path.abspath(expand(out)))
    tidy(folder.parent, folder.name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not _is(folder / MANIFEST, made):
            raise UserError(f"{shown(out)} holds something else: choose another --out, or delete it")
        print(f"{shown(out)} is complete already", flush=True)
        return Path(out)
    size = int(task.hparams["image_size"])
    made |= {
        "protects": graph is not None,
        **({} if graph else {"warning": UNPROTECTED}),
        "attribute_names": task.hparams["attribute_names"],
        **({} if task.answers.kind == "multilabel" else {"answers": task.answers.kind}),
        "input_range": [0, 1],
        "frame": task.frame and task.frame._asdict(),
        **(_certified(defense, options) if graph and isinstance(defense, Certified) else {}),
        "tolerance": TOLERANCE,
        "torch": torch.__version__,
        "graphs": {},
    }
    plan: list[tuple[str, nn.Module, int]] = [("encoder", task.net.encoder_module(), 0)]
    plan += [] if graph is None else [("protect", graph, defense.edge_noise)]
    plan += [("place", graph.place, defense.edge_noise)] if isinstance(graph, PoolPass) else []
    part = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")  # see `tidy`
    try:
        shutil.rmtree(part, ignore_errors=True)  # of a process of this number
        part.mkdir(parents=True)
        for name, net, noise in plan:
            inputs = {"images": [3, size, size], **({"noise": [noise]} if noise else {})}
            made["graphs"][name] = _write(part, name, net.eval(), inputs, onnx)
        made["files"] = {file.name: sha256(file) for file in sorted(part.iterdir())}
        write_file(part / "README.md", readme(made))
        write_file(part / MANIFEST, to_json(made, indent=2))
        os.replace(part, folder)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, shown(out)) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for name, about in made["graphs"].items():
        print(f"{name}: {figures(about)}", flush=True)
    sizes = [f"{name} ({(folder / name).stat().st_size / 1e6:.1f} MB)" for name in made["files"]]
    print(f"wrote {', '.join(sizes)} to {shown(out)}", flush=True)
    if graph is None:
        print(f"warning: {UNPROTECTED} {defense.stage_name} protects in Python (protect)", flush=True)
    return Path(out)


def _certified(defense: Certified, options: CertifiedOptions) -> dict[str, Any]:
    """What a device must know to keep the account, and to send places of the pool, if there is one."""
    known = defense.manifest("", "", options)
    made = {"about": defense.about, "messages": known["messages"], "bits_a_picture": known["bits"]}
    if not defense.pool.numel():
        return made
    pool = Pool(defense.pool)
    about = {"features": len(pool.features), "rows": pool.rows, "place_bytes": pool.width}
    return {**made, "pool": {**about, "byte_order": "big"}}


def _is(file: Path, made: dict[str, Any]) -> bool:
    """Whether this is the manifest of such an export."""
    try:
        there = read_json(file, "")
        return all(there.get(key) == value for key, value in json.loads(json.dumps(made)).items())
    except (OSError, UserError, AttributeError):
        return False


def _write(part: Path, name: str, net: nn.Module, inputs: dict[str, list[int]], onnx: bool) -> dict[str, Any]:
    """Writes a graph in each format, and compares and times the files as they are read again.

    Raises:
        UserError: one does not do what torch does.
    """
    dynamic = tuple({0: torch.export.Dim("batch", min=1)} for _ in inputs)
    example = _examples(inputs, 2)  # torch takes a size of 1 as fixed
    outputs: tuple[str, ...] = getattr(net, "outputs", ("features",))
    with torch.no_grad():
        program = torch.export.export(net, example, dynamic_shapes=dynamic)
        torch.export.save(program, stream := io.BytesIO())
        write_file(part / f"{name}.pt2", stream.getvalue())
        runs: dict[str, Graph] = {
            "torch": net,
            "torch.export": torch.export.load(part / f"{name}.pt2").module(),
        }
        if onnx:
            with quiet():  # that all inputs have one batch; deprecations inside torch
                graph = torch.onnx.export(
                    program,
                    example,
                    dynamo=True,
                    opset_version=OPSET,
                    input_names=list(inputs),
                    output_names=list(outputs),
                    dynamic_shapes=dynamic,
                    verbose=False,
                )
            assert graph is not None
            write_file(part / f"{name}.onnx", graph.model_proto.SerializeToString())
            runs["onnxruntime"] = _session(part / f"{name}.onnx")
        differences = {
            kind: max(_difference(net, run, _examples(inputs, count)) for count in BATCHES)
            for kind, run in runs.items()
            if run is not net
        }
        for kind, difference in differences.items():
            if not difference <= TOLERANCE:
                raise UserError(
                    f"{name} by {kind} differs from torch by {difference:.1g}, more than {TOLERANCE:g}, so "
                    "nothing was written: try another version of that package"
                )
        return {
            "inputs": {key: ["N", *sizes] for key, sizes in inputs.items()},
            "outputs": {
                key: ["N", *made.shape[1:]] for key, made in zip(outputs, _all(net(*example)), strict=True)
            },
            "weights": sum(value.numel() for value in net.state_dict().values()),
            "max_difference": differences,
            "latency_ms_one_core": {kind: _latency(run, _examples(inputs, 1)) for kind, run in runs.items()},
        }


def _examples(inputs: dict[str, list[int]], count: int) -> tuple[Tensor, ...]:
    """Pictures of random pixels, and normal noise."""
    rng = torch.Generator().manual_seed(count)
    draw = {"images": torch.rand, "noise": torch.randn}
    return tuple(draw[key](count, *sizes, generator=rng) for key, sizes in inputs.items())


def _session(file: Path) -> Graph:
    """An ONNX graph as a function of tensors, on one core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return tuple(map(torch.from_numpy, session.run(None, given)))

    return run


def _all(made: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a graph gives, as a tuple."""
    return made if isinstance(made, tuple) else (made,)


def _difference(net: nn.Module, run: Graph, inputs: tuple[Tensor, ...]) -> float:
    """The largest absolute difference; of features above 1 as a share of the largest; places have none."""
    found = 0.0
    for expected, got in zip(_all(net(*inputs)), _all(run(*inputs)), strict=True):
        scale = expected.abs().max().clamp(min=1) if expected.is_floating_point() else 1
        found = max(found, float((got - expected).abs().max() / scale))
    return found


def _latency(run: Graph, inputs: tuple[Tensor, ...]) -> float:
    """Median milliseconds of a call, on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = timeit.repeat(lambda: run(*inputs), number=1, repeat=_WARM_UP + _TIMED)
    finally:
        torch.set_num_threads(threads)
    return round(1000 * statistics.median(seconds[_WARM_UP:]), 3)
