"""The style generator, and what every generator offers to attackers: its stages and its latent spaces."""

import copy

import pytest
import torch
from closeness import near
from torch.nn import functional as F

from crafter_pl.attacks import WhiteBoxAttack
from crafter_pl.cli import main
from crafter_pl.defenses import Crafter
from crafter_pl.errors import UserError
from crafter_pl.nets import StyleGenerator, build_generator, fold_batchnorm
from crafter_pl.nets.style import Modulated
from crafter_pl.stages import Amortizer, GanPrior, load_stage

KINDS = ("G1", "G2", "style")


def lively(kind, size=32, seed=0):
    """A generator in eval mode whose noise, biases and running statistics are not at their start values."""
    torch.manual_seed(seed)
    net = build_generator(kind, 6, size, 4)
    with torch.no_grad():
        for _ in range(5):
            net(2 * torch.randn(16, 6))
        for name, parameter in net.named_parameters():
            if name.endswith(("strength", "convolution.bias", "picture.bias")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return net.eval()


def latents(count=3, seed=1):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [32, 64, 112, 128])
@torch.no_grad()
def test_pictures_of_the_papers_sizes(size):
    torch.manual_seed(0)
    images = StyleGenerator(6, size, 4).eval()(latents())
    assert images.shape == (3, 3, size, size) and 0 <= images.min() and images.max() <= 1
    assert images.std(0).mean() > 0.02  # latents make a difference


@pytest.mark.parametrize("demodulate", [True, False])
@torch.no_grad()
def test_modulated_convolution_against_modulated_weights(demodulate):
    """The paper's formula: scale the weights by the style, normalise them a filter, convolve each sample."""
    torch.manual_seed(0)
    net = Modulated(3, 4, 3, 5, demodulate).double()
    net.bias.normal_()
    x, w = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    for sample in range(2):
        weight = net.weight * net.affine(w[sample])[None, :, None, None]
        if demodulate:
            weight = 2**0.5 * weight / weight.square().sum((1, 2, 3), keepdim=True).add(1e-8).sqrt()
        expected = F.conv2d(x[sample : sample + 1], weight, padding=1) + net.bias
        assert near(net(x, w)[sample : sample + 1], expected)


@torch.no_grad()
def test_noise_is_drawn_in_training_and_constant_after_it():
    net = lively("style")
    z = latents()
    whole = net(z)
    assert torch.equal(net(z), whole)
    double = copy.deepcopy(net).double()
    assert near(double(z[1:2].double()), double(z.double())[1:2])  # neighbours do not matter
    state = copy.deepcopy(net.state_dict())
    again = StyleGenerator(6, 32, 4).eval()
    again.load_state_dict(state)
    assert torch.equal(again(z), whole)
    net.train()
    assert not torch.allclose(net(z), net(z), atol=1e-3)
    twins = net(z[:1].repeat(2, 1))
    assert not torch.allclose(twins[0], twins[1], atol=1e-3)  # of each sample its own


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_blocks_make_up_the_generator(kind):
    net = lively(kind).double()
    z = latents().double()
    for blocks in (net.blocks(), [fold_batchnorm(block) for block in net.blocks()]):
        state = (z,)
        for block in blocks:
            out = block(*state)
            state = out if isinstance(out, tuple) else (out,)
        assert near(state[0], net(z))
    sizes = {"G1": 4, "G2": 5, "style": 5}  # style: the mapping, then 4, 8, 16 and 32 pixels
    assert len(net.blocks()) == sizes[kind]


@pytest.mark.parametrize(("kind", "spaces"), [("G1", ["z"]), ("G2", ["z"]), ("style", ["z", "w", "w+"])])
@torch.no_grad()
def test_latent_spaces_draw_the_same_pictures(kind, spaces):
    net = lively(kind).double()
    z = latents().double()
    for space in spaces:
        enter, draw = (fold_batchnorm(part) for part in net.latent_space(space))
        latent = enter(z)
        assert latent.shape == (3, {"z": 6, "w": 6, "w+": 6 * 11}[space])
        assert near(draw(latent), net(z))
    if kind == "style":  # a space of a style for each convolution draws what no single style does
        mixed = latent.clone()
        mixed[:, :6] = latent[:, :6].roll(1, 0)
        assert not torch.allclose(draw(mixed), net(z), atol=1e-3)


