"""benchmarks/bench_crafting.py: what it counts, measures and judges."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import bench_crafting as bench
import crafting_time
import crafting_worth
import pytest
import torch
from crafting_cases import defense, faces
from torch import nn

from crafter_pl.crafting.reference import reference_craft
from crafter_pl.crafting.settings import CraftSettings
from crafter_pl.defenses.crafter_variants import RELEASED
from crafter_pl.errors import UserError


@pytest.fixture(scope="module")
def args(tiny):
    return Namespace(
        ckpt=Path(tiny.ckpt("crafter")), faces=6, device="cpu", oracles=["oracle_resnet", "oracle_plain"],
        attack_steps=2, reference_steps=1, reference_quality=None,
    )  # fmt: skip


def test_operations_of_gradients_are_counted():
    net, x = nn.Linear(8, 4, bias=False), torch.randn(3, 8, requires_grad=True)
    with crafting_time.Operations() as once:
        made = net(x)
    with crafting_time.Operations() as again:
        torch.autograd.grad(made.sum(), x)
    assert once.total == again.total == 2 * 3 * 8 * 4


def test_a_variant_is_timed_counted_and_judged(args):
    found = bench.measure(args, "default", 4, True)
    assert found["batch"] == 4 and found["seconds_per_image"] > 0 and found["peak_memory_mb"] > 0
    assert found["encoder_forwards"] > 10 and "extrapolated_from_steps" not in found
    assert 0 <= found["worst_case"] <= 1 and 0 <= found["mean_auc"] <= 1
    assert -1 <= found["identity_similarity"] <= 1 and set(found["eval_acc"]) == {"white_box", "black_box"}
    assert bench.measure(args, "cg1", 4, False).keys() == {"batch", "seconds_per_image", "peak_memory_mb"}


def test_the_reference_is_extrapolated_and_says_so(args, monkeypatch):
    short = replace(RELEASED, inner_steps=1, iterations=1)
    monkeypatch.setattr("crafter_pl.defenses.crafter_variants.reference_craft", quick(short))
    found = bench.measure(args, "reference", 2, False)
    assert found["extrapolated_from_steps"] == 1
    crafted, seconds = crafting_time.protect(defense(args, "reference"), faces(args)[1], 6, "cpu")
    assert len(crafted) == 6 and found["seconds_per_image"] > 100 * seconds / 6
    rows = {"reference": [found], "default": [{"seconds_per_image": found["seconds_per_image"] / 7}]}
    assert bench.speedup(rows) == {"speedup": pytest.approx(7)}
    assert bench.speedup({"default": []}) == {"speedup": None}


def test_the_reference_is_judged_on_its_way(args, monkeypatch):
    short = replace(RELEASED, inner_steps=1, iterations=1)
    monkeypatch.setattr("crafter_pl.defenses.crafter_variants.reference_craft", quick(short))
    judged = []
    monkeypatch.setattr(crafting_worth, "judge", lambda *told: judged.append(told[3]) or {"mean_auc": 0.5})
    own = defense(args, "reference")[1].beta
    told = Namespace(**vars(args) | {"reference_quality": [2, 1], "reference_beta": [own, own + 500]})
    found = bench.measure(told, "reference", 4, True)
    points = found["trajectory"]
    assert [(point["beta"], point["steps"]) for point in points] == [
        (beta, steps) for beta in (own, own + 500) for steps in (1, 2)
    ]
    assert points[1]["seconds_per_image"] == pytest.approx(found["seconds_per_image"] * 2 / 450)
    assert all(point["mean_auc"] == 0.5 for point in points)
    whole, _ = crafting_time.protect(defense(args, "reference"), faces(args)[1], 4, "cpu")
    assert torch.allclose(judged[0], whole, atol=1e-5), "after one step, in the same batches of 4"
    assert judged[1].shape == whole.shape and not torch.allclose(judged[1], whole, atol=1e-3)
    assert torch.equal(judged[2], judged[0]) and not torch.allclose(judged[3], judged[1], atol=1e-6)
    # The critic's work belongs to the batch, not to each of its pictures.
    assert bench.measure(args, "reference", 1, True)["encoder_forwards"] > 1.5 * found["encoder_forwards"]


@pytest.mark.parametrize(("auc", "similarity", "steps"), [(0.9, 0.5, 1), (0.91, 0.3, 2), (0.93, 0.3, None)])
def test_equal_is_the_first_point_that_is_worth_as_much(auc, similarity, steps):
    points = [
        {"steps": 1, "mean_auc": 0.92, "identity_similarity": 0.5},
        {"steps": 2, "mean_auc": 0.906, "identity_similarity": 0.32},
        {"steps": 3, "mean_auc": 0.9, "identity_similarity": 0.2},
    ]
    found = crafting_worth.equal(points, {"mean_auc": auc, "identity_similarity": similarity})
    assert (found and found["steps"]) == steps


def quick(settings):
    def go(*nets, **told):
        told |= {"inner_steps": settings.inner_steps, "terms": settings.iterations}
        return reference_craft(*nets, **told)

    return go


def test_a_step_of_untrained_nets():
    assert crafting_time.step_seconds(2, 1, 8, 32, "cpu") > 0


def test_one_picture_by_nets_of_the_papers_sizes(monkeypatch, capsys):
    short = CraftSettings(task_weight=0.5, steps=1, start_steps=1, inner_steps=1, iterations=1)
    monkeypatch.setattr(crafting_time, "CELEBA", short)
    monkeypatch.setattr(crafting_time, "FAST", {"polish_steps": 1})
    found = crafting_time.paper_sizes("cpu")
    assert found["crafter"] > 0 and found["fast"] > 0 and found["generator"] > 0
    assert "paper's sizes, generator" in capsys.readouterr().out


def test_untrained_nets_need_no_checkpoint(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "paper_sizes", lambda device: {"crafter": 1.0})
    command = ["--ckpt", str(tmp_path / "none"), "--json", str(tmp_path / "x.json")]
    assert bench.main([*command, "--paper-sizes"]) == 0
    report = json.loads((tmp_path / "x.json").read_text())
    assert report["paper_sizes"] == {"crafter": 1.0} and "variants" not in report
    for more in ([], ["--paper-sizes", "--only", "default"]):
        assert bench.main([*command, *more]) == 2
        assert capsys.readouterr().err.startswith("error: no checkpoint")


def test_a_run_that_is_none(args):
    with pytest.raises(UserError, match="no checkpoint"):
        defense(args, "no_such_run")
