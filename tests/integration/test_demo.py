"""The demo's commands: each parses, comes after what it needs, and makes what the next one looks for."""

from pathlib import Path
from runpy import run_path

from crafter_pl.cli.stage import StageCLI
from crafter_pl.plugins import import_stages

ROOT = Path(__file__).parents[2]


def test_every_job_comes_after_what_it_needs():
    import_stages()
    before = []
    for job in run_path(str(ROOT / "scripts" / "demo.py"))["jobs"]():
        for (verb, *rest), output in zip(job.commands, job.outputs, strict=True):
            cli = StageCLI([verb, *rest])
            assert set(cli.upstream) <= set(job.needs) <= set(before)
            made = "features" if verb == "predict" else "checkpoints"
            assert Path(output).is_relative_to(cli.run_dir / made)
        before.append(job.name)
    assert len(before) == 10
