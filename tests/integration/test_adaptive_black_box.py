"""The adaptive black-box attack: its rounds, its checkpoints, which decoder it uses, several processes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from black_box_lab import fit
from closeness import near
from experiment import Told
from rounds import ROUNDS, WHOLE, fit_in_parts, same, weights
from torch.nn import functional as F

from crafter_pl.attacks.adaptive_black_box import AdaptiveBlackBox, AdaptiveDecoderAttack
from crafter_pl.attacks.averaged import AveragedAttack
from crafter_pl.attacks.base import Target
from crafter_pl.attacks.black_box import BlackBox, DecoderAttack
from crafter_pl.audit.load import Published
from crafter_pl.cli import main
from crafter_pl.data.store import read_manifest, read_shard, read_store
from crafter_pl.defenses import load_defense
from crafter_pl.errors import UserError
from crafter_pl.stages import load_stage, sha256
from crafter_pl.stages.checkpoints import read_checkpoint


@pytest.fixture(scope="module")
def trained(tiny):
    """Two rounds, by one process."""
    assert main(fit(tiny, "adaptive_black_box", *ROUNDS, *WHOLE)) == 0
    return tiny.folder / "adaptive_black_box"


@pytest.fixture(scope="module")
def manifest(tiny_store):
    return read_manifest(tiny_store)


# Training


def test_rounds_query_more_and_are_kept(tiny, trained):
    expected = {"round-00": (0, 0, 0), "round-01": (1, 16, 2), "round-02": (2, 32, 4), "last": (2, 32, 4)}
    for name, progress in expected.items():
        said = read_checkpoint(trained / "checkpoints" / f"{name}.ckpt")["adaptation"]
        assert (said["round"], said["pairs"], said["epochs"]) == progress, name
        assert said["defense"] == "crafter" and said["settings"]["beta"] == 1.0
        assert said["defense_sha256"] == load_defense(tiny.ckpt("crafter")).weights_hash()
    start = load_stage(trained / "checkpoints" / "round-00.ckpt", AdaptiveBlackBox)
    basic = load_stage(tiny.ckpt("black_box"), BlackBox)
    assert same(start.net.state_dict(), basic.net.state_dict())
    first, second = (
        load_stage(trained / "checkpoints" / f"round-0{n}.ckpt", AdaptiveBlackBox) for n in (1, 2)
    )
    assert not same(start.net.state_dict(), first.net.state_dict())
    assert not same(first.net.state_dict(), second.net.state_dict())
    light, last = (trained / "checkpoints" / f"{name}.ckpt" for name in ("round-02", "last"))
    assert light.stat().st_size < 0.6 * last.stat().st_size  # no optimizer state


def test_it_may_start_from_a_decoder_that_reads_answers(tiny):
    name = "adaptive_answers"
    told = ["--model.init_args.reads", "answers", "--name", "black_box_answers"]
    assert main(tiny.command("fit", "black_box", "--ckpt_path", "last", *told)) == 0
    start = tiny.ckpt("black_box_answers")
    assert main(fit(tiny, name, *ROUNDS, "--model.init_args.black_box_ckpt", start)) == 0
    before = load_stage(start, BlackBox).net.state_dict()
    after = load_stage(tiny.ckpt(name), AdaptiveBlackBox).net.state_dict()
    assert before.keys() == after.keys()
    weights = [key for key in before if key.endswith("weight") and key.startswith("classifier")]
    assert weights and not any(torch.equal(before[key], after[key]) for key in weights)  # it may be retrained


def test_the_last_round_is_the_attack(tiny, trained):
    (queries,) = (tiny.folder / "queries").glob("*/public_val")
    features, index, manifest = read_store(queries, split="public_val")
    images = tiny.data().dataset("public_val").take(index)["image"]
    assert manifest["count"] == 4

    def error(name):
        stage = load_stage(trained / "checkpoints" / f"{name}.ckpt", AdaptiveBlackBox)
        with torch.no_grad():
            return F.mse_loss(stage.reconstruct(features), images).item()

    said = json.loads((trained / "summary.json").read_text())["metrics"]
    assert error("last") == pytest.approx(said["val/l2"], rel=1e-4)
    assert error("best") == error("last")  # the last round, not the smallest error
    assert error("best") != error("round-00")


def test_pairs_are_what_the_defence_makes_of_public_faces(tiny, trained):
    (folder,) = (tiny.folder / "queries").glob("*/public_train")
    features, index, manifest = read_store(folder, split="public_train")
    assert manifest["count"] == 32 and manifest["split_hash"] == tiny.data().split_hash
    assert set(index.tolist()) <= set(tiny.data().dataset("public_train").index.tolist())
    features, index = read_shard(folder, "shard-00002.safetensors", manifest)
    images = tiny.data().dataset("public").take(index)["image"]
    defense = load_defense(tiny.ckpt("crafter"))
    assert torch.equal(Told(defense).protect(images, index), features)
    with torch.no_grad():
        assert not torch.allclose(defense.task.edge(images), features, atol=1e-2)


def test_another_run_crafts_nothing_again(tiny, trained, monkeypatch):
    defense = type(load_defense(tiny.ckpt("crafter")))
    monkeypatch.setattr(defense, "protect", lambda *_: pytest.fail("crafted again"))
    assert main(fit(tiny, "again", *ROUNDS, *WHOLE)) == 0
    assert same(weights(tiny.folder / "again"), weights(trained))


@pytest.mark.parametrize("epochs", ["in the second round", "added rounds"])
def test_resumed_equals_straight(tiny, trained, epochs):
    name = "stopped" if epochs == "in the second round" else "longer"
    fit_in_parts(fit(tiny, name, *ROUNDS, *WHOLE), epochs)
    assert same(weights(tiny.folder / name), weights(trained))
    kept = {path.name for path in (tiny.folder / name / "checkpoints").iterdir()}
    kept -= {path for path in kept if path.startswith("best-")}  # of the shorter training
    assert kept == {f"{n}.ckpt" for n in ("best", "last", "round-00", "round-01", "round-02")}


# The attack


def aimed(tiny, target, among=None, **settings):
    return AdaptiveDecoderAttack(**settings).against(target, tiny.commands, among)


def test_it_chooses_the_decoder_that_was_trained_against_this_defence(tiny, trained, manifest, tmp_path):
    features = torch.randn(5, 64, 8, 8, generator=torch.Generator().manual_seed(1))
    attack = aimed(tiny, Target(manifest, None), batch_size=2)
    best = trained / "checkpoints" / "best.ckpt"
    assert attack.describe()["checkpoints"] == {"adaptive_black_box": sha256(best)}
    attack.prepare("cpu")
    with torch.no_grad():
        expected = load_stage(best, AdaptiveBlackBox).reconstruct(features)
    assert near(attack.reconstruct(features), expected)
    # Also where it inverts the mean of several queries.
    averaged = AveragedAttack(AdaptiveDecoderAttack())
    averaged = averaged.against(Target(manifest, None), tiny.commands)
    assert averaged.describe()["checkpoints"] == {"adaptive_black_box": sha256(best)}
    averaged.prepare("cpu")
    seen = averaged.observe(torch.stack([features - 1, features + 1]))
    assert near(averaged.reconstruct(seen), expected, steps=10)
    # The seed is the defender's; a store of an older version has no hash, but its checkpoint has.
    settings = {**manifest["settings"], "seed": 5}
    aimed(tiny, Target({**manifest, "settings": settings}, None))
    old = {key: value for key, value in manifest.items() if key != "defense_sha256"}
    aimed(tiny, Target(old, load_defense(tiny.ckpt("crafter"))))
    # Unprotected features: the decoder that adaptation began with.
    attack = aimed(tiny, None)
    attack.prepare("cpu")
    assert attack.describe()["checkpoints"] == {"black_box": sha256(tiny.ckpt("black_box"))}
    basic = DecoderAttack(tiny.ckpt("black_box"))
    basic.prepare("cpu")
    assert {**attack.describe(), "name": ""} == {**basic.describe(), "name": ""}
    assert near(attack.reconstruct(features), basic.reconstruct(features))


@pytest.mark.parametrize("change", ["beta", "weights", "defense", "no weights"])
def test_no_decoder_for_another_defence(tiny, trained, manifest, change):
    other = {**manifest, "settings": dict(manifest["settings"])}
    if change == "beta":
        other["settings"]["beta"] = 0.5
    elif change == "weights":
        other["defense_sha256"] = "0" * 64
    elif change == "defense":
        other["defense"] = "noise"
    else:
        del other["defense_sha256"]
    with pytest.raises(UserError, match="adaptive_black_box") as error:
        aimed(tiny, Target(other, None))
    line = str(error.value).partition("python -m crafter_pl fit ")[2]
    assert line.startswith("--config configs/attacks/adaptive_black_box.yaml")
    assert f"--runs_dir {tiny.runs_dir}" in line
    told = f"--model.init_args.protect.beta {other['settings']['beta']}" in line
    assert told == (change != "defense"), "noise has no beta"
    assert ("--model.init_args.defense_ckpt" in line) == (change == "defense")
    assert f"--name adaptive_black_box-{other['defense']}-" in line
    with pytest.raises(UserError, match=r"round-01\.ckpt"):
        aimed(tiny, Target(other, None), ckpt=str(trained / "checkpoints" / "round-01.ckpt"))


def test_the_command_names_the_defence_that_made_the_store(tiny, manifest):
    """Of another run than the experiment's own, too: ``crafter_z`` is of the class of ``crafter``."""
    other = {**manifest, "defense_sha256": "0" * 64}
    for run in ("crafter", "crafter_z"):
        path = tiny.folder / run / "checkpoints" / "best.ckpt"
        with pytest.raises(UserError) as error:
            aimed(tiny, Target(other, None, checkpoint=str(path)))
        line = str(error.value)
        assert f"--name adaptive_black_box-{run}-beta1" in line
        assert (f"--model.init_args.defense_ckpt {path}" in line) == (run == "crafter_z")
    published = Published(tiny.folder, "cpu")
    for run, found in (("crafter", "crafter"), ("crafter_z", "crafter_z")):
        store = tiny.folder / run / "features" / "x"
        target, _ = published.target(str(store), {**other, "settings": {}})
        assert target.checkpoint == str(tiny.folder / found / "checkpoints" / "best.ckpt")


