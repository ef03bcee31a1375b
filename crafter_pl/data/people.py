"""Synthetic people: who they are, how each picture of them was taken, and the attributes that follow.

The attributes carry CelebA's names where CelebA has them. Six belong to the person, eleven to the picture.
"""

import torch
from torch import Tensor

from crafter_pl.data.keyed import Dice

Params = dict[str, Tensor]

# Few and common enough that 60 people show about 20 combinations: most of what tells people apart is no
# attribute, so utility can be kept while identity is hidden.
IDENTITY_ATTRIBUTES = (
    "Bald",
    "Beard",
    "Black_Hair",
    "Blond_Hair",
    "Long_Hair",
    "Pale_Skin",
)
PICTURE_ATTRIBUTES = (
    "Eyeglasses",
    "Eyes_Closed",
    "Head_Turned",
    "Mouth_Slightly_Open",
    "Raised_Eyebrows",
    "Rosy_Cheeks",
    "Side_Light",
    "Smiling",
    "Wearing_Earrings",
    "Wearing_Hat",
    "Wearing_Lipstick",
)
ATTRIBUTE_NAMES = IDENTITY_ATTRIBUTES + PICTURE_ATTRIBUTES

_SKIN = ((1.00, 0.89, 0.82), (0.95, 0.77, 0.64), (0.82, 0.60, 0.44), (0.60, 0.40, 0.27), (0.38, 0.24, 0.17))
_BLACK, _BROWN, _BLOND, _RED, _GREY, _DYED = range(6)
_HAIR_LOW = (
    (0.05, 0.04, 0.05),
    (0.28, 0.16, 0.08),
    (0.80, 0.62, 0.28),
    (0.55, 0.18, 0.06),
    (0.58, 0.58, 0.60),
)
_HAIR_HIGH = (
    (0.13, 0.12, 0.15),
    (0.46, 0.28, 0.15),
    (0.95, 0.84, 0.56),
    (0.78, 0.32, 0.12),
    (0.86, 0.86, 0.88),
)
_EYES = ((0.22, 0.13, 0.07), (0.45, 0.28, 0.12), (0.25, 0.45, 0.72), (0.28, 0.52, 0.30), (0.45, 0.50, 0.55))


def _along(palette: tuple[tuple[float, ...], ...], position: Tensor) -> Tensor:
    """The colour at `position` in [0, 1] along a palette: `(N,)` to `(N, 3)`."""
    stops = torch.tensor(palette)
    place = position.clamp(0, 1) * (len(stops) - 1)
    low = place.floor().long().clamp(max=len(stops) - 2)
    return torch.lerp(stops[low], stops[low + 1], (place - low)[:, None])


def _hue(turn: Tensor) -> Tensor:
    """A strong colour of this hue, in turns: `(N,)` to `(N, 3)`."""
    return 0.5 + 0.35 * torch.cos(2 * torch.pi * (turn[:, None] - torch.tensor([0.0, 1 / 3, 2 / 3])))


