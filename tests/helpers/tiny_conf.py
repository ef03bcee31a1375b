"""A folder of configs of the stages in tiny_stage.py, as users have it."""

import pytest
import yaml

TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 4,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}
DATA = {
    "people": 14,
    "images_per_person": 4,
    "image_size": 8,
    "private_people": 4,
    "min_private_images": 2,
    "test_images": 1,
    "batch_size": 8,
}


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """A folder of configs as users have it, and the working directory beside it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "_trainer.yaml").write_text(yaml.safe_dump(TRAINER))
    (folder / "_data.yaml").write_text(yaml.safe_dump(DATA))
    for name in ("Tiny", "Other", "Top"):
        model = {"class_path": f"tiny_stage.{name}"} | (
            {"init_args": {"kill_at": 2}} if name == "Tiny" else {}
        )
        config = {"trainer": "_trainer.yaml", "data": "_data.yaml", "model": model}
        (folder / f"{name.lower()}.yaml").write_text(yaml.safe_dump(config))
    return folder
