import os

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.faces import Faces, FaceSet
from crafter_pl.errors import UserError
from crafter_pl.stages.base import Stage

TINY = {
    "people": 14,
    "images_per_person": 6,
    "image_size": 8,
    "private_people": 5,
    "min_private_images": 5,
    "test_images": 2,
    "batch_size": 8,
    "predict_batch_size": 3,
}


@pytest.fixture(scope="module")
def data():
    module = FacesDataModule(**TINY)
    module.setup()
    return module


class Probe(Stage):
    """Remembers what it is fed."""

    train_split = "public"
    val_split = "private_train"

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.train_order, self.val_seen, self.predicted = [], [], []

    def training_step(self, batch, batch_idx):
        self.train_order.append((self.current_epoch, batch["index"].tolist()))
        return self.layer(batch["image"].mean((2, 3))).mean()

    def validation_step(self, batch, batch_idx):
        self.val_seen += batch["index"].tolist()

    def predict_step(self, batch, batch_idx):
        self.predicted.append((batch["batch"], batch["index"].tolist()))
        return batch["index"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder, **options):
    return Trainer(
        accelerator="cpu",
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **options,
    )


def test_a_sample_is_one_dict(data):
    sample = data.dataset("public_train")[3]
    assert sample["image"].shape == (3, 8, 8) and sample["image"].dtype == torch.float32
    assert 0 <= sample["image"].min() and sample["image"].max() <= 1
    assert (
        sample["attributes"].shape == (len(data.attribute_names),)
        and sample["attributes"].dtype == torch.float32
    )
    assert sample["identity"].dtype == sample["index"].dtype == torch.int64
    row = int(sample["index"])
    assert torch.equal((sample["image"] * 255).round().to(torch.uint8), data.faces.images[row])
    assert int(sample["identity"]) == int(data.faces.identity[row])
    batch = data.dataset("public_train").__getitems__([3, 0])
    assert torch.equal(batch["image"][0], sample["image"]) and batch["attributes"].shape == (
        2,
        len(data.attribute_names),
    )


def test_setup_loads_once(data):
    before = data.faces, data.split_hash
    data.setup("fit")
    data.setup("predict")
    assert data.faces is before[0] and data.split_hash == before[1]


def test_identities(data):
    private, public = data.private_identities, data.public_identities
    assert len(private) == 5 and len(public) == 9
    assert not set(private.tolist()) & set(public.tolist())
    assert data.rows("private_test")["identity"].tolist() == private.repeat_interleave(2).tolist()


def test_parts_and_unions(data):
    assert (
        len(data.dataset("public"))
        == len(data.dataset("public_train")) + len(data.dataset("public_val"))
        == 54
    )
    assert data.rows("all_private")["index"].tolist() == sorted(
        data.splits["private_train"].tolist() + data.splits["private_test"].tolist()
    )
    images = data.rows("private_test")["image"]
    assert images.shape == (10, 3, 8, 8) and torch.equal(images, data.rows("private_test")["image"])
    with pytest.raises(UserError, match=r"'test'.*public_train"):
        data.rows("test")


def test_the_split_is_the_same_again_and_written(data, tmp_path):
    other = FacesDataModule(**TINY)
    other.setup()
    assert other.split_hash == data.split_hash
    assert FacesDataModule(**TINY | {"seed": 1}).seed == 1
    data.write_split_csv(tmp_path / "split.csv")
    assert len((tmp_path / "split.csv").read_text().splitlines()) == 85


