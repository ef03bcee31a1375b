"""The verbs, and what `--help` says of them."""

FUNCTIONS = {  # the verbs that are functions, and where these are
    "adopt": "crafter_pl.adopt:adopt",
    "protect": "crafter_pl.edge.protect:protect_photos",
    "export": "crafter_pl.edge.export:export",
    "serve": "crafter_pl.cloud.serve:serve",
    "audit": "crafter_pl.audit.audit:audit",
    "certify": "crafter_pl.audit.certify:certify_stores",
    "benchmark": "crafter_pl.benchmark.benchmark:benchmark",
    "sweep": "crafter_pl.benchmark.sweep:sweep",
    "tune": "crafter_pl.tune.tune:tune",
    "report": "crafter_pl.audit.report:report",
}
POSITIONAL = {  # what some of them are given without an option's name
    "protect": ("photos", "photographs, and folders of them"),
    "certify": ("features", "feature stores of certified defences, paths or names of the experiment's"),
    "report": ("audits", "folders of audits to compare, see --out"),
}
VERBS = {
    "fit": "train one stage; upstream stages that are missing are trained first",
    "validate": "score a trained stage on its validation split",
    "test": "score a trained stage on its test split",
    "predict": "let a trained defence craft a split of the data and write the feature store",
    "adopt": "make a trained net of your own the task model of an experiment, as it is, cut in two",
    "protect": "find the faces in photographs, protect their features and write a feature store",
    "export": "write what runs on the edge as torch.export and ONNX graphs, checked and timed",
    "serve": "answer protected features with attributes, over HTTP: the cloud's classifier",
    "audit": "attack feature stores; write report.json, report.html, table.csv and the plots",
    "certify": "what the messages of a certified defence give away, at most and on these faces",
    "benchmark": "audit a grid of defences side by side; write tables and one report a seed",
    "sweep": "cut a classifier at several depths; audit the unprotected features of each",
    "tune": "search an attack's settings on unprotected features of held-out public people",
    "report": "compare several audits on one page, or write one audit's page again",
}
HELP = "\n".join(
    [
        "usage: python -m crafter_pl VERB [--config FILE] [options]",
        "",
        *(f"  {verb:<9} {text}" for verb, text in VERBS.items()),
        "",
        "python -m crafter_pl VERB --help   the options of a verb",
        "python -m crafter_pl --version     the version",
        "",
        "Runs are kept in RUNS_DIR/EXPERIMENT/NAME (runs/synthetic/<stage> by default).",
    ]
)
