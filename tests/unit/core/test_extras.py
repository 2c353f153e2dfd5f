"""A missing optional package is named with the extra that brings it, and the core does without any of them."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tunewise.core import extras
from tunewise.core.errors import SettingError
from tunewise.core.extras import OPTIONAL, install_command, require

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def distributions(requirements):
    return {re.split(r"[<>=!;\[ ]", requirement)[0] for requirement in requirements}


@pytest.mark.parametrize("package", OPTIONAL)
def test_every_extra_brings_what_it_is_named_for(package):
    extra, distribution = OPTIONAL[package]
    assert distribution in distributions(PROJECT["optional-dependencies"][extra])
    assert distribution not in distributions(PROJECT["dependencies"])


def test_every_extra_is_named_somewhere():
    assert {extra for extra, _ in OPTIONAL.values()} == set(PROJECT["optional-dependencies"])


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        SettingError, match=r"^the format onnx needs onnx and onnxscript, .*pip install 'tunewise\[onnx\]'$"
    ):
        require("the format onnx", "onnx", "onnxscript", "onnxruntime")
    with pytest.raises(SettingError, match=r"^PNG files need matplotlib, "):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        require("PNG files", "matplotlib")
    monkeypatch.undo()
    require("the format onnx", "onnx", "onnxscript", "onnxruntime")


def test_what_needs_an_extra_says_so(monkeypatch, tmp_path):
    """Where the packages are missing, a sentence names the extra, and nothing else happens."""
    from tunewise.data.columnar import read_excel, read_parquet, read_saved_dataset
    from tunewise.data.sources import _hub_set
    from tunewise.fitting.judge import Judge

    monkeypatch.setattr(extras, "installed", lambda package: False)
    monkeypatch.setattr("tunewise.data.sources.installed", lambda package: False)
    monkeypatch.setattr("tunewise.data.columnar.installed", lambda package: False)
    (tmp_path / "file").write_text("x")
    for call, package in (
        (lambda: read_parquet(tmp_path / "file"), "pyarrow"),
        (lambda: read_saved_dataset(tmp_path), "datasets"),
        (lambda: read_excel(tmp_path / "file"), "openpyxl"),
        (lambda: Judge("m", "http://127.0.0.1:1/v1").check_installed(), "openai"),
        (lambda: _hub_set("org/name"), "datasets"),
    ):
        with pytest.raises(Exception, match=re.escape(install_command(package))) as raised:
            call()
        assert raised.value.exit_code == 2


def imports_at_the_top(path):
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_only_servers_import_optional_packages_at_the_top():
    source = ROOT / "src" / "tunewise"
    uses = {
        path.relative_to(source).parts[0] for path in source.rglob("*.py") if {*imports_at_the_top(path)} & {*OPTIONAL}
    }
    assert uses == {"serve", "studio"}


def test_the_command_line_starts_without_any_of_them():
    """Every module but those of the server is imported in a process in which no optional package can be."""
    text = f"""
import pkgutil, sys
for name in {[*set(OPTIONAL) - {"pydantic"}]!r}:  # typer may bring pydantic
    sys.modules[name] = None
import tunewise.cli.main
from tunewise.techniques.registry import all_techniques
assert len(all_techniques()) > 15
from tunewise.export.format import formats
assert "gguf" in formats()
import tunewise.comparison.compare, tunewise.comparison.supervisor, tunewise.results.report.page
import tunewise.retrieval.search, tunewise.fitting.scoring, tunewise.data.task, tunewise.advice.advise
"""
    subprocess.run([sys.executable, "-c", text], check=True)