def test_loaders_without_a_trainer(data):
    batches = list(data.train_dataloader())
    assert [len(batch["index"]) for batch in batches] == [8] * (len(data.dataset("public_train")) // 8)
    assert (
        torch.cat([b["index"] for b in data.val_dataloader()]).tolist() == data.splits["public_val"].tolist()
    )
    assert (
        torch.cat([b["index"] for b in data.test_dataloader()]).tolist()
        == data.splits["private_test"].tolist()
    )
    batches = list(data.predict_dataloader())
    assert [batch["batch"] for batch in batches] == [0, 1, 2, 3] and len(batches[3]["index"]) == 1
    assert torch.cat([b["index"] for b in batches]).tolist() == data.splits["private_test"].tolist()


def test_another_order_of_the_same_pictures():
    """For more seeds of a training on one split."""
    orders = {}
    for own in ({}, {"order_seed": 0}, {"order_seed": 9}):
        module = FacesDataModule(**TINY | own)
        module.setup()
        orders[module.order_seed] = [
            row for batch in module.train_dataloader() for row in batch["index"].tolist()
        ]
        split = set(module.splits["public_train"].tolist())
        assert set(orders[module.order_seed]) <= split
    assert len(orders) == 2 and orders[0] != orders[9]


def test_a_set_smaller_than_a_batch_still_trains():
    module = FacesDataModule(**TINY | {"batch_size": 1000})
    module.setup()
    (batch,) = module.train_dataloader()
    assert sorted(batch["index"].tolist()) == module.splits["public_train"].tolist()


def test_stages_choose_their_part_and_the_order_depends_on_seed_and_epoch(tmp_path):
    orders = []
    for _ in range(2):
        module, probe = FacesDataModule(**TINY), Probe()
        trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(probe, datamodule=module)
        orders.append(probe.train_order)
        seen = [row for epoch, rows in probe.train_order for row in rows if epoch == 0]
        assert len(set(seen)) == len(seen) == 48 and set(seen) <= set(module.rows("public")["index"].tolist())
        assert probe.val_seen[:20] == module.splits["private_train"].tolist()
    assert orders[0] == orders[1]
    assert [rows for e, rows in orders[0] if e == 0] != [rows for e, rows in orders[0] if e == 1]


def test_resumed_training_sees_the_order_of_an_uninterrupted_one(tmp_path):
    whole = Probe()
    trainer(tmp_path, max_epochs=3, enable_checkpointing=False).fit(whole, datamodule=FacesDataModule(**TINY))
    first, rest = Probe(), Probe()
    run = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    run.fit(first, datamodule=FacesDataModule(**TINY))
    run.save_checkpoint(tmp_path / "one.ckpt")
    trainer(tmp_path, max_epochs=3).fit(
        rest, datamodule=FacesDataModule(**TINY), ckpt_path=tmp_path / "one.ckpt"
    )
    assert first.train_order + rest.train_order == whole.train_order


def test_predict_gets_numbered_batches(tmp_path):
    module, probe = FacesDataModule(**TINY, predict_split="public_val"), Probe()
    trainer(tmp_path).predict(probe, datamodule=module, return_predictions=False)
    assert [number for number, _ in probe.predicted] == list(range(len(probe.predicted)))
    assert [row for _, rows in probe.predicted for row in rows] == module.splits["public_val"].tolist()


def test_batches_are_dealt_to_processes_whole(data, monkeypatch):
    alone = {batch["batch"]: batch["index"].tolist() for batch in data.predict_dataloader()}
    dealt = {}
    for rank in range(3):
        monkeypatch.setattr(FacesDataModule, "world", property(lambda _, rank=rank: (3, rank)))
        share = {batch["batch"]: batch["index"].tolist() for batch in data.predict_dataloader()}
        assert all(number % 3 == rank for number in share)
        dealt |= share
    assert dealt == alone


def test_training_pictures_are_shared_out_between_processes(data, monkeypatch):
    shares = []
    for rank in range(2):
        monkeypatch.setattr(FacesDataModule, "world", property(lambda _, rank=rank: (2, rank)))
        shares.append(torch.cat([batch["index"] for batch in data.train_dataloader()]).tolist())
    assert len(shares[0]) == len(shares[1]) and not set(shares[0]) & set(shares[1])


# Files


@pytest.fixture
def people(tmp_path):
    for person in range(8):
        for number in range(6):
            file = tmp_path / "people" / f"p{person}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (10, 10), (30 * person, 40 * number, 0)).save(file)
    return tmp_path / "people"


FOLDER = {"source": "folder", "image_size": 8, "private_people": 3, "min_private_images": 5, "test_images": 2}


def test_folder_with_a_variable_in_its_root_and_a_cache(people, tmp_path):
    os.environ["SOME_PEOPLE"] = str(tmp_path)
    module = FacesDataModule(root="$SOME_PEOPLE/people", cache_dir="$SOME_PEOPLE/cache", **FOLDER)
    module.prepare_data()
    module.setup()
    assert module.attribute_names == [] and module.rows("public")["attributes"].shape == (30, 0)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    moved = tmp_path / "elsewhere"
    people.rename(moved)
    again = FacesDataModule(root=str(moved), **FOLDER)
    again.setup()
    assert again.split_hash == module.split_hash  # the path is no part of it


def test_a_folder_with_a_dollar_in_its_name(people):
    moved = people.rename(people.with_name("a$b"))
    (people.parent / "c$d").mkdir()
    module = FacesDataModule(root=str(moved), cache_dir=str(people.parent / "c$d"), **FOLDER)
    module.setup()
    assert len(module.faces) == 48 and len(list((people.parent / "c$d").iterdir())) == 2
    with pytest.raises(UserError, match=r"--data.cache_dir \$NOT_SET"):
        FacesDataModule(root=str(moved), cache_dir="$NOT_SET/x", **FOLDER).setup()


def test_roots_that_are_missing(tmp_path):
    for source in ("celeba", "lfw", "folder"):
        with pytest.raises(UserError, match=f"source {source} .*--data.root"):
            FacesDataModule(source=source).setup()
        with pytest.raises(UserError, match=r"\(--data.root\)"):
            FacesDataModule(source=source, root=str(tmp_path / "nowhere")).setup()
    with pytest.raises(UserError, match=r"--data.root \$NOT_SET"):
        FacesDataModule(source="celeba", root="$NOT_SET_AT_ALL/x").setup()


def test_options_that_mean_nothing(people):
    with pytest.raises(UserError, match=r"--data.batch_size"):
        FacesDataModule(batch_size=0)
    with pytest.raises(UserError, match="source 'cleba'"):
        FacesDataModule(source="cleba", root=str(people))
    with pytest.raises(UserError, match="attribute_columns"):
        FacesDataModule(root=str(people), attribute_columns=[1], **FOLDER).setup()
    with pytest.raises(UserError, match=r"60 .*private_people"):
        FacesDataModule(source="folder", root=str(people), image_size=8).setup()


def test_unfitting_parts_and_rows_are_refused(data):
    faces = data.faces
    with pytest.raises(ValueError, match="do not fit together"):
        Faces(
            faces.images[:3],
            faces.attributes,
            faces.identity,
            faces.attribute_names,
            faces.identity_names,
            faces.file_names,
        )
    with pytest.raises(UserError, match="0 to 84"):
        FaceSet(faces, torch.arange(85))
