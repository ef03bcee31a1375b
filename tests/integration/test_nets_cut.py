"""Any torchvision classifier, cut at a named node: the two parts are the whole."""

import copy
import re

import pytest
import torch
from closeness import near
from torch import nn

from crafter_pl.cli import main
from crafter_pl.errors import UserError
from crafter_pl.nets import SplitClassifier, fold_batchnorm
from crafter_pl.nets.cut import cut_at, replace_head, torchvision_classifier
from crafter_pl.stages import TaskModel, load_stage

CUTS = [
    ("mobilenet_v3_small", "features.2", (24, 8, 8)),
    ("densenet121", "features.transition1", (128, 8, 8)),
    ("shufflenet_v2_x0_5", "stage2", (48, 8, 8)),
    ("regnet_y_400mf", "trunk_output.block1", (48, 16, 16)),
    ("resnet34", "layer2.0", (128, 8, 8)),
    ("resnet18", "layer2.0.relu_1", (128, 8, 8)),
    ("efficientnet_b0", "features.2", (24, 16, 16)),
]


@pytest.mark.parametrize(("arch", "cut", "shape"), CUTS, ids=[arch for arch, _, _ in CUTS])
def test_the_parts_are_the_whole(arch, cut, shape):
    torch.manual_seed(0)
    whole = torchvision_classifier(arch)
    replace_head(whole, arch, 7)
    edge, cloud = cut_at(copy.deepcopy(whole), cut)
    sizes = [sum(p.numel() for p in net.parameters()) for net in (whole, edge, cloud)]
    assert sizes[0] == sizes[1] + sizes[2] and min(sizes) > 0
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    for net in (whole, edge, cloud):
        net.double().eval()
    features = edge(images)
    assert features.shape[1:] == shape and cloud(features).shape == (2, 7)
    assert near(cloud(features), whole(images))
    assert near(fold_batchnorm(edge)(images), features)


def test_training_mode_reaches_both_parts():
    """Dropout and stochastic depth are on in training and off in eval mode."""
    torch.manual_seed(0)
    net = SplitClassifier("efficientnet_b0", "features.2", 3)
    images = torch.rand(4, 3, 64, 64)
    assert not torch.equal(net.train()(images), net(images))
    assert torch.equal(net.eval()(images), net(images))
    net.train()(images).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_cut_inside_a_block_names_what_crosses_it():
    with pytest.raises(UserError, match=r"conv1'.*'layer1.0.add'"):
        cut_at(torchvision_classifier("resnet18"), "layer1.0.conv1")


@pytest.mark.parametrize("cut", ["nope", "x", "output"])
def test_a_node_that_is_not_there(cut):
    with pytest.raises(UserError, match=f"'{cut}' .*layer1.0"):
        cut_at(torchvision_classifier("resnet18"), cut)


def test_a_net_without_a_linear_head():
    with pytest.raises(UserError, match="'squeezenet1_0'"):
        replace_head(torchvision_classifier("squeezenet1_0"), "squeezenet1_0", 3)


def test_its_weights_are_read(tmp_path):
    torch.manual_seed(0)
    source = torchvision_classifier("mobilenet_v3_small")
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    net = SplitClassifier("mobilenet_v3_small", "features.2", 3, str(tmp_path / "weights.pt"))
    first = next(m for m in net.edge.modules() if isinstance(m, nn.Conv2d))
    assert torch.equal(first.weight, source.features[0][0].weight)


def fit(tiny, tmp_path, arch, cut):
    runs = ["--runs_dir", str(tmp_path / "runs")]
    model = ["--model.init_args.arch", arch, "--model.init_args.cut", cut]
    return main(["fit", "--config", tiny.command("fit", "task")[2], *runs, *model])


def test_a_task_model_of_another_kind_is_trained_and_read_again(tiny, tmp_path):
    assert fit(tiny, tmp_path, "mobilenet_v3_small", "features.1") == 0
    stage = load_stage(tmp_path / "runs/synthetic/task/checkpoints/best.ckpt", TaskModel)
    images = tiny.data().rows("private_test")["image"]
    features = stage.edge(images)
    assert features.shape[1:] == stage.feature_shape
    encoder, images = stage.net.encoder_module().double(), images.double()
    assert near(fold_batchnorm(encoder)(images), encoder(images))


@pytest.mark.parametrize(
    ("arch", "cut", "message"),
    [
        ("inception_v3", "Conv2d_2a_3x3", "cannot take pictures of"),
    ],
)
def test_nets_that_do_not_fit(arch, cut, message, tiny, tmp_path, capsys):
    assert fit(tiny, tmp_path, arch, cut) == 2
    assert re.search(message, capsys.readouterr().err)
