"""Fawkes, LowKey, and the recogniser of public people that they cloak pictures against."""

import pytest
import torch
from closeness import near
from experiment import Told
from torchvision.transforms.functional import gaussian_blur

from crafter_pl.defenses import Fawkes, LowKey
from crafter_pl.defenses.baselines.cloak import dssim
from crafter_pl.defenses.baselines.lowkey import blur, early, perceptual
from crafter_pl.errors import UserError
from crafter_pl.metrics import ssim
from crafter_pl.nets import OracleNet
from crafter_pl.stages import Embedder, load_stage
from crafter_pl.stages.embedder import verification


@pytest.fixture(scope="module")
def faces(tiny):
    return tiny.data().rows("private_test")["image"][:8]


@pytest.fixture
def fawkes(tiny):
    """`fawkes(...)`: fitted to two unequal batches of public_train."""
    rows = tiny.data().rows("public_train")

    def make(**settings):
        stage = Fawkes(**tiny.upstream("task", "embedder"), **settings).eval()
        stage.log = lambda *_: None
        for part in (slice(0, 30), slice(30, None)):
            stage.training_step({key: value[part] for key, value in rows.items()}, 0)
        return stage

    return make


@pytest.fixture
def lowkey(tiny):
    def make(**settings):
        return LowKey(**tiny.upstream("task", "embedder", "embedder_plain"), **settings).eval()

    return make


@torch.no_grad()
def moved(stage, images, cloaked):
    """Each picture's squared distance from itself, by each embedder."""
    pairs = [(net.embed(images), net.embed(cloaked)) for net in stage.embedders()]
    return [(one - other).square().sum(1) for one, other in pairs]


# Both


def test_a_cloak_is_a_picture_and_nobody_elses_business(fawkes, lowkey, faces):
    """In [0, 1] even with steps that lead far out, and the same to the bit whatever is in the batch."""
    images = faces.clone()
    images[0, :, :16], images[1, :, :16] = 0, 1
    for stage in (fawkes(steps=4, lr=0.3, rho=1.0), lowkey(steps=4, lr=0.3)):
        cloaked = stage.cloak(images, stage.options())
        assert cloaked.dtype == torch.float32 and not cloaked.requires_grad
        assert cloaked.min() == 0 and cloaked.max() == 1
        assert ((cloaked - images).abs().amax((1, 2, 3))[:2] > 0.2).all()
        for part in (slice(0, 1), slice(3, 8)):
            assert torch.equal(stage.cloak(images[part], stage.options()), cloaked[part])
        with torch.no_grad():
            assert torch.equal(stage.cloak(images, stage.options()), cloaked)
            features = stage.task.edge(cloaked)
        assert torch.equal(Told(stage).protect(images, torch.arange(len(images))), features)


@pytest.mark.parametrize(
    ("cls", "bad", "message"),
    [
        (Fawkes, {"rho": 0.0}, "rho 0.0"),
        (Fawkes, {"penalty": -1.0}, "penalty -1.0"),
        (Fawkes, {"lr": 0.0}, "lr 0.0"),
        (Fawkes, {"steps": 0}, "steps 0"),
        (Fawkes, {"candidates": 0}, "candidates 0"),
        (LowKey, {"alpha": -1.0}, "alpha -1.0"),
        (LowKey, {"alpha": float("inf")}, "alpha inf"),
        (LowKey, {"steps": 0}, "steps 0"),
        (LowKey, {"lr": 0.0}, "lr 0.0"),
        (Embedder, {"backbone": "facenet"}, "backbone 'facenet'"),
    ],
)
def test_settings_out_of_range(cls, bad, message):
    with pytest.raises(UserError, match=message):
        cls(**bad)