def test_messages():
    with pytest.raises(UserError, match=r"36 .*style"):
        build_generator("style", 6, 36, 4)
    with pytest.raises(UserError, match=r"'w'.*G1"):
        build_generator("G2", 6, 32, 4).latent_space("w")
    with pytest.raises(UserError, match=r"'x'.*style"):
        build_generator("style", 6, 32, 4).latent_space("x")


def test_a_style_prior_is_trained_as_the_others(tiny, runs_dir):
    """From the command line, and it covers the faces better than an untrained one does."""
    settings = {"generator": "style", "lr": 0.01, "warmup_epochs": 5, "ema": 0.1}
    more = [f"--model.init_args.{name}={value}" for name, value in settings.items()]
    command = ["--name", "prior_style", "--runs_dir", str(runs_dir), "--trainer.max_epochs", "6"]
    assert main([*tiny.command("fit", "prior"), *command, *more, "--trainer.limit_train_batches", "10"]) == 0
    stage = load_stage(runs_dir / "synthetic" / "prior_style" / "checkpoints" / "best.ckpt", GanPrior)
    assert isinstance(stage.generator, StyleGenerator)
    images = tiny.data().rows("public_train")["image"][:32]
    fresh = GanPrior(**stage.hparams).eval()

    @torch.no_grad()
    def rebuilt(prior):
        return (prior.generator(prior.image_encoder(images)[0]) - images).square().mean().item()

    guess = (images - images.mean(0)).square().mean().item()
    assert rebuilt(stage) < 1.2 * guess < rebuilt(fresh)


@pytest.fixture(scope="module")
def wplus(tiny, tmp_path_factory):
    """A small style prior with an encoder into its w+."""
    runs_dir = tmp_path_factory.mktemp("wplus")
    settings = {"generator": "style", "warmup_epochs": 1, "autoencode": 1.0}
    more = [f"--model.init_args.{name}={value}" for name, value in settings.items()]
    where = ["--runs_dir", str(runs_dir), "--trainer.max_epochs", "1"]
    assert main([*tiny.command("fit", "prior"), *where, "--name", "prior_small", *more]) == 0
    prior = str(runs_dir / "synthetic" / "prior_small" / "checkpoints" / "best.ckpt")
    upstream = ["--model.init_args.prior_ckpt", prior, "--model.init_args.task_ckpt", tiny.ckpt("task")]
    more = [*where, *upstream, "--name", "amortizer_wplus", "--model.init_args.space", "w+"]
    assert main([*tiny.command("fit", "amortizer"), *more]) == 0
    return {"prior_ckpt": prior, "amortizer_ckpt": prior.replace("prior_small", "amortizer_wplus")}


def test_an_encoder_into_w_plus_is_where_an_attack_starts(tiny, wplus):
    stage = load_stage(wplus["amortizer_ckpt"], Amortizer)
    features = stage.task.edge(tiny.data().rows("public_val")["image"][:3])
    start = stage(features)
    assert start.shape == (3, stage.prior.generator.styles * stage.prior.latent_dim)
    options = {"task_ckpt": tiny.ckpt("task"), "restarts": 1, "lr": 0.05, **wplus}
    still, moved = (WhiteBoxAttack(**options, space="w+", steps=steps) for steps in (0, 20))
    found = []
    for attack in (still, moved):
        attack.prepare("cpu")
        found.append(attack.reconstruct(features))
    assert near(found[0], stage.draw(start))
    errors = [(stage.task.edge(pictures) - features).square().flatten(1).sum(1) for pictures in found]
    assert (errors[1] < errors[0]).all(), "the feature loss alone leads on from there"
    with pytest.raises(UserError, match=r"space w\+"):
        WhiteBoxAttack(**options).prepare("cpu")
    with pytest.raises(UserError, match="z is needed"):
        Crafter(tiny.ckpt("task"), wplus["prior_ckpt"], wplus["amortizer_ckpt"])
