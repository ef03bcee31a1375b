"""Faces in a photograph: found by MTCNN, and cut as the encoder knows them from its training."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crafter_pl.data.decoding import square
from crafter_pl.data.framing import OFFICIAL, Frame
from crafter_pl.data.pictures import Refused
from crafter_pl.errors import UserError

MODES = ("largest", "all", "none")
NO_FACE = "no face found"
# CelebA's crop for a box alone, where the points of a face make no sense: side in roots of its area, and how
# far up in sides of the crop.
_SIDE_OF_BOX, _UP = 1.30, 0.04


def _points(frame: Frame) -> np.ndarray:
    """Left eye, right eye, left and right corner of the mouth: complex `(4,)`, in sides, from the centre."""
    eyes, mouth = (frame.eye, frame.eye_height), (frame.mouth, frame.mouth_height)
    return np.array([complex(side * half, height) for half, height in (eyes, mouth) for side in (-1, 1)])


@dataclass(frozen=True)
class Place:
    """A square in a photograph, in its pixels: centre, side, and the degrees that it is turned clockwise."""

    x: float
    y: float
    side: float
    angle: float = 0.0


class Finder:
    """Finds faces.

    Args:
        faces: `largest`, `all`, or `none`: the picture is a face already, cut as the data module would.
        min_confidence: of the detector, from 0 to 1.
        min_size: smaller faces (longer side of the box in pixels) and pictures are refused. What is smaller
            than a sixtieth of a photograph's longer side is not found at all.
        margin: how much more than in the training to take, on each side, as a share of the crop's side.
        frame: how the encoder's training pictures frame a face (`TaskModel.frame`).
        device: where the detector runs.
    """

    def __init__(
        self,
        faces: str = "largest",
        min_confidence: float = 0.9,
        min_size: int = 32,
        margin: float = 0.0,
        frame: Frame = OFFICIAL,
        device: str = "cpu",
    ) -> None:
        if faces not in MODES:
            raise UserError(f"faces is {faces!r}: choose one of {', '.join(MODES)} (--faces)")
        if not 0 <= min_confidence <= 1 or min_size < 1 or not -0.4 <= margin <= 2:
            raise UserError(
                f"--min_confidence {min_confidence} must be from 0 to 1, --min_size {min_size} at least 1, "
                f"--margin {margin} from -0.4 to 2"
            )
        self.faces, self.min_confidence, self.min_size = faces, min_confidence, min_size
        self.template = _points(frame)
        self.side_of_box = _SIDE_OF_BOX * _points(OFFICIAL).std() / self.template.std()
        self.margin = margin
        if faces != "none":
            from facenet_pytorch import MTCNN

            self._net = MTCNN(keep_all=True, device=torch.device(device))

    def find(self, photo: Image.Image) -> list[Place]:
        """The faces of an RGB picture, the largest first.

        Raises:
            Refused: there is none, or the picture is too small for one.
        """
        if min(photo.size) < self.min_size:
            raise Refused("too small", f"{photo.width} x {photo.height}, --min_size {self.min_size}")
        if self.faces == "none":
            left, top, right, bottom = square(photo.size, "auto", Path())
            return [Place((left + right) / 2, (top + bottom) / 2, right - left)]
        for stretch in (1.0, 2**0.25):  # the detector's steps in size are coarse: a face may fall between two
            boxes, points, confidence = self._detect(photo, stretch)
            longer = (boxes[:, 2:] - boxes[:, :2]).max(1, initial=0)
            good = (confidence >= self.min_confidence) & (longer >= self.min_size)
            if good.any():
                break
        else:
            most = f"; {len(boxes)} were smaller or less certain" if len(boxes) else ""
            raise Refused(
                NO_FACE, f"--min_size {self.min_size}, --min_confidence {self.min_confidence}{most}"
            )
        rows = np.flatnonzero(good)
        rows = rows[np.argsort(-np.prod(boxes[rows, 2:] - boxes[rows, :2], axis=1), kind="stable")]
        places = [self._place(boxes[row], points[row]) for row in rows]
        return places[:1] if self.faces == "largest" else places

    def _detect(self, photo: Image.Image, stretch: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes `(N, 4)`, points `(N, 5, 2)` in pixels of the photograph, and confidence `(N,)`."""
        nothing = np.empty((0, 4)), np.empty((0, 5, 2)), np.empty(0)
        shrink = max(1.0, max(photo.size) / 1280)  # to look for faces 1280 pixels are enough
        small = photo
        if shrink > 1:
            size = (max(1, round(photo.width / shrink)), max(1, round(photo.height / shrink)))
            small = photo.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        smallest = max(20, int(0.6 * self.min_size / shrink)) * stretch  # a box may grow after this
        if min(small.size) < smallest:
            return nothing
        self._net.min_face_size = smallest
        try:
            boxes, confidence, points = self._net.detect(small, landmarks=True)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError, ValueError) as error:
            # facenet-pytorch joins empty lists where its second net is left with boxes outside the picture
            raise Refused(NO_FACE, f"the detector failed: {type(error).__name__}") from error
        if boxes is None:
            return nothing
        ratio = np.array([photo.width / small.width, photo.height / small.height])
        boxes = boxes.astype(float) * np.tile(ratio, 2)
        return boxes, points.astype(float) * ratio, confidence.astype(float)

    def _place(self, box: np.ndarray, points: np.ndarray) -> Place:
        """The square that the data module would cut: by eyes and mouth, or by the box where they mislead."""
        at = (points[:, 0] + 1j * points[:, 1])[[0, 1, 3, 4]]
        middle, template = at.mean(), self.template - self.template.mean()
        scale = (template.conj() * (at - middle)).sum() / (abs(template) ** 2).sum()
        centre = middle - scale * self.template.mean()
        side, angle = abs(scale), math.degrees(np.angle(scale))
        usual = self.side_of_box * math.sqrt(np.prod(box[2:] - box[:2]))
        if not 0.7 * usual <= side <= 1.4 * usual:
            side, angle = usual, 0.0
            centre = complex((box[0] + box[2]) / 2, (box[1] + box[3]) / 2 - _UP * usual)
        return Place(
            float(centre.real), float(centre.imag), float(side) * (1 + 2 * self.margin), float(angle)
        )


