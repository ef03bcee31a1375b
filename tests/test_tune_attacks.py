"""The search for an attack's settings, on the tiny experiment and against figures made up."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import yaml
from experiment import load_script

from crafter_pl.attacks import DecoderAttack, WhiteBoxAttack
from crafter_pl.audit.bootstrap import IdentityBootstrap
from crafter_pl.errors import UserError
from crafter_pl.stages import IdentityOracle, TaskModel, load_stage

ROOT = Path(__file__).parent.parent
FACES = 14  # of 11 people: of three of them two


@pytest.fixture(scope="module")
def tune():
    return load_script("tune_attacks")


@pytest.fixture
def run(tune, tiny, tmp_path, monkeypatch):
    """`run("--attack", ...)` on a copy of the tiny audit config; returns that config and the results.

    The tiny public_val is one person, which is refused: here public_train stands for it.
    """
    assert tune.SPLIT == "public_val"
    monkeypatch.setattr(tune, "SPLIT", "public_train")
    config = tmp_path / "audit.yaml"
    text = (ROOT / "tests" / "conf" / "audit.yaml").read_text()
    config.write_text(text.replace("synthetic.yaml", str(ROOT / "tests" / "conf" / "synthetic.yaml")))

    def go(*more):
        tune.main(
            [*tiny.audit()[1:], "--config", str(config), "--features", "[]", "--faces", str(FACES), *more]
        )
        found = tiny.folder / "tuning" / f"{more[more.index('--attack') + 1]}.json"
        return config, list(json.loads(found.read_text()).values())

    yield go
    for file in (tiny.folder / "tuning").glob("*"):
        file.unlink()


def test_a_search_from_grid_to_config(tune, tiny, run, capsys, monkeypatch):
    grid = ["--attack", "white_box", "--grid", "steps=[0,2]", "lr=[0.1]", "restarts=[1]"]
    config, results = run(*grid, "--best", "--write")
    tried = [{"steps": 0, "lr": 0.1, "restarts": 1}, {"steps": 2, "lr": 0.1, "restarts": 1}]
    tried.append({"steps": 3, "lr": 0.05, "restarts": 2})  # the config's own setting stands trial, too
    assert sorted((r["setting"] for r in results), key=lambda s: s["steps"]) == tried
    best = max(results, key=lambda r: r["similarity"]["value"])["setting"]
    text = capsys.readouterr().out
    assert f"chosen: {tune.shown(best)}\nwritten to {config}" in text and "3 settings, 0 done before" in text
    assert yaml.safe_load(config.read_text())["attacks"][0]["init_args"] == best
    head = (ROOT / "tests" / "conf" / "audit.yaml").read_text().splitlines()[0]
    assert config.read_text().splitlines()[0] == head
    lines = (tiny.folder / "tuning" / "white_box.csv").read_text().splitlines()
    assert len(lines) == 4 and lines[0].startswith("steps,lr,restarts,similarity,rank1,pixel_error")

    # A second run attacks with what is new alone. Its config names the winner now.
    calls = []
    measure = tune.measure
    monkeypatch.setattr(tune, "measure", lambda bench, attack: calls.append(attack) or measure(bench, attack))
    run(*grid)
    assert not calls
    _, more = run("--attack", "white_box", "--grid", "steps=[0,1]", "lr=[0.1]", "restarts=[1]")
    assert [attack.steps for attack in calls] == [1] and len(more) == 4
    assert [r for r in more if r["setting"]["steps"] != 1] == results
    monkeypatch.setattr(WhiteBoxAttack, "version", 99)
    run("--attack", "white_box", "--grid", "steps=[1]", "lr=[0.1]", "restarts=[1]")
    assert 1 in [attack.steps for attack in calls[1:]]


def test_figures_of_a_setting(tune, tiny, run):
    """Against the definitions, one face at a time; the attack is the decoder, whose pictures are known."""
    _, (result,) = run("--attack", "black_box", "--grid", "batch_size=[64]")
    data, task = tiny.data(), load_stage(tiny.ckpt("task"), TaskModel)
    rows = data.rows("public_train")
    people = rows["identity"].unique()
    attack = DecoderAttack(tiny.ckpt("black_box"))
    attack.prepare("cpu")
    turns = [(rows["identity"] == person).nonzero()[:, 0] for person in people]
    chosen = [int(turn[place]) for place in range(8) for turn in turns][:FACES]
    similarities, ranks, errors, losses = [], [], [], []
    with torch.no_grad():
        features = task.edge(rows["image"][chosen])
        made = attack.reconstruct(features)
        for number, row in enumerate(chosen):
            similar, hits = [], []
            for name in ("oracle_resnet", "oracle_plain"):
                oracle = load_stage(tiny.ckpt(name), IdentityOracle)
                mine, all_of_them = oracle.embed(made[[number]])[0], oracle.embed(rows["image"])
                similar.append(float(mine @ all_of_them[row]))
                distance = (all_of_them - mine).norm(dim=1)
                distance[row] = 9.0
                hits.append(float(rows["identity"][distance.argmin()] == rows["identity"][row]))
            similarities.append(sum(similar) / 2)
            ranks.append(sum(hits) / 2)
            errors.append(float((made[number] - rows["image"][row]).square().mean()))
            losses.append(float((task.edge(made[[number]])[0] - features[number]).square().mean()))
    assert result["per_face"] == pytest.approx(similarities, abs=1e-5)
    for name, values in (("similarity", similarities), ("rank1", ranks), ("pixel_error", errors)):
        assert result[name]["value"] == pytest.approx(sum(values) / FACES, abs=1e-5), name
    assert result["feature_loss"]["value"] == pytest.approx(sum(losses) / FACES, rel=1e-4)
    assert result["seconds_per_face"] > 0


def test_only_public_people_are_attacked(tune, tiny, run, monkeypatch):
    seen = []
    make = tune.make_bench
    monkeypatch.setattr(tune, "make_bench", lambda *args: seen.append(make(*args)) or seen[0])
    run("--attack", "black_box", "--grid", "batch_size=[64]")
    (bench,) = seen
    data = tiny.data()
    private = set(data.private_identities.tolist())
    assert not private & {*bench.identity.tolist(), *bench.owner.tolist()}
    assert set(bench.owner.tolist()) == set(data.rows("public_train")["identity"].tolist())


def test_one_person_alone_is_refused(tune, run, monkeypatch):
    monkeypatch.setattr(tune, "SPLIT", "public_val")
    with pytest.raises(
        UserError, match="1 people of public_val have two pictures or more, and --faces is 14"
    ):
        run("--attack", "black_box", "--grid", "batch_size=[64]")


def test_what_must_be_noted_of_any_setting_is_said(tune, tmp_path, monkeypatch, capsys):
    bench = SimpleNamespace(split_hash="s", key=[], images=[0], boot=SimpleNamespace(people=2))
    found = iter([["first"], [], ["both", "first"]])
    monkeypatch.setattr(tune.inputs, "check_adversary", lambda attack, split_hash: next(found))
    made = {"similarity": {"value": 0.5, "ci95": [0.4, 0.6]}}
    monkeypatch.setattr(tune, "measure", lambda bench, attack: made | dict.fromkeys(tune.COLUMNS[1:], 0.1))
    attacks = [Mock(describe=lambda number=number: {"number": number}) for number in range(3)]
    bench.features, bench.device = [], "cpu"
    tune.search(bench, tmp_path / "tuning" / "x", [{"a": n} for n in range(3)], attacks)
    said = capsys.readouterr().out
    assert said.count("note: first\n") == 1 and "note: both\n" in said


def made_up(*rows):
    return [
        {
            "setting": {"a": n},
            "similarity": {"value": sum(values) / 4},
            "per_face": values,
            "seconds_per_face": s,
        }
        for n, (values, s) in enumerate(rows)
    ]


def test_the_cheapest_that_is_as_good(tune):
    boot = IdentityBootstrap([1, 2, 3, 4], 200)
    results = made_up(([0.5, 0.6, 0.7, 0.8], 4.0), ([0.6, 0.5, 0.7, 0.7], 2.0), ([0.4, 0.5, 0.6, 0.7], 1.0))
    assert tune.choose(results, boot, best=True)["setting"] == {"a": 0}
    # The second is better for one person and worse for another; the third is worse by 0.1 for everybody.
    assert tune.choose(results, boot, best=False)["setting"] == {"a": 1}
    assert results[2]["behind"]["ci95"] == pytest.approx([0.1, 0.1])
    assert results[0]["behind"] == {"value": 0, "ci95": [0, 0]}


def test_faces_are_dealt_over_people(tune):
    identity = torch.tensor([7, 7, 7, 3, 9, 9])
    assert tune.spread(identity, 3).tolist() == [0, 4, 1]  # 3 has one picture only: nothing to find him by
    assert tune.spread(identity, 99).tolist() == [0, 4, 1, 5, 2]
    with pytest.raises(UserError, match="1 people of public_val have two pictures or more"):
        tune.spread(torch.tensor([7, 7, 3]), 3)


FORMS = """# head
attacks: # which
  - class_path: A # a
    init_args: {steps: 100, lr: 0.05} # tail
  - class_path: B   # no settings
  - {class_path: C}
  - class_path: D
    init_args:
      # inner
      steps: 3   # three

      name: d
  - E
