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
