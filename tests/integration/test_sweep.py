"""The sweep over cuts: one task model, one amortizer, one decoder and one audit for each."""

import json
import shutil

from experiment import CONF

from crafter_pl.cli import main
from crafter_pl.files import sha256


def command(runs_dir, cuts, conf=CONF):
    places = ["--configs", str(conf), "--audit", str(CONF / "audit.yaml"), "--runs_dir", str(runs_dir)]
    return ["sweep", *places, "--cuts", cuts, "--decoder", "black_box", "--steps", "2", "--workers", "2"]


def test_deeper_features_are_of_another_shape_and_audited_each(tiny, tmp_path, capsys):
    runs = tmp_path / "runs"
    for stage in ("prior", "oracle_resnet", "oracle_plain"):
        shutil.copytree(tiny.folder / stage, runs / "synthetic" / stage)
    conf = shutil.copytree(CONF, tmp_path / "conf")
    oracle = (
        conf / "oracle_plain.yaml"
    ).read_text()  # its config asks for more epochs than it was trained for
    longer = (conf / "_trainer.yaml").read_text().replace("max_epochs: 1", "max_epochs: 2")
    (conf / "_longer.yaml").write_text(longer)
    (conf / "oracle_plain.yaml").write_text(oracle.replace("_trainer.yaml", "_longer.yaml"))
    kept = {path: sha256(path) for path in runs.glob("synthetic/*/checkpoints/best.ckpt")}
    assert main(command(runs, "[layer1, layer2]", conf)) == 0
    assert {path: sha256(path) for path in kept} == kept, "what is trained is taken as it is"
    folder = runs / "synthetic" / "cuts-resnet18"
    rows = json.loads((folder / "cuts.json").read_text())
    assert [(row["cut"], row["shape"]) for row in rows] == [("layer1", [64, 8, 8]), ("layer2", [128, 4, 4])]
    assert rows[0]["edge_parameters"] < rows[1]["edge_parameters"]
    for row in rows:
        (none,) = json.loads((folder / row["cut"] / "report.json").read_text())["defenses"]
        assert row["worst_case"] == none["worst_case"]["eval_acc"] and set(row["attacks"]) == set(
            none["attacks"]
        )
        assert (runs / f"synthetic-resnet18-{row['cut']}" / "black_box" / "summary.json").is_file()
    printed = capsys.readouterr().out
    assert (folder / "table.md").read_text() in printed and "| layer2 | 128×4×4 |" in printed
    assert (folder / "cuts.png").read_bytes().startswith(b"\x89PNG")
    assert main(command(runs, "[layer1, layer2]", conf)) == 0
    assert "min" not in capsys.readouterr().out.split("| cut")[0], "everything was there"


def test_what_cannot_be_swept_is_refused_before_anything_runs(tiny, tmp_path, capsys):
    runs = tmp_path / "runs"
    for stage in ("prior", "oracle_resnet", "oracle_plain"):
        shutil.copytree(tiny.folder / stage, runs / "synthetic" / stage)
    before = sorted(runs.rglob("*"))
    for words, given in (
        ("layer9", command(runs, "[layer1, layer9]")),
        ("--cuts", command(runs, "[]")),
        ("--workers is 0", [*command(runs, "[layer1]"), "--workers", "0"]),
        ("nothere.yaml", [*command(runs, "[layer1]"), "--audit", "nothere.yaml"]),
    ):
        assert main(given) == 2
        assert words in capsys.readouterr().err
    assert sorted(runs.rglob("*")) == before