def test_dissimilarity_counts_every_pixel():
    one = torch.full((2, 3, 16, 16), 0.5, dtype=torch.float64)
    other = torch.stack([one[0], torch.full_like(one[0], 0.8)])
    light = (2 * 0.5 * 0.8 + 1e-4) / (0.25 + 0.64 + 1e-4)
    assert dssim(one, other).tolist() == pytest.approx([0.0, (1 - light) / 2], abs=1e-12)
    large = torch.rand(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    noisy = (large + 0.1 * torch.randn(large.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    assert torch.allclose(dssim(noisy, large), (1 - ssim(noisy, large)) / 2, rtol=0.03)
    corner, centre = one.clone(), one.clone()
    corner[:, :, :2, :2] += 0.3
    centre[:, :, 7:9, 7:9] += 0.3
    assert dssim(corner, one)[0] > 0.2 * dssim(centre, one)[0] > 0.001


# Fawkes


def test_fawkes_gets_nearer_to_its_target_within_the_budget(fawkes, faces):
    stage = fawkes(rho=0.01, steps=20)
    net, cloaked = stage.embedders()[0], stage.cloak(faces, stage.options())
    target = stage.targets(net.embed(faces), 0)
    before, after = ((net.embed(x) - target).square().sum(1) for x in (faces, cloaked))
    assert (after < before).all() and after.mean() < 0.8 * before.mean()
    seen = dssim(cloaked, faces)
    assert (seen <= 0.01).all() and (seen > 0).all()
    over = stage.cloak(
        faces * 0 + 0.5, stage.options()
    )  # flat pictures, where the first step is over the budget
    assert (dssim(over, faces * 0 + 0.5) <= 0.01).all()


def test_a_larger_budget_moves_a_face_farther(fawkes, faces):
    made = {rho: fawkes(rho=rho, steps=20) for rho in (0.002, 0.01, 0.05)}
    away = [
        moved(stage, faces, stage.cloak(faces, stage.options()))[0].mean().item() for stage in made.values()
    ]
    assert 0 < 1.3 * away[0] < away[1] and 1.3 * away[1] < away[2]
    assert [Told(stage).store_name() for stage in made.values()] == ["rho0.002", "rho0.01", "rho0.05"]


def test_fawkes_measures_public_people(fawkes, tiny):
    rows, stage = tiny.data().rows("public_train"), fawkes()
    people = rows["identity"].unique()
    assert stage.count.tolist() == [int((rows["identity"] == person).sum()) for person in people]
    with torch.no_grad():
        mine = stage.embedder.embed(rows["image"][rows["identity"] == people[3]])
    assert near(stage.total[3] / stage.count[3], mine.mean(0))
    assert set(people.tolist()).isdisjoint(tiny.data().private_identities.tolist())
    before = stage.total.clone()
    with pytest.raises(UserError, match="person"):
        stage.training_step(tiny.data().rows("private_test"), 0)
    assert torch.equal(stage.total, before)


def test_the_target_is_the_farthest_candidate(fawkes):
    stage = fawkes(candidates=100)
    stage.count[2] = 0  # no picture of this person was met
    centroids = stage.total / stage.count[:, None]
    known = [row for row in range(len(centroids)) if row != 2]
    embeddings = torch.nn.functional.normalize(
        torch.randn(6, centroids.shape[1], generator=torch.Generator().manual_seed(0))
    )
    for embedding, target in zip(embeddings, stage.targets(embeddings, 0), strict=True):
        farthest = max(known, key=lambda row: (embedding - centroids[row]).norm().item())
        assert torch.equal(target, centroids[farthest])
    stage.hparams["candidates"] = 1
    drawn = set()
    for seed in range(8):
        targets = stage.targets(embeddings, seed)
        assert len(targets.unique(dim=0)) == 1  # the seed alone draws the candidates
        drawn.add(targets[0, 0].item())
    assert 2 < len(drawn) <= 8


# LowKey


def test_lowkey_moves_a_face_away_from_itself(lowkey, faces):
    """By both embedders, and blurred, too."""
    stage = lowkey(alpha=0.01, steps=12, lr=0.01)
    cloaked = stage.cloak(faces, stage.options())
    blurred = moved(stage, faces, blur(faces))
    for before, after in zip(blurred, moved(stage, faces, blur(cloaked)), strict=True):
        assert (after > before).all() and after.mean() > 3 * before.mean()
    assert all(after.mean() > 1e-3 for after in moved(stage, faces, cloaked))
    assert 0.06 < (cloaked - faces).abs().max() <= 12 * 0.01 + 1e-6


def test_a_larger_alpha_is_seen_less(lowkey, faces):
    seen, visible = [], []
    for alpha in (0.0, 0.01, 0.1):
        stage = lowkey(alpha=alpha, steps=12, lr=0.01)
        cloaked, nets = stage.cloak(faces, stage.options()), stage.embedders()
        seen.append(perceptual(early(nets, cloaked), early(nets, faces)).mean().item())
        visible.append(dssim(cloaked, faces).mean().item())
        assert Told(stage).store_name() == f"alpha{alpha:g}"
    assert seen[0] > 1.2 * seen[1] > 1.44 * seen[2] > 0
    assert visible[0] > visible[1] > visible[2]


def test_the_perceptual_distance_is_of_one_picture(lowkey, faces):
    nets = lowkey().embedders()
    maps = early(nets, faces)
    assert len(maps) == 4 and all(torch.allclose(m.norm(dim=1).amax(), m.new_tensor(1.0)) for m in maps)
    other = faces.clone()
    other[2] += 0.1 * torch.rand(other[2].shape, generator=torch.Generator().manual_seed(0))
    apart = perceptual(early(nets, other), maps)
    assert apart[2] > 1e-3 and torch.allclose(apart.sum(), apart[2], atol=1e-9)


def test_the_blur_scales_with_the_picture():
    large = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(blur(large), gaussian_blur(large, [7, 7], [3.0, 3.0]))
    small = torch.zeros(1, 3, 32, 32)
    small[:, :, 16, 16] = 1
    assert (blur(small) > 0)[0, 0].sum() == 9  # a window of 3
    assert blur(small).sum() == pytest.approx(3.0, rel=1e-5)


# Embedder


@pytest.mark.parametrize("name", ["embedder", "embedder_plain"])
def test_the_embedder_knows_public_people_alone(name, tiny):
    stage, data = load_stage(tiny.ckpt(name), Embedder), tiny.data()
    known = set(stage.hparams["identities"])
    assert known == set(data.rows("public_train")["identity"].tolist())
    assert known.isdisjoint(data.private_identities.tolist()) and len(stage.net.centres) == len(known)
    assert (stage.train_split, stage.val_split) == ("public_train", "public_val")
    stage.log = lambda *_, **__: None
    assert stage.training_step(data.rows("public_train"), 0).isfinite()
    for part in ("private_train", "private_test", "public_val"):
        with pytest.raises(UserError, match="person"):
            stage.training_step(data.rows(part), 0)
    embeddings = stage.embed(data.rows("private_test")["image"])
    assert embeddings.shape == (16, 8) and torch.allclose(embeddings.norm(dim=1), torch.ones(16))


def test_verification():
    people = torch.arange(20).repeat_interleave(5)
    exact = torch.nn.functional.one_hot(people, 20).float()
    assert [float(x) for x in verification(exact, people)] == [1.0, 1.0]
    random = torch.nn.functional.normalize(
        torch.randn(100, 16, generator=torch.Generator().manual_seed(0)), dim=1
    )
    tar, auc = verification(random, people)
    assert tar < 0.06 and abs(auc - 0.5) < 0.06
    # by hand: of the pairs of two people, at most one in a hundred lies above the threshold
    first, second = torch.triu_indices(100, 100, 1)
    mixed = torch.nn.functional.normalize(random + exact @ random[:20], dim=1)
    score, same = (mixed[first] * mixed[second]).sum(1), people[first] == people[second]
    impostors = score[~same].sort(descending=True).values
    by_hand = (score[same] > impostors[int(0.01 * len(impostors))]).float().mean()
    tar, auc = verification(mixed, people)
    assert tar.item() == pytest.approx(by_hand.item(), abs=1e-6) and 0.1 < tar < 0.9
    wins = (score[same][:, None] > score[~same]).float().mean()
    assert auc.item() == pytest.approx(wins.item(), abs=1e-3)
    score = (random[first] * random[second]).sum(1)  # half of them below 0
    wins = (score[same][:, None] > score[~same]).float().mean()
    assert verification(random, people)[1].item() == pytest.approx(wins.item(), abs=1e-3)
    chance = [pytest.approx(0.01), 0.5]
    assert [float(x) for x in verification(random, torch.zeros(100, dtype=torch.long))] == chance
    assert [float(x) for x in verification(random, torch.arange(100))] == chance


@pytest.mark.parametrize("backbone", ["resnet", "plain"])
@pytest.mark.parametrize("grey", [False, True])
def test_activations_are_those_of_the_trunk(backbone, grey):
    torch.manual_seed(0)
    net = OracleNet(backbone, 2, 32, grey, width=2, embedding=4).double().eval()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    maps = net.activations(images, 99)
    assert len(maps) == {"resnet": 8, "plain": 5}[backbone] and len(net.activations(images, 2)) == 2
    assert torch.equal(maps[1], net.activations(images, 2)[1])
    with torch.no_grad():
        rest = net.trunk[1:](maps[-1])
        assert near(torch.nn.functional.normalize(rest), net.embed(images))
