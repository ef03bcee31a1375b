"""Drawing of faces: soft masks from signed distances on a grid of points, painted one layer over the other.

Coordinates: the picture is the square [-1, 1]², `y` downwards; half a head is about 0.55 wide and 0.7 high.
A mask is the distance to a shape's edge, in pixels, cut to [0, 1]: anti-aliased at any size.
"""

import torch
from torch import Tensor


def _ellipse(x: Tensor, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    """The signed distance to an ellipse with half axes `a`, `b`, exact to first order at its edge."""
    u, v = x / a, y / b
    k = torch.sqrt(u * u + v * v + 1e-6)
    return k * (k - 1) / torch.sqrt((u / a) ** 2 + (v / b) ** 2 + 1e-6)


def _blob(x: Tensor, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    """A soft spot in [0, 1] with a Gaussian fall."""
    return torch.exp(-((x / a) ** 2 + (y / b) ** 2))


class _Canvas:
    """The picture being painted: `(N, 3, S, S)`, masks `(N, S, S)`."""

    def __init__(self, image: Tensor, pixel: Tensor) -> None:
        self.image, self.pixel = image, pixel

    def cover(self, distance: Tensor, softness: float = 1.0) -> Tensor:
        """How much of each pixel lies inside a shape, from the signed distance."""
        return (0.5 - distance / (self.pixel * softness)).clamp_(0, 1)

    def paint(self, mask: Tensor, colour: Tensor) -> None:
        """Lay a colour `(N, 3, 1, 1)` or a coloured picture over the canvas where the mask is."""
        self.image = torch.lerp(self.image, colour, mask[:, None])

    def fill(
        self, distance: Tensor, colour: Tensor, strength: Tensor | float = 1.0, softness: float = 1.0
    ) -> Tensor:
        """Paint a shape, from the signed distance to its edge. Returns its mask."""
        mask = strength * self.cover(distance, softness)
        self.paint(mask, colour)
        return mask


def _head(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The outline of the face: a superellipse whose lower half narrows to the jaw."""
    below = y.clamp(min=0) / p["height"]
    width = p["width"] * (1 - p["jaw"] * below * below.clamp(max=1.2))
    u, v = (x / width).abs() + 1e-4, (y / p["height"]).abs() + 1e-4
    k = (u ** p["square"] + v ** p["square"]) ** (1 / p["square"])
    return (k - 1) * p["width"]


def _hair_wave(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Curls: a wave along the outline of the hair."""
    return 0.045 * p["hair_curl"] * torch.sin(p["hair_waves"] * 2 * torch.atan2(x, -y - 0.05))


def draw(params: dict[str, Tensor], size: int) -> Tensor:
    """Paint faces, `(N, 3, size, size)` float32, about [0, 1].

    Args:
        params: what `synthetic.draw_people` and `synthetic.draw_pictures` return, without the attributes.
        size: the side in pixels.
    """
    p = {k: v[:, :, None, None] if v.ndim == 2 else v[:, None, None].float() for k, v in params.items()}
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    gy, gx = torch.meshgrid(axis, axis, indexing="ij")
    pixel = 2 / size / p["scale"]
    cos, sin = torch.cos(p["roll"]) / p["scale"], torch.sin(p["roll"]) / p["scale"]
    x0, y0 = gx - p["shift_x"], gy - p["shift_y"] - 0.06
    x, y = x0 * cos + y0 * sin, y0 * cos - x0 * sin
    along = gx * torch.cos(p["back_turn"]) + gy * torch.sin(p["back_turn"])
    background = torch.lerp(p["back_low"], p["back_high"], (0.5 + 0.4 * along)[:, None])
    canvas = _Canvas(background.expand(-1, 3, size, size), pixel)
    # Turning the head moves what is in the middle of it and leaves its outline.
    xf = x - p["yaw"] * 0.17 * (1 - (x / p["width"]) ** 2).clamp(min=0)

    hair = p["hair"] * (1 + 0.10 * torch.sin(18 * x + 5 * torch.sin(6 * y)))[:, None]
    person = _behind(p, canvas, x, y, hair)
    head = _head(p, x, y)
    face = canvas.cover(head)
    person = torch.maximum(person, face)
    _skin(p, canvas, x, y, xf, head, face)
    _beard(p, canvas, xf, y, head, hair)
    _nose(p, canvas, xf, y)
    _mouth(p, canvas, xf, y)
    _moustache(p, canvas, xf, y, hair)
    _eyes(p, canvas, xf, y)
    person = torch.maximum(person, _front_hair(p, canvas, x, xf, y, hair))
    person = torch.maximum(person, _earrings(p, canvas, x, y))
    _glasses(p, canvas, x, xf, y)
    person = torch.maximum(person, _hat(p, canvas, x, xf, y))

    side = (x / p["width"]).clamp(-1.3, 1.3) * p["light_x"] + (y / p["height"]).clamp(-1.3, 1.3) * p[
        "light_y"
    ]
    return canvas.image * (1 + person * p["light"] * side)[:, None] * p["tint"]


def _behind(p: dict[str, Tensor], canvas: _Canvas, x: Tensor, y: Tensor, hair: Tensor) -> Tensor:
    """What the head hides: the hair's back, neck, clothes, ears. Returns the mask of it all."""
    wide = p["width"] + p["hair_volume"]
    long = (p["hair_length"] > 0.3).float()
    top = _ellipse(x, y + 0.12, wide, p["height"] - 0.12 + p["hair_volume"]) + _hair_wave(p, x, y)
    strand = torch.maximum(
        x.abs() - wide * (1 + 0.12 * (y + 0.1)), torch.maximum(-0.12 - y, y - p["hair_length"])
    )
    back = torch.where(long > 0, torch.minimum(top, strand + 2.5 * _hair_wave(p, x, y)), top)
    mask = canvas.fill(back, hair * 0.82, p["has_hair"])
    neck = canvas.fill(torch.maximum(x.abs() - p["width"] * 0.62, -y), p["skin"] * 0.80)
    shoulder = canvas.fill(
        0.62 * (0.72 + p["collar"] + 0.25 * x * x - y) - 0.12 * torch.exp(-(((x.abs() - 0.5) / 0.3) ** 2)),
        p["cloth"],
    )
    ear = _ellipse(x.abs() - p["width"] * 0.98, y - 0.02, p["ears"], 0.16)
    ears = canvas.fill(ear, p["skin"] * 0.9, 1 - long)
    return torch.maximum(torch.maximum(mask, neck), torch.maximum(shoulder, ears))


def _skin(
    p: dict[str, Tensor], canvas: _Canvas, x: Tensor, y: Tensor, xf: Tensor, head: Tensor, face: Tensor
) -> None:
    """The face's surface: rounding, cheeks, freckles, a mole, lines."""
    ax = xf.abs()
    canvas.paint(face, p["skin"] * (1 - 0.22 * torch.exp(head.clamp(max=0) / 0.13))[:, None])
    rosy = p["skin"] * torch.tensor([1.05, 0.60, 0.60])[:, None, None]
    canvas.paint(face * p["blush"] * _blob(ax - 0.29, y - 0.2, 0.13, 0.1), rosy)
    dots = torch.sin(xf * 47) * torch.sin(y * 43 + xf * 11) > 0.45
    canvas.paint(face * p["freckles"] * dots * _blob(ax - 0.17, y - 0.13, 0.17, 0.1), p["skin"] * 0.6)
    canvas.fill(_ellipse(xf - p["mole_x"], y - p["mole_y"], 0.035, 0.035), p["skin"] * 0.3, p["mole"])
    crease = (ax - 0.16 - 0.35 * (y - 0.12)).abs() - 0.012
    canvas.paint(
        face * p["lines"] * canvas.cover(crease, 1.5) * _blob(ax - 0.2, y - 0.25, 0.12, 0.13),
        p["skin"] * 0.65,
    )


def _beard(p: dict[str, Tensor], canvas: _Canvas, xf: Tensor, y: Tensor, head: Tensor, hair: Tensor) -> None:
    line = p["mouth_y"] - 0.02 + p["beard_line"] - 0.9 * (xf / p["width"]) ** 2 * 0.45
    grown = head - p["beard_length"] * (y / p["height"]).clamp(0, 1)
    canvas.fill(torch.maximum(grown, line - y), hair * 0.85, p["beard_density"], 1.6)


def _nose(p: dict[str, Tensor], canvas: _Canvas, xf: Tensor, y: Tensor) -> None:
    tip = p["eye_y"] + p["nose_length"]
    x = xf - p["yaw"] * 0.04
    half = p["nose_width"] * (0.35 + 0.65 * ((y - p["eye_y"]) / p["nose_length"]).clamp(0, 1) ** 2)
    inside = torch.maximum(x.abs() - half, torch.maximum(p["eye_y"] + 0.04 - y, y - tip))
    canvas.fill(inside, p["skin"] * 0.91, 0.75, 2.0)
    canvas.fill(_ellipse(x, y - tip, p["nose_width"], 0.055), p["skin"] * 0.80, 0.8)
    canvas.paint(
        0.6 * _blob(x, y - tip + 0.05, 0.45 * p["nose_width"], 0.07), (p["skin"] * 1.12).clamp(max=1)
    )
    nostril = _ellipse(x.abs() - 0.5 * p["nose_width"], y - tip - 0.02, 0.34 * p["nose_width"], 0.022)
    canvas.fill(nostril, p["skin"] * 0.42, 0.75)


def _mouth(p: dict[str, Tensor], canvas: _Canvas, xf: Tensor, y: Tensor) -> None:
    width = p["mouth_width"] * (1 + 0.22 * p["smile"].clamp(min=0) - 0.15 * p["open"])
    t = xf / width
    round_ = (1 - t * t).clamp(min=0)
    middle = p["mouth_y"] + 0.105 * p["smile"] * (0.45 - t * t)
    gap = 0.075 * p["open"] * round_.sqrt()
    upper, lower = p["lips"] * 0.75 * round_.sqrt(), p["lips"] * 1.1 * round_
    red = torch.lerp(
        p["skin"] * 0.72, p["skin"] * torch.tensor([0.88, 0.42, 0.44])[:, None, None], p["lip_red"][:, None]
    )
    red = torch.lerp(red, p["lipstick_colour"], p["lipstick"][:, None])
    beyond = xf.abs() - width
    lips = torch.maximum(middle - gap - upper - y, y - middle - gap - lower)
    canvas.fill(torch.maximum(lips, beyond), red)
    canvas.fill(
        torch.maximum((y - middle).abs() - gap - 0.014, beyond),
        torch.tensor([0.30, 0.07, 0.08])[:, None, None] * (0.5 + p["skin"] * 0.5),
        0.55 + 0.45 * p["open"],
    )
    teeth = torch.maximum(torch.maximum(middle - gap - y, y - middle + 0.35 * gap), beyond + 0.03)
    canvas.fill(teeth, torch.tensor([0.97, 0.96, 0.92])[:, None, None], 0.95 * (p["open"] > 0.3))


def _moustache(p: dict[str, Tensor], canvas: _Canvas, xf: Tensor, y: Tensor, hair: Tensor) -> None:
    t = xf / p["moustache_width"]
    middle = (
        p["mouth_y"] - 0.045 - p["lips"] * 0.75 + (0.03 + p["moustache_droop"]) * t * t + 0.03 * p["smile"]
    )
    edge = torch.maximum(
        (y - middle).abs() - p["moustache_thick"] * (1.05 - t * t).clamp(min=0),
        xf.abs() - p["moustache_width"],
    )
    canvas.fill(edge, hair * 0.85, p["moustache_density"])


def _eyes(p: dict[str, Tensor], canvas: _Canvas, xf: Tensor, y: Tensor) -> None:
    """Both eyes and brows at once, on the mirrored coordinate."""
    side = torch.where(xf >= 0, 1.0, -1.0)
    ax = xf.abs() - p["eye_x"]
    yy = y - p["eye_y"] + p["eye_slant"] * ax
    canvas.paint(0.30 * _blob(ax, yy + 0.02, 0.2, 0.13), p["skin"] * 0.62)
    high = p["eye_height"] * p["lids"] * (1 + 0.25 * p["brow_raise"].clamp(min=0))
    white = canvas.fill(
        _ellipse(ax, yy, p["eye_width"], high.clamp(min=0.004)),
        torch.tensor([0.97, 0.97, 0.98])[:, None, None],
        p["lids"] > 0.3,
    )
    ix = ax - side * p["gaze"] * 0.35 * (p["eye_width"] - 0.06)
    radius = 0.030 + 0.42 * p["eye_height"]
    canvas.fill(_ellipse(ix, yy, radius, radius), p["iris"], white)
    canvas.fill(_ellipse(ix, yy, radius * 0.5, radius * 0.5), p["iris"] * 0.12, white)
    canvas.fill(_ellipse(ix - side * 0.02, yy + 0.022, 0.016, 0.016), torch.ones(3, 1, 1), white * 0.9)
    t = ax / p["eye_width"]
    rise = (high - 0.25 * p["eye_height"] * (p["lids"] < 0.3)) * (1 - t * t).clamp(min=0).sqrt()
    lid = (yy + rise).abs() - 0.015
    canvas.fill(torch.maximum(lid, ax.abs() - p["eye_width"] * 1.05), p["skin"] * 0.22, 0.85)

    b = ax / p["brow_width"]
    middle = (
        p["eye_y"]
        - p["brow_gap"]
        - 0.115 * p["brow_raise"]
        - p["brow_arch"] * (1 - b * b)
        + p["brow_slant"] * ax
    )
    thick = p["brow_thick"] * (1.02 - 0.45 * b.clamp(min=0)).clamp(min=0.1)
    canvas.fill(torch.maximum((y - middle).abs() - thick, ax.abs() - p["brow_width"]), p["brow"], 0.92)


def _front_hair(
    p: dict[str, Tensor], canvas: _Canvas, x: Tensor, xf: Tensor, y: Tensor, hair: Tensor
) -> Tensor:
    """The hair before the forehead and temples. Returns its mask."""
    long = (p["hair_length"] > 0.3).float()
    cap = _ellipse(
        x, y + 0.12, p["width"] + p["hair_volume"] * 0.95, p["height"] - 0.12 + p["hair_volume"]
    ) + _hair_wave(p, x, y)
    t = (xf / p["width"]).abs()
    line = (
        p["hairline"]
        + p["fringe"] * xf
        + p["temples"] * t**3
        + (0.25 + 0.55 * long) * t**8
        + 0.03 * p["hair_curl"] * torch.sin(30 * xf)
    )
    canvas.fill(torch.maximum(cap, y - line - 0.05), p["skin"] * 0.6, p["has_hair"] * 0.35, 3.0)
    shine = 1 + 0.28 * _blob(y + 0.62 - 0.25 * x * x, x - 0.12, 0.09, 0.35)
    return canvas.fill(torch.maximum(cap, y - line), (hair * shine[:, None]).clamp(max=1), p["has_hair"])


def _earrings(p: dict[str, Tensor], canvas: _Canvas, x: Tensor, y: Tensor) -> Tensor:
    """A hoop below each ear. Returns its mask."""
    ring = _ellipse(
        x.abs() - p["width"] - 0.3 * p["ears"],
        y - 0.17 - p["earring_size"],
        p["earring_size"] * 0.8,
        p["earring_size"],
    )
    return canvas.fill(ring.abs() - 0.026, p["earring"], p["earrings_on"])


def _glasses(p: dict[str, Tensor], canvas: _Canvas, x: Tensor, xf: Tensor, y: Tensor) -> None:
    centre = p["eye_x"].clamp(min=0.2)
    ax, yy = xf.abs() - centre, y - p["eye_y"] - 0.01
    ring = _ellipse(ax, yy, p["glasses_width"], p["glasses_height"])
    canvas.fill(ring, p["glasses"] + 0.15, p["glasses_on"] * p["glasses_tint"])
    bridge = torch.maximum(
        (yy + 0.03).abs() - 0.7 * p["glasses_thick"], xf.abs() - (centre - p["glasses_width"]).clamp(min=0.01)
    )
    arm = torch.maximum(
        (yy + 0.03).abs() - 0.7 * p["glasses_thick"],
        torch.maximum(p["glasses_width"] - ax, x.abs() - p["width"]),
    )
    frame = torch.minimum(torch.minimum(ring.abs() - p["glasses_thick"], bridge), arm)
    canvas.fill(frame, p["glasses"], p["glasses_on"])


def _hat(p: dict[str, Tensor], canvas: _Canvas, x: Tensor, xf: Tensor, y: Tensor) -> Tensor:
    """A dome with a band and a brim, down to the brows. Returns its mask."""
    low = p["hat_low"] + 0.10 * (xf / p["width"]) ** 2
    dome = torch.maximum(
        _ellipse(x, y - p["hat_low"], p["width"] + p["hair_volume"] + 0.03, p["hat_high"]), y - low
    )
    brim = torch.maximum((y - low).abs() - 0.045, x.abs() - p["width"] - p["hair_volume"] - 0.03 - p["brim"])
    shadow = torch.maximum(y - low - 0.14, x.abs() - p["width"])
    canvas.fill(torch.maximum(shadow, low - y), p["skin"] * 0.5, p["hat_on"] * 0.35, 2.0)
    shaded = p["hat"] * (1.05 - 0.2 * ((y - low) / p["hat_high"]).abs())[:, None]
    mask = canvas.fill(torch.minimum(dome, brim), shaded, p["hat_on"])
    canvas.fill(torch.maximum(dome, low - 0.13 - y), p["hat_band"], p["hat_on"])
    canvas.fill(brim, p["hat_band"] * 0.85, p["hat_on"])
    return mask
