"""The defence behind a store: found, checked, and told to attacks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from audit_lab import IDENTITIES, SHA, SIZE, Echo, make_lab, write_store

from crafter_pl.attacks.reader import Ruler
from crafter_pl.audit import load
from crafter_pl.audit.features import same_protection
from crafter_pl.audit.load import Published
from crafter_pl.data.store import read_manifest
from crafter_pl.defenses.options import ProtectOptions
from crafter_pl.errors import UserError

OWN, OTHER = "d" * 64, "0" * 64


@dataclass(frozen=True, kw_only=True)
class Told(ProtectOptions):
    """Its steps are its own: set in training, and no option."""

    beta: float = 9.0
    seed: int | None = None


class FakeDefense:
    """A defence with a beta that `predict` may change, and a cloud of its own."""

    version = 1

    options_class = Told

    def __init__(self, digest: str = OWN, name: str = "crafter") -> None:
        self.digest, self.name = digest, name

    def to(self, device: str) -> FakeDefense:
        return self

    def weights_hash(self) -> str:
        return self.digest

    def options(self, **told: Any) -> Told:
        return Told(**told)

    def settings(self, options: Told) -> dict[str, Any]:
        seeded = {} if options.seed is None else {"seed": options.seed}
        return {"beta": options.beta, "steps": 5, **seeded}

    def edge_module(self) -> torch.nn.Module:
        return torch.nn.Identity()

    def cloud_module(self) -> torch.nn.Module:
        """The other way round than the task model's: what that gets right this gets wrong."""
        return _Turned()


class _Turned(torch.nn.Module):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return -features.mean((2, 3))


class Knowing(Echo):
    """Needs to know the defence."""

    adaptive = True

    def __init__(self, name: str = "knowing") -> None:
        super().__init__(name)

    def aim(self, target: Any) -> None:
        super().aim(target)
        if target is not None and target.defense is None:
            raise UserError(f"attack {self.name}: nothing was trained against {target.manifest['defense']}")


class Rules(Ruler):
    """Names everybody alike."""

    name = "rules"
    identities = torch.tensor(sorted(IDENTITIES))

    def __init__(self) -> None:
        self.checkpoints, self.aims = {}, []

    def aim(self, target: Any) -> None:
        super().aim(target)
        self.aims.append(target)

    def prepare(self, device: str) -> None:
        pass

    def settings(self) -> dict[str, Any]:
        return {}

    def identify(self, features: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(features), len(IDENTITIES))


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    lab = make_lab(tmp_path, monkeypatch)
    lab.found = {}  # checkpoint -> defence
    monkeypatch.setattr(load, "load_defense", lambda path: lab.found[path])
    return lab


def place(lab: SimpleNamespace, folder: Path, defense: FakeDefense) -> None:
    path = folder / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    lab.found[path] = defense


def store(lab: SimpleNamespace, name: str = "features/x", **changes: Any) -> str:
    folder = lab.tmp / "runs" / "e" / "mine" / name
    return write_store(folder, lab.data, lab.half, 2.0, **{"defense_sha256": OWN, "retrains": [], **changes})


def test_the_defence_is_found_beside_the_store_with_its_settings_in_force(lab: SimpleNamespace) -> None:
    place(lab, lab.tmp / "runs" / "e" / "mine", FakeDefense())
    attack = Knowing()
    report = lab.run(features=[store(lab)], attacks=[attack])
    none, target = attack.aims[0], attack.aims[-1]
    assert none is None and target.manifest["settings"]["beta"] == 2.0
    assert target.options.beta == 2.0 and report["notes"] == []
    assert report["attacks"]["knowing"]["adaptive"] is True


def test_a_defence_whose_own_setting_is_called_as_an_option_is_at_hand(lab: SimpleNamespace) -> None:
    place(lab, lab.tmp / "runs" / "e" / "mine", FakeDefense())
    attack = Knowing()
    settings = {"settings": {"beta": 9.0, "steps": 5}}
    report = lab.run(features=[store(lab, **settings)], attacks=[attack])
    assert report["notes"] == [] and attack.aims[-1].options.beta == 9.0


def test_attacks_are_handed_no_more_than_they_may_know(lab: SimpleNamespace) -> None:
    """One that does not adapt gets no defence but the backend that it retrained; nobody gets the seed."""
    place(lab, lab.tmp / "runs" / "e" / "mine", FakeDefense())
    changes: dict[str, Any] = {"settings": {"beta": 2.0, "steps": 5, "seed": 7}, "seed": 7}
    changes |= {"fingerprint": "f" * 64, "retrains": ["encoder", "cloud"]}
    basic, knowing, ruler = Echo(), Knowing(), Rules()
    report = lab.run(features=[store(lab, **changes)], attacks=[basic, knowing], rulers=[ruler])
    assert report["defenses"][1]["settings"]["seed"] == 7
    known_to = [one.aims[-1] for one in (basic, knowing, ruler)]
    for told in known_to:
        assert told is not None and told.backend.keys() == {"encoder", "cloud"}
        assert told.manifest["settings"] == {"beta": 2.0, "steps": 5}
        assert not {"seed", "fingerprint"} & told.manifest.keys()
        known = told is known_to[1]
        assert (told.defense is not None) == (told.checkpoint is not None) == known
    assert knowing.aims[-1].options == Told(beta=2.0, seed=load.OWN_SEED)


