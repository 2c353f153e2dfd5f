"""Commands import only what they need, so that the light ones answer at once; each runs in a process of its own."""

import json
import subprocess
import sys

import pytest

from tunewise.core.version import __version__

TORCH = {"torch", "numpy", "transformers", "accelerate"}
COMPILER = {"torch._dynamo", "torch.distributed.tensor", "sympy"}  # Hugging Face's configurations import them
STATISTICS = {"scipy.stats", "sklearn", "pandas"}
OTHERS = {"datasets", "peft", "bitsandbytes", "torch._inductor.compile_fx", "plotly", "sacrebleu", "bm25s", "onnx"}
OTHERS |= {"nicegui", "ray"}
MODELS = {"scipy", "transformers.modeling_utils", "transformers.models.llama.modeling_llama"}

RUN = """
import json, sys
from pathlib import Path
from tunewise.cli.main import main
sys.argv = ["tunewise", *sys.argv[2:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
RECORD = "Path(sys.orig_argv[3]).write_text(json.dumps(sorted(sys.modules)))"


@pytest.fixture
def imported(tmp_path):
    """Return the names of all modules that are imported once a command has run."""

    def call(*words):
        names = tmp_path / "imported.json"
        command = [sys.executable, "-c", RUN + RECORD, str(names), *map(str, words)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return set(json.loads(names.read_text("utf-8")))

    return call


@pytest.mark.parametrize("words", [["--help"], ["compare", "--help"]], ids=" ".join)
def test_help_needs_no_torch(imported, words):
    assert not imported(*words) & (TORCH | STATISTICS | OTHERS)


@pytest.mark.parametrize("words", [[], ["lora"], ["--json"]], ids=["all", "one", "json"])
def test_a_list_of_techniques_needs_torch_alone(imported, words):
    modules = imported("techniques", *words)
    assert "torch" in modules
    assert not modules & ({"transformers", "accelerate"} | COMPILER | STATISTICS | OTHERS | MODELS)


def test_a_look_at_data_needs_no_torch(imported, labels):
    assert not imported("check", "--data", labels) & (TORCH | STATISTICS | OTHERS)


def test_a_look_at_data_with_a_model_needs_no_model_s_code(imported, labels, model):
    modules = imported("check", "--data", labels, "--model", model)
    assert "transformers" in modules
    assert not modules & (STATISTICS | OTHERS | MODELS)


@pytest.mark.slow
def test_a_fit_needs_neither_other_libraries_nor_statistics(imported, labels, model, tmp_path):
    modules = imported("fit", "lora", "--model", model, "--data", labels, "--out", tmp_path / "run", "--max-steps", 1)
    assert "transformers.modeling_utils" in modules
    assert not modules & (STATISTICS | OTHERS)


@pytest.mark.parametrize("module", ["tunewise", "tunewise.cli"])
def test_the_command_line_is_a_module_too(module):
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, f"tunewise {__version__}")
