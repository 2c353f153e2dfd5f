"""The model of gains on evidence made by hand: what is near counts, what is far does not, and how sure it is."""

import doctest
from dataclasses import replace

import numpy as np
import pytest

from tunewise.advice import gains
from tunewise.advice.features import Conditions
from tunewise.advice.gains import Recommender, Variances, learned, likeness
from tunewise.advice.learning import START, _cost, _theta, learn, left_out_tasks
from tunewise.advice.observations import READING, ObservedGains

HERE = Conditions(1e6, 1000.0, "a choice of labels")
VARIANCES = Variances(
    overall=0.01,
    size=0.05,
    kind=0.03,
    data=0.03,
    model=0.0,
    rest=0.01,
    size_reach=1.0,
    data_reach=1.0,
    family=0.3,
    mean=0.5,
    width=1.0,
)


def observed(task, conditions, values, kind="atlas", error=0.03, common=0.1):
    return ObservedGains(kind, f"{task}-{kind}", task, conditions, values, dict.fromkeys(values, error), common)


def mean_of(evidence, conditions, name, variances=VARIANCES):
    return float(Recommender(tuple(evidence), variances).predict(conditions, (name,)).mean[0])


@pytest.mark.parametrize(
    "away", [{"parameters": 7e9}, {"train": 1e6}, {"kind": "long answers"}], ids=lambda away: next(iter(away))
)
def test_what_is_further_away_counts_less(away):
    seen = [observed("one", HERE, {"full": 1.0})]
    near, far = mean_of(seen, HERE, "full"), mean_of(seen, replace(HERE, **away), "full")
    assert near > far > VARIANCES.mean
    wide = Recommender(tuple(seen), VARIANCES)
    assert (
        wide.predict(replace(HERE, **away), ("full",)).covariance[0, 0] > wide.predict(HERE, ("full",)).covariance[0, 0]
    )


def test_a_record_at_the_right_size_outweighs_many_small_ones():
    large = replace(HERE, parameters=7e9)
    small = [observed(f"task{i}", HERE, {"full": 1.0, "lora": 0.3}) for i in range(8)]
    right = observed("right", large, {"full": 0.6, "lora": 1.0})
    belief = Recommender((*small, right), VARIANCES).predict(large, ("full", "lora"))
    assert belief.mean[1] > belief.mean[0]
    without = Recommender(tuple(small), VARIANCES).predict(large, ("full", "lora"))
    assert 0.5 < without.better("full", "lora") < 0.95  # eight small models make nothing certain there


def test_techniques_of_one_family_learn_from_one_another():
    seen = [observed("one", HERE, {"lora": 1.0})]
    assert mean_of(seen, HERE, "lora") > mean_of(seen, HERE, "adalora") > mean_of(seen, HERE, "icl")
    assert mean_of(seen, HERE, "icl") == pytest.approx(VARIANCES.mean)


def test_a_composition_learns_from_its_parts():
    names = ("full", "rag" + READING, "lora+rag" + READING, "full+rag" + READING)
    alike = likeness(names, 0.3)
    assert alike.diagonal() == pytest.approx(1.0)
    assert alike[2, 1] > alike[2, 0] and alike[3, 0] > 0 and 0 < alike[2, 3] < 1
    assert likeness(("rag", "rag" + READING), 0.3)[0, 1] == pytest.approx(0.3)  # of one family, and not the same


def test_what_a_comparison_has_in_common_counts_only_by_its_differences():
    def leads(values, common):
        belief = Recommender((observed("t", HERE, values, "paper", 0.1, common),), VARIANCES).predict(
            HERE, ("full", "lora")
        )
        return belief.mean[1] - belief.mean[0], belief.mean[0]

    raised = leads({"full": 0.9, "lora": 1.0}, 10.0), leads({"full": 0.5, "lora": 0.6}, 10.0)
    assert raised[0] == pytest.approx(raised[1], abs=1e-3) and raised[0][0] > 0
    assert leads({"full": 0.9, "lora": 1.0}, 0.0)[1] > leads({"full": 0.5, "lora": 0.6}, 0.0)[1] + 0.1