oracles: [a]
"""


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_writing_touches_nothing_else(tune, tmp_path, place):
    file = tmp_path / "audit.yaml"
    file.write_text(FORMS)
    setting = {"steps": 7, "lr": 1e-5, "radii": [1, 2.5], "amortizer_ckpt": "none"}
    tune.write_setting(file, ("attacks", place), setting)
    expected = yaml.safe_load(FORMS)
    expected["attacks"][place].setdefault("init_args", {}).update(setting)
    assert yaml.safe_load(file.read_text()) == expected
    comments = ["# head", "# which", "# a\n", "# tail", "# no settings", "# inner", "# three"]
    assert all(comment in file.read_text() for comment in comments)
    before, after = FORMS.splitlines(), file.read_text().splitlines()
    assert sum(line not in after for line in before) <= 1


def test_writing_into_a_budget(tune, tmp_path):
    file = tmp_path / "audit.yaml"
    indented = (
        FORMS.replace("attacks: # which", "strong:").replace("\n", "\n  ").replace("# head", "budgets:", 1)
    )
    file.write_text(indented.replace("  oracles: [a]\n  ", "oracles: [a]\n"))
    tune.write_setting(file, ("budgets", "strong", 1), {"steps": 7})
    written = yaml.safe_load(file.read_text())
    assert written["budgets"]["strong"][1] == {"class_path": "B", "init_args": {"steps": 7}}
    assert written["oracles"] == ["a"] and len(written["budgets"]["strong"]) == 5


def test_what_cannot_be_written(tune, tmp_path):
    file = tmp_path / "audit.yaml"
    for text, place in ((FORMS, 4), (FORMS, 5), ("oracles: [a]\n", 0), ("attacks: other.yaml\n", 0)):
        file.write_text(text)
        with pytest.raises(UserError, match=r"does not list this attack .*put steps 7 in by hand"):
            tune.write_setting(file, ("attacks", place), {"steps": 7})
        assert file.read_text() == text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--attack", "other"], "--attack other: the config has white_box, black_box"),
        (["--attack", "black_box"], "has no grid for DecoderAttack"),
        (["--attack", "white_box", "--grid", "steps"], "write a setting and a list of values"),
        (["--attack", "white_box", "--grid", "steps=3"], "write a setting and a list of values"),
        (["--attack", "white_box", "--grid", "lr=[-1.0]"], "lr -1.0 above 0"),
        (["--attack", "white_box", "--grid", "steps=[1]", "--oracles", "[]"], "needs an oracle"),
    ],
)
def test_mistakes(run, more, message):
    with pytest.raises(UserError, match=message):
        run(*more)


@pytest.mark.parametrize(
    ("script", "args", "words"),
    [
        (
            "tune_attacks",
            "--config tests/conf/audit.yaml --attack other --features [] --oracles []",
            "--attack other",
        ),
        ("bench_crafting", "--ckpt absent.ckpt", "no checkpoint absent.ckpt"),
    ],
)
def test_mistakes_of_scripts_are_one_message(script, args, words):
    command = [sys.executable, f"scripts/{script}.py", *args.split()]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and ended.stderr.startswith("error: "), ended.stderr
    assert words in ended.stderr


def test_default_grids_are_of_settings_that_exist(tune):
    import crafter_pl.attacks

    grids = yaml.safe_load(tune.GRIDS.read_text())["grids"]
    assert tune.default_grid(WhiteBoxAttack()) == grids["WhiteBoxAttack"]
    for kind, grid in grids.items():
        for values in zip(*grid.values(), strict=False):
            getattr(crafter_pl.attacks, kind)(**dict(zip(grid, values, strict=True)))
