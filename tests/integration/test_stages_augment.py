import pytest
import torch
from closeness import near
from stages_lab import pictures

from crafter_pl.cli import main, run
from crafter_pl.data.framing import measure_frame
from crafter_pl.defenses import Crafter
from crafter_pl.nets import bf16_is_slow
from crafter_pl.stages import TaskModel, load_stage
from crafter_pl.stages.augment import cutout, degrade, flip, recolour, warp

# Augmentation


def test_flip_mirrors_some_pictures():
    torch.manual_seed(0)
    images = pictures(40, 8)
    made = flip(images)
    kept, mirrored = (made == images).flatten(1).all(1), (made == images.flip(3)).flatten(1).all(1)
    assert (kept ^ mirrored).all() and 8 < kept.sum() < 32


def test_augmentations_of_no_strength_change_nothing():
    images = pictures(3, 16)
    assert near(warp(images, 0, 0, 0), images) and near(recolour(images, 0), images)
    assert torch.equal(degrade(images, 0), images) and torch.equal(cutout(images, 0), images)


def test_augmentations_stay_in_range_and_differ_from_picture_to_picture():
    torch.manual_seed(0)
    images = pictures(1, 16).expand(12, -1, -1, -1)
    for change in (warp, recolour, degrade, cutout):
        made = change(images)
        assert made.shape == images.shape and made.min() >= 0 and made.max() <= 1
        assert (made != images).any(), change
        assert len({tuple(picture.flatten().tolist()) for picture in made}) > 4, change


def test_warp_shifts_by_its_fraction():
    torch.manual_seed(0)
    image = torch.zeros(200, 3, 33, 33)
    image[:, :, 16, 16] = 1
    made = warp(image, shift=0.25, scale=0, angle=0)
    mass = made[:, 0]
    columns = (mass.sum(1) * torch.arange(33)).sum(1) / mass.sum((1, 2))
    assert (columns - 16).abs().max() < 33 * 0.25 + 1
    assert columns.min() < 16 - 5 and columns.max() > 16 + 5


def test_cutout_leaves_most_of_the_picture():
    torch.manual_seed(0)
    images = pictures(50, 32)
    share = (cutout(images, 1.0, side=0.5) != images).any(1).float().mean((1, 2))
    assert share.max() <= 0.5**2 + 0.05 and share.mean() > 0.01


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_where_the_processor_has_it(fast, tiny, runs_dir, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(run, "go", lambda cli, loaded: seen.append(run.precision(cli)))
    args = ["--experiment", "other", "--trainer.accelerator", "cpu", "--trainer.precision", "bf16-mixed"]
    assert main(tiny.command("fit", "task", *args)) == 0
    assert seen == (["bf16-mixed"] if fast else ["32-true"])
    note = "note: task runs in float32: this processor has no instructions for bf16-mixed\n"
    assert (note in capsys.readouterr().out) is not fast


@pytest.mark.parametrize(("accelerator", "device", "slow"), [("auto", True, False), ("gpu", True, False)])
def test_bfloat16_on_an_accelerator_is_left_alone(accelerator, device, slow, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: device)
    assert bf16_is_slow(accelerator) is slow and bf16_is_slow("cpu")


def test_how_a_face_is_framed_is_in_the_task_models_checkpoint(tiny, tmp_path):
    content = torch.load(tiny.ckpt("task"), weights_only=True)
    measured = measure_frame(tiny.data().rows("public_train")["image"])
    assert measured is not None and 0.05 < measured.eye < 0.25 and measured.mouth_height > measured.eye_height
    stage = load_stage(tiny.ckpt("task"), TaskModel)
    assert content["frame"] == pytest.approx(measured, abs=0.03) and list(stage.frame) == content["frame"]
    # One from before frames were measured does without.
    del content["frame"]
    torch.save(content, tmp_path / "old.ckpt")
    assert load_stage(tmp_path / "old.ckpt", TaskModel).frame is None


def test_no_face_has_no_frame():
    assert (
        measure_frame(torch.rand(4, 3, 32, 32)) is None and measure_frame(torch.zeros(4, 3, 32, 32)) is None
    )


def test_a_stage_below_two_others_is_loaded_once(tiny):
    """Within one stage; another one has nets of its own."""
    one, other = (load_stage(tiny.ckpt("crafter"), Crafter) for _ in range(2))
    assert one.upstream["amortizer"].upstream["task"] is one.upstream["task"]
    assert one.upstream["amortizer"].upstream["prior"] is one.upstream["prior"]
    assert other.upstream["task"] is not one.upstream["task"]
