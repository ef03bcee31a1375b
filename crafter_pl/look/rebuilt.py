"""What a decoder makes of a few faces' features: unprotected, and as each defence sends them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crafter_pl.attacks.adaptive_black_box import AdaptiveDecoderAttack
from crafter_pl.attacks.base import Attack, Target
from crafter_pl.attacks.black_box import DecoderAttack
from crafter_pl.commands import Commands, trained
from crafter_pl.data.provenance import seedless
from crafter_pl.defenses import Certified, Crafter
from crafter_pl.defenses.base import Defense, load_defense
from crafter_pl.errors import UserError
from crafter_pl.look.words import in_words
from crafter_pl.stages import TaskModel

TRAIN = "train it first: "  # what stands before a command in a message


@dataclass(frozen=True)
class Shown:
    """What stands below one heading, for every face.

    Attributes:
        title: what was sent, and who attacks.
        note: one sentence on it.
        images: pictures by the attacker ``(N, 3, S, S)`` in [0, 1].
        said: of certified features, once, what the message says, a face each.
        setting: of certified features which of several settings, from 0.
    """

    title: str
    note: str
    images: Tensor
    said: list[str] = field(default_factory=list)
    setting: int | None = None


@dataclass(frozen=True)
class Missing:
    """What cannot be shown: what it is, and the command that trains it."""

    what: str
    command: str


def rebuilt(
    task: TaskModel, commands: Commands, images: Tensor, device: str
) -> tuple[list[Shown], list[str], list[Missing]]:
    """All that there is to show of some faces.

    Args:
        task: the task model, on the device.
        commands: of the experiment whose nets are shown.
        images: ``(N, 3, S, S)`` in [0, 1], on the device.
        device: where the nets work.

    Returns:
        What to show, the unprotected features first; the names of the settings of certified defences, in the
        order of `Shown.setting`; and what is missing.

    Raises:
        UserError: the decoder is missing: without it there is nothing to show.
    """
    home, missing = commands.home, list[Missing]()
    decoder = DecoderAttack().against(None, commands)
    if not Path(decoder.checkpoint("black_box")).is_file():
        raise UserError(f"{home} has no decoder to rebuild faces with; {TRAIN}{commands.fit('black_box')}")
    with torch.no_grad():
        features = task.edge(images)
    note = "This is what anybody can rebuild who sees the feature, by a decoder trained on other people."
    shown = [Shown("Unprotected", note, _drawn(decoder, features, device))]
    path = home / Crafter.stage_name / "checkpoints" / "best.ckpt"
    if path.is_file():
        crafter = load_defense(path).to(device)
        more, lacking = _both("Crafter", crafter, path, images, decoder, commands, device)
        shown, missing = shown + more, missing + lacking
    else:
        missing.append(Missing("Crafter", commands.fit("crafter")))
    certified = []
    for path in trained(home, Certified.stage_name):
        one = load_defense(path).to(device)
        assert isinstance(one, Certified)
        certified.append((one, path))
    certified.sort(key=lambda own: (own[0].certificate(own[0].options()).bits, len(own[0].answered)))
    if not certified:
        missing.append(Missing("the certified defence", commands.fit("certified")))
    settings = []
    for number, (one, path) in enumerate(certified):
        count, answered = len(one.codewords), len(one.answered)
        settings.append(f"{_run(path)}, one of {count} messages about {answered} {one.task.answers.served}")
        more, lacking = _both("Certified", one, path, images, decoder, commands, device)
        shown += [Shown(own.title, own.note, own.images, own.said, number) for own in more]
        missing += lacking
    return shown, settings, missing


def _both(
    title: str,
    defense: Defense[Any],
    path: Path,
    images: Tensor,
    decoder: Attack,
    commands: Commands,
    device: str,
) -> tuple[list[Shown], list[Missing]]:
    """A defence's features by the decoder that has never seen such, and by one that has learnt from them."""
    options, said = defense.options(), list[str]()
    index = torch.arange(len(images), device=images.device)
    with torch.inference_mode(False), torch.enable_grad():
        features = defense.protect(images, index, options).detach()
    if isinstance(defense, Certified):
        said = messages(defense, images, index)
    found = [Shown(title, _notes(title)[0], _drawn(decoder, features, device), said)]
    about = defense.manifest("", "", options)
    about["settings"] = seedless(about["settings"])
    target = Target(about, defense, {}, str(path), options)
    try:
        adapted = AdaptiveDecoderAttack().against(target, commands)
    except UserError as error:
        what = f"an attacker who has adapted to {_run(path)}"
        return found, [Missing(what, str(error).rpartition(TRAIN)[2])]
    drawn = _drawn(adapted, features, device)
    return [*found, Shown(f"{title}, attacker adapting", _notes(title)[1], drawn)], []


def messages(defense: Certified, images: Tensor, index: Tensor) -> list[str]:
    """What each picture's message says, in words: `smiling, no glasses: one of 32 messages`."""
    options = defense.options()
    coins, _ = defense.draw(index, options)
    chosen: Sequence[int] = defense.messages(images, coins, options).tolist()
    told = defense.task.answers.part(torch.tensor(defense.columns)).told(defense.codewords.cpu())
    words = [
        in_words(told[message].tolist(), defense.answered, defense.task.answers.kind) for message in chosen
    ]
    return [f"{one}: one of {len(defense.codewords)} messages" for one in words]


def _notes(title: str) -> tuple[str, str]:
    if title == "Crafter":
        return (
            "The attacker has never seen crafted features: hidden, it seems.",
            "The attacker has let the same defence craft other people's faces, and learnt from them.",
        )
    return (
        "What leaves was made from the message alone. The face drawn is nobody's.",
        "Learning from what the defence sends does not help: there is nothing else of the face in it.",
    )


def _run(path: Path) -> str:
    return path.parent.parent.name


def _drawn(attack: Attack, features: Tensor, device: str) -> Tensor:
    attack.prepare(device)
    return attack.reconstruct(features.float().cpu()).clamp(0, 1)
