"""What all stages share: where their upstream nets come from, how they are loaded, how they draw pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import lightning as L
import torch
from torch import Tensor
from torchvision.utils import make_grid

from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.errors import UserError
from crafter_pl.files import sha256
from crafter_pl.limits import checked
from crafter_pl.stages.checkpoints import find_upstream, read_checkpoint
from crafter_pl.stages.schedules import OneCycle
from crafter_pl.stages.upstream import Upstream

StageT = TypeVar("StageT", bound="Stage")

# What a stage has loaded already while it loads another upstream one, by file and hash: a stage below two
# others, as the task model below Crafter and its amortizer, is one.
_known: ContextVar[dict[tuple[str, str], Stage]] = ContextVar("known", default={})  # noqa: B039 (never changed)


class Stage(L.LightningModule):
    """A LightningModule with upstream stages, kept frozen beside it and out of its checkpoint.

    Class attributes:
        stage_name: default folder of its run.
        data_class: the data that the command line gives it unless told otherwise.
        train_split, val_split: parts of the data that it is trained and watched on.
        monitor, mode: the logged figure that picks ``best.ckpt`` (None: the newest is the best).
        rise: of the one-cycle schedule, see `configure_optimizers`.
        unsaved: init arguments that do not go into ``hparams`` by themselves, as all others do.

    A subclass declares each upstream stage, ``task = Upstream(TaskModel)``, and takes its file as an init
    argument, ``task_ckpt``. The SHA-256 is in the checkpoint: with another file that is refused.
    """

    stage_name: ClassVar[str] = "stage"
    data_class: ClassVar[type[FacesDataModule]] = FacesDataModule
    train_split: ClassVar[str] = "public_train"
    val_split: ClassVar[str] = "public_val"
    monitor: str | None = None
    mode: ClassVar[str] = "max"
    rise: ClassVar[float] = 0.2
    unsaved: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=self.unsaved)
        self.hparams.update(checked(type(self).__init__, self.hparams, "--model.init_args"))
        self.upstream: dict[str, Stage] = {}
        self.upstream_files: dict[str, tuple[str, str]] = {}
        self.loaded: dict[tuple[str, str], Stage] = {}  # all of them, and theirs, by file and hash
        self.run_dir: Path | None = None
        self.experiment_dir: Path | None = None
        self.trained_on: tuple[str | None, str | None] = (None, None)  # split hash, source; see `load_stage`
        for cls in reversed(type(self).__mro__):
            for one in vars(cls).values():
                if isinstance(one, Upstream) and f"{one.key}_ckpt" in self.hparams:
                    self.use(one.key, self.hparams[f"{one.key}_ckpt"], one.kind)

    @property
    def image_size(self) -> int | None:
        """Side in pixels of the pictures that it was trained on; None if nothing in it tells."""
        sizes = (self.hparams.get("image_size"), *(stage.image_size for stage in self.upstream.values()))
        return next(filter(None, sizes), None)

    @classmethod
    def from_data(cls, data: FacesDataModule, given: Mapping[str, Any]) -> dict[str, Any]:
        """Init arguments that a fresh stage has from the data, set up: sizes, names, people.

        Args:
            data: what it will be trained on.
            given: its other init arguments.

        Raises:
            UserError: there is too little in the data.
        """
        return {}

    @classmethod
    def check_task(cls, given: Mapping[str, Any], task: Any) -> None:  # noqa: ANN401 (a stage)
        """Refuses a task model that the init arguments ``given`` do not fit, before anything is trained."""

    def needs(self, name: str) -> Any:  # noqa: ANN401 (sizes, names, people)
        """An init argument that the command line takes from the data (`from_data`).

        Raises:
            UserError: it was left out.
        """
        if given := self.hparams[name]:
            return given
        raise UserError(f"{type(self).__name__} needs {name}: give it, or what `from_data` has of the data")

    @property
    def data(self) -> FacesDataModule:
        """The data that it is trained or tried on."""
        return cast(FacesDataModule, self.trainer.datamodule)  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        """Says which parts of the data it works on, and looks whether upstream stages fit these.

        Before `fit` they must not have seen people who are private here.

        Raises:
            UserError: an upstream checkpoint was trained on pictures of another size, or on another split of
                the same source.
        """
        data = self.data
        data.train_split, data.val_split = self.train_split, self.val_split
        for key, upstream in self.upstream.items():
            if (size := upstream.image_size) not in (None, data.image_size):
                raise UserError(
                    f"{self.upstream_files[key][0]} (stage {key}) was trained on pictures of {size} pixels, "
                    f"the data have {data.image_size}: give --data.image_size {size}, or another {key}_ckpt"
                )
        for key, upstream in self.upstream.items() if stage == "fit" else ():
            file, (seen, source) = self.upstream_files[key][0], upstream.trained_on
            if source == data.source and not data.same_people(seen):
                raise UserError(
                    f"{file} (stage {key}) was trained on another split of {source}, whose public people may "
                    "be private here: give the --data settings that it was trained with, or train it again"
                )
            if not data.same_people(seen) and self.trainer.is_global_zero:
                print(f"note: {file} was trained on other faces; see that none is private here", flush=True)

    def use(self, key: str, path: str | None, cls: type[StageT] | Callable[[str], StageT]) -> StageT:
        """Loads an upstream checkpoint frozen, by its class or what loads one of several; notes its hash."""
        if path is None:
            raise UserError(
                f"{type(self).__name__} needs the checkpoint of stage {key!r}: "
                f"give --model.init_args.{key}_ckpt PATH"
            )
        known = _known.set({**_known.get(), **self.loaded})
        try:
            stage = load_stage(path, cls) if isinstance(cls, type) else cls(path)
        finally:
            _known.reset(known)
        self.upstream[key] = stage
        self.upstream_files[key] = (str(path), sha256(path))
        self.loaded |= {self.upstream_files[key]: stage, **stage.loaded}
        return stage

    def expect_upstream(self, path: str | None, **files: str) -> None:
        """Refuses this stage, loaded from ``path``, where it was trained on others than these ``files``.

        Raises:
            UserError: names both.
        """
        for key, file in files.items():
            trained_on, digest = self.upstream_files[key]
            if sha256(file) != digest:
                raise UserError(
                    f"the {self.stage_name} {path} was trained on {trained_on}, not on {file}: give "
                    f"checkpoints that belong together, or train {self.stage_name} again on that {key}"
                )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Stage:
        # Upstream nets follow .to(), .cuda(), .double(); .train() never reaches them.
        super()._apply(fn, recurse)
        for stage in self.upstream.values():
            stage._device = self._device  # .to() sets it on the outermost module alone
            stage._apply(fn, recurse)
        return self

    def new_optimizer(self) -> torch.optim.Optimizer:
        """What it is trained by: by default AdamW, by those of ``lr`` and ``weight_decay`` that it has."""
        given = {name: self.hparams[name] for name in ("lr", "weight_decay") if name in self.hparams}
        on_cpu = self.device.type == "cpu" or None  # an eighth of a step; on a GPU fp16 could not clip
        return torch.optim.AdamW(self.parameters(), fused=on_cpu, **given)

    def configure_optimizers(self) -> Any:  # noqa: ANN401 (Lightning's union)
        """By default `new_optimizer` with a one-cycle schedule over the whole fit.

        The learning rate rises to the optimizer's own over the share `rise` of all steps, then falls to 0.
        """
        optimizer, steps = self.new_optimizer(), max(int(self.trainer.estimated_stepping_batches), 1)
        schedule = OneCycle(optimizer, optimizer.defaults["lr"], total_steps=steps, pct_start=self.rise)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @classmethod
    def upgraded(cls, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint as this version writes it, of what an earlier one wrote.

        Raises:
            UserError: it cannot be used any more; says what to do.
        """
        return checkpoint

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes the stage's class, its upstream hashes and the hash of what it has seen of the split."""
        checkpoint["stage_class"] = type(self).__name__
        checkpoint["upstream"] = {key: list(entry) for key, entry in self.upstream_files.items()}
        data = getattr(self._trainer, "datamodule", None)
        checkpoint["split_hash"] = data and data.hash_of(self.train_split, self.val_split)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another class, or one trained on other upstream checkpoints."""
        saved, mine = checkpoint.get("stage_class"), type(self).__name__
        if saved != mine:
            raise UserError(f"this is a checkpoint of {saved or 'something else'}, not of {mine}")
        for key, (path, digest) in checkpoint.get("upstream", {}).items():
            file, now = self.upstream_files.get(key, (path, digest))
            if now != digest:
                raise UserError(
                    f"upstream mismatch: this {saved} was trained on {path} "
                    f"(sha256 {digest[:12]}…), but {file} now has sha256 "
                    f"{now[:12]}…; train this stage again, or bring the old {key} checkpoint back"
                )

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Refuses: a stage that can be tested says how."""
        raise UserError(
            f"{type(self).__name__} has nothing to test by itself: attacks and oracles judge it "
            "(python -m crafter_pl audit)"
        )

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Refuses: only defences make something of a split."""
        raise UserError(
            f"{type(self).__name__} does not predict: a defence does (predict --config configs/crafter.yaml)"
        )

    def log_grid(self, tag: str, images: Tensor, columns: int = 8, step: int | None = None) -> None:
        """Writes pictures ``(N, 3, S, S)`` in [0, 1] to TensorBoard as a grid, by default at this epoch."""
        experiment: Any = getattr(self.logger, "experiment", None)
        if self.trainer.is_global_zero and hasattr(experiment, "add_image"):
            grid = make_grid(images.detach().float().cpu().clamp(0, 1), nrow=columns, padding=1)
            experiment.add_image(tag, grid, self.trainer.current_epoch if step is None else step)

    def fixed_images(self, split: str, count: int) -> Tensor:
        """The first ``count`` pictures of a split, on this device: the same in every epoch and every run."""
        data = self.data.dataset(split)
        return data.__getitems__(list(range(min(count, len(data)))))["image"].to(self.device)

    def spread_images(self, split: str, count: int) -> Tensor:
        """Up to ``count`` pictures spread evenly over a split: where its first ones would be one person's."""
        return self.data.dataset(split).spread(count)["image"].to(self.device).type(self.dtype)


