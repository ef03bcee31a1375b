"""The command line: one entrance for Lightning's verbs and ours.

| module | what it does |
|---|---|
| `entry` | one command: which verb, its exit code, signals, what is printed |
| `stage` | Lightning's verbs: parsed, upstream stages, run folder, trainer |
| `options` | values that no verb can do with, and foreign errors, as one message |
| `parsing` | what jsonargparse says, in plain words |
| `resume` | may this command touch that run |
| `callbacks` | what every run does and keeps |
"""

from crafter_pl.cli.entry import FUNCTIONS, POSITIONAL, VERBS, main, parser

__all__ = ["FUNCTIONS", "POSITIONAL", "VERBS", "main", "parser"]
