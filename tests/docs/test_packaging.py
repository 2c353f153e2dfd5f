"""The files that make packages and images are consistent, as far as a test without a network can tell."""

import json
import os
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from tunewise.core.version import __version__

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
INSTRUCTIONS = {"FROM", "ARG", "ENV", "RUN", "COPY", "WORKDIR", "USER", "ENTRYPOINT", "CMD", "LABEL", "EXPOSE"}


def instructions(path):
    """The instructions of a Dockerfile with their arguments; continued lines are joined, comments left out."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def stages():
    """The stages of the Dockerfile by name, each with its instructions."""
    found = {}
    for word, rest in instructions(ROOT / "Dockerfile"):
        assert word in INSTRUCTIONS, f"{word} is no instruction that this file needs"
        if word == "FROM":
            image, as_, name = rest.split()
            assert as_ == "AS" and name not in found
            assert re.fullmatch(r"[\w./-]+:[\w.-]+", image) and not image.endswith(":latest"), "a version is named"
            found[name] = []
        found[name].append((word, rest))
    return found


def of(stage, word):
    return [rest for found, rest in stage if found == word]


def test_there_is_an_image_for_cpus_and_one_for_gpus(stages):
    assert list(stages) == ["wheel", "cpu", "cuda"]
    for name in ("cpu", "cuda"):
        assert of(stages[name], "USER") == ["tunewise"], "not root"
        order = [word for word, _ in stages[name]]
        assert order.index("USER") > max(place for place, word in enumerate(order) if word in ("RUN", "COPY"))
        assert json.loads(of(stages[name], "ENTRYPOINT")[0]) == ["tunewise"]
        assert json.loads(of(stages[name], "CMD")[0]) == ["--help"]
    assert "bitsandbytes" in " ".join(of(stages["cuda"], "RUN")) and "NVIDIA" in of(stages["cuda"], "ENV")[0]


def test_what_an_image_copies_is_there(stages):
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    for place, (name, stage) in enumerate(stages.items()):
        for copied in of(stage, "COPY"):
            words = shlex.split(copied)
            if words[0].startswith("--from="):
                assert words[0].removeprefix("--from=") in list(stages)[:place], f"{name} copies from a later stage"
                continue
            for source in words[:-1]:
                assert (ROOT / source).exists() and f"!{source.removeprefix('./')}" in ignored, source


def test_images_install_extras_that_exist_and_keep_no_cache(stages):
    for stage in stages.values():
        for command in of(stage, "RUN"):
            for part in command.split("&&"):
                words = shlex.split(part)
                if words[:2] != ["pip", "install"]:
                    continue
                assert "--no-cache-dir" in words
                requirement = words[-1]
                assert "whl" in requirement or re.search(r">=[\d.]+,<\d", requirement), f"{requirement} has no bounds"
                extras = re.search(r"\[([\w,]+)\]$", requirement)
                for extra in extras[1].split(",") if extras else ():
                    assert extra in PROJECT["project"]["optional-dependencies"]


def test_the_page_lists_every_extra():
    text = (ROOT / "docs" / "install.md").read_text("utf-8")
    listed = {
        name
        for line in text.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([\w-]+)`", line.split("|")[1])
    }
    assert listed == set(PROJECT["project"]["optional-dependencies"])


def test_a_fresh_checkout_installs_no_test_tools():
    assert PROJECT["tool"]["uv"]["default-groups"] == []
    core = " ".join(PROJECT["project"]["dependencies"])
    assert not re.search("pytest|mypy|ruff|playwright|onnx|bitsandbytes|hypothesis|openai|fastapi", core)
    for script in ("scripts/check", "scripts/test", ".ci/run"):
        for line in re.findall(r"uv run .*", (ROOT / script).read_text("utf-8")):
            assert "--group dev" in line or line.startswith("uv run tunewise demo"), (script, line)


def test_a_release_is_the_checked_wheel_of_its_tag():
    release = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8"))
    runs = [step.get("run", "") for step in release["jobs"]["build"]["steps"]]
    (tag,) = [run for run in runs if "GITHUB_REF_NAME" in run]
    assert re.search(r"sed -n '(.+?)'", tag)[1] == r's/^version = "\(.*\)"/\1/p'
    assert re.findall(r'(?m)^version = "(.*)"', (ROOT / "pyproject.toml").read_text("utf-8")) == [__version__]
    assert runs.index("scripts/check_wheel") < runs.index("uv build --out-dir dist")
    assert release["jobs"]["publish"]["needs"] == "build"
    assert os.access(ROOT / "scripts" / "check_wheel", os.X_OK)
    assert "scripts/check_wheel" in (ROOT / ".ci" / "run").read_text("utf-8")
