"""The documentation: commands parse, links lead somewhere, figures agree, pages fetch nothing."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fake_reports import fake_report, under_attack

from crafter_pl.audit.record import from_json, to_json
from crafter_pl.audit.schema import Report
from crafter_pl.cli import main
from crafter_pl.cli.functions import parsed, parser
from crafter_pl.cli.stage import StageCLI
from crafter_pl.cli.verbs import FUNCTIONS, VERBS
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.plugins import import_stages

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("**/*.md"))
ABOVE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")  # pages too, by scripts/docs_hooks.py
GENERATED = {name.lower(): ROOT / name for name in ABOVE}
GENERATED |= {path.name.lower(): path for path in sorted((ROOT / "dev").glob("*.md"))}


sys.path.insert(0, str(ROOT / "scripts"))
figures, keep_report = importlib.import_module("figures"), importlib.import_module("keep_report")


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub and mkdocs make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    heads = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in heads}


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.*)$", (DOCS / "commands.md").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_section_and_its_options_are_there(verb, capsys):
    text = sections()[verb]
    assert f"python -m crafter_pl {verb} " in text
    config = ["--config", str(ROOT / "configs" / "crafter.yaml")] if verb == "predict" else []
    assert main([verb, *config, "--help"]) == 0
    shown = capsys.readouterr().out
    assert re.match(rf"usage: crafter_pl (\[options\] )?{verb} ", shown)
    data = {f"--data.{name}" for name in inspect.signature(FacesDataModule).parameters}
    known = {"--protect", *data, *re.findall(r"--[\w.]+", shown)}  # all of a defence's options together
    named = {option.rstrip(".") for option in re.findall(r"--[\w.]+", text)}
    assert {option for option in named if not option.startswith("--model.init_args.")} <= known


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def shown(text: str, folder: Path) -> list[list[str]]:
    """The words of every `python -m crafter_pl` in a text, as bash hands them over."""
    record, stub = folder / "record.jsonl", folder / "bin" / "python"
    stub.parent.mkdir()
    record.touch()
    write = "import json, sys; open(sys.argv[1], 'a').write(json.dumps(sys.argv[2:]) + '\\n')"
    stub.write_text(f'#!/bin/bash\nexec {sys.executable} -c "{write}" {record} "$@"\n')
    stub.chmod(0o755)
    alone = {"PATH": str(stub.parent), "HOME": str(folder)}  # nothing else is found, so nothing else runs
    subprocess.run(["/bin/bash", "-c", text], env=alone, cwd=folder, capture_output=True, timeout=60)
    words = [json.loads(line) for line in record.read_text().splitlines()]
    return [line[2:] for line in words if line[:2] == ["-m", "crafter_pl"]]


COMMANDS = [page for page in (ROOT / "README.md", *PAGES) if page.name != "extend.md"]


@pytest.mark.parametrize("page", COMMANDS, ids=lambda page: page.name)
def test_every_command_shown_parses(page, tmp_path, monkeypatch):
    """Those of extend.md are run, in test_docs_examples.py."""
    text = "".join(blocks(page, "bash"))
    commands = shown(text, tmp_path)
    assert len(commands) >= sum(line.startswith("python -m crafter_pl") for line in text.splitlines())
    parse(commands, tmp_path, monkeypatch)


def test_the_commands_behind_the_tables_parse(tmp_path, monkeypatch):
    text = (ROOT / "scripts" / "reproduce_results.sh").read_text().replace('cd "$(dirname "$0")/.."', "")
    commands = shown(text, tmp_path)
    assert [words[0] for words in commands].count("audit") == 7 and len(commands) == 29
    parse(commands, tmp_path, monkeypatch)


def parse(commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads commands as the command line does, in a folder with the configs and nothing else."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "configs" / "mine.yaml").write_text(blocks(DOCS / "data.md", "yaml")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRAFTER_DATA", str(tmp_path))
    import_stages()
    for verb, *words in (line for line in commands if line[0] in VERBS):
        if verb in FUNCTIONS:
            parser(verb).parse_args(words)
        else:
            StageCLI([verb, *words])


def test_the_table_of_budgets_is_that_of_the_config():
    _, options = parsed(["audit", "--config", str(ROOT / "configs" / "audit.yaml")])
    page = (DOCS / "attacks.md").read_text().partition("## Which budget")[2].partition("\n## ")[0]
    head, _, *rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("|")]
    for place, budget in enumerate(head[1:], 1):
        shown = {
            name: row[place].strip()
            for row in rows
            for name in re.findall(r"`(\w+)`", row[0])
            if row[place].strip()
        }
        attacks = {one.name: one for one in options.budgets[budget.strip(" `")]}
        assert shown.keys() == attacks.keys(), budget
        assert all(own == "x" or int(own) == attacks[name].steps for name, own in shown.items()), budget


@pytest.mark.parametrize("page", [*PAGES, *GENERATED.values()], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize(("page", "words"), [("README.md", 1200), ("docs/results.md", 2500)])
def test_the_first_pages_are_read_to_the_end(page, words):
    text = (ROOT / page).read_text()
    assert sum(bool(re.search(r"\w", word)) for word in text.split()) <= words  # and not the bars of tables
    written = re.sub(r"<!-- figures: .*?<!-- end of figures -->", "", text, flags=re.DOTALL)
    assert not [line for line in written.splitlines() if len(line) > 200]


def test_the_pictures_of_the_readme_load_quickly():
    pictures = re.findall(r"!\[[^]]*\]\((docs/[^)]*)\)", (ROOT / "README.md").read_text())
    assert pictures and sum((ROOT / picture).stat().st_size for picture in pictures) <= 300_000


def test_the_tables_are_those_of_the_reports():
    assert figures.outdated(ROOT, check=True) == []


def test_the_bound_of_several_pictures_is_that_of_the_proof():
    table = figures.Figures(ROOT).pictures()
    messages = int(re.search(r"K = (\d+)", table)[1])
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:] if line.startswith("|")]
    assert [row[0] for row in rows] == ["3", "100", "10,000", "1,000,000"]
    for people, *shown in rows:
        for count, one in enumerate(shown, 1):
            bound = 100 * messages**count / int(people.replace(",", ""))
            assert (
                one == "none" if bound >= 100 else float(one.rstrip(" %")) == pytest.approx(bound, rel=0.01)
            )


def test_who_attacked_certified_features_is_beside_what_as_many_guesses_may():
    made = figures.Figures(ROOT)
    entry = made.measured("certified, 5 bits")[2]
    lines = made.person().splitlines()
    guesses = [int(found[1]) for line in lines if (found := re.search(r"any of (\d+) guesses", line))]
    assert sum(guesses) == entry.certificate.guesses, "attacks by judges, and all who have a gallery"
    assert any("| 31 % |" in line and "one guess" in line for line in lines)
    rows = made.first().splitlines()
    assert len(rows[0].split("|")) == 7 and sum(line.startswith("|") for line in rows) == 7, "five by five"


def test_a_figure_that_is_changed_by_hand_is_found(tmp_path):
    shutil.copytree(DOCS, tmp_path / "docs")
    page, text = tmp_path / "README.md", (ROOT / "README.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| unprotected"))
    page.write_text(text.replace(row, row.replace("0.8", "0.9", 1)))
    assert figures.outdated(tmp_path, check=True) == ["README.md"]
    assert figures.outdated(tmp_path, check=False) == ["README.md"] and page.read_text() == text


def test_a_report_that_is_kept_is_small_and_says_nothing_of_a_machine():
    kept = sorted((DOCS / "reports").glob("*.json"))
    assert kept
    for file in kept:
        assert file.stat().st_size < 100_000, file
        assert not re.search(r'"/|"[A-Z]:', file.read_text()), file


def test_the_split_of_the_reports_is_that_of_the_page():
    rows = [line for line in (DOCS / "data.md").read_text().splitlines() if line.startswith("| `configs/")]
    for report in figures.Figures(ROOT).reports.values():
        (row,) = [row for row in rows if f"`{report.data.split_hash[:12]}`" in row]
        assert f"| {report.data.identities}, {report.data.images} |" in row


def test_a_report_that_is_kept_says_how_it_was_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "e" / "black_box"
    run.mkdir(parents=True)
    (run / "summary.json").write_text('{"best_sha256": "ab", "epochs": 3}')
    plain, file = under_attack(fake_report()), "runs/e/black_box/checkpoints/best.ckpt"
    told = "audit --data /home/me/mine.yaml --features '[/data/s t/a,runs/b]'"
    plain["origin"] = {"command": f"python -m crafter_pl {told}", "commit": "0123456789ab"}
    plain["attacks"]["black_box"] |= {"class": "DecoderAttack", "adaptive": False}
    plain["attacks"]["black_box"] |= {"checkpoints": {"black_box": "ab"}, "files": {"black_box": file}}
    plain["attacks"]["white_box"] |= {
        "adaptive": False,
        "files": {"prior": file},
        "checkpoints": {"prior": "cd"},
    }
    report = keep_report.trimmed(from_json(Report, plain))
    kept = keep_report.unplaced(to_json(report))
    assert kept["origin"]["command"].endswith("audit --data mine.yaml --features '[s t/a,runs/b]'")
    assert kept["settings"]["bootstrap"] == 1000 and kept["attacks"]["white_box"]["settings"] == {
        "steps": 300
    }
    assert (
        kept["attacks"]["black_box"]["epochs"] == {"black_box": 3}
        and "epochs" not in kept["attacks"]["white_box"]
    )
    said = figures.made_by("*From [new](reports/new.json).*", {"new": report, "new-er": report})
    assert "new, 2026-11-23, 0123456789ab" in said and "new-er" not in said


def test_every_page_is_in_the_navigation():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

    def files(entry):
        if isinstance(entry, str):
            return [entry]
        return [name for value in entry.values() for name in (files_of(value))]

    def files_of(value):
        return [value] if isinstance(value, str) else [name for entry in value for name in files(entry)]

    named = files_of(settings["nav"])
    assert sorted(named) == sorted([*(str(page.relative_to(DOCS)) for page in PAGES), *GENERATED])
    assert settings["use_directory_urls"] is False and settings["strict"] is True
    assert settings["theme"]["font"] is False and "site_url" not in settings and "repo_url" not in settings
