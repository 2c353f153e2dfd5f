"""Numbers with units are written as people read them."""

import pytest

from tunewise.core.units import duration, rough_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0.4 s"), (42, "42 s"), (190, "3 min 10 s"), (4800, "1 h 20 min"), (183_600, "2 d 3 h")],
)
def test_a_time_is_written_in_two_units(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "5 s"), (38, "40 s"), (100, "2 min"), (1260, "21 min"), (4812, "1 h 20 min")]
)
def test_a_predicted_time_is_no_more_exact_than_it_is_known(seconds, text):
    assert rough_duration(seconds) == text
