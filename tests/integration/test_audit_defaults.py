"""What an audit finds by itself in the experiment's folder, and what it refuses before any attack."""

import json
import shutil
from pathlib import Path

import pytest
from experiment import CONF

from crafter_pl.audit import find
from crafter_pl.cli import main
from crafter_pl.commands import Commands
from crafter_pl.errors import UserError


def run(home, name, stage, finished=True):
    file = home / name / "checkpoints" / "best.ckpt"
    file.parent.mkdir(parents=True)
    file.touch()
    if finished:
        (home / name / "summary.json").write_text(json.dumps({"stage": stage}))
    return str(file)


def test_oracles_of_the_experiment(tmp_path):
    home = tmp_path / "e"
    commands = Commands(home)
    with pytest.raises(UserError, match=r"oracle_resnet.yaml[\s\S]*oracle_plain.yaml"):
        find.find_oracles(commands, None)
    with pytest.raises(UserError, match="needs an oracle"):
        find.find_oracles(commands, [])
    with pytest.raises(UserError, match=r"oracle_robust.yaml"):
        find.find_oracles(commands, ["oracle_robust"])
    mine, plain = run(home, "mine", "oracle"), run(home, "oracle_plain", "oracle")
    run(home, "task", "task")
    assert find.find_oracles(commands, None) == ([plain, mine], [])
    found, notes = find.find_oracles(commands, ["mine", "oracle_robust", plain])
    assert found == [mine, plain]
    assert len(notes) == 1 and "configs/oracle_robust.yaml" in notes[0]
    for wrong in ("oracel_plain", str(tmp_path / "none.ckpt")):
        with pytest.raises(UserError, match=r"mine, oracle_plain, task"):
            find.find_oracles(commands, [wrong])


def test_stores_of_the_experiment(tmp_path, tiny_store):
    home = tmp_path / "e"
    with pytest.raises(UserError, match="no store of private_test"):
        find.find_stores(home, None)
    first, second = (home / "crafter" / "features" / f"private_test-{name}" for name in ("a", "b"))
    shutil.copytree(tiny_store, first)
    assert find.find_stores(home, None) == [str(first)]
    assert find.find_stores(home, []) == []
    shutil.copytree(tiny_store, second)
    with pytest.raises(UserError, match=r"private_test-a\n.*private_test-b"):
        find.find_stores(home, None)
    assert find.find_stores(home, ["b", "private_test-a", str(second)]) == [
        str(second),
        str(first),
        str(second),
    ]
    assert find.find_stores(home, ["crafter/a"]) == [str(first)]
    with pytest.raises(UserError, match=r"--features c: [\s\S]*private_test-b"):
        find.find_stores(home, ["c"])
    half = home / "crafter" / "features" / "private_test-half"
    half.mkdir()
    with pytest.raises(UserError, match="not finished"):
        find.find_stores(home, ["half"])
    assert find.find_stores(home, ["crafter/a"]) == [str(first)]
    shutil.copytree(first, home / "other" / "features" / first.name)
    with pytest.raises(UserError, match="are several"):
        find.find_stores(home, ["a"])


def test_the_task_model_of_the_experiment(tmp_path):
    home = tmp_path / "synthetic"
    with pytest.raises(UserError, match=r"configs/task.yaml"):
        find.find_task(Commands(home), None)
    task, other = run(home, "task", "task"), run(home, "task_small", "task")
    assert [str(find.find_task(Commands(home), given)) for given in (None, "task_small", task)] == [
        task,
        other,
        task,
    ]
    with pytest.raises(UserError, match="--task_ckpt"):
        find.find_task(Commands(home), str(tmp_path / "none.ckpt"))


def test_an_audit_of_the_experiment_as_it_is(tiny, tiny_store, tmp_path):
    """No features, no oracles, no task are named."""
    out = tmp_path / "audit"
    assert (
        main(
            tiny.command(
                "audit", "audit", "--attacks", "DecoderAttack", "--features", "beta1", "--out", str(out)
            )
        )
        == 0
    )
    report = json.loads((out / "report.json").read_text())
    assert [oracle["name"] for oracle in report["oracles"]][:2] == ["resnet", "plain_grey"]
    assert report["settings"]["features"] == [str(tiny_store)]
    assert report["verdict"].startswith(("No figure of protection", "This audit cannot", "No measurable"))
    assert report["defenses"][1]["attacks"]["black_box"]["learnt"] is False


@pytest.mark.parametrize("verb", ["audit", "oracle_plain", "feature_to_id"])
def test_one_private_person_is_refused_before_anything_is_done(verb, tiny, tiny_store, tmp_path, capsys):
    """Whoever guesses is right: no attack runs and no net is trained."""
    one = ["--data.private_people", "1", "--data.people", "17"]
    if verb == "audit":
        args = tiny.audit(*one, "--out", str(tmp_path / "audit"))
    else:
        task = ["--model.init_args.task_ckpt", tiny.ckpt("task")] if verb == "feature_to_id" else []
        args = [
            "fit",
            "--config",
            str(CONF / f"{verb}.yaml"),
            "--runs_dir",
            str(tmp_path / "runs"),
            *one,
            *task,
        ]
    assert main(args) == 2
    said = capsys.readouterr().err
    assert "1 person" in said and "--data.private_people" in said
    assert not list(Path(tmp_path).rglob("*.ckpt")) and not (tmp_path / "audit" / "report.json").exists()


def test_people_who_are_not_known_are_found_before_any_attack(monkeypatch, tmp_path):
    from audit_lab import Echo, FakeOracle, make_lab

    lab, attack = make_lab(tmp_path, monkeypatch), Echo()
    lab.stages["strange"] = FakeOracle("strange", identities=[1, 2, 3])
    with pytest.raises(UserError, match="other people"):
        lab.run(oracles=["strange"], attacks=[attack])
    assert attack.seen == []
