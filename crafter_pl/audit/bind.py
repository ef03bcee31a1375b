"""Attacks and rulers bound to what they are let at, and checked before anything is computed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from crafter_pl.attacks.base import Adversary, Attack, Target
from crafter_pl.attacks.reader import Reader, Ruler
from crafter_pl.audit.load import trained_on
from crafter_pl.commands import Commands
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.errors import UserError

Moment = (
    dict[str, int] | None
)  # the label of an earlier moment (`Attack.history`); None: the attack at its end
A = TypeVar("A", Attack, Reader)
Bound = dict[str, list[list[tuple[Moment, A]]]]  # by name and target, with the earlier moments


def bind(
    adversaries: Sequence[A],
    targets: Sequence[Target | None],
    commands: Commands,
    adapted: list[str] | None,
    data: FacesDataModule,
) -> tuple[Bound[A], list[str], list[str]]:
    """Everybody bound to every target, what the report must note, and what is wrong.

    Args:
        adversaries: as they were configured.
        targets: what made each set of features; None: they are unprotected.
        commands: of the experiment.
        adapted: see `Adversary.against`, ``among``.
        data: that is audited.
    """
    bound: Bound[A] = {one.name: [] for one in adversaries}
    notes, wrong = [], []
    for target in targets:
        for adversary in adversaries:
            try:
                one = adversary.against(target, commands, adapted)
                moments: list[tuple[Moment, A]] = [(None, one)]
                if isinstance(one, Attack) and target is not None:
                    moments += one.history()  # type: ignore[arg-type]  # rulers have none
                notes += [note for _, own in moments for note in check(own, data)]
                bound[adversary.name].append(moments)
            except UserError as error:
                wrong.append(str(error))
    return bound, notes, wrong


def refuse(wrong: Sequence[str]) -> None:
    """Raises UserError where attacks have nothing that fits a defence, or a checkpoint is missing."""
    if wrong := list(dict.fromkeys(wrong)):
        raise UserError("\n- ".join(["the attacks are not ready:", *wrong]) if wrong[1:] else wrong[0])


def check(adversary: Adversary, data: FacesDataModule) -> list[str]:
    """What the report must note about an attack or ruler that is bound.

    Raises:
        UserError: a checkpoint is missing; or a ruler was trained on another split, where it may have seen
            the pictures whose features it is to name.
    """
    files = {stage: path for stage, path in adversary.checkpoints.items() if path is not None}
    for path in files.values():
        if not Path(path).is_file():
            assert adversary.commands is not None
            way = adversary.commands.fit(Path(path).absolute().parents[1].name)
            raise UserError(f"attack {adversary.name} needs {path}, which is missing: train it first: {way}")
    others = [stage for stage, path in files.items() if not data.same_people(trained_on(path))]
    if others and isinstance(adversary, Ruler):
        raise UserError(
            f"ruler {adversary.name}: {files[others[0]]} was trained on another split and may have seen the "
            "audited pictures: give the --data settings that it was trained with, or train it again"
        )
    note = (
        f"Attack {adversary.name}: {', '.join(others)} trained on another split. Make sure that it has seen "
        "none of the private people."
    )
    return [note] if others else []
