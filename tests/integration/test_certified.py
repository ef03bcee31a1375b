"""Certified crafting: what leaves is a function of the message and of coins, and of nothing else."""

import json
import shutil

import pytest
import torch
from certified_lab import faces, stage, trained  # noqa: F401 (fixtures)
from experiment import Told
from torch.nn import functional as F

from crafter_pl.cli import main
from crafter_pl.cloud.app import to_answers
from crafter_pl.cloud.classifier import load_classifier
from crafter_pl.data.pool import Pool
from crafter_pl.defenses import Certified, load_defense
from crafter_pl.edge.export import export
from crafter_pl.errors import UserError
from crafter_pl.files import read_json


def built(tiny, **settings):
    settings = {"needs": ["Smiling", "Eyeglasses"], "work": None, **settings}
    return Certified(**tiny.upstream("task", "prior"), **settings)


def test_fit_learns_head_codebook_and_pool_from_public_faces(tiny, stage, faces):
    shape = stage.task.feature_shape
    assert 1 < len(stage.codewords) <= 4 and stage.codewords.shape[1] == 2
    assert stage.pool.shape == (len(stage.codewords), 12 // len(stage.codewords), *shape)
    assert float(stage.shares.sum()) == pytest.approx(1)
    public = tiny.data().rows("public_train")
    messages = stage.messages(public["image"], torch.zeros(len(public["image"])), stage.options())
    counts = torch.bincount(messages, minlength=len(stage.codewords))
    assert torch.allclose(counts / counts.sum(), stage.shares), "of the faces that it was trained on"
    own = read_json(tiny.folder / "certified" / "summary.json", "")["metrics"]
    assert own["bits"] == pytest.approx(stage.certificate(stage.options()).bits) and own["val/mean_auc"] > 0


def test_more_steps_bring_the_cloud_to_the_codeword(tiny):
    words, far = torch.tensor([[0.9, 0.2]]).double(), []
    for steps in (1, 20):
        stage = built(tiny, steps=steps).eval()
        z = torch.randn(1, stage.prior.latent_dim, generator=torch.Generator().manual_seed(0))
        feature, off = stage._crafted(words, z)
        said = stage.task.cloud(feature)[:, stage.columns].sigmoid()
        cross = F.binary_cross_entropy(said, words.float()) - F.binary_cross_entropy(*[words.float()] * 2)
        assert float(off) == pytest.approx(float(cross), abs=1e-4)
        far.append(float(off))
    assert far[1] < far[0] / 4


@pytest.mark.parametrize("options", [{}, {"epsilon": 1.0}, {"way": "optimisation"}])
def test_what_leaves_is_a_function_of_message_and_coins(stage, faces, options):
    """Of two pictures with the same message and coins the same bytes leave, whatever else they show."""
    images, told = faces["image"][:24], stage.options(**options)
    index = torch.zeros(1, dtype=torch.int64)  # the same coins and row for all
    coins, _ = stage.draw(index, told)
    messages = stage.messages(images, coins.expand(len(images)), told)
    sent = [stage.protect(image[None], index, told) for image in images]
    first = {int(message): sent[place] for place, message in reversed(list(enumerate(messages)))}
    assert len(first) > 1, "else this shows nothing"
    for feature, message in zip(sent, messages.tolist(), strict=True):
        assert feature.numpy().tobytes() == first[message].numpy().tobytes()


def test_neighbours_change_nothing(stage, faces):
    told, images, index = Told(stage, epsilon=1.0), faces["image"][:8], faces["index"][:8]
    whole = told.protect(images, index)
    alone = torch.cat([told.protect(images[i : i + 1], index[i : i + 1]) for i in range(8)])
    assert torch.equal(whole, alone)


def test_coins_of_the_system_are_fresh_and_keyed_ones_are_not(stage):
    index = torch.arange(4)
    keyed, system = stage.options(), stage.options(draws="system")
    assert all(map(torch.equal, stage.draw(index, keyed), stage.draw(index, keyed)))
    coins, z = stage.draw(index, keyed)
    assert not torch.equal(coins, z), "separate draws"
    drawn = torch.cat([torch.stack(stage.draw(index, system)).flatten() for _ in range(50)])
    assert len(drawn.unique()) == 400 and 0 <= float(drawn.min()) and float(drawn.max()) < 1
    assert abs(float(drawn.mean()) - 0.5) < 0.1


def test_messages_are_read_back_and_nothing_else_passes(stage, faces):
    options, images, index = stage.options(epsilon=1.0), faces["image"][:12], faces["index"][:12]
    coins, _ = stage.draw(index, options)
    features = stage.protect(images, index, options)
    assert torch.equal(stage.read(features, options), stage.messages(images, coins, options))
    features[3, 0, 0, 0] += 1e-6
    with pytest.raises(UserError, match="1 of 12"):
        stage.read(features, options)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"needs": None}, "which attributes"),
        ({"needs": []}, "which attributes"),
        ({"needs": ["Smiling", "Nose"]}, "does not answer for Nose"),
        ({"needs": ["Smiling", "Smiling"]}, "twice"),
        ({"needs": "Nose"}, "does not answer for Nose"),
        ({"bits": 21}, "protects nobody"),
        ({"levels": 1}, "2 levels or more"),
        ({"levels": 2000}, "no more than 20 bits"),
        ({"work": 1.0001}, "no room"),
    ],
)
def test_settings_that_cannot_be_meant(tiny, settings, match):
    with pytest.raises(UserError, match=match):
        built(tiny, **settings)


