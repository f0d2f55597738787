"""What Prometheus is told, the rules made of it, and a real Prometheus that asks two processes of one clinic."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import department
import httpx
import peers
import pytest
import sqlalchemy as sa
import yaml
from department import ELSEWHERE, HERE, NOW
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from serving import serving
from ward import Ward, png

from wetread.clinic import accuracy, store
from wetread.clinic.deployments import LATER
from wetread.clinic.store import Store
from wetread.web import deployments, gauges
from wetread.web.operations import Metrics

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
TABLES = department.draw(300)
MODEL = "a" * 64


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the value of each name and set of labels."""
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def of(**labels: str) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


def change(kind: str, name: str, effect: float, limit: float) -> dict[str, Any]:
    return {"kind": kind, "name": name, "effect": effect, "limit": limit, "usual": 0.1, "p": 0.01, "before": 200,
            "after": 200}  # fmt: skip


def checked(key: str, days: float, verdict: str, *changes: dict[str, Any]) -> dict[str, Any]:
    source = {"name": "all devices", "before": 200, "after": 200, "changes": list(changes), "alarms": []}
    at = NOW - timedelta(days=days)
    return {"id": key, "site": HERE, "model": MODEL, "at": at, "since": at - timedelta(7), "until": at,
            "verdict": verdict, "report": {"model_name": "one", "sources": [source]}}  # fmt: skip


CHECKS = [
    checked("old", 1.5, "quiet", change("pixels", "mean", 0.1, 0.25)),
    checked(
        "new", 0.5, "drift", change("pixels", "mean", 0.5, 0.25), change("pixels", "rows", 0.1, 0.25),
        change("scores", "Edema", 0.1, 0.2),
    ),
    checked("forgotten", 45, "drift", change("labels", "Edema", 0.9, 0.1)) | {"model": "f" * 64},
]  # fmt: skip


def deployed(model: str, days: float, site: str = "", stage: str = "champion") -> dict[str, Any]:
    return {"id": f"{stage} {model}", "site": site, "slot": "chest/adult", "model": model * 64, "stage": stage,
            "model_name": department.MODELS.get(model * 64, "new"), "version": "1", "share": 1.0, "salt": "s",
            "actor": "a", "reason": "", "since": NOW - timedelta(days=days)}  # fmt: skip


DEPLOYED = [deployed("a", 20), deployed("b", 5, HERE, "shadow"), deployed("c", 5, ELSEWHERE, "shadow")]
PLAN = {"blocks": 10, "shifts": [], "zone": "UTC", "block_minutes": 60.0}


