"""Settings from YAML: plain values are read as ever, and no text takes long."""

import time

import pytest
import yaml

from tunewise.core.yaml_text import YamlTextError, read_placed_yaml, read_yaml


@pytest.mark.parametrize(
    "text", ["8", "1e-4", "[a, 1, 2.5]", "{a: {b: null}}", "x: yes\ny: ~", "", "été", "2020-02-03"]
)
def test_plain_values_are_those_of_yaml(text):
    assert read_yaml(text) == read_placed_yaml(text).value == yaml.safe_load(text)


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        ALIASES,
        "[" * 3000,
        "[" * 3000 + "]" * 3000,
        "{a: " * 200 + "1" + "}" * 200,
        "- " * 3000,
        "x: " + "y" * 1_000_000,
        "\n".join(f"k{i}: 1" for i in range(30_000)),
        "1" * 6000,
        "2020-99-99",
        "? [a]\n: b",
        "!!python/object/apply:os.system ['true']",
        "a: b: c",
        "\x00",
        "[" * 30_000,
        "a: !!bool maybe",
        "a: !!int ''",
        "a: !!timestamp then",
    ],
)
@pytest.mark.parametrize("read", [read_yaml, read_placed_yaml])
def test_what_is_too_much_is_refused_at_once(read, text):
    started = time.process_time()
    with pytest.raises(YamlTextError) as refused:
        read(text)
    assert len(str(refused.value)) <= 300 and time.process_time() - started < 5


def test_places_are_those_of_the_keys():
    root = read_placed_yaml("# note\na: 1\nb:\n  c:\n    - x\n    - on: yes\n")
    assert (root.line, root.parts["a"].line, root.parts["b"].line) == (2, 2, 3)
    listed = root.parts["b"].parts["c"]
    assert (listed.line, listed.value) == (4, ["x", {True: True}])
    assert (listed.parts["0"].line, listed.parts["1"].parts["on"].line) == (5, 6)


@pytest.mark.parametrize(("text", "line"), [("a: 1\nb: 2\na: 3", 3), ("a: 1\n? [b]\n: 2", 2), ("a:\n  <<: {b: 1}", 2)])
def test_keys_are_plain_and_given_once(text, line):
    with pytest.raises(YamlTextError, match=f"^line {line}: "):
        read_placed_yaml(text)
