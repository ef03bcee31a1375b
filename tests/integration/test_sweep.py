"""The sweep over cuts: one task model, one amortizer, one decoder and one audit for each."""

import json
import shutil

from experiment import CONF

from crafter_pl.cli import main


def command(runs_dir, cuts):
    places = ["--configs", str(CONF), "--audit", str(CONF / "audit.yaml"), "--runs_dir", str(runs_dir)]
    return ["sweep", *places, "--cuts", cuts, "--decoder", "black_box", "--steps", "2", "--workers", "2"]


def test_deeper_features_are_of_another_shape_and_audited_each(tiny, tmp_path, capsys):
    runs = tmp_path / "runs"
    for stage in ("prior", "oracle_resnet", "oracle_plain"):
        shutil.copytree(tiny.folder / stage, runs / "synthetic" / stage)
    assert main(command(runs, "[layer1, layer2]")) == 0
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
    assert main(command(runs, "[layer1, layer2]")) == 0
    assert "min" not in capsys.readouterr().out.split("| cut")[0], "everything was there"


def test_a_cut_that_is_not_there_is_named(tiny, tmp_path, capsys):
    runs = tmp_path / "runs"
    for stage in ("prior", "oracle_resnet", "oracle_plain"):
        shutil.copytree(tiny.folder / stage, runs / "synthetic" / stage)
    assert main(command(runs, "[layer9]")) == 2
    said = capsys.readouterr()
    assert "cut-layer9: failed" in said.err and "layer9" in said.out
