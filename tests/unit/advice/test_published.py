"""Published results: every file is whole and names its sources, what papers say holds, and slips are refused."""

import copy
import json

import pytest
from peft import PeftType

from tunewise.advice.published.publications import FOLDER, publications, read, results
from tunewise.core.errors import ArtifactError
from tunewise.techniques.registry import make

NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_whole(name):
    path = FOLDER / f"{name}.json"
    publication = read(path)
    assert publication.to_json() == json.loads(path.read_text("utf-8"))
    assert publication.year >= 2019 and publication.cited.startswith(publication.authors)
    for reading in publication.readings.values():
        assert (reading.commit is not None) == (reading.how == "authors' files")


def test_there_are_results_of_every_kind_that_advice_needs():
    kinds = {result.table.kind for result in results()}
    assert {"classification", "generation", "facts from documents", "arithmetic reasoning", "code"} <= kinds
    techniques = {result.row.technique for result in results()}
    assert {"base", "icl", "rag", "full", "lora", "qlora", "adapter", "prefix_tuning", "full+rag"} <= techniques
    assert sum(publication.year >= 2024 for publication in publications().values()) > 5


def test_every_result_has_a_source_a_size_and_a_score_in_range():
    for result in results():
        assert result.table.read in result.publication.readings and result.publication.url.startswith("https://")
        assert 1e6 < result.model.parameters < 1e12
        assert 0 <= result.score <= 1
        assert (result.row.trained_parameters or 0) <= 1.01 * result.model.parameters
        assert result.train is None or result.train > 1


def test_every_technique_can_be_made_or_is_one_of_peft():
    for part in {part for result in results() for part in result.row.technique.split("+")}:
        if part.startswith("peft:"):
            assert part[5:].upper() in PeftType.__members__
        else:
            assert make(part).name == part


def best(name, table, technique):
    """The best score of a technique for each model of a published table."""
    scores = {}
    for row in publications()[name].table(table).rows:
        if row.technique == technique:
            scores[row.model] = max(row.score, scores.get(row.model, 0))
    assert scores
    return scores


@pytest.mark.parametrize("other", ["full", "adapter", "prefix_tuning", "last_layers"])
def test_lora_scores_at_least_as_high_as_others_on_e2e(other):
    lora, others = best("hu-2021", "e2e", "lora"), best("hu-2021", "e2e", other)
    assert all(lora[key] >= score for key, score in others.items())


@pytest.mark.parametrize("technique", ["base", "full", "full+rag"])
def test_retrieval_is_best_for_new_facts(technique):
    found = best("ovadia-2024", "current-events", "rag")
    assert all(found[key] > score for key, score in best("ovadia-2024", "current-events", technique).items())


def test_forgetting_is_entered_where_it_was_measured():
    rows = publications()["peft-2026"].table("gsm8k").rows
    assert len(rows) == 63 and all(row.nll_rise is not None and row.memory_bytes is not None for row in rows)
    (full,) = [row for row in rows if row.technique == "full"]
    (lora,) = [row for row in rows if (row.technique, row.form) == ("lora", "rank32")]
    assert (full.score, full.nll_rise, lora.score, lora.nll_rise) == (0.4716, 0.03, 0.4784, 0.05)
    assert full.memory_bytes > 1.5 * lora.memory_bytes and full.stored_bytes > 100 * lora.stored_bytes
    for table in publications()["biderman-2024"].tables:
        assert all(row.kept is not None for row in table.rows)


def test_a_claim_compares_the_best_rows_of_one_model_and_budget():
    (claim,) = [claim for claim in publications()["biderman-2024"].claims if claim.measure == "kept"]
    margins = [margin for name in claim.tables for margin in claim.margins(publications()["biderman-2024"].table(name))]
    assert len(margins) == 14 and all(margin >= 0 for margin in margins)
    assert not claim.holds(-0.01)


def _row(**changed):
    return {"technique": "lora", "model": "M", "score": 0.5} | changed


def _table(**changed):
    table = {"id": "t", "where": "Table 1", "task": "a task", "kind": "code", "metric": "accuracy", "scale": 1}
    table |= {"train": 100, "comparable": "untuned", "because": "One recipe for all.", "read": "text"}
    return table | {"rows": [_row(), _row(technique="full", score=0.25)]} | changed


def _claim(**changed):
    claim = {"says": "LoRA is better.", "better": "lora", "worse": "full", "tables": ["t"], "read": "text"}
    return claim | changed


