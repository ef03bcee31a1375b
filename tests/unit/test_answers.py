"""What outputs mean: each kind's divergence, codebook and figures, against independent ways to get them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn import metrics as oracle
from torch.nn import functional as F

from crafter_pl.answers import ATTRIBUTES, KINDS, Embedding, MultiClass, Regression, make
from crafter_pl.attacks.message import message_attackers
from crafter_pl.crafting.channel import Channel
from crafter_pl.crafting.codebook import check_size, learn_messages
from crafter_pl.crafting.craft import task_gradient
from crafter_pl.crafting.message import craft_message
from crafter_pl.crafting.settings import CraftNets, CraftSettings
from crafter_pl.errors import UserError
from crafter_pl.metrics import IdentityBootstrap
from crafter_pl.metrics.scores import macro_f1, r2
from crafter_pl.stages.task import TaskModel, has_truth

K = 4
EVERY = [make(kind, [40.0, -1.0, 0.0, 7.0], [15.0, 0.1, 1.0, 3.0]) for kind in KINDS]
each = pytest.mark.parametrize("answers", EVERY, ids=lambda one: one.kind)


def outputs(answers, count=300, seed=0):
    """As a net gives them: far apart, and of a regression in the values' own units."""
    made = 2 * torch.randn(count, K, generator=torch.Generator().manual_seed(seed)).double()
    return answers.told(made) if isinstance(answers, Regression) else made


@each
def test_the_divergence_is_zero_at_equality_and_its_gradient_is_right(answers):
    torch.manual_seed(0)
    net = torch.nn.Linear(K, K).double()
    clean, moved = torch.randn(2, 5, K).double()
    statistic = answers.statistic(net(clean)).detach()
    nothing, flat = task_gradient(net, clean, statistic, answers)
    assert nothing.abs().max() < 1e-12 and flat.abs().max() < 1e-12
    loss, gradient = task_gradient(net, moved, statistic, answers)
    assert float(loss.min()) > 1e-6
    for place in range(K):
        step = torch.zeros(5, K).double()
        step[:, place] = 1e-5
        up, down = (task_gradient(net, moved + s * step, statistic, answers)[0] for s in (1, -1))
        assert torch.allclose(
            (up - down) / 2e-5, gradient[:, place], rtol=1e-5, atol=1e-8 * float(loss.max())
        )


def test_divergences_by_hand():
    said, meant = torch.randn(2, 6, K).double()
    kl = torch.distributions.kl_divergence
    by_class = MultiClass()
    p, q = (torch.distributions.Categorical(logits=one) for one in (meant, said))
    found = task_gradient(lambda x: x, said, by_class.statistic(meant), by_class)[0]
    assert torch.allclose(found, kl(p, q))
    vector = Embedding()
    found = task_gradient(lambda x: x, said, vector.statistic(meant), vector)[0]
    assert torch.allclose(found, 1 - F.cosine_similarity(said, meant))
    values = make("regression", [0.0] * K, [2.0] * K)
    found = task_gradient(lambda x: x, said, values.statistic(meant), values)[0]
    assert torch.allclose(found, (said - meant).square().mean(1) / 4)


@each
def test_the_message_is_of_the_nearest_word_and_more_words_serve_better(answers):
    public, faces = outputs(answers), outputs(answers, 100, 1)
    known = answers.statistic(public)
    served = []
    for bits in (1, 3, 5):
        codebook = learn_messages(known, bits, None, 0.0, answers)
        words = codebook.codewords
        assert 1 < len(words) <= 2**bits and torch.allclose(answers.settled(words), words)
        far = torch.stack([_far(answers, faces, word, codebook.weights) for word in words], 1)
        assert torch.equal(codebook(faces), far.argmin(1))
        alone = torch.cat([codebook(face[None]) for face in faces])
        assert torch.equal(codebook(faces), alone)
        served.append(float(far.min(1).values.mean()))
    assert served[0] > served[1] > served[2] > 0


def _far(answers, faces, word, weights):
    """By the definition of each kind."""
    s = answers.statistic(faces)
    if answers.kind == "multilabel":
        p, c = (torch.distributions.Bernoulli(probs=one) for one in (s, word.expand_as(s)))
        return (weights * torch.distributions.kl_divergence(p, c)).sum(1)
    if answers.kind == "multiclass":
        p, c = (torch.distributions.Categorical(probs=one) for one in (s, word.expand_as(s)))
        return torch.distributions.kl_divergence(p, c)
    return (s - word).square().sum(1) / 2


