"""A pool of features: places back and forth, and what is none."""

import pytest
import torch
from fastapi import HTTPException

from crafter_pl.cloud.app import check_body
from crafter_pl.cloud.classifier import Facts
from crafter_pl.data.pool import MEDIA_TYPE, Pool
from crafter_pl.errors import UserError

FACTS = Facts("Certified", ("a",), (2, 3, 3), "e" * 64, "d" * 64)
HASHES = ("e" * 64, "d" * 64)


@pytest.fixture
def pool():
    return Pool(torch.randn(40, 8, 2, 3, 3))  # 320 places: two bytes


def test_places_are_of_equal_length_and_come_back(pool):
    some = pool.features[[0, 5, 319]]
    body = pool.encode(some)
    assert pool.width == 2 and len(body) == 6 and torch.equal(pool.decode(body), some)
    assert Pool(torch.randn(32, 8, 2, 3, 3)).width == 1
    assert pool.places(some).tolist() == [0, 5, 319]


def test_other_features_have_no_place(pool):
    with pytest.raises(UserError, match="1 of 2 features"):
        pool.encode(torch.stack([pool.features[0], pool.features[1] + 1e-6]))


def test_a_server_looks_them_up(pool):
    made = check_body(FACTS, pool.encode(pool.features[[7, 7, 300]]), *HASHES, MEDIA_TYPE, pool)
    assert torch.equal(torch.from_numpy(made.array), pool.features[[7, 7, 300]]) and made.index is None


@pytest.mark.parametrize(
    ("body", "there", "status"),
    [(b"", True, 422), (b"\0", True, 422), (b"\xff\xff", True, 422), (b"\0\0", False, 415)],
)
def test_places_that_are_none_are_refused(pool, body, there, status):
    with pytest.raises(HTTPException) as refused:
        check_body(FACTS, body, *HASHES, MEDIA_TYPE, pool if there else None)
    assert refused.value.status_code == status


def test_a_few_bytes_do_not_fill_the_memory(pool):
    body = pool.encode(pool.features[:1]) * 100
    with pytest.raises(HTTPException) as refused:
        check_body(FACTS, body, *HASHES, MEDIA_TYPE, pool, max_body=99 * pool.features[0].nbytes)
    assert refused.value.status_code == 413


def test_who_sends_places_says_of_which_pool(pool):
    body = pool.encode(pool.features[:1])
    for hashes, status in (((None, None), 422), (("e" * 64, "0" * 64), 409)):
        with pytest.raises(HTTPException) as refused:
            check_body(FACTS, body, *hashes, MEDIA_TYPE, pool)
        assert refused.value.status_code == status