def test_options_unlike_the_trainings_are_in_the_name(tiny, manifest):
    """Two stores of one checkpoint, told otherwise, are learnt from in two runs."""
    defense = load_defense(tiny.ckpt("crafter"))
    settings = {**manifest["settings"], "steps": 7}
    with pytest.raises(UserError) as error:
        aimed(tiny, Target({**manifest, "settings": settings}, defense))
    said = str(error.value)
    assert "crafter (beta 1, steps 7)" in said and "--model.init_args.protect.steps 7" in said
    assert "--name adaptive_black_box-crafter-beta1-steps7 " in said


def test_a_run_of_any_name_is_found_and_others_are_named(tiny, trained, manifest):
    target, mine = Target(manifest, None), tiny.folder / "mine"
    other = {**manifest, "settings": {**manifest["settings"], "beta": 0.5}}
    try:
        shutil.copytree(trained, mine)
        content = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
        content["adaptation"]["pairs"] += 1
        torch.save(content, mine / "checkpoints" / "best.ckpt")
        assert Path(aimed(tiny, target).checkpoint("adaptive_black_box")).is_relative_to(mine)
        with pytest.raises(UserError, match=r"mine .*beta 1\.0"):
            aimed(tiny, Target(other, None))
        content["upstream"]["black_box"][1] = "0" * 64  # another decoder to begin with
        torch.save(content, mine / "checkpoints" / "best.ckpt")
        assert Path(aimed(tiny, target).checkpoint("adaptive_black_box")).is_relative_to(trained)
    finally:
        shutil.rmtree(mine)