def test_levels_are_of_answers_each_by_itself():
    values = EVERY[list(KINDS).index("regression")].part(torch.tensor([0, 3]))
    public = values.told(torch.randn(400, 2, generator=torch.Generator().manual_seed(2)).double())
    quantiser = learn_messages(values.statistic(public), 5, 3, 0.0, values)
    said = values.told(quantiser.codewords[quantiser(public)])
    assert quantiser.codewords.shape == (9, 2)
    assert (np.corrcoef(said[:, 0], public[:, 0])[0, 1]) > 0.8, "a message says the value roughly"
    for kind in (MultiClass(), Embedding()):
        with pytest.raises(UserError):
            check_size(5, 2, K, kind)
    check_size(5, 2, K, ATTRIBUTES)


@each
def test_a_feature_is_crafted_for_a_codeword(answers):
    """Nets of one layer, where an optimisation can reach any answer."""
    torch.manual_seed(1)
    encoder, cloud = torch.nn.Linear(6, 12), torch.nn.Linear(12, K)
    if isinstance(answers, Regression):
        answers.begin(cloud)
    nets = CraftNets(encoder, torch.nn.Identity(), torch.nn.Identity(), cloud, answers)
    words = answers.settled(answers.statistic(outputs(answers, 3, 5))).float()
    z, needed = torch.randn(3, 6), torch.arange(K)
    off = [craft_message(nets, z, words, needed, CraftSettings(steps=n, lr=0.1))[1].mean() for n in (1, 80)]
    assert 0 <= off[1] < 0.2 * off[0]


@each
def test_attackers_read_messages_of_every_kind(answers):
    generator = torch.Generator().manual_seed(3)
    people = outputs(answers, 10, 4)
    identity = torch.arange(10).repeat_interleave(8)
    unit = answers.std.double() if isinstance(answers, Regression) else torch.ones(K).double()
    draw = lambda: people[identity] + 0.3 * unit * torch.randn(80, K, generator=generator).double()  # noqa: E731
    channel = Channel(learn_messages(answers.statistic(outputs(answers)), 3, None, 0.0, answers))
    shares = torch.full((channel.size,), 1 / channel.size).double()
    sent, found = channel(draw(), torch.zeros(80).double()), {}
    for name, score in message_attackers(channel, draw(), identity, shares).items():
        found[name] = float((score(sent).argmax(1) == identity).double().mean())
    assert min(found.values()) > 0.15, found  # blindly 0.1


