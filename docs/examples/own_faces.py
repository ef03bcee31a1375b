"""A data set of one's own: lay pictures with labels out as `--data.source celeba` reads them.

Usage: python own_faces.py LABELS.csv PICTURES ROOT

LABELS.csv has a head and a row a picture: the file in PICTURES, the person, and 0 or 1 for each attribute:

    file,person,Eyeglasses,Smiling
    0001.jpg,ada,0,1
"""

import csv
import shutil
import sys
from pathlib import Path


def lay_out(labels: Path, pictures: Path, root: Path) -> None:
    """Copy the pictures to `root/img_align_celeba` and write the two label files beside it."""
    with labels.open(newline="") as file:
        head, *rows = csv.reader(file)
    numbers = {person: n for n, person in enumerate(sorted({row[1] for row in rows}), 1)}
    folder = root / "img_align_celeba"
    folder.mkdir(parents=True)
    people, attributes = [], [str(len(rows)), " ".join(head[2:])]
    for number, (name, person, *values) in enumerate(rows, 1):
        copy = (
            f"{number:06d}{Path(name).suffix.lower()}"  # label files are split at spaces: no names with them
        )
        shutil.copyfile(pictures / name, folder / copy)
        people.append(f"{copy} {numbers[person]}")
        attributes.append(" ".join([copy, *("1" if value == "1" else "-1" for value in values)]))
    (root / "identity_CelebA.txt").write_text("\n".join(people) + "\n")
    (root / "list_attr_celeba.txt").write_text("\n".join(attributes) + "\n")


if __name__ == "__main__":
    lay_out(*map(Path, sys.argv[1:]))
