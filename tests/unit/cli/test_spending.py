"""What is shown and asked before a comparison runs."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from tunewise.cli import spending
from tunewise.cli.spending import Consent, describe
from tunewise.core.errors import SettingError
from tunewise.results.estimate import Estimate, RowEstimate


def expected(seconds):
    row = RowEstimate(
        technique="lora", preparing=1, training=seconds, scoring=2, forgetting=3, peak_memory_bytes=2_400_000_000
    )
    return Estimate(startup=4, rows=(row,))


def test_the_estimate_says_time_memory_and_parts():
    lines = describe(expected(840), 8e9)
    assert lines[0].startswith("Estimate: about 14 min and 2.4 GB for 1 row (preparing 5 s, training 14 min")
    assert lines[1].split() == ["lora", "14", "min", "2.4", "GB"] and len(lines) == 2


def test_too_little_memory_is_a_warning_that_says_what_to_change():
    assert "lora is expected to need 2.4 GB, and 1 GB" in describe(expected(1), 1e9)[-1]


def test_the_budgets_own_minutes_are_stated():
    assert "the budget's 10 min" in describe(expected(590), 8e9, 10)[0]


@pytest.mark.parametrize(
    ("steps", "said"), [(0, "0 training steps"), (1, "1 training step,"), (19, "19 training steps")]
)
def test_minutes_that_leave_too_few_steps_are_a_warning_that_says_what_to_change(steps, said):
    short = replace(expected(590), fewest_steps=steps)
    assert said in describe(short, 8e9, 5)[-1] and "fewer techniques" in describe(short, 8e9, 5)[-1]
    assert not any("training step" in line for line in describe(replace(short, fewest_steps=20), 8e9, 5))


def test_above_an_hour_it_is_refused_without_a_terminal(capsys):
    Consent(False)(expected(3000))
    Consent(True)(expected(30_000))
    with pytest.raises(SettingError, match="8 h 20 min; give --yes"):
        Consent(False)(expected(30_000))
    assert "Estimate" in capsys.readouterr().err


@pytest.mark.parametrize("answer", [True, False])
def test_above_an_hour_a_terminal_is_asked(monkeypatch, answer):
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(spending, "sys", SimpleNamespace(stdin=terminal, stderr=terminal))
    monkeypatch.setattr(spending.typer, "confirm", lambda *_, **__: answer)
    if answer:
        Consent(False)(expected(30_000))
    else:
        with pytest.raises(SettingError, match="was not started"):
            Consent(False)(expected(30_000))