def test_figures_of_classes():
    rng = torch.Generator().manual_seed(0)
    logits, true = (
        torch.randn(200, 5, generator=rng),
        torch.randint(4, (200,), generator=rng),
    )  # never class 4
    truth = F.one_hot(true, 5).float()
    logits += 1.5 * truth
    boot = IdentityBootstrap(torch.arange(200) // 4, 200)
    figures, each_class = MultiClass().figures(boot, logits, truth)
    said, scores = logits.argmax(1), logits.softmax(1)
    assert list(figures) == ["accuracy", "macro_f1", "mean_auc"]
    assert figures["accuracy"].value == pytest.approx(oracle.accuracy_score(true, said))
    assert figures["macro_f1"].value == pytest.approx(oracle.f1_score(true, said, average="macro"))
    aucs = [oracle.roc_auc_score(truth[:, one], scores[:, one]) for one in range(4)]
    assert figures["mean_auc"].value == pytest.approx(np.mean(aucs)) and list(each_class) == [0, 1, 2, 3]
    for figure in figures.values():
        estimate = figure.estimate()
        assert estimate.low < estimate.value < estimate.high
    assert MultiClass().blind(truth) == pytest.approx(float(true.bincount().max()) / 200)


def test_figures_of_values():
    rng = np.random.default_rng(0)
    true = rng.normal(40, 12, (150, 2)) * [1, 100]
    said = true + rng.normal(0, 6, true.shape) * [1, 100]
    values = make("regression", [40.0, 4000.0], [12.0, 1200.0])
    boot = IdentityBootstrap(np.arange(150) // 3, 100)
    figures = values.figures(boot, torch.from_numpy(said), torch.from_numpy(true)).figures
    assert figures["r2"].value == pytest.approx(oracle.r2_score(true, said))
    assert figures["mae"].value == pytest.approx(oracle.mean_absolute_error(true, said))
    low, high = figures["r2"].estimate().low, figures["r2"].estimate().high
    assert low < figures["r2"].value < high
    constant = torch.full((150, 2), 3.0)
    assert "r2" not in values.figures(boot, constant, constant).figures, "nothing to be explained"


@pytest.mark.parametrize("seed", range(3))
def test_weights_are_repeated_samples(seed):
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 4, (3, 30)).astype(float)
    true, said = rng.integers(0, 3, 30), rng.integers(0, 5, 30)
    values, near = rng.normal(1e4, 1, (30, 2)), rng.normal(1e4, 1, (30, 2))
    for weight, f1, fit in zip(
        weights, macro_f1(said, true, weights), r2(near, values, weights), strict=True
    ):
        rows = np.repeat(np.arange(30), weight.astype(int))
        assert f1 == pytest.approx(oracle.f1_score(true[rows], said[rows], average="macro"))
        assert fit == pytest.approx(oracle.r2_score(values[rows], near[rows]), rel=1e-6)


@each
def test_a_models_own_answers_are_its_truth(answers):
    """It agrees with itself wholly, and less with one that answers otherwise."""
    boot = IdentityBootstrap(torch.arange(300), 20)
    mine, other = outputs(answers).float(), outputs(answers, seed=1).float()
    whole, less = (
        answers.figures(boot, one, answers.own(mine)).figures[answers.main].value for one in (mine, other)
    )
    assert whole == pytest.approx(1) and less < 0.7
    metric = answers.metric()
    for part in (slice(0, 100), slice(100, 300)):
        metric.update(other[part], answers.own(mine)[part])
    assert float(metric.compute()) == pytest.approx(less, abs=1e-5)


@each
def test_what_nobody_knows_counts_for_nothing(answers):
    made = outputs(answers, 8).float()
    aims = answers.aims(answers.own(outputs(answers, 8, 1).float()))
    half = aims.clone()
    half[::2] = float("nan")
    assert torch.allclose(answers.loss(made, half), answers.loss(made[1::2], aims[1::2]))
    assert float(answers.loss(made, torch.full_like(aims, float("nan")))) == 0


def test_a_fresh_regression_begins_at_the_mean():
    values, net = make("regression", [40.0, -3.0], [10.0, 0.1]), torch.nn.Linear(5, 2)
    before = net(x := torch.randn(20, 5))
    values.begin(net)
    assert torch.allclose(values.statistic(net(x)), before, atol=1e-4)
    for mean, std in ((None, None), ([1.0], [0.0]), ([1.0], [1.0, 2.0])):
        with pytest.raises(UserError):
            make("regression", mean, std)
    with pytest.raises(UserError, match="multilabel, multiclass"):
        make("ranking")


def test_labels_and_answers_must_be_of_one_kind():
    data = SimpleNamespace(attribute_names=["glad", "sad"], labels_kind="multiclass", image_size=32)
    found = TaskModel.from_data(data, {"answers": "multiclass"})
    assert found["attribute_names"] == ["glad", "sad"] and found["image_size"] == 32
    nobody = SimpleNamespace(attribute_names=[], labels_kind="multilabel", image_size=32)
    for faces, kind in ((data, "multilabel"), (data, "embedding"), (nobody, "multiclass")):
        with pytest.raises(UserError):
            TaskModel.from_data(faces, {"answers": kind})
    task = SimpleNamespace(answers=MultiClass(), hparams={"attribute_names": ["glad", "sad"]})
    assert has_truth(task, data) and not has_truth(task, nobody)
    task.hparams["attribute_names"] = ["sad", "glad"]
    with pytest.raises(UserError, match="glad, sad"):
        has_truth(task, data)
    task.answers = Embedding()
    assert not has_truth(task, data), "nobody labels an embedding"


def test_a_regression_learns_its_units_from_public_labels():
    attributes = torch.tensor([[10.0], [20.0], [1e6]])
    data = SimpleNamespace(
        **{"attribute_names": ["age"], "labels_kind": "regression", "image_size": 32},
        faces=SimpleNamespace(attributes=attributes),
        dataset=lambda part: SimpleNamespace(index=torch.tensor([0, 1])),
    )
    found = TaskModel.from_data(data, {"answers": "regression"})
    assert found["answer_mean"] == [15.0] and found["answer_std"] == [5.0]
