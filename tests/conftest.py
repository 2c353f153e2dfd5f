"""One thread and no network: the same bits on every machine of a kind, and no surprise downloads."""

import gc
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

import figures
from figures import cases  # noqa: F401 (a fixture)

# What a busy machine takes for an example is no property of it.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

UNITS, COMMAND_LINE = Path(__file__).parent / "unit", Path(__file__).parent / "cli"
SHARED = Path(os.environ.get("TUNEWISE_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
INSTRUCT = Path(os.environ.get("TUNEWISE_REAL_MODEL", Path.home() / ".cache" / "tunewise-tests" / "smollm2"))


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real models and tasks."""
    return SHARED


@pytest.fixture(scope="session")
def instruct_model() -> Path:
    """The folder of SmolLM2-135M-Instruct, a real instruct model with its chat template; only read it."""
    if not (INSTRUCT / "model.safetensors").is_file():
        pytest.skip(f"no instruct model at {INSTRUCT} (set TUNEWISE_REAL_MODEL)")
    return INSTRUCT


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    figures.gather(report)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if not hasattr(session.config, "workerinput"):  # a worker's reports are gathered by the process that started it
        figures.write(to_the_end=exitstatus == pytest.ExitCode.OK)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    figures.mark_items(items)
    for item in items:
        is_small = item.path.is_relative_to(UNITS) or item.path.is_relative_to(COMMAND_LINE)
        if is_small and not item.keywords.keys() & {"slow", "real"}:
            item.add_marker("fast")
    if SHARED.is_dir():
        return
    skip = pytest.mark.skip(reason=f"no real models and tasks at {SHARED} (set TUNEWISE_REAL_DATA)")
    for item in items:
        if "real" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def disks_are_not_waited_for() -> Iterator[None]:
    """A process that is killed loses nothing that it has written; only a machine without power could."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


_frozen_modules = 0


@pytest.fixture(autouse=True)
def libraries_are_not_collected() -> None:
    """Leave what imports have made out of collections: a trial asks for several, of 0.3 seconds with all libraries."""
    global _frozen_modules
    if len(sys.modules) > _frozen_modules:
        gc.collect()
        gc.freeze()
        _frozen_modules = len(sys.modules)


@pytest.fixture(scope="session")
def save_tiny():
    """A function that saves a tiny Llama and its tokenizer to a folder, as a Hugging Face model."""
    from tunewise.testing import tiny_base

    def save(folder: Path) -> Path:
        base = tiny_base("llama")
        base.model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="module")
def lives():
    """The process that runs the command line in children, which can be stopped at any event."""
    from fork_server import Lives

    server = Lives()
    yield server
    server.close()


@pytest.fixture(scope="module")
def given(tmp_path_factory, save_tiny, lives):
    """The folder of what `stopped_commands.COMMANDS` read."""
    from stopped_commands import make_given

    return make_given(tmp_path_factory.mktemp("given"), save_tiny, lives)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the files whose tests took longest, in seconds of all processes together."""
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.split("::")[0]] += report.duration
    if sum(seconds.values()) > 60:
        terminalreporter.section("slowest files")
        for file, taken in seconds.most_common(20):
            terminalreporter.write_line(f"{taken:6.0f} s  {file}")
