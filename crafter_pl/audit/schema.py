"""What an audit finds: the content of report.json as frozen dataclasses; `record` writes and reads it."""

from dataclasses import dataclass, field
from typing import Any

from crafter_pl.audit.certificates import CertificateResult
from crafter_pl.audit.sides import Group
from crafter_pl.audit.utility import Utility
from crafter_pl.metrics import Estimate

Settings = dict[str, Any]  # whatever JSON holds


@dataclass(frozen=True)
class Data:
    """The audited faces.

    Attributes:
        chance: the rate of one blind guess among the people.
        attributes_left_out: attributes or classes without an AUC, since all pictures have them or none.
    """

    source: str
    split_hash: str
    image_size: int
    identities: int
    images: int
    chance: float
    attributes_left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class OracleResult:
    """A judge of identity, and how well it knows the original pictures.

    Attributes:
        seen: whether it has learnt from other pictures of the private people; else it knows them by a
            gallery.
    """

    name: str
    accuracy_on_originals: float
    ci95: list[float]
    people: int
    settings: Settings = field(default_factory=dict)
    checkpoint: str = ""
    sha256: str | None = None
    tar_on_originals: Estimate | None = None
    seen: bool = True

    @property
    def accuracy(self) -> Estimate:
        """Of the originals it names so many, with the interval."""
        return Estimate(self.accuracy_on_originals, *self.ci95)


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """What one attack gets out of one set of features.

    Attributes:
        figures: by the key of a `columns.Column`; in the JSON they stand beside the others.
        by_oracle: the same of each oracle, by key and oracle's name.
        learnt: whether the attack has learnt from the defence; one that has not shows no protection.
        checkpoints, files: hashes and paths of its nets where they are others than on unprotected features.
        round, pairs, epochs: how far it had adapted, of an earlier moment of an attack that adapts.
        galleries: by recogniser, whether it knew people by ``originals`` (None, too) or as ``drawn``.
    """

    figures: dict[str, Estimate]
    by_oracle: dict[str, dict[str, Estimate]]
    learnt: bool
    checkpoints: dict[str, str] | None = None
    files: dict[str, str | None] | None = None
    round: int | None = None
    pairs: int | None = None
    epochs: int | None = None
    galleries: dict[str, str] | None = None

    @property
    def eval_acc(self) -> Estimate:
        """Faces that the first oracle names: the paper's figure."""
        return self.figures["eval_acc"]


@dataclass(frozen=True, kw_only=True)
class ReaderResult:
    """What a reader, which draws no picture, gets out of one set of features.

    Attributes:
        learnt: whether it has learnt from the defence.
        suspects: whether it has other pictures of the people.
        top1, top5: how often it names the person first, or among its best five.
        tar, tar_strict: true accept rate at 1 % and 0.1 % false accepts: of features and people by whoever
            names people, else of two features.
        eer: equal error rate of two features.
        checkpoints: hashes of its nets.
        train: how to train it where it has not learnt.
    """

    learnt: bool
    suspects: bool = False
    top1: Estimate | None = None
    top5: Estimate | None = None
    tar: Estimate | None = None
    tar_strict: Estimate | None = None
    eer: Estimate | None = None
    checkpoints: dict[str, str] | None = None
    train: list[str] | None = None


@dataclass(frozen=True)
class WorstCase:
    """Faces that any attack and any oracle identify, and how many would be by chance."""

    eval_acc: Estimate
    chance: float


@dataclass(frozen=True)
class FalseSecurity:
    """The strongest attack that knows the defence beside the strongest that does not."""

    flag: bool
    basic: Estimate
    adaptive: Estimate
    gain: Estimate
    gain_beyond_chance: Estimate
    strongest: str


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Features that are audited: one defence in one setting, or unprotected ones.

    Attributes:
        name: of the defence; ``none`` for unprotected features.
        label: tells it from all other sets.
        family: sets that differ in beta alone.
        cost: `seconds_per_image`, `peak_memory_mb`; None where that was not measured.
        store, queries: the feature store, and how many stores that differ in their seed alone.
        retrains: what the defence changes of the backend, ``encoder`` or ``cloud``.
    """

    name: str
    label: str = ""
    family: str = ""
    beta: float | None
    settings: Settings
    cost: dict[str, float | None]
    retrains: list[str] = field(default_factory=list)
    store: str | None = None
    queries: int | None = None

    @property
    def plain(self) -> bool:
        """Whether the features are unprotected."""
        return self.name == "none"

    @property
    def title(self) -> str:
        """How tables and captions call it."""
        return "unprotected" if self.plain else self.label

    @property
    def curve(self) -> str:
        """Which curve it is a point of: its defence, and its method where that is another."""
        method = self.settings.get("method")
        return str(self.name if method in (None, self.name) else method)


@dataclass(frozen=True, kw_only=True)
class DefenseResult(FeatureSet):
    """All figures of one set of features.

    Attributes:
        utility_training: where the cloud has learned from such features.
        change: of the utility, by its main figure's key, and `worst_case_eval_acc`, less
            those of the unprotected features, paired.
        worst_case_basic: over the attacks that do not know the defence.
        worst_case_gallery: over the readers that have other pictures of the people.
        on_front: by scenario, ``utility`` or ``utility_training``.
        certificate: of a certified defence.
    """

    utility: Utility
    worst_case: WorstCase
    attacks: dict[str, AttackResult]
    utility_training: Utility | None = None
    worst_case_basic: WorstCase | None = None
    worst_case_gallery: WorstCase | None = None
    history: dict[str, list[AttackResult]] = field(default_factory=dict)
    rulers: dict[str, ReaderResult] = field(default_factory=dict)
    change: dict[str, Estimate] | None = None
    false_security: FalseSecurity | None = None
    on_front: dict[str, bool] = field(default_factory=dict)
    certificate: CertificateResult | None = None

    @property
    def kept(self) -> float:
        """The utility in the inference scenario."""
        return self.utility.kept.value

    @property
    def rate(self) -> float:
        """The worst case."""
        return self.worst_case.eval_acc.value

    @property
    def flagged(self) -> bool:
        """Whether its protection holds only while attackers do not know it."""
        return self.false_security is not None and self.false_security.flag

    @property
    def learnt(self) -> list[str]:
        """The attacks that have learnt from the defence; unprotected features are known to all."""
        return [name for name, result in self.attacks.items() if result.learnt]

    @property
    def untested(self) -> bool:
        """Whether nothing is proved and no attack has learnt: its rates are no figures of protection."""
        return not self.plain and not self.learnt and self.certificate is None


@dataclass(frozen=True)
class Curve:
    """Whether the trade-off of settings that differ in beta alone is monotone."""

    family: str
    betas: list[float]
    monotone: bool
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """An audit.

    Attributes:
        origin: the command and the code's commit, as far as they are known.
        panel: `accuracy_on_originals`, of any oracle.
        attacks, rulers: as they describe themselves on unprotected features, by name.
        defenses: the unprotected features are the first.
        areas: under each defence's curve, by scenario and defence, see `compare.area`.
        groups: by attribute.
        curves: of settings that differ in beta alone.
    """

    created: str
    version: str
    data: Data
    oracles: list[OracleResult]
    panel: dict[str, Estimate]
    attacks: dict[str, Settings]
    defenses: list[DefenseResult]
    settings: Settings
    origin: dict[str, str] = field(default_factory=dict)
    rulers: dict[str, Settings] = field(default_factory=dict)
    areas: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    verdict: str = ""
    warnings: list[str] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
