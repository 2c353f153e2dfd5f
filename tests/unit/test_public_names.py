"""The names that the package offers at its top: all of them are there, under the type checker's addresses too."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

import tunewise


@pytest.mark.parametrize("name", sorted(tunewise.__all__))
def test_every_public_name_can_be_imported(name):
    assert getattr(tunewise, name) is not None


def test_a_type_checker_sees_what_runs():
    """The imports for type checkers name the same objects as those that are made when a name is used."""
    tree = ast.parse(Path(tunewise.__file__).read_text("utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    for node in block.body:
        for alias in node.names:
            assert getattr(import_module(node.module), alias.name) is getattr(tunewise, alias.name), alias.name


def test_the_package_says_that_it_is_typed():
    assert (Path(tunewise.__file__).parent / "py.typed").is_file()
