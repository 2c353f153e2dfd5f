"""How many examples or passages are shown: from few to many, within an allowance, and no more than are worth it."""

from dataclasses import dataclass, field

import pytest

from tunewise.contract.study import Allowance, AllowanceUsedUpError, Study
from tunewise.data.task import Example, Message, Task
from tunewise.fitting.settings import TrainSettings
from tunewise.fitting.source_training import SourceTraining
from tunewise.techniques.building import count_choice

ROWS = tuple(Example((Message("user", f"text {n}"),), "a") for n in range(50))
TASK = Task("t", "classification", "classification", ROWS, ROWS, ROWS, ("a", "b"), "accuracy")


@dataclass
class Model:
    """Stands for a model: the loss of each number, and what reading its prompts costs."""

    mean: dict[int, float]
    spread: float = 0.0  # how far the examples' differences lie from their mean
    count: int = 0
    read: list[int] = field(default_factory=list)

    def study(self, tokens):
        return Study(TASK, 0, self.lay_out, Allowance(tokens), SourceTraining(TrainSettings()))

    def lay_out(self, examples):
        model = self

        class Laid:
            tokens = (model.count + 1) * len(examples)

            def losses(self):
                model.read.append(model.count)
                mean, spread = model.mean[model.count], model.spread * model.count
                return [(mean + spread * (-1) ** place, 1) for place in range(len(examples))]

        return Laid()

    def counts(self):
        for number in self.mean:
            self.count = number
            yield number

    def choose(self, tokens=10**6):
        study = self.study(tokens)
        choice = count_choice.from_few(self.counts(), study, "examples")
        assert study.allowance.spent == sum((count + 1) * 24 for count in self.read) <= tokens
        return choice


FALLING = {1: 4.0, 2: 3.0, 4: 2.0, 8: 1.0, 16: 0.5}


def test_goes_from_few_to_many_and_takes_the_best():
    model = Model(FALLING)
    choice = model.choose()
    assert model.read == [1, 2, 4, 8, 16]
    assert (choice.chosen, choice.untried, choice.reason) == (16, "", "")
    assert choice.means == {str(count): mean for count, mean in FALLING.items()}


def test_stops_after_two_numbers_without_gain_and_says_so():
    model = Model({1: 1.0, 2: 0.8, 4: 0.9, 8: 0.8, 16: 0.1, 32: 0.0})
    choice = model.choose()
    assert model.read == [1, 2, 4, 8] and choice.chosen == 2
    assert choice.untried == "more than 8 examples: no gain from 2 to 8"


@pytest.mark.parametrize("tokens", [0, 47, 48, 119, 120, 239, 240, 455, 456, 863, 864])
def test_never_reads_more_than_the_allowance(tokens):
    model = Model(FALLING)
    choice = model.choose(tokens)
    affordable, total = [], 0
    for count in FALLING:
        total += (count + 1) * 24
        affordable += [count] if total <= tokens else []
    assert model.read == affordable
    assert choice.chosen == (affordable[-1] if affordable else 1)
    if affordable != list(FALLING):
        first = next(count for count in FALLING if count not in affordable)
        assert choice.untried == f"{first} and more examples: the allowance of {tokens:,} tokens does not cover them"
    assert choice.reason == ("" if affordable else "1, untried")


def test_shows_one_where_only_none_could_be_tried():
    choice = Model({0: 1.0, 1: 2.0}).choose(24)
    assert choice.chosen == 1 and choice.reason == "1, untried"
    assert Model({0: 1.0}).choose(24).chosen == 0  # nothing fits or matches: there is nothing to show


def test_nothing_to_try_is_no_choice():
    assert Model({}).choose() is None


def test_a_gain_within_chance_is_not_paid_for():
    choice = Model({1: 1.0, 2: 0.97, 4: 0.95}, spread=1.0).choose()
    assert choice.chosen == 1 and choice.reason == "1, as good as 4 within one standard error"
    assert Model({1: 1.0, 2: 0.97, 4: 0.95}, spread=0.01).choose().chosen == 4


def test_the_standard_error_is_that_of_the_paired_differences():
    noisy = [0.0, 10.0] * 16
    assert count_choice.smallest_as_good({1: [x + 0.1 for x in noisy], 2: noisy}) == 2


def test_without_weights_it_goes_as_far_as_the_allowance():
    for tokens, chosen in ((0, 1), (120, 2), (240, 4), (10**6, 16)):
        model = Model({1: 1.0, 2: 9.0, 4: 9.0, 8: 9.0, 16: 9.0})
        study = model.study(tokens)
        choice = count_choice.from_few(model.counts(), count_choice.unread(study), "examples")
        assert choice.chosen == chosen and not model.read
        assert study.allowance.spent <= tokens


def test_a_part_spends_from_the_whole():
    whole = Allowance(100)
    part = whole.part(0.5)
    part.spend(40)
    assert (part.left, whole.left, whole.spent) == (10, 60, 40)
    with pytest.raises(AllowanceUsedUpError, match="11 tokens are more than the 10"):
        part.spend(11)
    whole.count(95)
    assert part.left == whole.left == 0 and whole.spent == 135


def test_an_allowance_is_the_work_of_a_training():
    assert Allowance.of_training(1000).tokens == 1500


def test_validation_loss_is_per_answer_token_and_counted():
    study = Study(TASK, 0, Model({0: 0.5}).lay_out, Allowance(10), SourceTraining(TrainSettings()))
    assert study.validation_loss() == 0.5 and study.allowance.spent == 50
    with pytest.raises(AllowanceUsedUpError):
        study.losses(ROWS)
    assert study.allowance.spent == 50
