import gc
import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: the same sums here and in every subprocess

import pytest
from tiny_conf import conf  # noqa: F401 (a fixture)

# Imported in functions: torch and what imports it, for xdist's own process needs neither.
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and theirs do
SLOWEST = (  # files by the time of a processor that they take: no worker is left with a long one at the end
    *("benchmark", "resume"),  # two that do not wait for the same experiment to be trained
    *("configs", "adaptive_black_box_processes", "edge_to_cloud", "adaptive_white_box", "certified"),
    *("defenses", "answers_kinds", "crafter_generator", "pipeline", "crafter_dependence", "crafter_store"),
    *("adaptive_black_box", "edge_export", "docs", "cluster", "through_defence_known_map", "attacks"),
    *("watch_list", "versions", "cloud_startup", "look", "crafter", "certified_audit", "bench_crafting"),
    *("backbones", "through_defence", "certified_account", "training_scenario", "cloaks", "audit_attacking"),
    *("benchmark_jobs", "audit_audit", "tiprdc", "docs_site", "nets_parts", "tune", "stages", "sweep"),
    *("adversarial_learning", "edge_protect", "attacks_layerwise", "edge_real_faces", "data_stream"),
)


def pytest_collection_modifyitems(items):
    """Orders the files; a file's tests keep their order."""
    place = {f"test_{name}": number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session", autouse=True)
def _quick():
    """For all tests: see `quick`. What was imported for them is not looked through for garbage."""
    from quick import quick

    quick()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_dir(tmp_path_factory):
    """A folder that all workers of this session see."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture
def runs_dir(tmp_path):
    """An empty folder of runs."""
    return tmp_path / "runs"


@pytest.fixture(autouse=True)
def _environment():
    """Whatever a test or Lightning writes into the environment is gone after it; Ctrl+C works."""
    before = dict(os.environ)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def tiny(shared_dir, tmp_path_factory):
    """The tiny experiment, trained once for all workers; each has a copy: see `experiment.Experiment`."""
    from experiment import copy_of

    return copy_of(shared_dir / "experiment", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_store(tiny):
    """The tiny experiment's private_test part, crafted by `predict`."""
    from crafter_pl.cli import main

    assert main(tiny.command("predict", "crafter")) == 0
    return tiny.store()


@pytest.fixture(scope="session")
def train_store(tiny, tmp_path_factory):
    """What the tiny Crafter makes of private_train."""
    from crafter_pl.cli import main

    folder = tmp_path_factory.mktemp("stores") / "private_train"
    more = ["--data.predict_split", "private_train", "--protect.out", str(folder)]
    assert main(tiny.command("predict", "crafter", *more)) == 0
    return folder


@pytest.fixture(scope="session")
def lab(shared_dir):
    """Quickly trained stages of every kind that `serve` takes, for all workers: see `cloud_lab.Lab`."""
    from cloud_lab import Lab

    return Lab(shared_dir / "cloud_lab")


@pytest.fixture(scope="module")
def cloud(lab):
    """The task model's classifier: its facts, and features -> probabilities."""
    from crafter_pl.cloud.classifier import classify, load_classifier

    net, facts, _ = load_classifier(lab.ckpt("task"))
    return facts, lambda features: classify(net, features, 64)


@pytest.fixture(scope="module")
def server(cloud):
    """It behind HTTP, with a token, bodies of at most a megabyte: see `cloud_lab.InThread`."""
    from cloud_lab import TOKEN, InThread

    with InThread(cloud[1], cloud[0], TOKEN) as made:
        yield made


@pytest.fixture
def game(tiny):
    """`game(cls, steps=, ...)` trains a retrained defence on one batch without a trainer.

    `begin(stage)` comes first. Returns the stage, with the losses of its backward passes in `backwards`, and
    what each step logged.
    """
    import torch

    batch = tiny.data().rows("private_test")

    def go(cls, *, steps, begin=None, **settings):
        torch.manual_seed(0)
        stage = cls(**{"task_ckpt": tiny.ckpt("task"), **settings})
        if begin:
            begin(stage)
        stage.backwards, logged = [], []
        optimizers = stage.configure_optimizers()
        stage.optimizers = lambda: optimizers
        stage.toggled_optimizer = lambda _: torch.enable_grad()
        stage.manual_backward = lambda loss: stage.backwards.append(loss.item()) or loss.backward()
        stage.log_dict = lambda values, **_: logged.append({k: v.item() for k, v in values.items()})
        for _ in range(steps):
            stage.training_step(batch, 0)
        return stage, logged

    return go
