"""What attacks rebuild from nets of timm that were adopted, with and without a defence: a JSON list of rows.

    python benchmarks/adopted_attacked.py --out docs/reports/adopted-synthetic.json
    python benchmarks/adopted_attacked.py --source celeba --decoder_epochs 2 --out FILE
      --nets "[resnet18, mobilenetv3_small_100]"

Each net is fitted to public faces for a few epochs, saved, adopted, certified and attacked. What is done is
not done again.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import yaml
from jsonargparse import auto_cli
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from crafter_pl.audit import record
from crafter_pl.audit.schema import DefenseResult
from crafter_pl.benchmark.grid import Place
from crafter_pl.benchmark.jobs import DONE, Job, Jobs
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.files import read_json, to_json, write_file

SIDE = 64  # that the nets take
NETS = ["resnet18", "mobilenetv3_small_100", "efficientnet_b0", "convnext_atto", "vit_tiny_patch16_224"]
WHITE = {"steps": 100, "restarts": 1, "amortizer_ckpt": "none"}
FEWER = {"people": 150}  # of the drawn ones, whatever else their config says


def build(name: str, answers: int = 1000) -> nn.Module:
    """A net of timm that takes pictures of `SIDE`; a transformer cuts them into 8×8 patches."""
    own = {"img_size": SIDE, "patch_size": SIDE // 8} if name.startswith("vit") else {}
    net: nn.Module = timm.create_model(name, num_classes=answers, **own)
    return net


def __getattr__(name: str) -> Any:
    """What `adopt` calls by ``benchmarks/adopted_attacked.py:NET``."""
    if name in NETS:
        return functools.partial(build, name)
    raise AttributeError(name)


def fit(name: str, data: FacesDataModule, epochs: int, out: Path) -> None:
    """Fits a net to the public faces' attributes; its state dict."""
    torch.manual_seed(0)
    faces = data.dataset("public_train")
    net = build(name, len(data.attribute_names)).train()
    mean, std = (torch.tensor(net.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    steps = epochs * (len(faces) // 64)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.2)
    for step in range(steps):
        batch = faces.__getitems__(torch.randint(len(faces), (64,)).tolist())
        shown = (interpolate(batch["image"], SIDE, mode="bilinear") - mean) / std
        loss = binary_cross_entropy_with_logits(net(shown), batch["attributes"])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            print(f"{name}: step {step} of {steps}, loss {loss.item():.3f}", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, out)


def row(name: str, place: Place, audit: Path) -> dict[str, Any]:
    """What the table says of a net."""
    clean, certified = record.read_report(audit).defenses
    about = read_json(place.home / "task" / "config.json", "adopt it again")
    proof = certified.certificate
    assert clean.plain and proof is not None

    def rates(entry: DefenseResult) -> dict[str, Any]:
        found = {key: own.eval_acc for key, own in entry.attacks.items()}
        assert entry.worst_case_gallery is not None
        every = {"any": entry.worst_case, "gallery": entry.worst_case_gallery}
        chance = {f"{who}_by_chance": one.chance for who, one in every.items()}
        return {**found, **{who: one.eval_acc for who, one in every.items()}, **chance}

    return {
        "net": name,
        "cut": about["cut"],
        "feature": about["features"]["were"],
        "share": about["edge_share"],
        "auc": clean.utility.kept,
        "auc_needs": proof.needs_kept_unprotected,
        "auc_certified": proof.needs_kept,
        "bits": proof.bits,
        "unprotected": rates(clean),
        "certified": rates(certified),
    }


def main(
    out: Path,
    source: Literal["synthetic", "celeba"] = "synthetic",
    nets: list[str] = NETS,
    epochs: int = 3,
    decoder_epochs: int | None = None,
    runs: Path = Path("runs"),
    device: str = "auto",
):
    """Writes the rows of all nets.

    Args:
        out: the JSON.
        source: of the faces.
        nets: names of timm's models.
        epochs: that each is fitted for.
        decoder_epochs: that the decoder is trained for; None: those of its config.
        runs: where everything else is written.
        device: of the audits.
    """
    torch.set_num_threads(1)
    settings = yaml.safe_load(Path("configs", f"{source}.yaml").read_text())
    settings |= FEWER if source == "synthetic" else {"root": os.path.expandvars(settings["root"])}
    data = FacesDataModule(**settings)
    data.setup("fit")
    file = str(write_file(runs / f"adopted-{source}.yaml", to_json(settings)))
    base = Place(
        Path("configs" if source == "synthetic" else "configs/celeba"), f"adopted-{source}", runs, file
    )
    judges = ["oracle_resnet", "oracle_plain"] if source == "synthetic" else []
    shared = ["prior", *judges]
    decoder = {} if decoder_epochs is None else {"trainer.max_epochs": decoder_epochs}
    panel = [base.checkpoint(name) for name in judges]
    prior = base.checkpoint("prior")
    white = {"class_path": "WhiteBoxAttack", "init_args": {**WHITE, "prior_ckpt": prior}}
    attacks = json.dumps([white, {"class_path": "DecoderAttack"}])
    given = ["--attacks", attacks, "--device", device, "--overwrite", "true"]
    given += ["--oracles", json.dumps(panel) if panel else "null"]
    jobs = [
        Job(f"fit-{name}", [base.command("fit", name, None, {})], [base.checkpoint(name)]) for name in shared
    ]
    places = {name: Place(base.configs, f"adopted-{source}-{name}", runs, file) for name in nets}
    for name, place in places.items():
        weights = runs / f"adopted-{source}" / f"{name}.safetensors"
        if not weights.is_file():
            fit(name, data, epochs, weights)
        net = ["--arch", f"{__file__}:{name}", "--weights", str(weights), "--size", str(SIDE)]
        jobs.append(
            Job(
                name,
                [
                    ["adopt", *net, *place.shared],
                    place.command("fit", "attacks/black_box", None, decoder),
                    place.command("fit", "certified", None, {"model.init_args.prior_ckpt": prior}),
                    place.command("predict", "certified", None, {}),
                    ["audit", "--config", str(place.config("audit")), *place.shared, *given],
                ],
                [str(place.home / "audit" / "report.json")],
                [f"fit-{one}" for one in shared],
            )
        )
    work = Jobs(jobs, base.home, 1, threads=1)
    work.run()
    print("\n".join(work.undone()), flush=True)
    rows = [
        row(name, place, place.home / "audit") for name, place in places.items() if work.state[name] == DONE
    ]
    write_file(out, to_json(record.to_json(rows)))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
