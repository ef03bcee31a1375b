"""The verbs, and what `--help` says of them."""

FUNCTIONS = {  # the verbs that are functions, and where these are
    "adopt": "crafter_pl.adopt:adopt",
    "protect": "crafter_pl.edge.protect:protect_photos",
    "export": "crafter_pl.edge.export:export",
    "serve": "crafter_pl.cloud.serve:serve",
    "look": "crafter_pl.look.look:look",
    "audit": "crafter_pl.audit.audit:audit",
    "certify": "crafter_pl.audit.certify:certify_stores",
    "benchmark": "crafter_pl.benchmark.benchmark:benchmark",
    "sweep": "crafter_pl.benchmark.sweep:sweep",
    "tune": "crafter_pl.tune.tune:tune",
    "report": "crafter_pl.audit.report:report",
}
POSITIONAL = {  # what some of them are given without an option's name
    "protect": ("photos", "photographs, and folders of them"),
    "look": ("photos", "photographs, and folders of them; none: faces of the data"),
    "certify": ("features", "feature stores of certified defences, paths or names of the experiment's"),
    "report": ("audits", "folders of audits to compare, see --out"),
}
VERBS = {  # in the order of the story: train and protect, look, use; then what is for a few
    "fit": "train one stage; upstream stages that are missing are trained first",
    "adopt": "make a trained net of your own the task model of an experiment, as it is, cut in two",
    "predict": "let a trained defence craft a split of the data and write the feature store",
    "audit": "attack feature stores; write report.json, report.html, table.csv and the plots",
    "look": "show faces, what attackers rebuild from what is sent, and what a message says, on one page",
    "certify": "what the messages of a certified defence give away, at most and on these faces",
    "report": "compare several audits on one page, or write one audit's page again",
    "protect": "find the faces in photographs, protect their features and write a feature store",
    "export": "write what runs on the edge as torch.export and ONNX graphs, checked and timed",
    "serve": "answer protected features with attributes, over HTTP: the cloud's classifier",
    "benchmark": "audit a grid of defences side by side; write tables and one report a seed",
    "validate": "score a trained stage on its validation split",
    "test": "score a trained stage on its test split",
    "sweep": "cut a classifier at several depths; audit the unprotected features of each",
    "tune": "search an attack's settings on unprotected features of held-out public people",
}
_STORY = {  # what each is for, and the first of its verbs
    "fit": "Protect faces, and see what still shows",
    "protect": "Use it, on the device and in the cloud",
    "benchmark": "Measure more",
}


def _listed() -> list[str]:
    lines = []
    for verb, text in VERBS.items():
        lines += ["", f"{_STORY[verb]}:"] if verb in _STORY else []
        lines.append(f"  {verb:<9} {text}")
    return lines


HELP = "\n".join(
    [
        "usage: python -m crafter_pl VERB [--config FILE] [options]",
        *_listed(),
        "",
        "python -m crafter_pl VERB --help   the options of a verb",
        "python -m crafter_pl --version     the version",
        "make demo                          all of it on drawn faces, in minutes",
        "",
        "Runs are kept in RUNS_DIR/EXPERIMENT/NAME (runs/synthetic/<stage> by default).",
    ]
)
