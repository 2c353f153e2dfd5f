"""Training followed by a service, through accelerate."""

import pytest

from tunewise.comparison.budget import Budget
from tunewise.comparison.compare import compare
from tunewise.core.errors import SettingError, TunewiseError
from tunewise.fitting.trackers import Trackers, check
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base, tiny_task


def test_tensorboard_holds_every_loss(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    budget = Budget(steps=3)
    result = compare(tiny_base(), tiny_task(), [make("lora", {})], tmp_path, budget=budget, report_to=["tensorboard"])
    (run,) = (tmp_path / "logs").iterdir()
    log = events.EventAccumulator(str(run))
    log.Reload()
    steps, losses = zip(*result["rows"][0]["curve"], strict=True)
    assert [event.step for event in log.Scalars("loss")] == list(steps)
    assert [event.value for event in log.Scalars("loss")] == pytest.approx(list(losses))


def test_services_that_are_not_known_or_not_installed(monkeypatch):
    with pytest.raises(SettingError, match='names "paper" but must name tensorboard, wandb, mlflow, trackio'):
        check(["paper"])
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(SettingError, match="pip install wandb"):
        check(["wandb"])


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_an_adaptation_is_kept_where_there_are_artifacts(monkeypatch, tmp_path, caplog, name):
    """Stand-ins of the trackers, with the calls that accelerate's and Trackio's own have."""
    calls = []

    class Fake:
        def __init__(self, project, **keywords):
            self.tracker = self

        start = store_init_configuration = log = finish = lambda self, *given, **more: None

        def log_artifacts(self, local_dir, artifact_path=None):
            calls.append((local_dir, artifact_path))

        def log_artifact(self, artifact_or_path, name=None, type=None):
            calls.append((artifact_or_path, name, type))

    import accelerate.tracking

    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, name, Fake)
    folder = tmp_path / "adaptation"
    Trackers([name], tmp_path, "lora-seed0", {}).keep(folder)
    expected = {"mlflow": [(str(folder), "adaptation")], "trackio": [(str(folder), "lora-seed0", "model")]}
    assert calls == expected.get(name, [])
    fails = lambda self, *given, **more: (_ for _ in ()).throw(ConnectionError("no server"))  # noqa: E731
    monkeypatch.setattr(Fake, "log_artifacts", fails)
    monkeypatch.setattr(Fake, "log_artifact", fails)
    Trackers([name], tmp_path, "lora-seed0", {}).keep(folder)
    assert [name in line and "no server" in line for line in caplog.messages] == [True] * (name in expected)


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_each_service_gets_one_run_a_trial(monkeypatch, tmp_path, name):
    calls = []

    class Fake:
        def __init__(self, project, **keywords):
            calls.append((project, sorted(keywords.values())))

        def start(self):
            calls.append("start")

        def store_init_configuration(self, values):
            calls.append(values)

        def log(self, values, step):
            calls.append((values, step))

        def finish(self):
            calls.append("finish")

    import accelerate.tracking

    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, name, Fake)
    trackers = Trackers([name], tmp_path, "lora-seed0", {"r": 4, "targets": ["q"]})
    trackers.log({"loss": 1.5}, 3)
    trackers.finish()
    assert calls == [
        ("tunewise", ["lora-seed0"]),
        "start",
        {"r": 4, "targets": "['q']"},
        ({"loss": 1.5}, 3),
        "finish",
    ]


@pytest.mark.parametrize("where", ["__init__", "start", "store_init_configuration"])
def test_a_service_that_takes_no_run_is_named(monkeypatch, tmp_path, where):
    def fails(self, *given, **more):
        raise ConnectionError("no server\nand a trace")

    class Fake:
        __init__ = start = store_init_configuration = lambda self, *given, **more: None

    setattr(Fake, where, fails)
    import accelerate.tracking

    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "mlflow", Fake)
    with pytest.raises(TunewiseError, match=r"--report-to mlflow: the run could not be begun there \(no server\);"):
        Trackers(["mlflow"], tmp_path, "lora-seed0", {})
