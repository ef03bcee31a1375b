"""Draw a contact sheet of synthetic faces: one row a person, one column a picture.

Usage: python scripts/contact_sheet.py [--out docs/contact_sheet.png] [--people 6] [--pictures 12] [--size 64]
"""

from pathlib import Path

from jsonargparse import auto_cli
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from crafter_pl.data.synthetic import synthetic_faces


def contact_sheet(
    out: Path = Path("docs/contact_sheet.png"),
    people: int = 6,
    pictures: int = 12,
    size: int = 64,
    seed: int = 1,
) -> None:
    """Write a sheet of `people` rows by `pictures` columns of faces of `size` pixels on white."""
    faces = synthetic_faces(people, pictures, size, seed)
    sheet = to_pil_image(make_grid(faces.images, pictures, padding=2, pad_value=255)).quantize(256)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, optimize=True)
    print(f"{out}: {sheet.width} x {sheet.height}, {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    auto_cli(contact_sheet, as_positional=False)
