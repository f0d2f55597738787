"""What is tracked is read back with the sinks' own readers."""

from __future__ import annotations

import json
import os

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.train

from wetread.errors import ConfigError, TrainError  # noqa: E402
from wetread.train import recipe, tracking  # noqa: E402

PARAMETERS = {"seed": 3, "optimise": {"batch": 16}}
FIGURES = {
    "images": 9,
    "mean_auroc": [0.9, 0.8, 0.95],
    "findings": {"Edema (all)": {"ece": 0.1, "auroc": [0.7, None, 1]}},
}
ALL = ["mlflow", "tensorboard", "wandb"]


def mlflow_runs(folder):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    return client, client.search_runs([client.get_experiment_by_name("wetread").experiment_id])


def test_a_resumed_run_and_its_evaluation_are_one_run_in_mlflow(tmp_path):
    run = tmp_path / "a"
    run.mkdir()
    for epoch in (0, 1):
        with tracking.track(run, "name", PARAMETERS) as tracked:
            tracked.log(epoch, {"valid_auroc": 0.5 + epoch / 10, "bad": float("nan")})
    report = tmp_path / "report.html"
    report.write_text("<html>")
    assert tracking.record(run, "test", FIGURES, [report]) == ["mlflow"]
    client, (found,) = mlflow_runs(tmp_path)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert found.info.status == "FINISHED"
    assert found.data.params == {"seed": "3", "optimise.batch": "16"}
    assert [m.value for m in client.get_metric_history(found.info.run_id, "valid_auroc")] == [0.5, 0.6]
    assert "bad" not in found.data.metrics
    assert found.data.metrics["test/mean_auroc"] == 0.9
    assert found.data.metrics["test/mean_auroc/low"] == 0.8
    assert found.data.metrics["test/findings/Edema _all_/auroc"] == 0.7
    assert "test/findings/Edema _all_/auroc/low" not in found.data.metrics
    assert [file.path for file in client.list_artifacts(found.info.run_id)] == ["report.html"]


def test_an_exception_marks_the_run_as_failed_and_runs_stand_beside_each_other(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        with pytest.raises(ZeroDivisionError), tracking.track(tmp_path / name, name, {}):
            raise ZeroDivisionError
    assert [run.info.status for run in mlflow_runs(tmp_path)[1]] == ["FAILED", "FAILED"]


def test_tensorboard_has_the_curves_and_the_evaluation(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "a"
    run.mkdir()
    for epoch in (0, 1):
        with tracking.track(run, "name", PARAMETERS, ["tensorboard"]) as tracked:
            tracked.log(epoch, {"valid_auroc": 0.5 + epoch / 10})
    tracking.record(run, "test", FIGURES)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("valid_auroc")] == [(0, 0.5), (1, pytest.approx(0.6))]
    assert events.Scalars("test/mean_auroc")[0].value == pytest.approx(0.9)
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.system
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_weights_and_biases_is_written_offline(tmp_path):
    run = tmp_path / "a"
    run.mkdir()
    with tracking.track(run, "name", PARAMETERS, ["wandb"]) as tracked:
        tracked.log(0, {"valid_auroc": 0.5})
    tracking.record(run, "test", FIGURES)
    files = sorted(run.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    known = json.loads((run / "tracking.json").read_text())["wandb"]["run"]
    assert all(known in file.name for file in files)
    assert b"valid_auroc" in files[0].read_bytes()
    assert b"test/mean_auroc" in files[1].read_bytes()


def test_no_sink_is_no_file_but_the_record(tmp_path):
    run = tmp_path / "a"
    run.mkdir()
    with tracking.track(run, "name", PARAMETERS, []) as tracked:
        tracked.log(0, {"valid_auroc": 0.5})
    assert tracking.record(run, "test", FIGURES) == []
    with tracking.track(run, "name", PARAMETERS, None):
        pass
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["tracking.json"]


def test_a_folder_that_is_no_run_and_a_sink_that_is_none_are_named(tmp_path):
    with pytest.raises(TrainError, match=r"tracking\.json"):
        tracking.record(tmp_path, "test", FIGURES)
    (tmp_path / "tracking.json").write_text("[")
    with pytest.raises(TrainError, match=r"tracking\.json"):
        tracking.record(tmp_path, "test", FIGURES)
    with pytest.raises(ConfigError, match="sinks"):
        recipe.check({"name": "r", "tracking": {"sinks": ["comet"]}}, "recipe")
    assert recipe.check({"name": "r", "tracking": {"sinks": ALL}}, "recipe").tracking.sinks == ALL
