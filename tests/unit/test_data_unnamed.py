"""Private and public faces in two folders, and faces that nothing says whose they are."""

import pytest
import torch
from sources_lab import picture

from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.errors import UserError


@pytest.fixture
def folders(tmp_path):
    """Three people and a rare one in one folder, three in another, two of them of the same names."""
    for place, people in (
        ("ours", {"ann": 4, "bob": 4, "cy": 4, "dee": 1}),
        ("others", {"ann": 3, "eve": 3, "x": 2}),
    ):
        for person, count in people.items():
            for k in range(count):
                picture(tmp_path / place / person / f"{k}.png", (20 * k, len(person), 90))
    return tmp_path


def data(folder, **more):
    options = {"root": str(folder / "ours"), "public_root": str(folder / "others"), "image_size": 8}
    made = FacesDataModule("folder", **{**options, "min_private_images": 3, "test_images": 2, **more})
    made.setup()
    return made


def names(made, part):
    return sorted(made.faces.file_names[row] for row in made.dataset(part).index.tolist())


def test_all_of_one_folder_are_private_and_of_the_other_public(folders):
    made = data(folders)
    private, public = names(made, "all_private"), names(made, "public")
    assert len(private) == 12 and all(name.startswith("ours/") for name in private), (
        "the rare one is left out"
    )
    assert len(public) == 8 and all(name.startswith("others/") for name in public)
    assert not any("dee" in name for name in private + public)
    assert len(made.private_identities) == 3 and len(names(made, "private_test")) == 6
    assert not set(made.private_identities.tolist()) & set(made.public_identities.tolist())


def flat(folder):
    for place, count in (("ours", 5), ("others", 6)):
        for k in range(count):
            picture(folder / place / f"{k}.png", (20 * k, 30, 90))


def test_without_names_each_picture_is_somebody(tmp_path):
    flat(tmp_path)
    made = data(tmp_path, identities="none")
    assert names(made, "private_test") == [f"ours/{k}.png" for k in range(5)]
    assert torch.equal(made.dataset("gallery").index, made.dataset("private_test").index)
    assert not names(made, "private_train") and len(names(made, "public")) == 6
    assert len(made.private_identities) == 5 and not made.faces.named


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"public_root": None, "identities": "none"}, "public_root"),
        ({"identities": "none"}, "straight in it"),
        ({"public_root": "ours/ann"}, "within one another"),
        ({"public_root": "nowhere"}, "public_root"),
        ({"min_private_images": 9, "test_images": 2}, "min_private_images"),
    ],
)
def test_mistakes(folders, more, said):
    if (given := more.get("public_root")) is not None:
        more = {**more, "public_root": str(folders / given)}
    with pytest.raises(UserError, match=said):
        data(folders, **more)


def test_other_sources_have_one_folder():
    with pytest.raises(UserError, match="public_root"):
        FacesDataModule("celeba", root="x", public_root="y")