@pytest.mark.parametrize("there", [[], ["task"]])
def test_needs_that_nobody_answers_are_refused_before_anything_is_trained(tiny, there, runs_dir, capsys):
    for name in there:
        shutil.copytree(tiny.folder / name, runs_dir / "synthetic" / name)
    command = [*tiny.command("fit", "certified")[:3], "--runs_dir", str(runs_dir)]
    assert main([*command, "--model.init_args.needs=[Nose]"]) == 2
    assert "does not answer for Nose" in capsys.readouterr().err
    assert {file.parents[1].name for file in runs_dir.rglob("*.ckpt")} == set(there)


def test_all_must_be_asked_for_by_name(tiny):
    stage = built(tiny, needs="all")
    assert stage.answered == stage.task.hparams["attribute_names"]


def test_one_whose_training_has_not_ended_protects_nothing(tiny, faces):
    with pytest.raises(UserError, match="not come to its end"):
        Told(built(tiny)).protect(faces["image"][:1], faces["index"][:1])


def test_the_head_is_within_its_share_of_the_work(stage):
    from crafter_pl.nets.answer_head import multiply_adds

    size = stage.task.hparams["image_size"]
    edge = multiply_adds(stage.task.net.encoder_module(), 3, size, size)
    head = multiply_adds(stage.head, *stage.task.feature_shape)
    assert 0.5 * 2 * edge < head <= 2 * edge, "work 3: twice the encoder's, and not much less"


def test_one_pass_learns_from_messages_and_prior_faces_alone(tiny):
    """What the net makes of a codeword comes nearer to it than the prior face that it starts from."""
    more = ["--model.init_args.way=pass", "--model.init_args.pass_steps=30", "--name", "certified_pass"]
    more += ["--trainer.max_epochs", "1"]
    assert main(tiny.command("fit", "certified", *more)) == 0
    stage = load_defense(tiny.ckpt("certified_pass"))
    options, messages = stage.options(), torch.arange(len(stage.codewords)).repeat(8)
    z = torch.rand(len(messages), generator=torch.Generator().manual_seed(0)).double()
    words = stage.codewords[messages].float()
    features = stage.sent(messages, z, options)
    latents = torch.randn(len(messages), stage.prior.latent_dim)
    blind = stage.frozen(stage.device).render(latents)
    far = [
        F.binary_cross_entropy_with_logits(stage.task.cloud(one)[:, stage.columns], words)
        for one in (features, blind)
    ]
    assert far[0] < far[1]
    assert torch.equal(features[:1], stage.sent(messages[:1], z[:1], options)), "one at a time"
    graph, images = stage.edge_graph(options), tiny.data().rows("public")["image"][:3]
    noise = torch.randn(3, stage.edge_noise, generator=torch.Generator().manual_seed(0))
    assert stage.edge_noise == 1 + stage.prior.latent_dim and graph(images, noise).shape == features[:3].shape
    with pytest.raises(UserError, match="has no pool"):
        stage.channel(stage.options(way="pool"))


def test_one_without_a_net_says_so(stage):
    with pytest.raises(UserError, match="no net for one pass"):
        stage.channel(stage.options(way="pass"))


@pytest.mark.parametrize("epsilon", [None, 1.0])
def test_the_graph_does_the_same(stage, faces, epsilon):
    options = stage.options(epsilon=epsilon)
    graph, images = stage.edge_graph(options), faces["image"][:6]
    noise = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    coins, z = torch.special.ndtr(noise).double().unbind(1)
    messages, (features, place) = stage.messages(images, coins, options), graph(images, noise)
    assert torch.equal(features, stage.sent(messages, z, options))
    assert torch.equal(place // stage.pool.shape[1], messages) and torch.equal(
        graph.place(images, noise), place
    )
    assert Pool(stage.pool).encode(features) == bytes(place.tolist()), "what a phone may post"
    assert stage.edge_graph(stage.options(way="optimisation")) is None


def test_export_writes_the_defence(trained, stage, tmp_path):
    out = export(str(tmp_path / "graphs"), trained, format="torch")
    made = read_json(out / "export.json", "")
    assert made["protects"] and made["graphs"]["protect"]["inputs"]["noise"] == ["N", 2]
    assert made["graphs"]["place"]["outputs"] == {"place": ["N"]}
    assert list(made["graphs"]["protect"]["outputs"]) == ["features", "place"]
    certificate, (messages, rows) = stage.certificate(stage.options()), stage.pool.shape[:2]
    assert made["bits_a_picture"] == certificate.bits and made["messages"] == messages
    about = {"features": messages * rows, "rows": rows, "place_bytes": 1, "byte_order": "big"}
    assert made["pool"] == about and made["about"] == stage.about
    features, place = torch.export.load(out / "protect.pt2").module()(
        *(given := (torch.rand(3, 3, 32, 32), torch.randn(3, 2)))
    )
    assert torch.equal(features, stage.pool.flatten(0, 1)[place])
    assert torch.equal(torch.export.load(out / "place.pt2").module()(*given), place)
    text = (out / "README.md").read_text()
    assert f"message * {rows} + row" in text and f"one of {messages} messages" in text


def test_the_cloud_answers_for_what_is_needed_alone(trained, stage, faces):
    net, facts, _ = load_classifier(trained)
    assert facts.attributes == ("Smiling", "Eyeglasses") and "Bald" in facts.not_answered
    assert len(facts.attributes) + len(facts.not_answered) == len(stage.task.hparams["attribute_names"])
    features = Told(stage).protect(faces["image"][:2], faces["index"][:2])
    rows = net(features).sigmoid()
    assert torch.allclose(rows, stage.task.cloud(features)[:, stage.columns].sigmoid(), atol=1e-5)
    answer = json.loads(to_answers(rows.tolist(), [4, 5], facts))
    assert answer["answers"][1]["attributes"].keys() == set(facts.attributes)
    assert answer["not_answered"] == list(facts.not_answered)