def stages(cls: type[Stage] = Stage) -> dict[str, type[Stage]]:
    """Every class of stage below ``cls`` that has been imported, by its name, ``cls`` included."""
    return {cls.__name__: cls} | {
        name: found for sub in cls.__subclasses__() for name, found in stages(sub).items()
    }


def load_stage(path: str | Path, cls: type[StageT], checkpoint: dict[str, Any] | None = None) -> StageT:
    """Rebuilds a stage from its own checkpoint: frozen, in eval mode, on the CPU.

    Args:
        path: the checkpoint.
        cls: the stage's class.
        checkpoint: what `read_checkpoint` has read there, if that was needed to know the class.

    Raises:
        UserError: the file is missing, damaged, or of another stage; its layers do not fit its settings; or
            one of its upstream checkpoints is missing or has changed.
    """
    path = Path(path)
    if path.is_file() and type(known := _known.get().get((str(path), sha256(path)))) is cls:
        return known
    checkpoint = read_checkpoint(path, cls.stage_name) if checkpoint is None else checkpoint
    if (saved := checkpoint.get("stage_class") or "something else") != cls.__name__:
        raise UserError(f"{path} is a checkpoint of {saved}, expected one of {cls.__name__}")
    try:
        checkpoint = cls.upgraded(checkpoint)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    found = {
        f"{key}_ckpt": str(find_upstream(path, key, file, digest))
        for key, (file, digest) in checkpoint.get("upstream", {}).items()
    }
    try:
        # As Lightning's load_from_checkpoint, which reads the file again and walks the whole call stack.
        settings = {**checkpoint["hyper_parameters"], **found, "weights": None}  # the checkpoint has its own
        taken = signature(cls).parameters
        every = any(one.kind is one.VAR_KEYWORD for one in taken.values())  # else the class's own alone
        stage = cls(**{key: value for key, value in settings.items() if every or key in taken})
        stage.on_load_checkpoint(checkpoint)
        stage.load_state_dict(checkpoint["state_dict"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (RuntimeError, KeyError, TypeError) as error:  # other layers, names or settings; missing entries
        lines = [line.strip() for line in str(error).splitlines()]
        raise UserError(
            f"{path} does not fit this version's {cls.__name__} ({' '.join(lines[:2])[:200]}): "
            f"train the stage {cls.stage_name!r} again, or use the version of crafter_pl that wrote it"
        ) from error
    data = checkpoint.get("config", {}).get("data", {})
    stage.trained_on = checkpoint.get("split_hash"), data.get("source")
    return stage.requires_grad_(False).eval()
