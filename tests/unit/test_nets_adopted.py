"""Nets by name and from files: built, given weights, cut, and laid out as square maps."""

import pickle
from pathlib import Path

import pytest
import torch
from closeness import near
from safetensors.torch import save_file
from torch import nn

from crafter_pl.adopt import _chosen
from crafter_pl.errors import UserError
from crafter_pl.nets import SplitClassifier, build_decoder, freeze
from crafter_pl.nets.architectures import build_net, expected, folder_weights, lasting
from crafter_pl.nets.cut import cut_at
from crafter_pl.nets.places import Place, places, propose
from crafter_pl.nets.weights import load_whole

OWN = '''
import torch
from torch import nn

class Net(nn.Module):
    """Two residual blocks."""
    def __init__(self, channels=3):
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, 3, 2, 1)
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)
    def forward(self, x):
        x = self.stem(x).relu()
        x = x + self.first(x).relu()
        x = x + self.second(x)
        return self.head(x.mean((2, 3)))

class Branching(Net):
    def forward(self, x):
        if x.mean() > 0:
            x = -x
        return super().forward(x)

def grey(): return Net(1)
def fails(): raise ValueError("no")
def number(): return 3
def needs(a): return Net()
built = Net()
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The name of a file of one's own in the working directory, a module of the same content beside it."""
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return "mine.py"


# By name


def test_the_same_net_by_different_names(own):
    keys = build_net("torchvision:resnet18").state_dict().keys()
    assert build_net("resnet18").state_dict().keys() == keys
    net = build_net(f"{own}:Net")
    images = torch.rand(2, 3, 16, 16)
    assert net(images).shape == (2, 5)
    assert torch.equal(build_net(f"{own}:built")(images), build_net("mine:built")(images)) is False
    first, second = build_net("mine:built"), build_net("mine:built")
    assert torch.equal(first(images), second(images)) and first is not second


@pytest.mark.parametrize(
    ("arch", "named"),
    [
        ("resnet17", "resnet18"),
        ("timm:resnet19", "resnet18"),
        ("timm:hf-hub:someone/net", "--download"),
        ("timm:local-dir:nowhere", "config.json"),
        ("nowhere.py:Net", "nowhere.py"),
        ("no_such_module:Net", "no_such_module"),
        ("os:getcwd", "Python's own"),
        ("mine.py:Other", "Branching"),
        ("mine.py:fails", "ValueError"),
        ("mine.py:number", "int"),
        ("mine.py:needs", "argument"),
    ],
)
def test_names_of_nothing(arch, named, own):
    with pytest.raises(UserError) as error:
        build_net(arch)
    assert named in str(error.value)


def test_without_timm(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UserError, match="pip install"):
        build_net("timm:resnet18")


def test_a_folder_of_timms(tmp_path):
    timm = pytest.importorskip("timm")
    from timm.models import save_for_hf

    torch.manual_seed(0)
    source = timm.create_model("mobilenetv3_small_050", num_classes=3)
    save_for_hf(source, tmp_path, safe_serialization="both")
    arch = f"timm:local-dir:{tmp_path}"
    net = build_net(arch)
    file = folder_weights(arch)
    assert file is not None and Path(file).parent == tmp_path
    load_whole(net, file, arch)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in net.state_dict().items())
    assert lasting(arch, net) == "timm:mobilenetv3_small_050"  # whose checkpoint needs no folder
    assert expected(net).side == 224 and len(expected(net).mean) == 3


def test_a_net_of_a_hub_is_kept_by_the_name_that_needs_none():
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet10t", num_classes=3)
    assert lasting("timm:hf-hub:someone/net", net) == "timm:resnet10t"
    net.layer4[0].bn3 = nn.BatchNorm2d(8)
    with pytest.raises(UserError):
        lasting("timm:hf-hub:someone/net", net)


def test_only_libraries_download(own):
    with pytest.raises(UserError):
        SplitClassifier(f"{own}:Net", "add", 5, "download")


# Weights


@pytest.mark.parametrize("form", ["pt", "safetensors", "nested", "prefixed", "other_head"])
def test_weights_are_read_in_every_form(form, own, tmp_path):
    torch.manual_seed(0)
    source = build_net(f"{own}:Net")
    if form == "other_head":
        source.head = nn.Linear(4, 7)
    state, file = source.state_dict(), str(tmp_path / "w.pt")
    if form == "safetensors":
        file = str(tmp_path / "w.safetensors")
        save_file(state, file)
    elif form == "nested":
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": one for key, one in state.items()}}, file)
    elif form == "prefixed":
        torch.save({f"_orig_mod.module.{key}": one for key, one in state.items()}, file)
    else:
        torch.save(state, file)
    net = build_net(f"{own}:Net")
    load_whole(net, file, own)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(net(images), source(images))


def test_weights_that_are_none(own, tmp_path):
    net = build_net(f"{own}:Net")
    before = {key: one.clone() for key, one in net.state_dict().items()}
    state = dict(before)
    torch.save({key: one for key, one in state.items() if key != "stem.bias"}, tmp_path / "missing.pt")
    torch.save({**state, "extra": torch.ones(1)}, tmp_path / "surplus.pt")
    torch.save({**state, "first.weight": torch.ones(4, 4, 5, 5)}, tmp_path / "shape.pt")
    torch.save(build_net("torchvision:squeezenet1_1").state_dict(), tmp_path / "other.pt")
    torch.save(net, tmp_path / "module.pt")
    torch.save({"state_dict": state, "state_dict_ema": state}, tmp_path / "two.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"a": Path("x")}))
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("weights")
    (tmp_path / "text.safetensors").write_text("weights")
    wanted = {
        "missing.pt": "stem.bias",
        "surplus.pt": "extra",
        "shape.pt": "first.weight",
        "other.pt": "stem.weight",
        "module.pt": "state_dict",
        "two.pt": "state_dict_ema",
        "pickle.pt": "state_dict",
        "empty.pt": "empty",
        "text.pt": "cannot be read",
        "text.safetensors": "cannot be read",
        "nowhere.pt": "no file",
    }
    for name, word in wanted.items():
        with pytest.raises(UserError) as error:
            load_whole(net, str(tmp_path / name), own)
        assert name in str(error.value) and word in str(error.value), name


def test_a_head_that_fits_is_kept_and_another_is_replaced(tmp_path):
    torch.manual_seed(0)
    for arch in ("resnet18", "torchvision:resnet18"):
        source = build_net("torchvision:resnet18")
        source.fc = nn.Linear(512, 5)
        torch.save(source.state_dict(), file := tmp_path / "w.pt")
        kept = SplitClassifier(arch, "layer1", 5, str(file), size=32).eval()
        images = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            whole = source.eval()((images - kept.mean) / kept.std)
            assert near(kept(images), whole)
        other = SplitClassifier(arch, "layer1", 3, str(file), size=32).eval()
        assert other(images).shape == (2, 3) and near(other.encode(images), kept.encode(images))
        with pytest.raises(UserError):
            SplitClassifier(arch, "layer1", 3, str(file), size=32, keep=True)


# Cuts


def test_places_and_what_they_cost(own):
    net = build_net("torchvision:resnet18")
    found, answers = places(net, 64)
    named = {one.name: one for one in found}
    assert answers == (1000,) and list(named)[:2] == ["layer1.0", "layer1"]
    assert named["layer2"].shape == (128, 8, 8) and named["layer2"].bytes == 2 * 128 * 64
    shares = [one.share for one in found]
    assert shares == sorted(shares) and 0 < shares[0] < shares[-1] <= 1
    assert propose(found, 64).name == "layer1.0"
    stem, block = 64 * 32**2 * 147, 2 * 64 * 16**2 * 64 * 9  # by hand: 7x7 of 3 channels; two 3x3 of 64
    ratio = (stem + 2 * block) / (stem + block)
    assert named["layer1"].share / named["layer1.0"].share == pytest.approx(ratio)
    found, answers = places(build_net(f"{own}:Net"), 16)
    assert answers == (5,) and {"relu", "add", "add_1"} <= {one.name for one in found}


@pytest.mark.parametrize(
    ("shares", "words"), [((0.2, 0.4), "the last with"), ((0.6, 0.7), "the least share")]
)
def test_a_proposed_cut_says_by_which_rule(shares, words, capsys):
    found = [Place(f"block{number}", (4, 8, 8), share) for number, share in enumerate(shares)]
    assert _chosen(found, None, 64) == "block0" and f"block0, {words}" in capsys.readouterr().out


def test_a_cut_inside_a_block_names_the_blocks_around_it():
    with pytest.raises(UserError) as error:
        cut_at(build_net("torchvision:resnet18"), "layer2.0.conv1")
    assert "'layer1'" in str(error.value) and "'layer2.0'" in str(error.value)


def test_control_flow_names_its_line(own, tmp_path):
    line = OWN.splitlines().index("        if x.mean() > 0:") + 1
    with pytest.raises(UserError) as error:
        places(build_net(f"{own}:Branching"), 16)
    assert f"mine.py:{line}" in str(error.value)


def test_other_channels_are_refused(own):
    with pytest.raises(UserError):
        places(build_net(f"{own}:grey"), 16)
    with pytest.raises(UserError):
        SplitClassifier(f"{own}:grey", "add", 5, size=16)


FIVE = [
    ("resnet18", 64, "map"),
    ("mobilenetv3_small_050", 64, "map"),
    ("efficientnet_b0", 64, "map"),
    ("convnext_atto", 64, "map"),
    ("vit_tiny_patch16_224", 224, "tokens"),
]


@pytest.mark.parametrize(("name", "side", "kind"), FIVE, ids=[name for name, _, _ in FIVE])
def test_five_nets_of_timm_are_cut_and_joined(name, side, kind):
    pytest.importorskip("timm")
    torch.manual_seed(0)
    whole = build_net(f"timm:{name}").eval()
    found, answers = places(whole, side)
    cut = propose(found, side)
    net = SplitClassifier(f"timm:{name}", cut.name, *answers, size=32, input_size=side).eval()
    net.take(whole)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        features, expected = net.encode(images), whole(net.shown(images))
        assert net.layout.kind == kind and tuple(features.shape[1:]) == net.feature_shape
        sent = features.clone()
        assert near(net.cloud(features), expected) and torch.equal(features, sent)
        encoder = net.encoder_module()
        assert near(encoder(images), features)
        edge, cloud = freeze(encoder), freeze(net.cloud)
        assert near(cloud(edge(images)), expected, steps=10, at_least=1)
    # Crafting needs second derivatives.
    picture = images[:1].requires_grad_()
    (gradient,) = torch.autograd.grad(edge(picture).square().sum(), picture, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), picture)
    assert second.isfinite().all() and second.abs().max() > 0
    assert build_decoder("residual", net.feature_shape, 32, 8)(features).shape == images.shape


def test_a_head_that_is_derived_from_a_linear_layer_is_replaced():
    pytest.importorskip("timm")
    net = SplitClassifier("timm:mobilenetv3_small_050", "blocks.1", 7, size=32, input_size=64).eval()
    assert net.answers == 1000 and net.cloud(net.encode(torch.rand(2, 3, 32, 32))).shape == (2, 7)
