"""What is in deploy/ is what its readers understand: Compose, Kubernetes, systemd, Docker, and Wetread's own settings.

Linters are of the dev extra or of the machine; none needs a container engine or the network.
"""

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from sqlalchemy import make_url
from typer.main import get_command
from typer.testing import CliRunner

from wetread import config
from wetread.cli import app
from wetread.clinic.senders import Senders
from wetread.config import Settings
from wetread.infer import remote

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "kubernetes/base"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
KUSTOMIZATIONS = sorted((DEPLOY / "kubernetes").rglob("kustomization.yaml"))
MANIFESTS = sorted(set((DEPLOY / "kubernetes").rglob("*.yaml")) - set(KUSTOMIZATIONS))
COMPONENTS = DEPLOY / "kubernetes/components"
SERVERS = {"serve", "work", "triton"}
UNITS = sorted((DEPLOY / "systemd").glob("*"))


def load(file):
    return yaml.safe_load(file.read_text(encoding="utf-8"))


@functools.cache
def documents(*files):
    return [d for file in files for d in yaml.load_all(file.read_text(encoding="utf-8"), LOADER)]


def tool(name):
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"needs {name}, of the dev extra or the system")
    return found


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def str_or_nothing(value):
    return value if isinstance(value, str) else ""


def known_command(words):
    """Whether `wetread WORDS` names a command, whatever options follow."""
    command = get_command(app)
    for word in words:
        if not hasattr(command, "commands"):
            return True
        if word not in command.commands:
            return False
        command = command.commands[word]
    return not hasattr(command, "commands")


# Containers


@pytest.mark.parametrize("name", ["Containerfile", "Containerfile.train"])
def test_container_files_are_as_hadolint_wants_them(name):
    run(tool("hadolint"), DEPLOY / name)


@pytest.mark.parametrize("name", ["Containerfile", "Containerfile.train"])
def test_what_a_container_copies_is_there_and_not_ignored_and_runs_as_nobody_special(name):
    text = (DEPLOY / name).read_text(encoding="utf-8")
    allowed = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE))
    sources = {s for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for s in line.split()[:-1]}
    assert sources <= allowed
    assert all((ROOT / source).exists() for source in sources)
    extras = re.search(r'"\.\[(.+?)\]"', text)
    assert extras
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(extras[1].split(",")) <= set(project["optional-dependencies"])
    assert ("train" in extras[1]) == name.endswith("train")
    assert "USER 10001:10001" in text


# Compose


def test_compose_understands_its_file():
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


def test_a_clinic_starts_with_two_services_and_publishes_nothing_beyond_this_machine():
    services = load(DEPLOY / "compose.yaml")["services"]
    assert {name for name, service in services.items() if not service.get("profiles")} == {"wetread", "postgres"}
    assert {p for s in services.values() for p in s.get("profiles", [])} == {"work", "pacs", "learn", "watch", "s3"}
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] or name == "orthanc", name
        lives = service.get("restart") != "no" and name not in (
            "wetread",
            "work",
        )  # the image has its own; none listens
        assert ("healthcheck" in service) >= lives, name


def test_every_secret_of_compose_is_asked_for_and_made_by_the_script(tmp_path):
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    used = set(re.findall(r"\$\{(\w+)", text))
    demanded = set(re.findall(r"\$\{(\w+):\?", text))
    assert demanded == {name for name in used if re.search(r"_PASSWORD$|_KEY$", name)}
    for name in ("secrets.sh", ".env.example"):
        shutil.copy(DEPLOY / name, tmp_path)
    run("sh", tmp_path / "secrets.sh")
    made = dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().splitlines() if re.match(r"\w+=", line))
    assert used <= set(made)
    assert all(re.fullmatch("[0-9a-f]{48}", made[name]) for name in demanded)
    assert len({made[name] for name in demanded}) == len(demanded)
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    with pytest.raises(AssertionError, match="is there already"):
        run("sh", tmp_path / "secrets.sh")


def test_what_compose_mounts_is_there():
    services = load(DEPLOY / "compose.yaml")["services"]
    mounted = {v.split(":")[0] for s in services.values() for v in s.get("volumes", []) if v.startswith("./")}
    assert mounted
    assert [path for path in mounted if not (DEPLOY / path).exists()] == []


