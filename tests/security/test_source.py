"""Our own source, workflows and packages: nothing runs what a file says, and nothing can change beneath us."""

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
IGNORED = "S101,S105,S106,S603,S607"  # asserts, words that look like passwords, and processes without a shell
# What runs code from data, by the dotted name of the call; `.eval()` of a torch module is none of them.
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.save"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "marshal.loads", "shelve.open", "numpy.load"),
}
PICKLES = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}


def dotted(node):
    """The dotted name of what is called."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults(text):
    """What of a source runs code from data."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            named = {keyword.arg: keyword.value for keyword in node.keywords}
            shell = isinstance(named.get("shell"), ast.Constant) and named["shell"].value
            trusted = isinstance(named.get("trust_remote_code"), ast.Constant) and named["trust_remote_code"].value
            if dotted(node.func) in FORBIDDEN or shell or trusted:
                found.append((node.lineno, ast.unparse(node)[:60]))
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [(node.lineno, name) for name in names if name.partition(".")[0] in PICKLES]
    return found


@pytest.mark.figure("S13")
def test_our_source_runs_nothing_that_a_file_says(cases):
    bad = "import dill\nfrom pickle import loads\neval(x)\nyaml.load(x)\nrun(x, shell=True)\nf(trust_remote_code=True)"
    assert len(faults(bad)) == 6 and not faults("model.eval()\nyaml.safe_load(x)\nrun([x], shell=False)")
    for path in SOURCES:
        assert not faults(path.read_text("utf-8")), path
        cases.passed()


@pytest.mark.figure("S13")
def test_the_lint_rules_of_security_hold():
    ruff = Path(sys.executable).with_name("ruff")
    words = [ruff, "check", "--select", "S", "--ignore", IGNORED, "--output-format", "concise", "src"]
    process = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout
    # An exception from a rule of security says why, on its line or above it.
    for path in SOURCES:
        lines = path.read_text("utf-8").splitlines()
        for number, line in enumerate(lines):
            if re.search(r"noqa: .*\bS\d", line):
                reason = line.partition("noqa:")[2].partition("(")[2] or lines[number - 1].strip().startswith("#")
                assert reason, f"{path.name}:{number + 1}"


@pytest.mark.figure("S12")
def test_actions_are_pinned_to_commits_and_workflows_have_no_findings(cases):
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    for path in workflows:
        for used in re.findall(r"uses: (\S+)", path.read_text("utf-8")):
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", used), f"{path.name}: {used}"
            cases.passed()
    zizmor = Path(sys.executable).with_name("zizmor")
    process = subprocess.run([zizmor, "--offline", "--quiet", *workflows], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.figure("S12")
def test_versions_are_pinned_and_building_runs_no_code_of_ours():
    import tomllib

    facts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    pinned = {pin.partition("==")[0] for pin in facts["tool"]["uv"]["constraint-dependencies"]}
    assert all("==" in pin for pin in facts["tool"]["uv"]["constraint-dependencies"])
    needed = {re.split(r"[\[<>=!~; ]", need)[0].lower() for need in facts["project"]["dependencies"]}
    assert not needed - pinned, "dependencies without a tested version"
    assert not list(ROOT.glob("setup.py")) and "hooks" not in facts["tool"]["hatch"]["build"]


@pytest.mark.slow
@pytest.mark.figure("S12")
def test_a_source_package_is_the_same_bytes_whenever_it_is_built(tmp_path):
    digests = set()
    for at in ("1000000000", "1700000000"):
        source = tmp_path / f"tree-{at}"
        shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        for path in source.rglob("*"):
            os.utime(path, (int(at), int(at)))
        words = ["uv", "build", "--quiet", "--sdist", "--out-dir", source / "dist", source]
        process = subprocess.run(words, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        (package,) = (source / "dist").glob("*.tar.gz")
        with tarfile.open(package) as archive:
            assert {member.uname for member in archive} == {""}
        digests.add(hashlib.sha256(package.read_bytes()).hexdigest())
    assert len(digests) == 1
