import pytest
import torch
from experiment import CONF, DATA, Told
from safetensors.torch import load_file, save_file
from stores import SHAPE, manifest_of

from crafter_pl.attacks.base import fits
from crafter_pl.attacks.queries import Queries
from crafter_pl.attacks.surrogate import DefenseSurrogate
from crafter_pl.attacks.through_defence import ThroughDefenceAttack
from crafter_pl.audit.load import Published
from crafter_pl.cli import main
from crafter_pl.commands import Commands
from crafter_pl.data import store
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.features import StoreDataModule
from crafter_pl.data.transport import TRANSPORTS, bytes_each, decode, encode, received
from crafter_pl.defenses import load_defense
from crafter_pl.errors import UserError


def faces(scale=1.0, seed=0):
    return scale * torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(seed)).relu()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_what_is_received_is_close_to_what_was_sent(scale):
    features = faces(scale)
    assert torch.equal(received(features, "float32"), features)
    assert ((received(features, "float16") - features).abs() <= features * 2**-11 + 2**-25).all()
    step = features.flatten(1).amax(1) / 255
    wrong = (received(features, "int8") - features).abs().flatten(1).amax(1)
    assert (wrong <= 0.5001 * step).all() and (wrong > 0.3 * step).all()
    assert (received(features, "int8")[features == 0] == 0).all()  # what a ReLU has cut off


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_each_picture_is_coded_by_itself(transport):
    features = faces()
    features[3] *= 1000
    features[1] = 2.5  # one value everywhere
    together = received(features, transport)
    alone = torch.cat([received(part, transport) for part in features.split(1)])
    assert torch.equal(together, alone) and (together[1] == 2.5).all()
    sent = sum(value.nbytes for value in encode(features, transport).values())
    assert sent == 5 * bytes_each((3, 4, 4), transport)
    assert encode(features.double().requires_grad_(), transport)["features"].dtype == TRANSPORTS[transport]


def test_a_value_that_is_too_large_is_refused(tmp_path):
    features = torch.full((2, *SHAPE), 1e5)
    with pytest.raises(UserError, match=r"100000 .*float16"):
        store.write_shard(tmp_path, 0, features, torch.arange(2), "float16")
    assert not list(tmp_path.iterdir())
    assert torch.equal(received(features, "int8"), features)
    with pytest.raises(UserError, match="cannot be sent as int8"):
        received(torch.tensor([-3e38, 3e38]).view(1, 2, 1, 1), "int8")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_store_gives_what_was_received(transport, tmp_path):
    features, index = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1)), torch.arange(4)
    file = store.write_shard(tmp_path, 0, features, index, transport)
    store.write_manifest(tmp_path, manifest_of({file.name: 4}, dtype=transport))
    got, rows, manifest = store.read_store(tmp_path)
    assert torch.equal(got, received(features, transport)) and got.dtype == torch.float32
    assert torch.equal(rows, index) and manifest["dtype"] == transport
    assert torch.equal(got, decode(load_file(file)))
    assert store.shard_done(tmp_path, 0, index)
    for other in TRANSPORTS.keys() - {transport}:
        store.write_shard(tmp_path, 0, features, index, other)
        with pytest.raises(UserError, match=f"00000.*{other}.*{transport}"):
            store.read_store(tmp_path)


def test_int8_without_its_scale_is_damaged(tmp_path):
    file = store.write_shard(tmp_path, 0, torch.randn(4, *SHAPE), torch.arange(4), "int8")
    store.write_manifest(tmp_path, manifest_of({file.name: 4}, dtype="int8"))
    tensors = load_file(file)
    for changed, words in (
        ({"scale": None}, "need scale and offset"),
        ({"scale": torch.ones(3)}, "need scale and offset"),
        ({"scale": torch.full((4,), float("nan"))}, "not finite"),
    ):
        save_file({key: value for key, value in {**tensors, **changed}.items() if value is not None}, file)
        with pytest.raises(UserError, match=words):
            store.read_store(tmp_path)


# A defence: its stores, and what attackers query


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """`noise(verb, ...)` runs a command on a tiny experiment with a trained `Noise`; it trains once."""
    runs_dir = tmp_path_factory.mktemp("noise") / "runs"

    def go(verb, *more):
        return main([verb, "--config", str(CONF / "noise.yaml"), "--runs_dir", str(runs_dir), *more])

    assert go("fit") == 0
    go.folder = runs_dir / "synthetic" / "noise"
    go.checkpoint = go.folder / "checkpoints" / "best.ckpt"
    return go


def test_predict_writes_what_the_cloud_receives(noise, capsys):
    stores = {name: noise.folder / "features" / f"private_test-laplace0.5-{name}" for name in TRANSPORTS}
    stores["float32"] = noise.folder / "features" / "private_test-laplace0.5"
    read = {}
    for name, folder in stores.items():
        assert noise("predict", "--protect.transport", name) == 0
        read[name], _, manifest = store.read_store(folder)
        assert manifest["dtype"] == name and manifest["settings"].get("transport", "float32") == name
        assert manifest["cost"]["bytes_per_image"] == bytes_each(manifest["shape"], name)
    for name, features in read.items():
        assert torch.equal(features, received(read["float32"], name))
    assert len({store.read_manifest(folder)["fingerprint"] for folder in stores.values()}) == 3
    # One store holds one transport.
    capsys.readouterr()
    assert noise("predict", "--protect.transport", "int8", "--protect.out", str(stores["float16"])) == 2
    assert "settings" in capsys.readouterr().err
    assert noise("predict", "--protect.transport", "int4") == 2 and "int4" in capsys.readouterr().err
    with pytest.raises(UserError, match="are of different defences"):
        StoreDataModule(train=str(stores["int8"]), test=str(stores["float16"]), **DATA).setup()


def test_attackers_queries_travel_alike(noise, tmp_path):
    data = FacesDataModule(**DATA)
    data.setup()
    defense = load_defense(noise.checkpoint)
    folders, pairs = set(), {}
    for transport in TRANSPORTS:
        queries = Queries(tmp_path, defense, defense.options(transport=transport), data, shard_size=4)
        folders.add(queries.ensure(8))
        pairs[transport], images, index = queries.batch(8, "public_train")
    assert len(folders) == 3
    for transport, features in pairs.items():
        assert torch.equal(features, received(Told(defense).protect(images, index), transport))
    with pytest.raises(UserError, match="transport 'int4'"):
        defense.options(transport="int4")


def test_attackers_know_the_transport(noise):
    """Those that adapt are told of it, and only one that has learnt from such features fits."""
    folder = noise.folder / "features" / "private_test-int8"
    assert noise("predict", "--protect.transport", "int8", "--protect.out", str(folder)) == 0
    target, notes = Published(noise.folder.parent, "cpu").target(str(folder), store.read_manifest(folder))
    assert not notes and target.options.transport == "int8"
    for transport in (None, "float16", "int8"):
        stage = DefenseSurrogate(str(noise.checkpoint), protect={"transport": transport})
        assert stage.options.transport == (transport or "float32")
        assert fits(stage.against, target) == (transport == "int8")
    with pytest.raises(UserError, match=r"protect.transport int8"):
        ThroughDefenceAttack().against(target, Commands(noise.folder.parent))
