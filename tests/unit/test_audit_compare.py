"""Several audits on one page: what may be compared with what, the front, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_reports import Page, fake_report, made, under_attack, write

from crafter_pl.audit.compare import comparable, on_front
from crafter_pl.audit.report import report, side_by_side
from crafter_pl.cli import main
from crafter_pl.errors import UserError

POINTS = ((0.5, 0.88, 0.2), (1.0, 0.9, 0.3))


def audited(**changes: Any) -> dict[str, Any]:
    plain = fake_report(POINTS)
    for oracle in plain["oracles"]:
        oracle["sha256"] = f"of {oracle['name']}"
    plain["settings"] |= {"task_sha256": "t", "budget": "standard"} | changes
    return plain


def kept(folder: Path, plain: dict[str, Any]) -> str:
    """The folder of that audit, as a command takes it."""
    return str(write(folder, plain, people=1).parent)


def test_audits_are_comparable_if_split_task_oracles_and_attacks_are_the_same() -> None:
    other_split, other_oracle, other_attack, other_budget = (
        audited(),
        audited(),
        audited(),
        audited(budget="quick"),
    )
    other_split["data"]["split_hash"] = "cd" * 32
    other_oracle["oracles"][1]["sha256"] = "another"
    other_attack["attacks"]["white_box"]["settings"] = {"steps": 9}
    found = [audited(), other_split, other_oracle, other_attack, other_budget, audited(task_sha256="u")]
    groups, apart = comparable([made(one) for one in found])
    assert groups == [1, 2, 3, 4, 1, 5], "a budget's name alone sets nothing apart"
    assert apart == ["", "other split", "other oracles", "other attacks", "", "other task model"]
    other_net = audited()
    other_net["attacks"]["white_box"]["checkpoints"] = {"prior": "another"}
    assert comparable([made(one) for one in [audited(), other_net]])[1] == ["", "other attacks"]
    weaker, stronger = under_attack(audited()), under_attack(audited())
    for entry in stronger["defenses"]:
        for moments in entry.get("history", {}).values():
            moments[-1]["pairs"] *= 2
    assert comparable([made(one) for one in [weaker, stronger]])[1] == ["", "other attacks"]
    more = under_attack(audited())
    more["data"]["image_size"] = 64
    assert comparable([made(one) for one in [audited(), more]])[1] == ["", "other split, other attacks"]


def test_the_front_is_what_nobody_beats() -> None:
    points = [(0.9, 0.3), (0.8, 0.2), (0.85, 0.4), (0.9, 0.3), (0.7, 0.2)]
    assert on_front(points) == [True, True, False, True, False]


def test_sets_are_marked_by_audit_and_place() -> None:
    second = audited()
    second["defenses"][1]["utility_training"] = second["defenses"][1]["utility"]
    every = side_by_side([made(audited()), made(second)], ["a", "b"])
    found = [one for audit in every for one in audit.sets]
    assert [mark for mark, *_ in found] == ["A0", "A1", "A2", "B0", "B1", "B1", "B2"]
    assert [scenario for _, _, scenario, _ in found[4:6]] == ["utility", "utility_training"]
    letters = [audit.letter for audit in side_by_side([made(audited())] * 53, [""] * 53)]
    assert [letters[n] for n in (0, 25, 26, 52)] == ["A", "Z", "AA", "BA"]


def test_the_page_stands_alone_and_links_to_the_audits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attacked = under_attack(fake_report())
    attacked["data"]["source"] = "celeba <b>"
    folders = [kept(tmp_path / "a b", audited()), kept(tmp_path / "two", attacked)]
    out = tmp_path / "site" / "all.html"
    assert main(["report", *folders, "--out", str(out)]) == 0
    assert f"compared 2 audits: {out}" in capsys.readouterr().out
    source = out.read_text()
    page = Page()
    page.feed(source)
    assert page.stack == [] and "script" not in page.tags and "http" not in source
    plots = [link for link in page.links if link.startswith("data:image/png;base64,")]
    links = [link for link in page.links if link not in plots]
    assert len(plots) == 1 and links == ["../a%20b/report.html", "../two/report.html"]
    assert all((out.parent / link.replace("%20", " ")).is_file() for link in links)
    assert str(tmp_path) not in source and "celeba &lt;b&gt;" in source
    assert "other split, other task model, other oracles, other attacks" in source
    assert source.count('<td class="bad">yes</td>') == 1 and source.count("<td>A1</td>") == 1
    assert source.count("not tested") == 1 + 2 and source.count("retrains encoder, cloud") == 1
    assert not list(tmp_path.glob("**/.*.tmp"))


def test_what_cannot_be_compared_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = kept(tmp_path / "one", audited()), str(tmp_path / "all.html")
    (tmp_path / "none").mkdir()
    for args, message in (
        ([folder, str(tmp_path / "none")], "report.json is missing"),
        ([folder, folder], "there twice"),
    ):
        assert main(["report", *args, "--out", out]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    for args in ([], [folder], ["--out", out], [folder, "--folder", folder, "--out", out]):
        assert main(["report", *args]) == 2
        assert "--folder" in capsys.readouterr().err
    for wrong in (tmp_path / "all.txt", tmp_path / "one" / "report.html"):
        with pytest.raises(UserError, match=r"ends in \.html"):
            report([folder], out=str(wrong))
    for content in ("{", "[]", '{"schema": 1}', '{"schema": 1, "defenses": [{}]}'):
        (tmp_path / "none" / "report.json").write_text(content)
        with pytest.raises(UserError, match="audit again"):
            report([folder, str(tmp_path / "none")], out=out)
    (tmp_path / "none" / "report.json").write_text(json.dumps({"schema": 2}))
    with pytest.raises(UserError, match="schema 2, expected 1"):
        report([str(tmp_path / "none")], out=out)
    assert not Path(out).exists()


def test_one_audits_page_is_written_again(tmp_path: Path) -> None:
    folder = kept(tmp_path / "one", audited())
    page = tmp_path / "one" / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert main(["report", "--folder", folder]) == 0 and page.read_bytes() == before