def _publication(**changed):
    value = {"schema": 1, "id": "a-2024", "title": "A", "authors": "B et al.", "year": 2024, "url": "https://a.org/1"}
    value |= {"readings": {"text": {"how": "full text", "place": "a page"}}}
    value |= {"models": {"M": {"parameters": 7, "architecture": "decoder"}}}
    return value | {"tables": [_table()], "claims": [_claim()], "constants": []} | changed


@pytest.fixture
def reads(tmp_path):
    def read_value(value):
        path = tmp_path / "a-2024.json"
        path.write_text(json.dumps(value), "utf-8")
        return read(path)

    return read_value


def test_a_record_reads_back(reads):
    publication = reads(_publication())
    assert publication.table("t").rows[1].score == 0.25
    assert list(publication.claims[0].margins(publication.table("t"))) == [0.25]


def of_row(**changed):
    return {"tables": [_table(rows=[_row(**changed), _row(technique="full", score=0.25)])]}


REFUSED = {
    "a score above the scale": (of_row(score=1.5), "above 1"),
    "a score below 0": (of_row(score=-0.1), "at least 0"),
    "a spread above the scale": (of_row(spread=2.0), "above 1"),
    "no score": ({"tables": [_table(rows=[{"technique": "lora", "model": "M"}])]}, "score: is missing"),
    "a name with blanks": (of_row(technique="Low rank"), "joined by"),
    "an empty part": (of_row(technique="lora+"), "joined by"),
    "a size of 0": ({"models": {"M": {"parameters": 0, "architecture": "decoder"}}}, "above 0"),
    "no training example": ({"tables": [_table(train=0)]}, "above 0"),
    "no trained parameter": (of_row(trained_parameters=0), "above 0"),
    "kept above 1": (of_row(kept=52.0), "between 0 and 1"),
    "an unknown kind": ({"tables": [_table(kind="poetry")]}, "classification or"),
    "an unknown word": ({"tables": [_table(comparable="quite")]}, "tuned alike or"),
    "no reason": ({"tables": [_table(because="x")]}, "a sentence"),
    "a model that is not described": (of_row(model="N"), "'N' is not described"),
    "a model in vain": ({"models": {n: {"parameters": 7, "architecture": "decoder"} for n in "MN"}}, "'N' is not used"),
    "a reading that is not described": ({"tables": [_table(read="page")]}, "'page' is not described"),
    "a reading in vain": ({"readings": {n: {"how": "abstract", "place": "p"} for n in ("text", "b")}}, "not used"),
    "no reading": ({"readings": {}}, "'text' is not described"),
    "a commit that is none": (
        {"readings": {"text": {"how": "authors' files", "place": "p", "commit": "main"}}},
        "hexadecimal",
    ),
    "a link that is none": ({"url": "see the paper"}, "https"),
    "the same row twice": ({"tables": [_table(rows=[_row(), _row()])]}, "twice"),
    "the same table twice": ({"tables": [_table(), _table()]}, "same id"),
    "a table without rows": ({"tables": [_table(rows=[])]}, "no rows"),
    "a claim that fails": ({"claims": [_claim(better="full", worse="lora")]}, "do not bear out"),
    "alike, but too far apart": ({"claims": [_claim(alike=True, within=0.1)]}, "do not bear out"),
    "a claim on no rows": ({"claims": [_claim(worse="icl")]}, "no rows for the claim"),
    "a claim on no table": ({"claims": [_claim(tables=["u"])]}, "which is not there"),
    "no result": ({"tables": [], "claims": [], "models": {}, "readings": {}}, "no result"),
    "an unknown field": ({"doi": "10.1"}, "doi: is unknown"),
    "another schema": ({"schema": 2}, "schema"),
    "another name": ({"id": "b-2024"}, "name the file after it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_slips_are_refused_by_name(case, reads):
    changed, message = REFUSED[case]
    with pytest.raises(ArtifactError, match=message) as error:
        reads(_publication(**copy.deepcopy(changed)))
    assert "a-2024.json" in str(error.value) and "\n" not in str(error.value)


def test_a_technique_that_there_is_not_is_refused(reads, monkeypatch):
    value = _publication(**of_row(technique="lora+soup"), claims=[])
    publication = reads(value)
    results.cache_clear()
    monkeypatch.setattr("tunewise.advice.published.publications.publications", lambda: {"a-2024": publication})
    with pytest.raises(ArtifactError, match='the technique "soup" in t'):
        results()
