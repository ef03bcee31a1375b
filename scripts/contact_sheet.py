"""Draw a contact sheet of synthetic faces: one row a person, one column a picture.

Usage: python scripts/contact_sheet.py [--out docs/contact_sheet.png] [--people 6] [--pictures 12] [--size 64]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

from crafter_pl.data.synthetic import synthetic_faces


def contact_sheet(people: int, pictures: int, size: int, seed: int, gap: int = 2) -> Image.Image:
    """A sheet of `people` rows by `pictures` columns of faces of `size` pixels on white."""
    faces = synthetic_faces(people, pictures, size, seed)
    side = size + gap
    sheet = torch.full((3, people * side + gap, pictures * side + gap), 255, dtype=torch.uint8)
    for number, image in enumerate(faces.images):
        top, left = gap + number // pictures * side, gap + number % pictures * side
        sheet[:, top : top + size, left : left + size] = image
    return Image.fromarray(sheet.permute(1, 2, 0).numpy())


def main() -> None:
    """Write the sheet that the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/contact_sheet.png"))
    parser.add_argument("--people", type=int, default=6)
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet = contact_sheet(args.people, args.pictures, args.size, args.seed).quantize(256)
    sheet.save(args.out, optimize=True)
    print(f"{args.out}: {sheet.width} x {sheet.height}, {args.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
