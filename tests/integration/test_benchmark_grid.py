from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from experiment import CONF

from crafter_pl.benchmark.grid import Defended, Place, cells
from crafter_pl.cli import main
from crafter_pl.errors import UserError

PLACE = Place(CONF, "synthetic", CONF / "nowhere")


# The grid


def test_every_combination_is_a_cell_with_a_name_of_its_own():
    lines = [
        Defended("noise", {"scale": [0.5, 2.0], "kind": "laplace"}),
        Defended("crafter", protect={"beta": [0.1, 1], "critic": "adapted"}),
        Defended("adversarial_learning", {"lambda_": 0.5}, training=False),
    ]
    found = cells(lines, [0, 3])
    assert [(cell.name, cell.run, cell.title) for cell in found[:5]] == [
        ("noise-laplace-scale0.5", "noise-laplace-scale0.5", "noise (kind laplace, scale 0.5)"),
        ("noise-laplace-scale2", "noise-laplace-scale2", "noise (kind laplace, scale 2)"),
        ("crafter-beta0.1-adapted", "crafter", "crafter (beta 0.1, critic adapted)"),
        ("crafter-beta1-adapted", "crafter", "crafter (beta 1, critic adapted)"),
        ("adversarial_learning-lambda0.5",) * 2 + ("adversarial_learning (lambda 0.5)",),
    ]
    assert [cell.seed for cell in found] == [0] * 5 + [3] * 5
    assert found[5].name == found[5].run == "noise-laplace-scale0.5-seed3"
    assert found[7].run == "crafter-seed3" and found[7].title == found[2].title


@pytest.mark.parametrize(
    ("lines", "seeds", "said"),
    [
        ([], [0], "needs defences"),
        ([Defended("noise")], [], "needs defences and seeds"),
        ([Defended("noise"), Defended("noise")], [0], "noise"),
        ([Defended("noise")], [1, 1], "noise, seed 1"),
        (
            [
                Defended("noise", {"kind": "laplace", "scale": 2}),
                Defended("noise", {"scale": 2, "kind": "laplace"}),
            ],
            [0],
            r"\(kind laplace, scale 2\)",
        ),
    ],
)
def test_a_grid_of_nothing_or_of_twice_the_same_is_refused(lines, seeds, said):
    with pytest.raises(UserError, match=said):
        cells(lines, seeds)


def test_commands():
    line = Defended("crafter", {"craft.steps": 3}, {"beta": 0.5, "critic": "adapted"})
    (cell,) = cells([line], [2])
    fit, protect = cell.fitted(PLACE), cell.protected(PLACE, "private_train")
    assert fit[:3] == ["fit", "--config", str(CONF / "crafter.yaml")]
    assert options(fit) >= {
        ("--name", "crafter-steps3-seed2"),
        ("--seed_everything", "2"),
        ("--data.order_seed", "2"),
        ("--model.init_args.craft.steps", "3"),
        ("--ckpt_path", "last"),
    }
    assert options(protect) >= {
        ("--protect.beta", "0.5"),
        ("--protect.critic", "adapted"),
        ("--protect.seed", "2"),
        ("--data.predict_split", "private_train"),
        ("--protect.out", cell.store(PLACE, "private_train")),
    }
    own = {"adaptive_black_box": {"trainer.max_epochs": 7}, "task": {"model.init_args.lr": 0.5}}
    place = replace(PLACE, fit_options=own)
    run, attack = cell.attacked(place, "adaptive_black_box")
    assert run == "adaptive_black_box-crafter-steps3-beta0.5-adapted-seed2"
    assert options(attack) >= {
        ("--model.init_args.defense_ckpt", PLACE.checkpoint(cell.run)),
        ("--model.init_args.protect.beta", "0.5"),
        ("--model.init_args.protect.critic", "adapted"),
        ("--trainer.max_epochs", "7"),
    }
    cheap = replace(cell, line=replace(line, attack={"trainer.max_epochs": 3}))
    assert ("--trainer.max_epochs", "3") in options(cheap.attacked(PLACE, "adaptive_black_box")[1])
    run, cloud = cell.cloud(PLACE)
    assert run == f"cloud-{cell.name}"
    assert ("--model.init_args.test_store", cell.store(PLACE)) in options(cloud)
    assert ("--model.init_args.lr", "0.5") in options(place.command("fit", "task", None, {}))
    assert "--model.init_args.lr" not in place.command("predict", "task", None, {})
    asked = ["fit", "--config", str(CONF / "task.yaml"), "--experiment", "synthetic"]
    assert place.upstream(asked) == [*asked, "--ckpt_path", "last", "--model.init_args.lr", "0.5"]
    with pytest.raises(UserError, match=r"no config .*unheard.yaml"):
        PLACE.command("fit", "unheard", None, {})


def options(args):
    return set(pairwise(args))


@pytest.mark.parametrize("fast", [True, False])
def test_crafting_in_bfloat16_where_the_processor_has_it(fast, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    given = ["--configs", str(CONF), "--audit", str(CONF / "benchmark_audit.yaml")]
    line = "--defenses=[{stage: crafter, protect: {precision: bf16, beta: 1}}]"
    budget = ["--budget", "tiny", "--oracles", "[oracle_plain]", "--attackers", "[adaptive_black_box]"]
    more = ["--device", "cpu", "--runs_dir", str(tmp_path), "--plan", "true"]
    assert main(["benchmark", *given, line, *budget, *more]) == 0
    printed = capsys.readouterr().out
    assert ("--protect.precision bf16" in printed) is fast
    assert ("--protect.precision float32" in printed) is not fast
    assert ("float32" in printed) is not fast
