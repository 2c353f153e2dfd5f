"""What is not exactly the paper's is said in the row's label and on the technique's page, in both or in neither."""

from pathlib import Path

import pytest

from tunewise.techniques.registry import all_techniques, make
from tunewise.testing import attach, example_settings, tiny_base

PAGES = Path(__file__).parents[3] / "docs" / "techniques"
ARCHITECTURES = ("llama", "llama-tied", "gpt2", "gpt_neox")
SETTINGS = example_settings()


@pytest.mark.parametrize("name", all_techniques())
def test_a_page_lists_differences_where_a_default_row_is_labelled_and_nowhere_else(name):
    labels = {attach(make(name, SETTINGS), tiny_base(architecture)).label for architecture in ARCHITECTURES}
    page = " ".join((PAGES / f"{name}.md").read_text("utf-8").split())
    assert ("Differs from the paper" in page) == any(labels)
    assert all(label.startswith(name) for label in labels if label)


BY_MODEL = {"pasta"}  # what the tokenizer has decides


@pytest.mark.parametrize("name", [name for name in all_techniques() if name not in BY_MODEL])
def test_a_row_has_the_name_that_its_page_gives(name):
    recipe = make(name, SETTINGS)
    if recipe.differs:
        assert attach(recipe, tiny_base()).label == f"{name} ({recipe.differs})"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lora", {"target_modules": ["q", "v"]}),
        ("krona", {"form": "block"}),
        ("prefix_tuning", {"init": "random"}),
        ("prompt_tuning", {"optimizer": "adafactor", "num_virtual_tokens": 100}),
        ("lst", {"output": "side"}),
    ],
)
def test_the_papers_own_settings_take_the_label_away(name, settings):
    assert attach(make(name, {name: settings}), tiny_base()).label == ""


def test_a_label_names_what_differs():
    assert attach(make("prompt_tuning"), tiny_base()).label == "prompt_tuning (AdamW, m=20)"
    assert attach(make("last_layers"), tiny_base("llama-tied")).label == "last_layers (head frozen)"
    assert attach(make("last_layers"), tiny_base("llama")).label == ""