def test_or_among_the_experiments_own(lab: SimpleNamespace) -> None:
    place(lab, lab.tmp / "runs" / "e" / "mine", FakeDefense(OTHER))
    place(lab, lab.tmp / "runs" / "e" / "crafter", FakeDefense(OWN))
    attack = Knowing()
    lab.run(features=[store(lab)], attacks=[attack])
    assert attack.aims[-1].defense.digest == OWN


def test_two_stores_of_one_checkpoint_have_options_of_their_own(lab: SimpleNamespace) -> None:
    place(lab, lab.tmp / "runs" / "e" / "mine", FakeDefense())
    published = Published(lab.tmp / "runs" / "e", "cpu")
    stores = [store(lab), store(lab, "features/y", settings={"beta": 3.0, "steps": 5})]
    found = [published.target(path, read_manifest(path))[0].options for path in stores]
    assert [one.beta for one in found] == [2.0, 3.0]


@pytest.mark.parametrize(
    ("changes", "digest", "words"),
    [
        ({"defense_sha256": None}, OWN, "weights"),
        ({}, None, "no checkpoint in"),
        ({}, OTHER, "has other weights"),
        ({"settings": {"beta": 2.0, "steps": 7}}, OWN, "has other settings: steps"),
        ({"version": 2}, OWN, "version 2 of crafter"),
    ],
)
def test_a_defence_that_is_not_at_hand_is_noted_and_stops_attacks_that_need_it(
    lab: SimpleNamespace, changes: dict[str, Any], digest: str | None, words: str
) -> None:
    if digest is not None:
        place(lab, lab.tmp / "runs" / "e" / "mine", FakeDefense(digest))
    if changes.get("defense_sha256", OWN) is None:
        path = write_store(lab.tmp / "runs" / "e" / "mine" / "features" / "x", lab.data, lab.half, 2.0)
    else:
        path = store(lab, **changes)
    basic = Echo()
    assert any(words in warning for warning in lab.run(features=[path], attacks=[basic])["warnings"])
    assert basic.aims[-1] is not None and basic.aims[-1].defense is None
    untouched = Echo("first")
    with pytest.raises(UserError, match="against crafter"):
        lab.run(features=[path], attacks=[untouched, Knowing()], overwrite=True)
    assert untouched.prepared == [] and untouched.seen == [], "all aims come before any attack"


def test_a_retrained_cloud_answers_to_its_own_features(lab: SimpleNamespace) -> None:
    place(lab, lab.tmp / "runs" / "e" / "mine", FakeDefense())
    plain = write_store(lab.tmp / "plain", lab.data, lab.half, 1.0)
    retrained = store(lab, retrains=["encoder", "cloud"])
    report = lab.run(features=[plain, retrained])
    _, unchanged, own = report["defenses"]
    assert own["retrains"] == ["encoder", "cloud"] and unchanged["retrains"] == []
    for name, figure in unchanged["utility"]["per_attribute"].items():
        assert own["utility"]["per_attribute"][name]["value"] == pytest.approx(1 - figure["value"])
    assert "retrains encoder, cloud" in (lab.out / "report.html").read_text()
    assert "encoder cloud" in (lab.out / "table.csv").read_text()


def test_a_retrained_cloud_that_is_not_at_hand_is_an_error(lab: SimpleNamespace) -> None:
    with pytest.raises(UserError, match="cloud classifier"):
        lab.run(features=[store(lab, retrains=["cloud"])])


def test_stores_that_differ_in_the_seed_alone_are_queries_of_one_entry(lab: SimpleNamespace) -> None:
    images = lab.data.all["image"]
    settings = {"beta": 1.0, "steps": 5}
    stores = []
    for seed in range(3):
        changes = {"settings": settings | {"seed": seed}, "seed": seed}
        stores.append(write_store(lab.tmp / f"s{seed}", lab.data, images + seed, 1.0, **changes))
    other = write_store(lab.tmp / "other", lab.data, images, 1.0, settings=settings | {"steps": 6, "seed": 0})
    assert same_protection([stores[0], other, *stores[1:]]) == [stores, [other]]
    with pytest.raises(UserError, match="the same"):
        same_protection([stores[1], stores[0], stores[1]])

    shapes = []

    class Counting(Echo):
        def observe(self, queries: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(queries.shape))
            return queries.mean(0) - (len(queries) - 1) / 2

    counting, first = Counting("counting"), Echo("first")
    report = lab.run(features=[*stores, other], attacks=[counting, first])
    assert {shape[0] for shape in shapes} == {1, 3}
    assert shapes[0][1:] == (len(images), 3, SIZE, SIZE)
    none, several, _ = report["defenses"]
    assert several["queries"] == 3 and len(report["defenses"]) == 3
    for name in ("counting", "first"):  # the mean of all queries less its shift, and the first: the picture
        assert several["attacks"][name]["psnr"]["value"] > 60
        assert several["attacks"][name]["eval_acc"] == none["attacks"][name]["eval_acc"]


def test_defences_of_equal_settings_are_told_apart_by_their_weights(lab: SimpleNamespace) -> None:
    place(lab, lab.tmp / "runs" / "e" / "mine", FakeDefense())
    report = lab.run(features=[store(lab), store(lab, "features/y", defense_sha256="f" * 64)])
    labels = [entry["label"] for entry in report["defenses"][1:]]
    assert labels == ["crafter (beta 2, weights dddddd)", "crafter (beta 2, weights ffffff)"]
    assert SHA not in "".join(labels)
