"""The demo's commands: each parses, comes after what it needs, and makes what the next one looks for."""

import json
from pathlib import Path
from runpy import run_path

from crafter_pl.audit.record import from_json
from crafter_pl.audit.schema import Report
from crafter_pl.audit.show.sentences import percent
from crafter_pl.cli.stage import StageCLI
from crafter_pl.plugins import import_stages

ROOT = Path(__file__).parents[2]


def test_every_job_comes_after_what_it_needs():
    import_stages()
    before = {}  # of each job, what is done when it starts
    for job in run_path(str(ROOT / "scripts" / "demo.py"))["jobs"]():
        before[job.name] = {*job.needs}.union(*(before[one] for one in job.needs))
        for (verb, *rest), output in zip(job.commands, job.outputs, strict=True):
            cli = StageCLI([verb, *rest])
            assert set(cli.upstream) <= before[job.name]
            made = "features" if verb == "predict" else "checkpoints"
            assert Path(output).is_relative_to(cli.run_dir / made)
    assert len(before) == 12


def test_it_ends_with_six_lines():
    report = from_json(Report, json.loads((ROOT / "docs" / "reports" / "demo.json").read_text()))
    lines = run_path(str(ROOT / "scripts" / "demo.py"))["closing"](report).splitlines()
    assert len(lines) == 6 and "report.html" in lines[-1]
    assert lines[-1].endswith("look --experiment demo --data configs/small.yaml")  # the data of its nets
    for entry, line in zip(("none", "crafter", "certified"), lines[1:4], strict=True):
        (found,) = (one for one in report.defenses if one.name == entry)
        assert percent(found.worst_case.eval_acc.value) in line
