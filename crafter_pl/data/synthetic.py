"""Synthetic faces: people drawn by code, with attributes, from a seed.

Every number is a hash of (seed, name of the parameter, person, picture). So person 7 of seed 0 is always the
same, and so is picture 3 of them, however many are drawn, in whichever order.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from crafter_pl.data.drawing import draw
from crafter_pl.data.faces import Faces
from crafter_pl.data.keyed import keyed_uniform
from crafter_pl.data.people import ATTRIBUTE_NAMES, draw_people, draw_pictures
from crafter_pl.limits import PositiveInt, checked


def render(people: Tensor, pictures: Tensor, image_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw these pictures of these people.

    Args:
        people: int64 `(N,)`.
        pictures: int64 `(N,)`.
        image_size: the side `S` in pixels.
        seed: of the population.

    Returns:
        Images uint8 `(N, 3, S, S)` and attributes uint8 `(N, A)` in the order of `ATTRIBUTE_NAMES`.
    """
    params = draw_people(people, seed) | draw_pictures(people, pictures, seed)
    attributes = torch.stack([params.pop(name) for name in ATTRIBUTE_NAMES], dim=1).to(torch.uint8)
    image = draw(params, image_size)
    grain = keyed_uniform(seed, "grain", people[:, None], pictures[:, None], torch.arange(3 * image_size**2))
    image += (grain.view_as(image) - 0.5) * (params["noise"] * 3.46)[:, None, None, None]
    return image.clamp_(0, 1).mul_(255).round_().to(torch.uint8), attributes


def synthetic_faces(
    people: PositiveInt, images_per_person: PositiveInt, image_size: PositiveInt, seed: int
) -> Faces:
    """Draw `images_per_person` pictures of each of `people` people, `(N, 3, S, S)`, in order of the person.

    Args:
        people: how many people.
        images_per_person: how many pictures of each.
        image_size: the side of a picture in pixels.
        seed: of the population.

    Raises:
        UserError: a size or a count is not positive.
    """
    counts = {"people": people, "images_per_person": images_per_person, "image_size": image_size}
    checked(synthetic_faces, counts, "--data")
    count = people * images_per_person
    person = torch.arange(people).repeat_interleave(images_per_person)
    picture = torch.arange(images_per_person).repeat(people)
    images = torch.empty(count, 3, image_size, image_size, dtype=torch.uint8)
    attributes = torch.empty(count, len(ATTRIBUTE_NAMES), dtype=torch.uint8)
    chunk = max(1, 2**17 // image_size**2)

    def fill(start: int) -> None:
        rows = slice(start, start + chunk)
        images[rows], attributes[rows] = render(person[rows], picture[rows], image_size, seed)

    # Hundreds of small operations a chunk: a thread for each chunk. Threads within an operation wait for one
    # another, which was measured to be 15 times slower on busy cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, range(0, count, chunk)))
    finally:
        torch.set_num_threads(threads)
    return Faces(
        images=images,
        attributes=attributes,
        identity=person,
        attribute_names=list(ATTRIBUTE_NAMES),
        identity_names=[f"synthetic-{seed}-{number:05d}" for number in range(people)],
        file_names=[
            f"synthetic-{seed}-{p:05d}-{k:05d}"
            for p, k in zip(person.tolist(), picture.tolist(), strict=True)
        ],
    )
