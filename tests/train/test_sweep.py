"""Sweeps: what is tried, what is kept, and that a kill costs no finished trial."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
optuna = pytest.importorskip("optuna", reason="needs the train extra")
pytestmark = pytest.mark.train

from wetread.dataset.dataset import Dataset  # noqa: E402
from wetread.errors import ConfigError, TrainError  # noqa: E402
from wetread.train import recipe as recipes  # noqa: E402
from wetread.train import space as spaces  # noqa: E402
from wetread.train import sweep, sweep_plots  # noqa: E402
from wetread.train.loop import train  # noqa: E402
from wetread.train.recipe import Recipe  # noqa: E402
from wetread.train.space import Range, Space  # noqa: E402

TABLE = {
    "optimise.learning_rate": {"low": 1e-6, "high": 1e-2, "log": True},
    "optimise": {"weight_decay": {"low": 0.0, "high": 0.1}},
    "optimise.batch": [16, 32],
}


def base(**optimise) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "s",
            "threads": 1,
            "network": {"backbone": "small_cnn"},
            "optimise": {"epochs": 2, **optimise},
            "tracking": {"sinks": []},
        }
    )


def planned(dataset, out, **options) -> sweep.Plan:
    return sweep.plan(base(), TABLE, dataset, out, **{"trials": 4, "pruner": "none", **options})


def states(plan) -> list[str]:
    return [trial.state.name for trial in sweep.open_study(plan).get_trials()]


@pytest.fixture(scope="module")
def finished(square_dataset, tmp_path_factory):
    plan = planned(square_dataset, tmp_path_factory.mktemp("sweep") / "s")
    return plan, sweep.run(plan)


def test_the_best_recipe_is_the_best_trial_s_and_trains(finished, square_dataset, tmp_path):
    plan, table = finished
    assert len(table["trials"]) == 4
    best = max(table["trials"], key=lambda row: row["valid_auroc"])
    assert table["best"] == best
    chosen = recipes.load(Path(table["recipe"]))
    assert chosen.optimise.learning_rate == best["values"]["optimise.learning_rate"]
    assert chosen.optimise.batch == best["values"]["optimise.batch"]
    assert chosen.network.backbone == "small_cnn"
    again = train(chosen, square_dataset, tmp_path / "run")
    assert again["best"] == best["valid_auroc"]
    assert json.loads((Path(plan.out) / "sweep.json").read_text()) == table


def test_every_trial_is_a_run_with_both_aurocs(finished):
    for row in finished[1]["trials"]:
        history = json.loads((Path(row["folder"]) / "history.json").read_text())
        assert history[row["epoch"]]["valid_auroc"] == row["valid_auroc"] == max(h["valid_auroc"] for h in history)
        assert history[row["epoch"]]["train_auroc"] == row["train_auroc"]
        assert 1e-6 <= row["values"]["optimise.learning_rate"] <= 1e-2
        assert row["values"]["optimise.batch"] in (16, 32)


def test_the_plots_are_files(finished):
    _, table = finished
    names = {Path(path).name for path in table["plots"]}
    assert "importance.png" in names
    assert len([name for name in names if name.startswith("contour-")]) == 3
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in table["plots"])


def test_a_finished_sweep_repeats_nothing_and_a_longer_one_goes_on(finished, square_dataset, tmp_path):
    plan, table = finished
    before = {row["folder"]: (Path(row["folder"]) / "last.pt").stat().st_mtime_ns for row in table["trials"]}
    assert sweep.run(plan) == table
    longer = planned(square_dataset, Path(plan.out), trials=5)
    assert longer.name == plan.name
    more = sweep.run(longer)
    assert len(more["trials"]) == 5
    for folder, at in before.items():
        assert (Path(folder) / "last.pt").stat().st_mtime_ns == at
    whole = sweep.run(planned(square_dataset, tmp_path / "whole", trials=5))
    assert [row["values"] for row in whole["trials"]] == [row["values"] for row in more["trials"]]


def slowly(plan) -> None:
    """A worker that takes its time, to be killed."""
    run = train

    def slow(*arguments, **options):
        return run(*arguments, **options, progress=lambda *a: time.sleep(0.05))

    import wetread.train.loop

    wetread.train.loop.train = slow
    sweep.work(plan)


@pytest.mark.system
def test_a_killed_worker_s_trial_is_finished_from_its_last_epoch(square_dataset, tmp_path):
    plan = planned(square_dataset, tmp_path / "s", trials=2)
    sweep.open_study(plan)
    process = multiprocessing.get_context("spawn").Process(target=slowly, args=(plan,))
    process.start()
    first = plan.folder / "0000" / "history.json"
    deadline = time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert states(plan) == ["RUNNING"]
    epoch_one = json.loads((plan.folder / "0000" / "history.json").read_text())[0]
    table = sweep.run(plan, workers=2)
    assert sorted(states(plan)) == ["COMPLETE", "COMPLETE", "FAIL"]
    resumed = next(row for row in table["trials"] if row["folder"].endswith("0000") and row["state"] == "complete")
    history = json.loads((plan.folder / "0000" / "history.json").read_text())
    assert history[0] == epoch_one
    assert len(history) == 2
    whole = sweep.run(planned(square_dataset, tmp_path / "whole", trials=2))
    assert resumed["values"] == whole["trials"][0]["values"]
    assert resumed["valid_auroc"] == whole["trials"][0]["valid_auroc"]


def test_a_trial_that_kills_its_process_again_and_again_is_given_up(square_dataset, tmp_path):
    plan = planned(square_dataset, tmp_path / "s", trials=1)
    study = sweep.open_study(plan)
    space = Space.parse(plan.space, plan.values)
    folders = set()
    for _ in range(3):
        begun = sweep._next(study, plan, space)
        folders.add(begun.folder)
        begun.lock.close()  # what a kill does
    assert len(folders) == 1
    assert sweep._next(study, plan, space) is None
    with pytest.raises(TrainError, match="died 3 times"):
        sweep.run(plan)


def test_no_worker_begins_more_than_are_wanted(square_dataset, tmp_path):
    plan = planned(square_dataset, tmp_path / "s", trials=2)
    study, space = sweep.open_study(plan), Space.parse(plan.space, plan.values)
    begun = [sweep._next(study, plan, space) for _ in range(3)]
    assert [b is None for b in begun] == [False, False, True]
    assert begun[0].folder != begun[1].folder
    for one in begun[:2]:
        one.lock.close()


def test_bad_trials_are_stopped_early(square_dataset, tmp_path):
    table = {"optimise.learning_rate": [3e-3, 1e-9]}
    chosen = base(epochs=6)
    plan = sweep.plan(chosen, table, square_dataset, tmp_path / "s", trials=10, sampler="random")
    found = sweep.run(plan)
    pruned = [row for row in found["trials"] if row["state"] == "pruned"]
    assert pruned
    for row in pruned:
        assert row["values"] == {"optimise.learning_rate": 1e-9}
        assert len(json.loads((Path(row["folder"]) / "history.json").read_text())) < 6
    assert found["best"]["values"] == {"optimise.learning_rate": 3e-3}


def test_choices_that_do_not_go_together_are_a_result_and_not_the_end(square_dataset, tmp_path):
    """Each value is sound by itself, so that the space is; two of them are not."""
    table = {"labels.balance": [True, False], "loss.kind": ["auc-margin"]}
    plan = sweep.plan(base(), table, square_dataset, tmp_path / "s", trials=4, pruner="none", sampler="random")
    rows = sweep.run(plan)["trials"]
    assert {row["state"] for row in rows} == {"complete", "fail"}
    for row in rows:
        assert (row["state"] == "fail") == row["values"]["labels.balance"]
        assert ("labels.balance = true" in row["reason"]) == row["values"]["labels.balance"]


def test_a_diverging_trial_is_a_result_and_not_the_end(square_dataset, tmp_path, monkeypatch):
    import wetread.train.loop

    def diverging(recipe, *arguments, **options):
        if recipe.optimise.batch == 16:
            raise TrainError("the loss is nan")
        return train(recipe, *arguments, **options)

    monkeypatch.setattr(wetread.train.loop, "train", diverging)
    plan = sweep.plan(base(), {"optimise.batch": [16, 32]}, square_dataset, tmp_path / "s", trials=4, sampler="random")
    found = sweep.run(plan)
    assert {row["state"] for row in found["trials"]} == {"fail", "complete"}
    assert all(row["reason"] == "the loss is nan" for row in found["trials"] if row["state"] == "fail")
    assert len(found["trials"]) == 4


def test_another_recipe_or_space_does_not_continue_a_sweep(finished, square_dataset):
    plan, _ = finished
    with pytest.raises(TrainError, match="another recipe"):
        sweep.plan(base(epochs=3), TABLE, square_dataset, Path(plan.out))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "nothing to try"),
        ({"optimise.rate": [1, 2]}, r"optimise\.rate"),
        ({"optimise.batch": [16, 0]}, r"optimise\.batch = 0"),
        ({"optimise.learning_rate": {"low": 1e-2, "high": 1e-4}}, "below high"),
        ({"optimise.learning_rate": {"low": 0, "high": 1e-4, "log": True}}, "above 0"),
        ({"optimise.learning_rate": {"low": 1e-3}}, "high"),
        ({"optimise.learning_rate": {"low": 1e-3, "high": 1, "lgo": True}}, "lgo"),
        ({"optimise.learning_rate": 1e-3}, "list of values"),
        ({"optimise.batch": []}, "list of values"),
        ({"seed.x": [1]}, "seed"),
    ],
)
def test_a_bad_space_is_named(table, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Space.parse(table, {"name": "s", "seed": 1})
    assert "\n" not in str(caught.value)


def test_a_space_may_be_a_file_and_its_keys_nested(tmp_path):
    file = tmp_path / "space.toml"
    file.write_text('[sweep]\noptimise.batch = [8, 16]\n"augment.flip" = {low = 0.0, high = 0.5}\n')
    space = Space.parse(spaces.from_file(file), {"name": "s"})
    assert space.choices["optimise.batch"].values == (8, 16)
    assert space.choices["augment.flip"] == Range(low=0.0, high=0.5)
    file.write_text('"optimise.epochs" = {low = 1, high = 3}')
    assert Space.parse(spaces.from_file(file), {"name": "s"}).choices["optimise.epochs"].whole
    with pytest.raises(ConfigError, match=r"none\.toml"):
        spaces.from_file(tmp_path / "none.toml")


@pytest.mark.parametrize(("option", "value"), [("sampler", "grid"), ("pruner", "best"), ("storage", "nosql://x")])
def test_a_bad_option_is_named(square_dataset, tmp_path, option, value):
    with pytest.raises(ConfigError, match=value):
        sweep.open_study(planned(square_dataset, tmp_path / "s", **{option: value}))


def test_a_recipe_with_a_sweep_table_is_a_recipe(tmp_path):
    file = tmp_path / "r.toml"
    file.write_text('name = "r"\n[sweep]\n"optimise.batch" = [8, 16]\n')
    assert recipes.load(file).sweep == {"optimise.batch": [8, 16]}
    assert "sweep" not in recipes.load(file).facts()


def test_written_recipes_read_back_the_same(tmp_path):
    chosen = Recipe.model_validate(
        {
            "name": "r",
            "seed": 3,
            "network": {"options": {"pad_type": "same", "a b": [1, 2.5]}, "dropout": 1e-5},
            "package": {"half": True, "limits": ['a "quoted" word', "back\\slash", "é\t\u007f"], "intended_use": ""},
        }
    )
    file = tmp_path / "r.toml"
    file.write_text(recipes.dumps(chosen), encoding="utf-8")
    assert recipes.load(file) == chosen
    assert tomllib.loads(file.read_text(encoding="utf-8"))["seed"] == 3


def test_between_trials_a_plane_is_interpolated_exactly():
    rng = np.random.default_rng(0)
    rows = [
        {"values": {"a": a, "b": b}, "train_auroc": 0.5 + 0.1 * a + 0.2 * b, "valid_auroc": 0.5}
        for a, b in rng.random((30, 2))
    ]
    x, y = (sweep_plots._place(rows, key, Range(low=0.0, high=1.0)) for key in "ab")
    gx, gy, surface = sweep_plots._between(x, y, np.array([row["train_auroc"] for row in rows]))
    inside = ~np.ma.getmaskarray(surface)
    assert inside.sum() > 5000
    np.testing.assert_allclose(surface[inside], (0.5 + 0.1 * gx + 0.2 * gy)[inside], atol=1e-9)


@pytest.mark.parametrize("points", [[(0.2, 0.3)], [(0.1, 0.1), (0.2, 0.2), (0.3, 0.3)], [(0.1, 0.5), (0.2, 0.5)]])
def test_trials_that_span_no_area_are_drawn_alone(points):
    rows = [{"values": {"a": a, "b": b}, "train_auroc": 0.9, "valid_auroc": 0.8} for a, b in points]
    choices = {"a": Range(low=0.1, high=1.0, log=True), "b": Range(low=0.0, high=1.0)}
    figure = sweep_plots.contour(rows, Space(choices), "a", "b")
    assert [axes.get_title() for axes in figure.axes[:2]] == ["training AUROC", "validation AUROC"]


def test_the_table_is_for_people_too(finished):
    text = sweep.render(finished[1])
    assert text.splitlines()[-1].endswith("best.toml")
    assert f"{finished[1]['best']['valid_auroc']:.4f}" in text.splitlines()[1]


def test_workers_share_a_database(square_dataset, tmp_path):
    plan = planned(square_dataset, tmp_path / "s", trials=1, storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    assert sweep.run(plan)["best"]["state"] == "complete"
    assert states(plan) == ["COMPLETE"]
    assert not (tmp_path / "s" / "sweep.journal").exists()


@pytest.mark.system
def test_two_workers_share_a_postgresql(postgresql, square_dataset, tmp_path):
    url = postgresql.replace("+psycopg", "")
    plan = planned(square_dataset, tmp_path / "s", trials=3, storage=url)
    found = sweep.run(plan, workers=2)
    assert sorted(states(plan)) == ["COMPLETE"] * 3
    assert len({row["folder"] for row in found["trials"]}) == 3
    assert sweep.run(plan) == found


def test_the_dataset_travels_by_its_path(square_dataset, tmp_path):
    assert Dataset.open(planned(square_dataset, tmp_path / "s").dataset).hash == square_dataset.hash
