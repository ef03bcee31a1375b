"""Codewords in words."""

import pytest

from crafter_pl.look.words import SHOWN, in_words, phrase


@pytest.mark.parametrize(
    ("attribute", "present", "absent"),
    [
        ("Smiling", "smiling", "not smiling"),
        ("Eyeglasses", "glasses", "no glasses"),
        ("Wearing_Hat", "hat", "no hat"),
        ("No_Beard", "no beard", "beard"),
        ("Pale_Skin", "pale skin", "no pale skin"),
        ("Young", "young", "not young"),
    ],
)
def test_an_attribute_and_its_absence(attribute, present, absent):
    assert (phrase(attribute, True), phrase(attribute, False)) == (present, absent)


def test_what_a_message_leaves_open_is_not_said_for_sure():
    assert in_words([0.9, 0.1], ["Smiling", "Eyeglasses"]) == "smiling, no glasses"
    assert in_words([0.6, 0.4], ["Smiling", "Eyeglasses"]) == "perhaps smiling, perhaps no glasses"


def test_of_many_attributes_the_surest_are_said_in_their_order():
    codeword = [0.5] * 10
    codeword[8], codeword[2] = 0.99, 0.01
    said = in_words(codeword, [f"Name_{row}" for row in range(10)]).split(", ")
    assert said.index("no name 2") < said.index("name 8")
    assert len(said) == SHOWN + 1 and said[-1] == f"and {10 - SHOWN} more"


def test_other_answers_than_attributes():
    assert in_words([41.26, -0.5], ["age", "glasses"], "regression") == "age 41.3, glasses -0.5"
    assert in_words([0.0] * 8, [*"abcdefgh"], "regression").endswith("f 0, and 2 more")
    assert in_words([0.1, 0.8, 0.1], ["sad", "glad", "cross"], "multiclass") == "glad"
    assert in_words([0.3, 0.4, 0.3], ["sad", "glad", "cross"], "multiclass") == "perhaps glad"
    assert in_words([0.6, -0.8], ["0", "1"], "embedding") == "a direction"