def environments():
    for name, service in load(DEPLOY / "compose.yaml")["services"].items():
        yield f"compose {name}", service.get("environment", {})
    base = load(BASE / "kustomization.yaml")["configMapGenerator"][0]["literals"]
    for file in KUSTOMIZATIONS:
        own = [line for made in load(file).get("configMapGenerator", [])[:1] for line in made["literals"]]
        yield file.parent.name, dict(line.split("=", 1) for line in [*base, *own])


@pytest.mark.parametrize(
    ("name", "environment"), list(environments()), ids=lambda value: value if type(value) is str else ""
)
def test_the_settings_that_deployments_make_are_settings(name, environment, monkeypatch, tmp_path):
    fields = {f"WETREAD_{field.upper()}" for field in Settings.model_fields}
    ours = {k: v for k, v in environment.items() if k.startswith("WETREAD_")}
    assert set(ours) <= fields, name
    for key, value in ours.items():
        monkeypatch.setenv(key, re.sub(r"\$\{\w+(?::-([^}]*)|:\?[^}]*)?\}", lambda found: found[1] or "", value))
    Senders(config.load(tmp_path / "wetread.toml"))  # which reads `dicom_peers`


def test_prometheus_understands_what_compose_gives_it(tmp_path):
    text = load(DEPLOY / "compose.yaml")["configs"]["prometheus"]["content"]
    (tmp_path / "prometheus.yml").write_text(text)
    for name in yaml.safe_load(text)["rule_files"]:
        shutil.copy(DEPLOY / "prometheus" / name, tmp_path)
    run(tool("promtool"), "check", "config", tmp_path / "prometheus.yml")


def test_orthanc_sends_to_where_wetread_listens_and_back():
    orthanc = json.loads((DEPLOY / "orthanc/wetread.json").read_text(encoding="utf-8"))
    ours = load(DEPLOY / "compose.yaml")["services"]["wetread"]["environment"]
    there = orthanc["DicomModalities"]["wetread"]
    assert there["AET"] == Settings().dicom_ae_title
    assert (there["Host"], str(there["Port"])) == ("wetread", ours["WETREAD_DICOM_PORT"])
    assert ours["WETREAD_DICOM_PEERS"] == f"{orthanc['DicomAet']}@orthanc:{orthanc['DicomPort']}"
    assert orthanc["AuthenticationEnabled"]


# Kubernetes


def patches():
    return {f.parent / p["path"] for f in KUSTOMIZATIONS for p in load(f).get("patches", []) if "path" in p}


def test_kubernetes_understands_every_manifest():
    # What the Prometheus Operator brings is not Kubernetes' own: see the test of what it asks for.
    whole = [file for file in MANIFESTS if file not in patches() and "monitoring" not in file.parts]
    run(tool("kubernetes-validate"), "--strict", *whole)


def test_every_file_of_kubernetes_is_used_and_every_patch_has_its_target():
    there = {(d["kind"], d["metadata"]["name"]) for d in documents(*BASE.glob("*.yaml")) if "metadata" in d}
    used = set()
    for file in KUSTOMIZATIONS:
        wanted = load(file)
        used |= {(file.parent / name).resolve() for name in wanted.get("resources", [])}
        for patch in wanted.get("patches", []):
            content = documents(file.parent / patch["path"]) if "path" in patch else [yaml.safe_load(patch["patch"])]
            if "path" in patch:
                used.add(file.parent / patch["path"])
            if "target" in patch:
                assert (patch["target"]["kind"], patch["target"]["name"]) in there, file
                assert all(_has(step, patch["target"]) for step in content[0]), file
            else:
                assert {(d["kind"], d["metadata"]["name"]) for d in content} <= there, file
        assert all((file.parent / name / "kustomization.yaml").is_file() for name in wanted.get("components", []))
        for made in wanted.get("configMapGenerator", []):
            assert all((file.parent / name).is_file() for name in made.get("files", []))
    assert set(MANIFESTS) <= used


