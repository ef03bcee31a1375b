"""The README's picture, docs/look.png, by what `look` makes: python scripts/look_picture.py OPTIONS OF look.

After `make demo`: --experiment demo --data configs/small.yaml
"""

import sys
from pathlib import Path
from textwrap import fill

from matplotlib.figure import Figure

from crafter_pl.audit.show.gallery import to_uint8
from crafter_pl.audit.show.plots import save
from crafter_pl.cli.functions import parsed
from crafter_pl.look.look import Look, Looked, looked

ROOT = Path(__file__).parent.parent
COLUMNS = ("Unprotected", "Crafter", "Crafter, attacker adapting", "Certified")
PEOPLE = 3


def drawn(found: Looked) -> bytes:
    """A row a person: the face, what the attacker draws, and below the last what the message says."""
    shown = {one.title: one for one in found.shown}  # of several certified ones the last, of most bits
    if lacking := [title for title in COLUMNS if title not in shown]:
        sys.exit(f"no nets for {', '.join(lacking)}: train them first, look names the commands")
    people = min(PEOPLE, len(found.names))
    figure = Figure(figsize=(9.0, 2.0 * people + 0.4), layout="constrained")
    axes = figure.subplots(people, 1 + len(COLUMNS), squeeze=False)
    titles = ("The face", *COLUMNS)
    for row, column in ((row, column) for row in range(people) for column in range(1 + len(COLUMNS))):
        one = None if column == 0 else shown[COLUMNS[column - 1]]
        axis = axes[row, column]
        axis.imshow(
            to_uint8(found.originals[row] if one is None else one.images[row]), interpolation="nearest"
        )
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        if row == 0:
            axis.set_title(titles[column].replace(", ", ",\n"), fontsize=11)
        if one is not None and one.said:
            axis.set_xlabel(fill(one.said[row], 26), fontsize=8)
    return save(figure)


if __name__ == "__main__":
    _, options = parsed(["look", *sys.argv[1:]])
    (ROOT / "docs" / "look.png").write_bytes(drawn(looked(Look(**options))))
