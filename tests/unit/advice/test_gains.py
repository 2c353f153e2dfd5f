"""The recommender on evidence made by hand: what is near counts, what is far does not, and how sure it is."""

import doctest
from dataclasses import replace

import numpy as np
import pytest

from tunewise.advice import gains
from tunewise.advice.features import MODEL, SCALES, Features, differences, distance
from tunewise.advice.gains import READING, ObservedGains, Recommender

SMALL = Features(train=1000.0, generation=0.0, prompt_tokens=30.0, answer_tokens=3.0, parameters=1e6, examples=1000.0)
LARGE = SMALL.changed(train=1e6, examples=1e6, generation=1.0, answer_tokens=300.0)
NAMES = ("full", "lora", "icl")


def observed(task, features, gains, kind="atlas", error=0.03):
    return ObservedGains(kind, f"{task}-{kind}", task, features, gains, dict.fromkeys(gains, error))


def world():
    """Small sets favour icl, large ones full."""
    small = {"full": 0.1, "lora": 0.5, "icl": 1.0}
    large = {"full": 1.0, "lora": 0.6, "icl": 0.0}
    observations = [observed(f"small{i}", SMALL.changed(prompt_tokens=30.0 + 3 * i), small) for i in range(3)]
    return observations + [observed(f"large{i}", LARGE.changed(prompt_tokens=30.0 + 3 * i), large) for i in range(3)]


def test_distance_is_a_metric_in_units_of_its_scales():
    assert distance(SMALL, SMALL) == 0
    assert distance(SMALL, LARGE) == distance(LARGE, SMALL) > 2
    assert distance(SMALL, SMALL.changed(parameters=1e7)) == pytest.approx(1.0)
    assert distance(SMALL, LARGE, MODEL) == 0 and distance(SMALL, LARGE.changed(parameters=1e7), MODEL) == 1
    assert set(differences(SMALL, LARGE)) == set(SCALES) - {"base_loss"}
    with_loss = SMALL.changed(base_loss=1.0)
    assert distance(with_loss, SMALL) == 0  # what one side lacks does not count
    assert distance(with_loss, SMALL.changed(base_loss=4.0)) == pytest.approx(1.0)


def test_what_is_near_decides():
    model = Recommender(tuple(world()), NAMES)
    near_small, near_large = model.predict(SMALL), model.predict(LARGE)
    assert NAMES[int(near_small.mean.argmax())] == "icl"
    assert NAMES[int(near_large.mean.argmax())] == "full"
    far = model.predict(SMALL.changed(parameters=1e60))
    assert far.mean == pytest.approx(model.technique_means, abs=1e-3)
    assert all(far.covariance.diagonal() > near_small.covariance.diagonal())


def test_the_order_of_the_evidence_does_not_matter():
    one, other = Recommender(tuple(world()), NAMES), Recommender(tuple(reversed(world())), NAMES)
    assert one.predict(LARGE).mean == pytest.approx(other.predict(LARGE).mean, abs=1e-9)


def test_noisy_evidence_says_less():
    def after(error):
        model = Recommender(
            (*world(), observed("odd", SMALL, {"full": 1.0, "lora": 0.5, "icl": 0.0}, error=error)), NAMES
        )
        return model.predict(SMALL).mean[2]

    assert after(1.0) > after(0.03) + 0.05


def test_a_task_counts_once_however_many_records_it_has():
    many = [observed("copied", SMALL.changed(parameters=10.0**i), {"full": 0.0}) for i in range(6, 12)]
    once = Recommender((observed("copied", SMALL, {"full": 0.0}), observed("other", SMALL, {"full": 1.0})), ("full",))
    often = Recommender((*many, observed("other", SMALL, {"full": 1.0})), ("full",))
    assert often.technique_means == pytest.approx(once.technique_means)


def test_published_tables_count_by_how_their_rows_differ():
    paper = observed("paper", LARGE.changed(parameters=1e10), {"full": 0.9, "lora": 1.0}, "paper", 0.1)
    raised = replace(paper, gains={name: gain - 0.4 for name, gain in paper.gains.items()})
    situation = LARGE.changed(parameters=1e10)
    plain = Recommender((*world(), paper), NAMES).predict(situation).mean
    assert Recommender((*world(), raised), NAMES).predict(situation).mean == pytest.approx(plain)
    without = Recommender(tuple(world()), NAMES).predict(situation).mean
    assert plain[1] - plain[0] > without[1] - without[0]