def draw_people(people: Tensor, seed: int) -> Params:
    """What stays the same in every picture of a person.

    Args:
        people: int64 `(N,)`, numbers of people; any selection, repeats allowed.
        seed: of the population.

    Returns:
        Parameters by name, `(N,)` or `(N, 3)` for colours; lengths in half pictures.
    """
    dice = Dice(seed, "person.", people)
    rugged = dice.chance("rugged", 0.5)

    def odds(if_rugged: float, otherwise: float) -> Tensor:
        return torch.where(rugged, if_rugged, otherwise)

    pale = dice.chance("pale", 0.35)
    skin = _along(_SKIN, dice.either("skin", pale, (0.0, 0.12), (0.27, 1.0)))
    skin = skin * (
        1
        + torch.stack(
            [dice.normal("skin.red", 0.02), dice.normal("skin.green", 0.025), dice.normal("skin.blue", 0.05)],
            -1,
        )
    )
    kind = torch.bucketize(dice.uniform("hair"), torch.tensor([0.32, 0.60, 0.80, 0.88, 0.95]), right=True)
    shade = dice.colour("hair.shade", 0.0, 1.0) * 0.3 + dice.uniform("hair.depth")[:, None] * 0.7
    hair = torch.lerp(
        torch.tensor(_HAIR_LOW)[kind.clamp(max=4)], torch.tensor(_HAIR_HIGH)[kind.clamp(max=4)], shade
    )
    hair = torch.where((kind == _DYED)[:, None], _hue(dice.uniform("hair.hue")), hair)
    bald = dice.chance("bald", odds(0.2, 0.02))
    long_hair = dice.chance("long", odds(0.08, 0.8)) & ~bald
    beard = dice.chance("beard", odds(0.5, 0.0))
    moustache = dice.chance("moustache", torch.where(beard, 0.9, odds(0.25, 0.0)))
    width = dice.uniform("face.width", 0.47, 0.62)
    return {
        "Bald": bald,
        "Beard": beard,
        "Black_Hair": (kind == _BLACK) & ~bald,
        "Blond_Hair": (kind == _BLOND) & ~bald,
        "Long_Hair": long_hair,
        "Pale_Skin": pale,
        "skin": skin.clamp(0.05, 1.0),
        "hair": hair,
        "has_hair": (~bald).float(),
        "brow": hair * dice.uniform("brow.depth", 0.45, 0.85)[:, None],
        "hair_curl": dice.uniform("hair.curl") ** 2 * dice.uniform("hair.curled", 0.0, 1.0),
        "hair_waves": dice.uniform("hair.waves", 7.0, 14.0).round(),
        "hair_volume": dice.uniform("hair.volume", 0.03, 0.16),
        "hair_length": dice.either("hair.length", long_hair, (0.55, 1.1), (-0.35, 0.05)),
        "hairline": dice.uniform("hairline", -0.56, -0.34),
        "fringe": dice.normal("fringe", 0.22, 1.8),
        "temples": dice.uniform("temples", 0.15, 0.5),
        "width": width,
        "height": dice.uniform("face.height", 0.62, 0.78),
        "jaw": dice.either("jaw", rugged, (0.0, 0.30), (0.18, 0.45)),
        "square": dice.either("square", rugged, (2.1, 3.0), (1.9, 2.4)),
        "ears": dice.uniform("ears", 0.06, 0.17),
        "eye_x": width * dice.uniform("eye.x", 0.38, 0.52),
        "eye_y": dice.uniform("eye.y", -0.15, -0.02),
        "eye_width": dice.uniform("eye.width", 0.105, 0.165),
        "eye_height": dice.uniform("eye.height", 0.050, 0.105),
        "eye_slant": dice.normal("eye.slant", 0.12),
        "iris": _along(_EYES, dice.uniform("iris")) * dice.uniform("iris.depth", 0.75, 1.2)[:, None],
        "brow_gap": dice.uniform("brow.gap", 0.11, 0.19),
        "brow_width": dice.uniform("brow.width", 0.13, 0.20),
        "brow_thick": dice.uniform("brow.thick", 0.016, 0.068),
        "brow_slant": dice.normal("brow.slant", 0.14),
        "brow_arch": dice.uniform("brow.arch", 0.0, 0.07),
        "nose_width": dice.uniform("nose.width", 0.06, 0.165),
        "nose_length": dice.uniform("nose.length", 0.18, 0.35),
        "mouth_y": dice.uniform("mouth.y", 0.33, 0.45),
        "mouth_width": dice.uniform("mouth.width", 0.17, 0.27),
        "lips": dice.uniform("lips.thick", 0.022, 0.09),
        "lip_red": dice.uniform("lips.red", 0.1, 0.7),
        "beard_density": beard * dice.uniform("beard.density", 0.6, 0.97),
        "beard_length": dice.uniform("beard.length", 0.0, 0.16),
        "beard_line": dice.uniform("beard.line", 0.0, 0.16),
        "moustache_density": moustache * dice.uniform("moustache.density", 0.75, 0.97),
        "moustache_width": dice.uniform("moustache.width", 0.13, 0.25),
        "moustache_thick": dice.uniform("moustache.thick", 0.035, 0.065),
        "moustache_droop": dice.normal("moustache.droop", 0.05),
        "freckles": dice.chance("freckles", 0.2) * dice.uniform("freckles.depth", 0.3, 0.65),
        "mole": dice.chance("mole", 0.25) * 0.8,
        "mole_x": dice.uniform("mole.x", -0.6, 0.6) * width,
        "mole_y": dice.uniform("mole.y", 0.1, 0.35),
        "lines": dice.uniform("lines") ** 2 * 0.5,
    }


