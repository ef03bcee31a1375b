"""The command line: one entrance for Lightning's verbs and ours.

| module | what it does |
|---|---|
| `verbs` | the verbs, and what `--help` says of them |
| `entry` | one command: its exit code, signals, what is printed |
| `functions` | the verbs that are functions |
| `stage` | Lightning's verbs, parsed: options, run folder, the upstream stages that are needed |
| `run` | Lightning's verbs, run: upstream stages first, then the trainer |
| `resume` | may this command touch that run |
| `options` | values with which no verb can do what it is for |
| `parsing` | what jsonargparse, Lightning and torch say, in plain words |
| `callbacks` | what every run does and keeps: seeds, checkpoints, `summary.json`, its config |
| `loggers` | how a run shows itself: TensorBoard, `metrics.csv`, plain lines |
"""

from crafter_pl.cli.entry import main

__all__ = ["main"]