def test_earlier_rounds_as_attacks(tiny, trained, manifest):
    attack = aimed(tiny, Target(manifest, None))
    features = torch.randn(2, 64, 8, 8, generator=torch.Generator().manual_seed(1))
    moments = attack.history()
    assert [moment for moment, _ in moments] == [
        {"round": n, "pairs": 16 * n, "epochs": 2 * n} for n in range(3)
    ]
    for number, (_, earlier) in enumerate(moments):
        earlier.prepare("cpu")
        stage = load_stage(trained / "checkpoints" / f"round-0{number}.ckpt", AdaptiveBlackBox)
        with torch.no_grad():
            assert torch.equal(earlier.reconstruct(features), stage.reconstruct(features))
    assert attack.checkpoint("adaptive_black_box").endswith("best.ckpt")
    assert aimed(tiny, None).history() == []


def test_rounds_are_in_the_order_of_their_numbers(tiny, trained, manifest, tmp_path):
    content = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    torch.save(content, tmp_path / "best.ckpt")
    for number in (9, 10, 11, 100):
        content["adaptation"]["round"] = number
        torch.save(content, tmp_path / f"round-{number:02d}.ckpt")
    attack = aimed(tiny, Target(manifest, None), ckpt=str(tmp_path / "best.ckpt"))
    assert [moment["round"] for moment, _ in attack.history()] == [9, 10, 11, 100]


def test_a_round_can_be_named_and_most_pairs_win(tiny, trained, manifest):
    target, rounds = Target(manifest, None), trained / "checkpoints"
    given = aimed(tiny, target, ckpt=str(rounds / "round-01.ckpt"))
    assert given.checkpoints == {"adaptive_black_box": str(rounds / "round-01.ckpt")}
    more = tiny.folder / "adaptive_black_box-more"
    try:
        shutil.copytree(trained, more)
        content = torch.load(rounds / "best.ckpt", weights_only=True)
        given = dict(content["adaptation"])
        # More epochs count among equal pairs; the name of the folder never does.
        for pairs, epochs, chosen in ((1, -1, more), (0, 1, more), (0, -1, trained), (-1, 9, trained)):
            changed = {"pairs": given["pairs"] + pairs, "epochs": given["epochs"] + epochs}
            torch.save({**content, "adaptation": given | changed}, more / "checkpoints" / "best.ckpt")
            assert Path(aimed(tiny, target).checkpoint("adaptive_black_box")).is_relative_to(chosen)
            for only in (more, trained):
                file = str(only / "checkpoints" / "best.ckpt")
                assert aimed(tiny, target, among=[file]).checkpoint("adaptive_black_box") == file
        (more / "summary.json").unlink()  # not finished
        assert aimed(tiny, target).checkpoint("adaptive_black_box").startswith(str(trained / "checkpoints"))
        with pytest.raises(UserError, match="--adapted"):
            aimed(tiny, target, among=[])
        with pytest.raises(UserError, match="adaptive_black_box-lost"):
            aimed(
                tiny,
                target,
                among=[str(more.with_name("adaptive_black_box-lost") / "checkpoints" / "best.ckpt")],
            )
    finally:
        shutil.rmtree(more)