def test_noisy_evidence_says_less():
    assert mean_of([observed("t", HERE, {"icl": 1.0}, error=0.03)], HERE, "icl") > mean_of(
        [observed("t", HERE, {"icl": 1.0}, error=1.0)], HERE, "icl"
    )


def test_the_order_of_the_evidence_does_not_matter():
    seen = [observed("a", HERE, {"full": 1.0, "icl": 0.2}), observed("b", replace(HERE, train=10.0), {"icl": 0.9})]
    assert mean_of(seen, HERE, "icl") == pytest.approx(mean_of(seen[::-1], HERE, "icl"))


def test_without_evidence_all_are_alike():
    belief = Recommender((), VARIANCES).predict(HERE, ("full", "icl"))
    assert belief.mean.tolist() == [0.5, 0.5] and belief.better("full", "icl") == pytest.approx(0.5)
    assert sum(belief.chances().values()) == pytest.approx(1.0)


def test_similarity_is_one_here_and_falls_with_the_distance():
    recommender = Recommender((), VARIANCES)
    assert recommender.similarity(HERE, HERE) == pytest.approx(1.0)
    sizes = [recommender.similarity(HERE, replace(HERE, parameters=size)) for size in (1e6, 1e7, 1e8, 1e11)]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] > VARIANCES.overall / VARIANCES.total * 0.99


# Learning.


def world(reach):
    """Techniques whose gains follow the size of the model, over so many decades."""
    random, sizes = np.random.default_rng(0), np.linspace(5, 11, 13)
    distances = np.abs(sizes[:, None] - sizes)
    draws = random.multivariate_normal(np.full(13, 0.5), 0.08 * np.exp(-distances / reach), 8).T
    names = ("icl", "full", "bitfit", "lora", "adapter", "last_layers", "qlora", "prompt_tuning")
    return [
        observed(f"task{place}", replace(HERE, parameters=10.0**size), dict(zip(names, row, strict=True)))
        for place, (size, row) in enumerate(zip(sizes, draws.tolist(), strict=True))
    ]


def test_the_derivatives_are_those_of_the_cost():
    evidence, theta = tuple(world(1.0)[:5]), _theta(START) + 0.1
    cost, slopes = _cost(theta, evidence)
    for place in range(len(theta)):
        step = np.zeros_like(theta)
        step[place] = 1e-5
        assert slopes[place] == pytest.approx((_cost(theta + step, evidence)[0] - cost) / 1e-5, rel=1e-2, abs=1e-2)


def test_how_far_sizes_reach_is_learned():
    short, long = (learn(world(reach), iterations=15) for reach in (0.2, 10.0))

    def left(variances):  # of what is known of a technique, two decades away
        recommender = Recommender((), variances)
        return recommender.similarity(HERE, replace(HERE, parameters=1e8))

    assert left(short) < left(long) - 0.2


def test_left_out_tasks_are_those_of_a_model_without_them():
    evidence = (*world(1.0)[:4], observed("task1", HERE, {"icl": 0.4}))
    for left_out in left_out_tasks(Recommender(evidence, VARIANCES)):
        others = tuple(each for each in evidence if each.task != left_out.observed.task)
        names = tuple(left_out.observed.gains)
        belief = Recommender(others, VARIANCES).predict(left_out.observed.conditions, names)
        assert left_out.mean == pytest.approx(belief.mean)
        assert (left_out.variance > belief.covariance.diagonal()).all()  # with the errors of the gains


def test_the_variances_of_the_package_are_learned_from_evidence():
    variances = learned()
    assert 0 < variances.family < 1 and variances.width >= 1.0
    seven = replace(HERE, parameters=7e9)
    similarity = Recommender((), variances).similarity(replace(HERE, parameters=3e6), seven)
    assert 0.05 < similarity < 0.6  # what three million parameters show counts, and much less, at seven billion


def test_the_example_of_the_module_is_what_the_code_does():
    results = doctest.testmod(gains)
    assert results.attempted >= 10 and results.failed == 0
