"""Photographs to faces that a stage can be trained on: cut as CelebA's, in the same folders.

    python scripts/cut_faces.py PHOTOS OUT [--size 128] [--faces none]

PHOTOS has a folder for each person, as OUT will: `--data.source folder --data.root OUT`. Of each photograph
the largest face is taken; one without any is named and left out. What is in OUT already is kept.
"""

import argparse
import io
from pathlib import Path

from PIL import Image

from crafter_pl.data.pictures import Refused, shown
from crafter_pl.edge.faces import MODES, Finder, cut
from crafter_pl.edge.photos import open_photo, photographs
from crafter_pl.files import write_file


def cut_faces(root: Path, out: Path, size: int, faces: str) -> int:
    """Cuts them; returns how many faces OUT has of these photographs."""
    finder, made = Finder(faces), 0
    found, refused = photographs([str(root)], {out.resolve()})
    for path in found:
        name = Path(path).relative_to(root.absolute())
        file = out / name.with_name(f"{name.name}.png")
        try:
            if not file.is_file():
                photo, _ = open_photo(Path(path))
                face = cut(photo, finder.find(photo)[0], size)
                Image.fromarray(face.permute(1, 2, 0).numpy()).save(png := io.BytesIO(), "PNG")
                write_file(file, png.getvalue())
            made += 1
        except Refused as why:
            refused.append((path, why))
    for path, why in refused:
        print(f"skipped {shown(path)}: {why}")
    print(f"{made} faces in {shown(out)}, {len(refused)} files left out")
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=128, help="side in pixels (default 128)")
    parser.add_argument("--faces", default="largest", choices=[one for one in MODES if one != "all"])
    given = parser.parse_args()
    raise SystemExit(0 if cut_faces(given.photos, given.out, given.size, given.faces) else 2)
