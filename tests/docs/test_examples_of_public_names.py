"""The example of each public name runs as it stands, and shows what it says."""

import doctest
from dataclasses import dataclass

import pytest
import torch

import tunewise

OPTIONS = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", sorted(tunewise.__all__))
def test_the_example_of_a_public_name_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {each: getattr(tunewise, each) for each in tunewise.__all__} | {"dataclass": dataclass, "torch": torch}
    documented = getattr(tunewise, name).__doc__
    example = doctest.DocTestParser().get_doctest(documented, names, name, None, None)
    assert example.examples, f"the docstring of {name} has no example"
    said = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(example, out=said.append)
    assert not said, "".join(said)