def cut(photo: Image.Image, place: Place, image_size: int) -> Tensor:
    """Cut a square out of an RGB picture; beyond its borders they are continued.

    Returns:
        uint8 `(3, S, S)`.
    """
    turn = complex(math.cos(math.radians(place.angle)), math.sin(math.radians(place.angle)))
    reach = place.side / 2 * (abs(turn.real) + abs(turn.imag)) + 2
    box = [math.floor(place.x - reach), math.floor(place.y - reach)]
    box += [math.ceil(place.x + reach), math.ceil(place.y + reach)]
    inside = [min(max(box[0], 0), photo.width - 1), min(max(box[1], 0), photo.height - 1)]
    inside += [max(min(box[2], photo.width), inside[0] + 1), max(min(box[3], photo.height), inside[1] + 1)]
    part = photo.crop((inside[0], inside[1], inside[2], inside[3]))
    # Four pixels for each one wanted are enough to turn it smoothly.
    shrink = max(1.0, place.side / (4 * image_size))
    if shrink > 1:
        part = part.resize(
            (max(1, round(part.width / shrink)), max(1, round(part.height / shrink))),
            Image.Resampling.BICUBIC,
        )
    ratio = part.width / (inside[2] - inside[0]), part.height / (inside[3] - inside[1])
    beyond = [max(inside[k] - box[k], 0) for k in (0, 1)], [max(box[k] - inside[k], 0) for k in (2, 3)]
    pad = [tuple(math.ceil(side[axis] * ratio[axis]) for side in beyond) for axis in (1, 0)]
    padded = Image.fromarray(np.pad(np.asarray(part), [*pad, (0, 0)], mode="edge"))
    fine = max(1, min(4 * image_size, math.ceil(place.side)))
    step = turn * place.side / fine  # of one pixel to the right, in pixels of the photograph
    corner = complex(place.x, place.y) - turn * complex(place.side, place.side) / 2
    x, y = (corner.real - inside[0]) * ratio[0] + pad[1][0], (corner.imag - inside[1]) * ratio[1] + pad[0][0]
    across = (step.real * ratio[0], -step.imag * ratio[0], x)
    down = (step.imag * ratio[1], step.real * ratio[1], y)
    result = padded.transform(
        (fine, fine), Image.Transform.AFFINE, (*across, *down), Image.Resampling.BICUBIC
    ).resize((image_size, image_size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(result).transpose(2, 0, 1).copy())
