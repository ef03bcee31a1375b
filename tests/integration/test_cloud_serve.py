"""A running server: what it answers, and what it refuses."""

import json
import re
import threading

import pytest
import torch
from closeness import near
from cloud_lab import BEARER, TOKEN, InThread, ask, body, counts
from malformed import MALFORMED

from crafter_pl.cloud.classifier import Facts
from crafter_pl.data.store import read_shard


def probabilities(answers):
    return torch.tensor([list(one["attributes"].values()) for one in answers["answers"]])


# What it answers


def test_a_shard_of_a_store_as_it_is(server, lab, cloud):
    facts, classify = cloud
    store, manifest = lab.store(), lab.manifest()
    name = sorted(manifest["shards"])[0]
    features, index = read_shard(store, name, manifest)
    data = (store / name).read_bytes()
    status, answers, _ = ask(server, data, X_Encoder_SHA256=manifest["encoder_sha256"])
    assert status == 200 and [one["index"] for one in answers["answers"]] == index.tolist()
    assert list(answers["answers"][0]["attributes"]) == list(facts.attributes)
    assert near(probabilities(answers), classify(features), steps=10)

    assert ask(server, data)[0] == 422  # whose features are they?


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_feature(server, cloud, dtype):
    facts, classify = cloud
    feature = torch.randn(facts.shape).to(dtype)
    status, answers, _ = ask(server, body(feature, server.encoder))
    assert status == 200 and [one["index"] for one in answers["answers"]] == [None]
    expected = classify(feature.float().unsqueeze(0))
    assert near(probabilities(answers), expected, steps=10)


def test_requests_are_batched_and_nobody_gets_anothers_answer(server, cloud):
    facts, classify = cloud
    before = counts(server)
    features = torch.randn(8, 12, *facts.shape)
    wrong = []

    def client(number):
        connection = server.connect()
        for feature in features[number]:
            data = body(feature, server.encoder, [number])
            status, answers, _ = server.ask("/classify", data, connection, **BEARER)
            close = near(probabilities(answers), classify(feature.unsqueeze(0)), steps=10)
            if status != 200 or answers["answers"][0]["index"] != number or not close:
                wrong.append((number, answers))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = counts(server)
    assert not wrong
    assert after["features_total"] - before["features_total"] == 96
    assert after["batches_total"] - before["batches_total"] < 96
    assert after["body_bytes_held"] == 0


def test_health_metrics_and_the_openapi_page(server, cloud):
    assert server.ask("/health")[:2] == (200, "ok")
    seen = counts(server)
    assert seen["ready"] == 1 and seen["requests_in_flight"] == 1
    assert seen['requests_total{path="/health",status="200"}'] >= 1
    assert "swagger" in server.ask("/docs")[1].lower()
    page = server.ask("/openapi.json")[1]
    assert {"/classify", "/health", "/metrics", "/info"} == page["paths"].keys()
    post = page["paths"]["/classify"]["post"]
    assert post["requestBody"]["content"].keys() == {"application/octet-stream"}
    assert {"200", "401", "409", "413", "422", "503"} <= post["responses"].keys()
    assert page["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    about = server.ask("/info", **BEARER)[1]["model"]
    assert about["encoder_sha256"] == server.encoder and about["attributes"] == list(cloud[0].attributes)


# What it refuses


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_bodies(server, name):
    status, answer, _ = ask(server, MALFORMED[name][0], X_Encoder_SHA256=server.encoder)
    assert status == 422 and "\n" not in answer["detail"] and len(answer["detail"]) < 300


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN} x"},
        {"Authorization": b"Bearer \xff\xfe"},
        {"X-API-Key": TOKEN},
    ],
)
@pytest.mark.parametrize("path", ["/classify", "/metrics", "/info", "/", "/nothing", "/docs/oauth2-redirect"])
def test_the_token(server, given, path):
    data = b"x" if path == "/classify" else None
    status, answer, headers = server.ask(path, data, **given)
    assert status == 401 and headers["www-authenticate"] == "Bearer" and TOKEN not in json.dumps(answer)


def test_a_token_in_the_address_is_none(server):
    assert server.ask(f"/metrics?token={TOKEN}")[0] == 401


def test_another_encoder(server, cloud):
    status, answer, _ = ask(server, body(torch.zeros(cloud[0].shape), "0" * 64))
    assert status == 409 and "0" * 12 in answer["detail"] and server.encoder[:12] in answer["detail"]
    feature = body(torch.zeros(cloud[0].shape), server.encoder)
    assert ask(server, feature, X_Encoder_SHA256="0" * 64)[0] == 422  # the two differ
    assert ask(server, body(torch.zeros(cloud[0].shape)), X_Encoder_SHA256="none")[0] == 422


def test_the_defence_must_be_the_classifiers():
    facts, feature = Facts("CloudClassifier", ("a",), (1, 2, 2), "e" * 64, "d" * 64), torch.zeros(1, 2, 2)
    with InThread(lambda features: features.flatten(1)[:, :1], facts) as server:
        assert ask(server, body(feature, "e" * 64), X_Defense_SHA256="d" * 64)[0] == 200
        assert ask(server, body(feature, "e" * 64, defense_sha256="d" * 64))[0] == 200
        assert ask(server, body(feature, "e" * 64), X_Defense_SHA256="c" * 64)[0] == 409
        assert ask(server, body(feature, "e" * 64))[0] == 422


def test_features_that_have_no_answer(server, cloud):
    """Finite, but too large for the net: that request alone is refused."""
    assert ask(server, body(torch.full(cloud[0].shape, 3e38), server.encoder))[0] == 422
    assert ask(server, body(torch.zeros(cloud[0].shape), server.encoder))[0] == 200


@pytest.mark.parametrize(
    "data",
    [b"", b"--x\r\nContent-Disposition", b'{"features": [1]}', b"\x1f\x8b\x08\0\0\0\0\0", b"features=1"],
)
def test_what_is_no_safetensors_is_told_how_it_must_be_sent(server, data):
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # what curl calls any body
    status, answer, _ = ask(server, data, **form)
    assert status == (415 if data else 422)
    assert "--data-binary @FILE" in answer["detail"] and not re.search(r"\d", answer["detail"])


def test_curls_name_for_a_body_does_not_matter(server, cloud):
    data = body(torch.zeros(cloud[0].shape), server.encoder)
    for kind in ("application/x-www-form-urlencoded", "application/json", "application/octet-stream"):
        assert ask(server, data, Content_Type=kind)[0] == 200
    assert ask(server, data, Content_Encoding="Identity")[0] == 200
