"""Numbers that models and people write."""

import time
from fractions import Fraction

import pytest

from tunewise.core.numbers import are_numbers, final_number

WRITTEN = [
    ("18", 18),
    ("She has 20 - 2 = 18 left.\n#### 18", 18),
    ("#### 18\nThat is 3 more than 15.", 18),
    ("The answer is 1,234.50.", Fraction("1234.5")),
    ("$18", 18),
    ("-$5", -5),
    ("$-5", -5),
    ("-5", -5),
    ("−5", -5),
    ("x=-5", -5),
    ("+5", 5),
    ("10-5", 5),
    ("10 - 5", 5),
    ("- 5 apples", 5),
    ("0.5", Fraction(1, 2)),
    (".5", Fraction(1, 2)),
    ("-.5", Fraction(-1, 2)),
    ("3/4", Fraction(3, 4)),
    ("-3/4", Fraction(-3, 4)),
    ("1 1/2", Fraction(3, 2)),
    ("½", Fraction(1, 2)),
    ("3½", Fraction(7, 2)),
    (r"\boxed{\frac{3}{4}}", Fraction(3, 4)),
    (r"\boxed{1{,}234}", 1234),
    ("1e3", 1000),
    ("1.5e-3", Fraction(3, 2000)),
    ("1.5 × 10^3", 1500),
    (r"2*10**-2", Fraction(1, 50)),
    ("1.234.567,8", Fraction("1234567.8")),
    ("1.234,5", Fraction("1234.5")),
    ("3,5", Fraction("3.5")),
    ("1,00,000", 100000),
    ("1,2,3", 3),
    ("1\u202f000\u202f000", 10**6),
    ("5'000", 5000),
    ("٣٫٥", Fraction("3.5")),
    ("共有5个", 5),
    ("5 km/h", 5),
    ("It needs 3 litres of H2O.", 3),
    ("18.", 18),
    ("**18**", 18),
]


@pytest.mark.parametrize(("text", "value"), WRITTEN, ids=[text for text, _ in WRITTEN])
def test_the_final_number(text, value):
    assert final_number(text).value == value


@pytest.mark.parametrize("text", ["", "none", "5 #### none", "3/0", "1e99999999999", "version 3.11.2", "9" * 5000])
def test_what_is_no_number(text):
    assert final_number(text) is None


def test_a_percentage_equals_its_number_and_its_hundredth():
    percentage = final_number("50%")
    assert all(percentage.equals(final_number(text)) for text in ("50%", "50 %", "50", "0.5", "1/2", r"50\%"))
    assert not any(percentage.equals(final_number(text)) for text in ("0.5%", "5", "5000"))
    assert final_number("0.5").equals(percentage)


@pytest.mark.parametrize("text", ["9" * 10**6, "1," * 10**6, "1,23," * 10**5, "1/1" * 10**5, "-" * 10**6, "1e" * 10**5])
def test_long_texts_are_read_in_linear_time(text):
    started = time.process_time()
    final_number(text)
    assert time.process_time() - started < 5


def test_answers_that_are_numbers():
    assert are_numbers(["20 - 2 = 18\n#### 18", "#### 1,000", "-5", "$3.50", "3/4", "50%"])
    assert not are_numbers([])
    assert not are_numbers(["5", "five"])
    assert not are_numbers(["007"]) and not are_numbers(["the answer is 5"]) and not are_numbers(["3.11.2"])
    assert are_numbers(["0", "0.5"])