def draw_pictures(people: Tensor, pictures: Tensor, seed: int) -> Params:
    """What belongs to one picture: pose, expression, light, background, glasses, hat, clothes.

    Args:
        people: int64 `(N,)`.
        pictures: int64 `(N,)`, the number of the picture among this person's.
        seed: of the population.

    Returns:
        Parameters by name, `(N,)` or `(N, 3)`.
    """
    dice = Dice(seed, "picture.", people, pictures)
    smiling = dice.chance("smiling", 0.45)
    mouth_open = dice.chance("open", torch.where(smiling, 0.55, 0.3))
    closed, raised, turned = (
        dice.chance("closed", 0.2),
        dice.chance("raised", 0.3),
        dice.chance("turned", 0.35),
    )
    side, glasses, hat = dice.chance("side", 0.35), dice.chance("glasses", 0.22), dice.chance("hat", 0.2)
    rosy, lipstick, earrings = (
        dice.chance("rosy", 0.3),
        dice.chance("lipstick", 0.3),
        dice.chance("earrings", 0.25),
    )
    direction = torch.where(
        side,
        dice.normal("light.tilt", 0.3) + ~dice.chance("side.sign", 0.5) * torch.pi,
        dice.uniform("light.turn", 0.0, 2 * torch.pi),
    )
    warmth = dice.normal("light.warmth", 0.035)
    return {
        "Eyeglasses": glasses,
        "Eyes_Closed": closed,
        "Head_Turned": turned,
        "Mouth_Slightly_Open": mouth_open,
        "Raised_Eyebrows": raised,
        "Rosy_Cheeks": rosy,
        "Side_Light": side,
        "Smiling": smiling,
        "Wearing_Earrings": earrings,
        "Wearing_Hat": hat,
        "Wearing_Lipstick": lipstick,
        "shift_x": dice.normal("shift.x", 0.035),
        "shift_y": dice.normal("shift.y", 0.035),
        "scale": 1.12 + dice.normal("scale", 0.035),
        "roll": dice.normal("roll", 0.07),
        "yaw": dice.either("yaw", turned, (0.65, 1.0), (0.0, 0.25))
        * torch.where(dice.chance("yaw.sign", 0.5), 1.0, -1.0),
        "gaze": dice.normal("gaze", 0.35, 1.5),
        "smile": dice.either("smile", smiling, (0.6, 1.0), (-0.45, 0.1)),
        "open": dice.either("open.much", mouth_open, (0.45, 1.0), (0.0, 0.05)),
        "lids": dice.either("lids", closed, (0.0, 0.1), (0.75, 1.1)),
        "brow_raise": dice.either("brow.raise", raised, (0.65, 1.0), (-0.2, 0.1)),
        "blush": dice.either("blush", rosy, (0.65, 0.95), (0.0, 0.12)),
        "lipstick": lipstick * dice.uniform("lipstick.much", 0.75, 0.95),
        "lipstick_colour": _hue(dice.uniform("lipstick.hue", -0.12, 0.03)),
        "earrings_on": earrings.float(),
        "earring": _along(((0.95, 0.80, 0.30), (0.90, 0.92, 0.95)), dice.uniform("earring.metal")),
        "earring_size": dice.uniform("earring.size", 0.075, 0.11),
        "light_x": torch.cos(direction),
        "light_y": torch.sin(direction),
        "light": dice.either("light", side, (0.38, 0.58), (0.0, 0.14)),
        "tint": torch.stack([1 + warmth, 1 + dice.normal("light.green", 0.01), 1 - warmth], -1)
        * (1 + dice.normal("gain", 0.06))[:, None],
        "back_low": dice.colour("back.low", -0.2, 0.2) + dice.uniform("back.low.grey", 0.3, 0.85)[:, None],
        "back_high": dice.colour("back.high", -0.2, 0.2) + dice.uniform("back.high.grey", 0.3, 0.85)[:, None],
        "back_turn": dice.uniform("back.turn", 0.0, 2 * torch.pi),
        "cloth": dice.colour("cloth", 0.1, 0.85),
        "collar": dice.uniform("collar", 0.1, 0.3),
        "glasses_on": glasses.float(),
        "glasses": dice.colour("glasses.colour", 0.02, 0.3),
        "glasses_width": dice.uniform("glasses.width", 0.17, 0.21),
        "glasses_height": dice.uniform("glasses.height", 0.12, 0.17),
        "glasses_thick": dice.uniform("glasses.thick", 0.02, 0.036),
        "glasses_tint": dice.uniform("glasses.tint", 0.05, 0.3),
        "hat_on": hat.float(),
        "hat": dice.colour("hat.colour", 0.1, 0.9),
        "hat_band": dice.colour("hat.band", 0.05, 0.9),
        "hat_low": dice.uniform("hat.low", -0.50, -0.38),
        "hat_high": dice.uniform("hat.high", 0.35, 0.6),
        "brim": dice.uniform("hat.brim", 0.0, 0.3),
        "noise": dice.uniform("noise", 0.005, 0.025),
    }
