"""The nearest right word."""

from etude.core.errors import UserError, nearest


def test_the_nearest_word_is_named_with_all_known_ones():
    assert nearest("laptp", ["smoke", "laptop"]) == "; did you mean 'laptop'? (known: laptop, smoke)"


def test_a_word_like_none_gets_the_list_alone():
    assert nearest("xyzzy", ("smoke", "laptop")) == " (known: laptop, smoke)"


def test_nothing_known():
    assert nearest("laptop", {}) == ""


def test_a_fault_of_the_user_is_a_value_error():
    assert issubclass(UserError, ValueError)