def test_what_no_record_has_is_as_uncertain_as_what_some_have():
    belief = Recommender(tuple(world()), (*NAMES, "new")).predict(SMALL.changed(parameters=1e60))
    assert belief.covariance[3, 3] == pytest.approx(belief.covariance.diagonal()[:3].mean(), rel=1e-3)
    low, mean, high = (belief.interval("new")[i] for i in (1, 0, 2))
    assert low < mean < high


def test_fit_takes_the_reach_that_predicts_tasks_left_out():
    fitted = Recommender.fit(world(), NAMES)
    tasks = {each.task for each in world()}
    others = [replace(fitted, reach=reach, share=share) for reach in (0.7, 1.4, 2.8) for share in (0.2, 0.5, 0.8)]
    assert fitted.error(tasks) == min(model.error(tasks) for model in others)
    assert fitted.error(tasks) < 0.05 < np.mean([np.var(list(each.gains.values())) for each in world()])


def test_what_holds_for_a_model_holds_for_its_other_tasks():
    """Tiny models want icl whatever the task, large ones full: a new task of a tiny one is predicted, c chosen."""
    tasks = [SMALL, LARGE, SMALL.changed(prompt_tokens=400.0), LARGE.changed(labels=70.0, generation=0.0), SMALL, LARGE]
    tiny, large = {"full": 0.1, "lora": 0.4, "icl": 1.0}, {"full": 1.0, "lora": 0.7, "icl": 0.1}
    observations = []
    for place, features in enumerate(tasks):
        observations += [observed(f"task{place}", features.changed(parameters=1e6), tiny)]
        observations += [observed(f"task{place}", features.changed(parameters=8e6), large)]
    fitted = Recommender.fit(observations, NAMES)
    assert fitted.model_share > 0
    situation = SMALL.changed(answer_tokens=4000.0, generation=1.0, train=10.0)
    for parameters, best in ((1e6, "icl"), (8e6, "full")):
        assert NAMES[int(fitted.predict(situation.changed(parameters=parameters)).mean.argmax())] == best
    assert fitted.similarity(situation, situation) == pytest.approx(1)


def test_without_evidence_all_are_alike():
    belief = Recommender.fit([], NAMES).predict(SMALL)
    assert len(set(belief.mean)) == 1
    assert sum(belief.chances().values()) == pytest.approx(1.0)


def test_what_searches_documents_is_another_technique_where_there_are_some():
    """Its gains without documents say nothing of those with them."""
    plain = observed("plain", SMALL, {"full": 0.8, "rag": 0.0})
    library = SMALL.changed(documents=1.0, in_documents=1.0)
    searched = observed("library", library, {"full": 0.2, "rag" + READING: 1.0})
    before = Recommender((plain,), ("full", "rag"), ("rag",))
    assert before.predict(library).interval("rag")[0] > before.predict(SMALL).interval("rag")[0]
    after = Recommender((plain, searched), ("full", "rag"), ("rag",))
    assert after.predict(library).mean.argmax() == 1
    assert after.predict(SMALL).mean.argmax() == 0


def test_the_example_of_the_module_is_what_the_code_does():
    results = doctest.testmod(gains)
    assert results.attempted >= 10 and results.failed == 0


def test_the_example_by_hand():
    """One record: the mean, what of the correction holds at a similarity, and what certainty that gives."""
    recommender = Recommender((observed("notes", SMALL, {"full": 0.2, "lora": 0.8}, error=0.1),), ("full", "lora"))
    weight = 0.05 / (0.05 + 0.1**2)
    mean = (weight * 0.8 + 0.5) / (weight + 1)
    correlation = 0.5 / (1 + 1 / (2 * 1.4**2)) + 0.5 * np.exp(-1 / (2 * 0.5**2))
    share = 0.1 * correlation / (0.1 + 0.1**2)
    belief = recommender.predict(SMALL.changed(parameters=1e7))
    assert belief.mean[1] == pytest.approx(mean + share * (0.8 - mean))
    assert belief.covariance[1, 1] == pytest.approx(0.1 - share * 0.1 * correlation)
    assert belief.covariance[0, 1] == pytest.approx(0)