def _has(step, target):
    """Whether what a patch replaces is there, or the place where it adds."""
    wanted = target["kind"], target["name"]
    place = next(d for d in documents(*BASE.glob("*.yaml")) if (d["kind"], d.get("metadata", {}).get("name")) == wanted)
    keys = step["path"].strip("/").split("/")
    for key in keys if step["op"] == "replace" else keys[:-1]:
        place = place[int(key) if isinstance(place, list) else key]
    return True


def templates():
    """Yield the template of each pod there may be, by the name of what makes it."""
    for document in documents(*sorted(set(MANIFESTS) - patches())):
        if document["kind"] in ("Deployment", "CronJob"):
            spec = document["spec"]
            yield document["metadata"]["name"], spec.get("jobTemplate", document)["spec"]["template"]


def pods():
    return ((name, template["spec"]) for name, template in templates())


@pytest.mark.parametrize(("name", "pod"), list(pods()), ids=str_or_nothing)
def test_no_pod_may_more_than_it_needs(name, pod):
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    every = [container, *pod.get("initContainers", [])]
    for one in every:
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in one["resources"]["limits"]
    mounts = {mount["name"] for one in every for mount in one["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    assert (container["image"] == "wetread-train") == (name == "retrain")


def test_serving_pods_are_asked_whether_they_start_live_and_are_ready():
    (container,) = dict(pods())["serve"]["containers"]
    paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}


def test_jobs_run_commands_that_there_are_and_take_an_answer_for_no_failure(tmp_path):
    jobs = {name: pod["containers"][0] for name, pod in pods() if name not in SERVERS}
    assert set(jobs) == {"drift", "verdict", "experiment", "backup", "verify", "retrain"}
    assert all(known_command(container["args"]) for container in jobs.values())
    # A program that ends with its argument stands in for `wetread`, which ends with 1 or 3 to answer (verdicts with 4).
    script = tmp_path / "ends"
    script.write_text("#!/bin/sh\nexit $1\n")
    script.chmod(0o755)
    wrapped = {name: container["command"][:-1] for name, container in jobs.items() if "command" in container}
    assert set(wrapped) == {"drift", "verdict", "experiment", "retrain"}
    for name, command in wrapped.items():
        answers = {0, 1, 3, 4} if name == "verdict" else {0, 1, 3}
        for code in (0, 1, 2, 3, 4, 137):
            ended = subprocess.run([*command, script, str(code)], check=False).returncode
            assert ended == (0 if code in answers else 1), (name, code)


def test_mlflow_keeps_its_database_on_a_volume_that_one_node_has_for_itself():
    # SQLite's locks do not hold on what several nodes mount.
    pod = dict(pods())["retrain"]
    (container,) = pod["containers"]
    (uri,) = (entry["value"] for entry in container["env"] if entry["name"] == "MLFLOW_TRACKING_URI")
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volume = mounted[str(Path(str(make_url(uri).database)).parent)]
    claims = {
        v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
    }
    modes = {d["metadata"]["name"]: d["spec"]["accessModes"] for d in documents(BASE / "storage.yaml")}
    assert modes[claims[volume]] == ["ReadWriteOnce"]


def test_the_policies_that_are_shipped_are_policies():
    from wetread.evaluate import gate_file
    from wetread.improve import policy as policies
    from wetread.improve.retrain import Retraining

    rule = policies.load(BASE / "retrain.toml", Retraining)
    assert rule.gate.gates == "gates.toml"
    assert gate_file.load(BASE / "gates.toml").critical == {"Pneumonia": 0.02}


def test_everything_is_denied_first():
    first = documents(BASE / "network-policy.yaml")[0]
    assert first["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_metrics_are_not_passed_on_to_who_comes_from_outside():
    ingress, nothing = documents(BASE / "ingress.yaml")
    (rule,) = ingress["spec"]["rules"]
    backends = {(path["path"], path["pathType"]): path["backend"]["service"]["name"] for path in rule["http"]["paths"]}
    assert backends == {("/", "Prefix"): "serve", ("/metrics", "Prefix"): nothing["metadata"]["name"]}
    chosen = nothing["spec"]["selector"].items()
    assert [name for name, template in templates() if chosen <= template["metadata"]["labels"].items()] == []


def scraped():
    """Return who is asked, as component and name of a port: by the Operator, and by a Prometheus without it."""
    (monitor,) = documents(COMPONENTS / "monitoring/pod-monitor.yaml")
    endpoints = monitor["spec"]["podMetricsEndpoints"]
    assert all(e["relabelings"] == [{"targetLabel": "job", "replacement": "wetread"}] for e in endpoints)
    (chosen,) = monitor["spec"]["selector"]["matchExpressions"]
    ports = {endpoint["port"] for endpoint in endpoints}
    by_operator = {
        (component, port["name"])
        for component in chosen["values"]
        for port in dict(pods())[component]["containers"][0]["ports"]
        if port["name"] in ports
    }
    (job,) = load(DEPLOY / "prometheus/kubernetes.yml")["scrape_configs"]
    assert job["job_name"] == "wetread"
    return by_operator, {tuple(pair.split(";")) for pair in job["relabel_configs"][0]["regex"].split("|")}


def test_every_process_is_asked_for_its_metrics_by_the_job_that_rules_want_and_may_be(tmp_path):
    whole = load(DEPLOY / "prometheus/kubernetes.yml")
    assert list(whole["scrape_configs"][0].pop("kubernetes_sd_configs")[0]) == ["role", "namespaces"]  # not in Debian's
    for name in whole["rule_files"]:
        shutil.copy(DEPLOY / "prometheus" / name, tmp_path)
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(whole))
    run(tool("promtool"), "check", "config", tmp_path / "prometheus.yml")
    assert scraped() == ({("serve", "http"), ("work", "metrics")},) * 2
    (work,) = dict(pods())["work"]["containers"]
    listens = {entry["name"]: entry["value"] for entry in work["env"]}
    assert {port["name"]: str(port["containerPort"]) for port in work["ports"]} == {
        "metrics": listens["WETREAD_METRICS_PORT"]
    }
    assert listens["WETREAD_METRICS_HOST"] == "0.0.0.0"
    allowed = {
        (policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"], port["port"])
        for policy in documents(BASE / "network-policy.yaml")
        for rule in policy["spec"].get("ingress", [])
        for sender in rule["from"]
        if sender.get("namespaceSelector", {}).get("matchLabels") == {"kubernetes.io/metadata.name": "monitoring"}
        for port in rule["ports"]
    }
    assert allowed == {("serve", "http"), ("work", "metrics")}


def setting(component):
    """Return what a component sets."""
    (made,) = load(COMPONENTS / component / "kustomization.yaml")["configMapGenerator"]
    return made["literals"][0].split("=", 1)[1]


def test_triton_has_the_model_that_is_asked_of_it_and_is_reached_by_what_analyses(tmp_path):
    deployment, claim, service = documents(COMPONENTS / "triton/triton.yaml")
    base, model = remote.split(remote.address(setting("triton")))
    url, pod = urlsplit(base), deployment["spec"]["template"]["spec"]
    (container,), (export,), (port,) = pod["containers"], pod["initContainers"], service["spec"]["ports"]
    assert (url.hostname, url.port) == (service["metadata"]["name"], port["port"])
    assert {"name": port["targetPort"], "containerPort": port["port"]} in container["ports"]
    assert f"--http-port={port['port']}" in container["command"]
    assert {"name": "repository", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}} in pod["volumes"]
    # What the pod does first, done here.
    repository = Path(export["args"][2]).relative_to("/")
    assert f"--model-repository=/{repository}" in container["command"]
    words = [re.sub("^/", f"{tmp_path}/", word) for word in export["args"]]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    told = (tmp_path / repository / model / "config.pbtxt").read_text()
    gpus = re.findall(r"\d+", re.findall(r"gpus: \[(.+?)\]", told)[0])
    assert gpus == [str(number) for number in range(container["resources"]["limits"]["nvidia.com/gpu"])]
    there, out = (policy["spec"] for policy in documents(COMPONENTS / "triton/network-policy.yaml"))
    ours = {"app.kubernetes.io/component": "triton"}
    assert (there["podSelector"], there["ingress"][0]["ports"]) == ({"matchLabels": ours}, [{"port": port["name"]}])
    assert there["ingress"][0]["from"] == [{"podSelector": out["podSelector"]}]
    assert out["egress"] == [{"to": [{"podSelector": {"matchLabels": ours}}], "ports": [{"port": port["name"]}]}]
    assert out["podSelector"]["matchExpressions"][0]["values"] == ["serve", "work"]


def test_traces_leave_by_the_port_of_their_collector_from_an_image_that_can_tell_them():
    url = urlsplit(setting("tracing"))
    (policy,) = documents(COMPONENTS / "tracing/network-policy.yaml")
    (rule,) = policy["spec"]["egress"]
    namespace = rule["to"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    assert (str(url.hostname).split(".")[1], url.port) == (namespace, rule["ports"][0]["port"])
    assert re.search(r'"\.\[.*\botel\b.*\]"', (DEPLOY / "Containerfile").read_text(encoding="utf-8"))


# systemd


def unit(file):
    """Return the lines of a unit that say something, by section."""
    found, section = {}, ""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line
        elif line and not line.startswith("#"):
            found.setdefault(section, []).append(line)
    return found


def test_units_run_commands_that_there_are_as_nobody_special():
    services = {file.stem: unit(file)["[Service]"] for file in UNITS if file.suffix == ".service"}
    assert set(services) >= {"wetread", "wetread-work@", "wetread-retrain", "wetread-backup"}
    least = {
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "ProtectSystem=strict",
        "ProtectHome=yes",
        "PrivateTmp=yes",
    }
    for name, lines in services.items():
        assert least <= set(lines), name
        assert "User=wetread" in lines, name
        (command,) = (line.removeprefix("ExecStart=").split() for line in lines if line.startswith("ExecStart="))
        assert command[0] == f"/opt/{'wetread-train' if name == 'wetread-retrain' else 'wetread'}/bin/wetread"
        assert known_command(command[1:]), name


def test_every_job_has_its_timer_and_those_of_kubernetes_the_same():
    timers = {file.stem for file in UNITS if file.suffix == ".timer"}
    jobs = {file.stem for file in UNITS if file.suffix == ".service" and "Type=oneshot" in unit(file)["[Service]"]}
    assert timers == jobs
    assert {name.removeprefix("wetread-") for name in timers} == {name for name, _ in pods()} - SERVERS
    installed = re.search(r'^timers="(.+)"', (DEPLOY / "bare-metal.sh").read_text(encoding="utf-8"), re.MULTILINE)
    assert installed
    assert {name.removesuffix(".timer") for name in installed[1].split()} == timers - {"wetread-retrain"}


# Scripts, workflows, and YAML as such


def test_scripts_are_as_shellcheck_wants_them():
    run(tool("shellcheck"), *DEPLOY.glob("*.sh"), ROOT / ".ci/run")
    run(tool("shellcheck"), "--severity=error", *(ROOT / "runs").glob("*.sh"))  # which show each command bare


def test_github_understands_the_workflows():
    files = sorted((ROOT / ".github/workflows").glob("*.yml"))
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *files)


def test_yaml_is_as_yamllint_wants_it():
    rules = (
        "{extends: default, rules: {line-length: disable, document-start: disable, braces: {max-spaces-inside: 1}, "
        "comments: {min-spaces-from-content: 1}, truthy: {check-keys: false}, octal-values: disable, "
        "indentation: {indent-sequences: whatever}, comments-indentation: disable}}"
    )
    run(tool("yamllint"), "--strict", "-d", rules, DEPLOY, ROOT / ".github/workflows")


# What the system is made of


@pytest.fixture(scope="module")
def libraries():
    spec = importlib.util.spec_from_file_location("libraries", DEPLOY / "libraries.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_the_system_names_every_library_with_the_licence_that_it_states(libraries):
    told, true = libraries.read(libraries.PAGE.read_text(encoding="utf-8")), libraries.rows()
    assert {name: where for name, (where, _) in told.items()} == {name: where for name, (where, _) in true.items()}
    families = ("Apache", "MIT", "BSD", "LGPL", "Python", "Zlib")
    for name, (_, licence) in true.items():
        assert told[name][1], name
        if licence:  # it is installed; one version words its licence otherwise than the next
            named = [f for f in families if f in licence]
            assert any(f in told[name][1] for f in named) or told[name][1] == licence, name
