import pytest
import torch

from crafter_pl.data.drawing import draw
from crafter_pl.data.keyed import keyed_uniform
from crafter_pl.data.people import (
    ATTRIBUTE_NAMES,
    IDENTITY_ATTRIBUTES,
    PICTURE_ATTRIBUTES,
    draw_people,
    draw_pictures,
)
from crafter_pl.data.synthetic import render, synthetic_faces
from crafter_pl.errors import UserError


@pytest.fixture(scope="module")
def faces():
    return synthetic_faces(people=40, images_per_person=6, image_size=32, seed=0)


def test_shapes_names_and_range(faces):
    assert faces.images.shape == (240, 3, 32, 32) and faces.images.dtype == torch.uint8
    assert faces.attributes.shape == (240, len(ATTRIBUTE_NAMES))
    assert faces.attribute_names == list(ATTRIBUTE_NAMES)
    assert set(faces.attributes.unique().tolist()) == {0, 1}
    assert faces.identity.tolist() == [k // 6 for k in range(240)]
    assert len(set(faces.file_names)) == 240
    assert faces.images.float().flatten(1).std(1).min() > 20  # no picture is blank


def test_attributes_enough_and_both_classes(faces):
    assert len(ATTRIBUTE_NAMES) == len(set(ATTRIBUTE_NAMES)) >= 14
    rates = synthetic_faces(300, 4, 4, seed=1).attributes.float().mean(0)
    assert rates.min() > 0.05 and rates.max() < 0.7


def test_attributes_of_the_person_are_the_same_in_all_pictures_and_the_others_vary(faces):
    by_person = faces.attributes.view(40, 6, -1)
    constant = (by_person == by_person[:, :1]).all(1).all(0)
    assert constant.tolist() == [name in IDENTITY_ATTRIBUTES for name in ATTRIBUTE_NAMES]
    assert constant.sum() == len(ATTRIBUTE_NAMES) - len(PICTURE_ATTRIBUTES)


def test_same_seed_same_faces_other_seed_others(faces):
    again = synthetic_faces(40, 6, 32, seed=0)
    assert torch.equal(again.images, faces.images) and torch.equal(again.attributes, faces.attributes)
    other = synthetic_faces(40, 6, 32, seed=1)
    assert (other.images != faces.images).float().mean() > 0.9


def test_a_person_does_not_depend_on_how_many_are_drawn_or_in_which_order(faces):
    fewer = synthetic_faces(7, 2, 32, seed=0)
    rows = torch.arange(240).view(40, 6)[:7, :2].flatten()
    assert torch.equal(fewer.attributes, faces.attributes[rows])
    assert torch.equal(fewer.images, faces.images[rows])
    alone, attributes = render(torch.tensor([31, 5]), torch.tensor([4, 0]), 32, seed=0)
    assert torch.equal(alone, faces.images[[31 * 6 + 4, 5 * 6]])
    assert torch.equal(attributes, faces.attributes[[31 * 6 + 4, 5 * 6]])


def test_two_sizes_show_the_same_picture():
    small = synthetic_faces(6, 2, 32, seed=2).images.float()
    large = synthetic_faces(6, 2, 64, seed=2).images.float()
    difference = (torch.nn.functional.avg_pool2d(large, 2) - small).abs().mean((1, 2, 3))
    assert difference.max() < 10  # of 255; the grain is drawn pixel by pixel


def test_pictures_of_one_person_are_closer_than_of_two():
    images = synthetic_faces(30, 8, 16, seed=3).images.float().flatten(1)
    mean = images.view(30, 8, -1).mean(1)
    named = torch.cdist(images, mean).argmin(1) == torch.arange(240) // 8
    assert named.float().mean() > 0.6  # by the nearest mean picture alone; chance is 0.033


@pytest.mark.parametrize(
    ("parameter", "low", "high", "top", "bottom"),
    [
        ("smile", -0.3, 0.9, 19, 28),
        ("open", 0.0, 0.9, 19, 29),
        ("lids", 0.05, 1.0, 11, 20),
        ("brow_raise", 0.0, 1.0, 8, 20),
        ("glasses_on", 0.0, 1.0, 10, 21),
        ("hat_on", 0.0, 1.0, 0, 16),
        ("blush", 0.0, 0.9, 15, 24),
        ("lipstick", 0.0, 0.9, 19, 28),
    ],
)
def test_what_a_parameter_changes_is_where_it_belongs(parameter, low, high, top, bottom):
    people = torch.arange(20)
    params = draw_people(people, seed=5) | draw_pictures(people, people, seed=5)
    for upright in ("roll", "yaw", "shift_x", "shift_y", "hat_on"):
        params[upright] = torch.zeros(20)
    params["scale"] = torch.full((20,), 1.1)
    params["lips"] = torch.full((20,), 0.06)  # thin lips would show little
    one, other = (draw(params | {parameter: torch.full((20,), value)}, 32) for value in (low, high))
    rows = (other - one).abs().mean((0, 1, 3))
    assert rows.max() > 0.01
    assert rows[top:bottom].sum() > 0.95 * rows.sum()


def test_wrong_sizes_are_refused():
    with pytest.raises(UserError, match=r"--data.images_per_person"):
        synthetic_faces(3, 0, 32, 0)


def test_keyed_uniform_is_uniform_and_independent_of_shape():
    person, picture = torch.arange(200)[:, None], torch.arange(100)[None]
    values = keyed_uniform(5, "x", person, picture)
    assert values.shape == (200, 100) and 0 <= values.min() and values.max() < 1
    assert abs(values.mean() - 0.5) < 0.01 and abs(values.std() - 12**-0.5) < 0.01
    assert values[17, 3] == keyed_uniform(5, "x", torch.tensor([17]), torch.tensor([3]))[0]
    assert not torch.equal(values, keyed_uniform(5, "y", person, picture))
    assert not torch.equal(values, keyed_uniform(6, "x", person, picture))
    correlation = torch.corrcoef(torch.stack([values[:-1].flatten(), values[1:].flatten()]))[0, 1]
    assert abs(correlation) < 0.03
