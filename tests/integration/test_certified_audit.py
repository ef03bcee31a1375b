"""A certificate in an audit, and the verb certify."""

import pytest
from certified_lab import trained  # noqa: F401 (a fixture)

from crafter_pl.cli import main
from crafter_pl.data.store import read_store, write_shard
from crafter_pl.files import read_json


@pytest.fixture(scope="module")
def store(tiny, trained):
    assert main(tiny.command("predict", "certified")) == 0
    return tiny.folder / "certified" / "features" / "private_test-bits2"


def audited(tiny, store, out, *more):
    return main(
        [
            *tiny.audit("--out", str(out), "--attacks", "[{class_path: DecoderAttack}]", *more),
            *("--rulers", "[{class_path: GalleryLDA}]", "--gallery_images", "3", "--features", f"[{store}]"),
        ]
    )


def test_an_audit_has_the_certificate(tiny, store, tmp_path, capsys):
    assert audited(tiny, store, tmp_path / "audit", "--groups", "[Smiling]") == 0
    plain, entry = read_json(tmp_path / "audit" / "report.json", "")["defenses"]
    found = entry["certificate"]
    assert "certificate" not in plain and found["needs"] == ["Smiling", "Eyeglasses"]
    assert found["bounds"]["10000"] == pytest.approx(found["messages"] / 10_000)
    assert set(found["attackers"]) == {"bayes", "codeword", "discriminant", "regression"}
    best = max(one["value"] for one in found["attackers"].values())
    assert best <= found["ceiling"] <= found["list_ceiling"] <= 1 and not found.get("exceeded")
    assert found["albums"]["1"]["named"]["value"] == pytest.approx(best)
    assert found["albums"]["2"]["bits"] == pytest.approx(2 * found["bits"])
    page = (tmp_path / "audit" / "report.html").read_text()
    out = capsys.readouterr().out
    assert "What is proved" in page and "bound, one guess" in page
    (row,) = (line for line in out.splitlines() if line.startswith("certified  "))
    assert "on the needs" in out and f" {found['needs_auc']['value']:.3f} " in row
    assert main(["report", "--folder", str(tmp_path / "audit")]) == 0, "and is written again from its json"


def test_features_that_are_not_of_the_pool_have_no_certificate(tiny, store, tmp_path, capsys):
    features, index, manifest = read_store(store)
    folder = tmp_path / "features"
    for number, (name, part) in enumerate(manifest["shards"].items()):
        rows = slice(4 * number, 4 * number + part)
        write_shard(folder, number, features[rows] + 0.5, index[rows])
        assert (folder / name).is_file()
    (folder / "manifest.json").write_text((store / "manifest.json").read_text())
    more = ["--defenses", f"[{tiny.ckpt('certified')}]"]
    assert audited(tiny, folder, tmp_path / "audit", *more) == 2
    assert "not in the pool" in capsys.readouterr().err


def test_certify_says_what_is_proved_and_what_audits_found(tiny, store, tmp_path, capsys):
    command = tiny.command("certify", "audit")
    command.insert(1, str(store))
    assert main([*command, "--gallery_images", "2", "--out", str(tmp_path / "out")]) == 0
    made = read_json(tmp_path / "out" / "certificate.json", "")["certified"]
    out = capsys.readouterr().out
    assert "By one guess a picture" in out or "no bound for" in out
    assert made["bounds"]["3"] <= 1 and made["albums"] and not made["guesses"] - 4
    page = (tmp_path / "out" / "certificate.md").read_text()
    assert page.startswith("# Certificate") and "bound, 1 of 1,000,000" in page
    assert audited(tiny, store, tiny.folder / "audit_certified") == 0
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "audit_certified: 1 attacks" in capsys.readouterr().out


def test_certify_refuses_what_is_not_certified(tiny, tiny_store, capsys):
    command = tiny.command("certify", "audit")
    command.insert(1, str(tiny_store))
    assert main(command) == 2
    assert "certified" in capsys.readouterr().err