def alert(key: str, study: str, **more: Any) -> dict[str, Any]:
    return {"id": key, "study": study, "site": HERE, "source": "ai", "finding": "Pneumothorax", "opened_at": NOW,
            "step": 0} | more  # fmt: skip


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return what is told of a drawn department, on 14 March 2026."""
    database = Store.open(tmp_path_factory.mktemp("told"))
    department.put(database, TABLES)
    with database.write() as connection:
        for row in CHECKS:
            connection.execute(store.drift_check.insert(), row)
        for row in DEPLOYED:
            connection.execute(store.deployment.insert(), row)
        for row in (
            {
                "id": "over",
                "started_at": NOW - timedelta(days=9),
                "ended_at": NOW - timedelta(days=8),
                "ended": "guard",
            },
            {"id": "now", "started_at": NOW - timedelta(hours=3.5), "ended_at": None, "ended": None},
        ):
            connection.execute(
                store.experiment.insert(), row | {"site": HERE, "plan": PLAN, "salt": "s", "actor": "a", "reason": ""}
            )
        for row in (
            alert("a", "study-1"),
            alert("b", "study-2", step=2),
            alert("c", "study-3", acknowledged_at=NOW, step=1),
            alert("d", "study-4", acknowledged_at=NOW, confirmed_at=NOW, step=0),
            alert("e", "study-5", told_at=NOW, step=1),
            alert("f", "study-6", closed_at=NOW, step=1),
        ):
            connection.execute(store.alert.insert(), row)
    registry = CollectorRegistry()
    known = gauges.ClinicGauges(registry)
    found = {
        HERE: [
            accuracy.Accuracy(MODEL, "one", accuracy.ANY, "audit", None, 30, 10, 12, 29, accuracy.Measures(
                *(accuracy.Interval(v, v - 0.1, float("nan")) for v in (0.9, 0.8, 0.7, 0.6, 0.95))))
        ]
    }  # fmt: skip
    with database.read() as connection:
        for _ in range(2):  # the second time nothing is added to the first
            known.measure(connection, NOW, found)
    database.close()
    return samples(generate_latest(registry).decode())


def test_the_list_is_told_by_site(told: Any) -> None:
    unread = [row for row in TABLES["study"] if row["reading"] != "signed"]
    expected = Counter((row["site"], row["priority"]) for row in unread)
    for (site, priority), count in expected.items():
        labels = of(site=site, priority=priority, analysis="analysed", overdue="false")
        assert told["wetread_unread", labels] == count
        here = [row for row in unread if row["site"] == site]
        assert told["wetread_studies", of(site=site, state="unread")] == len(here)
        wait = (NOW - min(row["received_at"] for row in here)).total_seconds()
        assert told["wetread_longest_wait_seconds", of(site=site)] == pytest.approx(wait)
    day = NOW - timedelta(days=1)
    sites = {row["id"]: row["site"] for row in TABLES["study"]}
    came = sum(row["site"] == HERE and row["received_at"] > day for row in TABLES["study"])
    assert told["wetread_received_day", of(site=HERE)] == came > 0
    signed = sum(
        row["state"] == "signed" and row["parent"] is None and row["signed_at"] > day and sites[row["study"]] == HERE
        for row in TABLES["review"]
    )
    assert told["wetread_signed_day", of(site=HERE)] == signed > 0


def test_what_waits_behind_everything_on_purpose_is_not_late(tmp_path: Path) -> None:
    ward = Ward(tmp_path)
    shadow, awaited = (ward.take(png(n), "edema.png").study for n in range(2))
    jobs, images, at = store.job, store.instance.c, store.now()
    registry = CollectorRegistry()
    known = gauges.ClinicGauges(registry)

    def measured(study: str, floor: int) -> tuple[float, float]:
        own = sa.select(images.id).where(images.study == study)
        with ward.database.write() as connection:
            connection.execute(jobs.update().where(jobs.c.instance.in_(own)).values(floor=floor))
            hours = timedelta(hours=5 if study == shadow else 2)
            connection.execute(store.instance.update().where(images.study == study).values(received_at=at - hours))
        with ward.database.read() as connection:
            known.measure(connection, at)
        now = samples(generate_latest(registry).decode())
        return now["wetread_jobs", of(state="queued")], now["wetread_oldest_job_seconds", of(state="queued")]

    assert measured(shadow, LATER)[0] == 2
    assert measured(awaited, 0) == (2, 2 * 3600)
    assert measured(awaited, LATER + 1) == (2, 0)
    assert measured(shadow, LATER - 1) == (2, 5 * 3600)
    ward.database.close()


def test_queues_and_outputs_are_told_with_their_age(told: Any) -> None:
    states = Counter(row["state"] for row in TABLES["job"])
    for state in ("queued", "running"):
        assert told["wetread_jobs", of(state=state)] == states[state]
        assert told["wetread_oldest_job_seconds", of(state=state)] > 0
    assert told["wetread_jobs", of(state="aside")] == 0
    for state in ("queued", "failed", "given_up"):
        mine = [row for row in TABLES["delivery"] if (row["kind"], row["state"]) == ("sr", state)]
        labels = of(kind="sr", state=state)
        assert told["wetread_undelivered", labels] == len(mine) > 0
        oldest = (NOW - min(row["created_at"] for row in mine)).total_seconds()
        assert told["wetread_oldest_undelivered_seconds", labels] == pytest.approx(oldest)
    assert ("wetread_undelivered", of(kind="sr", state="sent")) not in told


def test_critical_findings_are_told_until_somebody_was(told: Any) -> None:
    found = {labels: value for (name, labels), value in told.items() if name == "wetread_critical"}
    assert found == {
        of(site=HERE, owed=owed, overdue=late): 1
        for owed, late in (("acknowledge", "false"), ("acknowledge", "true"), ("sign", "true"), ("tell", "false"))
    }


def test_drift_is_told_of_the_newest_check(told: Any) -> None:
    one = {"site": HERE, "model": "one", "package": MODEL[:12]}
    drift = {labels: value for (name, labels), value in told.items() if name == "wetread_drift"}
    assert drift == {of(**one, kind="pixels"): 2.0, of(**one, kind="scores"): 0.5}
    assert told["wetread_drift_alarm", of(**one)] == 1
    assert not any("f" * 12 in str(labels) for _, labels in told)  # a check of long ago says nothing of now


def test_how_long_a_model_in_use_was_not_checked_is_told_also_where_it_never_was(told: Any) -> None:
    days = {
        labels: value / 86400 for (name, labels), value in told.items() if name == "wetread_drift_unchecked_seconds"
    }
    assert days == {
        of(site=HERE, model="one", package=MODEL[:12]): 0.5,
        of(site=ELSEWHERE, model="one", package=MODEL[:12]): 20,
        of(site=HERE, model="two", package="b" * 12): 5,  # the one of elsewhere was given nothing yet
    }


def test_experiments_and_live_quality_are_told(told: Any) -> None:
    assert told["wetread_experiment_blocks", of(site=HERE, state="planned")] == 10
    assert told["wetread_experiment_blocks", of(site=HERE, state="done")] == 3
    assert told["wetread_experiment_by_arrival", of(site=HERE)] in (0, 1)
    assert told["wetread_experiment_stopped_seconds", of(site=HERE)] == 0
    labels = {"site": HERE, "model": "one", "package": MODEL[:12], "reads": "audit"}
    assert told["wetread_live", of(**labels, measure="sensitivity", bound="low")] == pytest.approx(0.8)
    assert told["wetread_live", of(**labels, measure="specificity", bound="studies")] == 20
    assert ("wetread_live", of(**labels, measure="auroc", bound="high")) not in told


def test_nothing_is_read_but_along_an_index_of_what_waits(tmp_path: Path) -> None:
    database, asked = Store.open(tmp_path), list[tuple[str, Any]]()
    department.put(database, TABLES)
    with database.read() as connection:

        @sa.event.listens_for(connection, "before_cursor_execute")
        def note(_: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
            asked.append((statement, parameters))

        gauges.ClinicGauges(CollectorRegistry()).measure(connection, NOW)
        sa.event.remove(connection, "before_cursor_execute", note)
        plans = {
            statement: [
                row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            ]
            for statement, parameters in asked
        }
    database.close()
    assert len(plans) > 10
    # Tables that grow with the history are searched, or one of the indexes of what is left to do is walked.
    grows = r"SCAN (study|instance|job|delivery|review|alert|event)\b"
    partial = (
        r"INDEX (ix_study_unread\w*|ix_job_open|ix_job_aside|ix_delivery_unsent|ix_delivery_missing|\w+alert_open\w*)"
    )
    for statement, plan in plans.items():
        for step in plan:
            assert not re.match(grows, step) or re.search(partial, step), f"{step}: {statement}"


def test_no_label_names_anybody(told: Any) -> None:
    names = {name for _, labels in told for name, _ in labels}
    assert names <= {
        "site", "priority", "analysis", "overdue", "state", "owed", "kind", "model", "package", "reads", "measure",
        "bound", "by",
    }  # fmt: skip
    said = str(told)
    assert not any(word in said for word in ("study-", "'P1", "'ann'", "'bob'"))


def _names() -> set[str]:
    """Return the names of all that /metrics has."""
    from wetread.clinic.tally import Tally

    found = {"up"}
    for registry in (Metrics().registry, Tally().registry):
        for family in registry.collect():
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(family.type, ("",))
            found |= {family.name + suffix for suffix in suffixes}
    return found


def _expressions() -> dict[str, str]:
    """Return every expression of rules and dashboards by where it stands."""
    found = {}
    for file in ("recording.yml", "alerts.yml"):
        for group in yaml.safe_load((RULES / file).read_text())["groups"]:
            for rule in group["rules"]:
                found[f"{file} {rule.get('alert') or rule['record']}"] = rule["expr"]
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                found[f"{path.name} {panel['title']} {target['refId']}"] = target["expr"]
    return found


def test_rules_and_dashboards_ask_for_what_there_is() -> None:
    expressions = _expressions()
    recorded = {rule.split()[1] for rule in expressions if rule.startswith("recording.yml")}
    known = _names() | recorded
    asked = {
        (where, name)
        for where, expression in expressions.items()
        for name in re.findall(r"\b(?:wetread[_:][\w:]+|process_\w+|up)\b", re.sub(r'"[^"]*"', "", expression))
    }
    assert {name for _, name in asked - {(where, name) for where, name in asked if name in known}} == set()
    assert recorded - {name for _, name in asked} == set()  # nothing is computed for nobody
    # What the database knows is never added up over processes.
    of_database = {family.name for family in _gauges()}
    for where, expression in expressions.items():
        for name in re.findall(r"\bwetread_\w+", expression):
            if name in of_database:
                assert re.search(rf"max (?:without|by) \([\w, ]+\) \({name}", expression), where


def _gauges() -> list[Any]:
    registry = CollectorRegistry()
    gauges.ClinicGauges(registry), deployments.DeploymentGauges(registry)
    return list(registry.collect())


def test_dashboards_are_of_one_kind_and_have_a_place_for_all() -> None:
    boards = [json.loads(path.read_text()) for path in DASHBOARDS]
    assert len({board["uid"] for board in boards}) == len(boards) == 3
    for board in boards:
        assert board["schemaVersion"] == 39
        places = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not places & cells
            assert at["x"] + at["w"] <= 24
            places |= cells
            assert panel["datasource"]["uid"] == "prometheus"
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {"prometheus"}
            assert panel["type"] in ("stat", "timeseries")  # of Grafana itself, no plug-in
        named = {variable["name"] for variable in board["templating"]["list"]}
        assert set(re.findall(r"\$(?!__)(\w+)", json.dumps(board["panels"]))) <= named  # `$__…` are Grafana's own
        assert all(v["datasource"]["uid"] == "prometheus" for v in board["templating"]["list"])


def test_the_page_of_monitoring_has_each_metric_and_alert() -> None:
    text = (ROOT / "docs/monitoring.md").read_text()
    listed = set(re.findall(r"^\| `(wetread_\w+)`", text, re.MULTILINE))
    assert listed == {re.sub(r"_(bucket|count|sum)$", "", name) for name in _names() if name.startswith("wetread_")}
    alerts = [r for g in yaml.safe_load((RULES / "alerts.yml").read_text())["groups"] for r in g["rules"]]
    headings = re.findall(r"^### (Wetread\w+)", text, re.MULTILINE)
    assert headings == [rule["alert"] for rule in alerts]
    for rule in alerts:
        assert rule["annotations"]["docs"] == f"docs/monitoring.md#{rule['alert'].lower()}"
        assert {"summary", "action"} <= set(rule["annotations"])
    tests = {test["name"] for test in yaml.safe_load((RULES / "alerts.test.yml").read_text())["tests"]}
    assert tests == set(headings)


# ---------------------------------------------------------------------- a real Prometheus


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}: apt-get install -y prometheus")
    return found


@pytest.mark.system
def test_each_alert_is_silent_and_speaks() -> None:
    promtool = _program("promtool")
    for command in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts.test.yml"]):
        done = subprocess.run([promtool, *command], cwd=RULES, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.system
def test_prometheus_understands_what_the_dashboards_ask(tmp_path: Path) -> None:
    asked = [e.replace("$__rate_interval", "5m") for where, e in _expressions().items() if ".json" in where]
    rules = [{"record": f"asked:{n}", "expr": expression} for n, expression in enumerate(asked)]
    (tmp_path / "asked.yml").write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": rules}]}))
    command = [_program("promtool"), "check", "rules", "asked.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(asked)} rules found" in done.stdout


@pytest.mark.system
def test_two_processes_are_not_added_up(postgresql: str, tmp_path: Path) -> None:
    prometheus = _program("prometheus")
    shared = {"WETREAD_DATABASE": postgresql, "WETREAD_SITE": HERE, "WETREAD_LOG_FORMAT": "json"}
    with serving(tmp_path / "clinic", **shared) as one, serving(tmp_path / "clinic", **shared) as two:
        database = Store(postgresql)
        tables = {name: list(rows) for name, rows in TABLES.items() if name in ("study", "series", "delivery")}
        department.put(database, tables)
        with database.write() as connection:
            connection.execute(store.drift_check.insert(), CHECKS[1] | {"at": store.now()})
        database.close()
        targets = [str(server.http.base_url).split("://")[1].strip("/") for server in (one, two)]
        config = yaml.safe_load((RULES / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(RULES / name) for name in config["rule_files"]]
        config["scrape_configs"] = [config["scrape_configs"][0] | {"static_configs": [{"targets": targets}]}]
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        port = peers.free_port()
        with (tmp_path / "prometheus.log").open("w") as log:
            process = subprocess.Popen(
                [prometheus, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb",
                 f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log,
            )  # fmt: skip
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30) as http:
                _ask(http, tables, (tmp_path / "prometheus.log").read_text)
        finally:
            process.terminate()
            process.wait(60)
        assert one.http.get("/login", params={"code": "SECRET"}).status_code == 200
        log = one.log
    text = log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert {"time", "level", "logger", "message", "process"} <= set.intersection(*map(set, lines))
    asked = [line for line in lines if line["logger"] == "wetread.access"]
    assert ("GET", "/login", 200) in {(line["method"], line["route"], line["status"]) for line in asked}
    assert len({line["process"] for line in lines}) >= 2
    assert "SECRET" not in text


def _ask(http: httpx.Client, tables: department.Tables, log: Any) -> None:
    def value(query: str) -> float | None:
        try:
            found = http.get("/query", params={"query": query}).json()["data"]["result"]
        except (httpx.HTTPError, KeyError, ValueError):
            return None  # it starts still
        return float(found[0]["value"][1]) if len(found) == 1 else None

    def comes(query: str, expected: float) -> None:
        end = time.monotonic() + 60
        while (found := value(query)) != expected:
            assert time.monotonic() < end, f"{query}: {found}, not {expected}\n{log()[-2000:]}"
            time.sleep(0.2)

    unread = [row for row in tables["study"] if row["reading"] != "signed"]
    comes('sum(up{job="wetread"})', 2)
    comes("sum(wetread:unread)", len(unread))
    comes("sum(wetread_unread)", 2 * len(unread))  # what the rule is for
    comes('sum(wetread:studies{site="here"})', sum(row["site"] == HERE for row in unread))
    comes('wetread:processes{kind="serve"}', 2)
    comes('max by (kind) (wetread:drift{kind="pixels"})', 2)
    comes("count(sum by (instance) (wetread_http_seconds_count))", 2)  # what each counts of its own

    def speaks() -> set[str]:
        found = http.get("/alerts").json()["data"]["alerts"]
        return {one["labels"]["alertname"] for one in found if one["state"] == "firing"}

    peers.wait(lambda: "WetreadDrift" in speaks(), "the alarm of drift")
    assert "WetreadDown" not in speaks()
