"""Small stores of features."""

SHAPE = [2, 3, 3]


def manifest_of(shards, **changes):
    """A manifest of these shards, name to count, with some entries changed."""
    return {
        "format_version": 1,
        "defense": "crafter",
        "settings": {"beta": 4.0},
        "encoder_sha256": "e" * 64,
        "split_hash": "s" * 64,
        "split": "private_test",
        "shape": SHAPE,
        "dtype": "float32",
        "count": sum(shards.values()),
        "seed": 0,
        "shards": shards,
        "cost": {"seconds_per_image": 0.5, "peak_memory_mb": 100.0},
    } | changes
