"""What a benchmark's row calls its utility."""

import pytest

from crafter_pl.benchmark.rows import OverSeeds, Row


@pytest.mark.parametrize(
    ("figure", "agreement", "words"),
    [(None, None, {"AUC"}), ("accuracy", None, {"accuracy"}), ("r2", True, {"agreement", "R²"})],
)
def test_a_utility_without_labels_is_called_agreement(figure, agreement, words):
    one = OverSeeds(0.5, 0.4, 0.6, [0.5])
    row = Row(
        defence="noise", curve="noise", retrains=[], figure=figure, agreement=agreement, kept=one, attacks={},
        worst_case=one, by_chance=0.1, false_security=0, learnt=False, seconds_per_image=None,
    )  # fmt: skip
    assert all(word in row.title for word in words) and ("agreement" in row.title) == bool(agreement)
