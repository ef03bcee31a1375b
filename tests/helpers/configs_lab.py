"""The configs of the repository, by kind."""

import functools
from pathlib import Path

import yaml

from crafter_pl.cli.stage import StageCLI
from crafter_pl.plugins import import_stages

ROOT = Path(__file__).parents[2]

FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml"))


def merged(base, more):
    """Settings with others on top, as one config on another."""
    both = base.keys() & more.keys()
    deep = [key for key in both if isinstance(base[key], dict) and isinstance(more[key], dict)]
    return {**base, **more, **{key: merged(base[key], more[key]) for key in deep}}


def content_of(file):
    """What a config says, with what it builds on."""
    content = yaml.safe_load(file.read_text())
    base = content.pop("base", None)
    return content if base is None else merged(content_of(file.parent / base), content)


CONTENT = {path: content_of(ROOT / path) for path in FILES}

STAGES = [path for path, content in CONTENT.items() if "model" in content]

BENCHMARKS = [path for path, content in CONTENT.items() if "defenses" in content]

AUDITS = [path for path, content in CONTENT.items() if "budgets" in content]

TUNE = Path("configs/tune.yaml")

ADOPT = Path("configs/adopt.yaml")

DATA = [path for path in FILES if path not in (*STAGES, *AUDITS, *BENCHMARKS, TUNE, ADOPT)]


@functools.cache
def command_line(path, *more):
    """Reads a config as `fit` does; it is parsed once."""
    import_stages()
    return StageCLI(["fit", "--config", str(ROOT / path), *more])
