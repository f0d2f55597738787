"""Reports side by side, made by hand so that every ratio is known."""

import json

import pytest
import typer

from wetread.errors import ConfigError
from wetread.infer import bench_command, bench_compare


def report(name, *, p50=20.0, images_s=50.0, model_id="a" * 64, runtime="onnxruntime", callers=(1, 4), **machine):
    """A sound report of one package on one runtime."""
    latency = {"p50_ms": p50, "p95_ms": 2 * p50, "calls": 100}
    figures = {
        "load_s": 0.5,
        "graph": {"p50_ms": p50 / 2, "p95_ms": p50, "calls": 100},
        "single": latency,
        "throughput": {"batch": 16, "images_s": 2 * images_s, "cpu_ms": 9.0},
        "concurrency": [latency | {"callers": n, "images_s": images_s} for n in callers],
        "base_rss_bytes": 100 << 20,
        "peak_rss_bytes": 300 << 20,
    }
    about = {
        "name": name, "cpu": "a processor", "cores": 8, "usable": 4.0, "flags": ["avx2"], "memory_bytes": 16 << 30,
        "gpus": [], "providers": ["CPUExecutionProvider"], "system": "", "python": "3.11", "onnxruntime": "1",
        "openvino": "", "load": 0.25,
    }  # fmt: skip
    result = {
        "model": "phantom", "model_id": model_id, "precision": "fp32", "runtime": runtime, "package_bytes": 4 << 20,
        "graph_bytes": 3 << 20, "figures": figures,
    }  # fmt: skip
    return {
        "wetread": "1", "at": "2026-01-02T03:04:05Z", "machine": about | machine,
        "plan": {"threads": 4, "callers": callers}, "results": [result],
    }  # fmt: skip


@pytest.fixture(scope="module")
def command():
    """The command by itself: the whole command line takes long to build."""
    return typer.main.get_command(bench_command.bench)


@pytest.fixture
def run(command, monkeypatch, capsys, tmp_path):
    """Write reports to a.json, b.json …, compare them, and return what was printed."""

    def call(*reports, options=()):
        files = [tmp_path / f"{letter}.json" for letter, _ in zip("abc", reports, strict=False)]
        for file, content in zip(files, reports, strict=True):
            file.write_text(content if isinstance(content, str) else json.dumps(content))
        monkeypatch.setenv("COLUMNS", "120")
        command.main(["compare", *map(str, files), *options], standalone_mode=False)
        return capsys.readouterr().out

    return call


def test_ratios_say_how_many_times_as_good(run):
    slow, fast = report("laptop"), report("server", p50=5.0, images_s=150.0, callers=(1, 16))
    fast["results"][0]["figures"]["peak_rss_bytes"] = 600 << 20
    out = run(slow, fast, options=["--json"])
    found = json.loads(out)
    assert found["machines"] == ["laptop", "server"]
    assert {row["case"] for row in found["rows"]} == {"phantom fp32, onnxruntime"}
    cells = {row["figure"]: row["cells"] for row in found["rows"]}
    assert cells["one image, p50 ms"] == [{"value": 20.0, "ratio": 1.0}, {"value": 5.0, "ratio": 4.0}]
    assert cells["graph alone, p50 ms"][1] == {"value": 2.5, "ratio": 4.0}
    assert cells["batches of 16, images/s"][1] == {"value": 300.0, "ratio": 3.0}
    assert cells["1 caller, images/s"][1]["ratio"] == 3
    assert cells["memory at most, MiB"] == [{"value": 300.0, "ratio": 1.0}, {"value": 600.0, "ratio": 0.5}]
    assert cells["4 callers, images/s"] == [{"value": 50.0, "ratio": 1.0}, None]
    assert cells["16 callers, images/s"] == [None, {"value": 150.0, "ratio": None}]


def test_only_the_same_package_on_the_same_runtime_is_compared(run):
    out = run(report("a"), report("b", model_id="b" * 64), report("c", runtime="openvino"), options=["--json"])
    rows = json.loads(out)["rows"]
    assert list(dict.fromkeys(row["case"] for row in rows)) == [
        "phantom aaaaaaaa fp32, onnxruntime",
        "phantom bbbbbbbb fp32, onnxruntime",
        "phantom aaaaaaaa fp32, openvino",
    ]
    assert all([cell is None for cell in row["cells"]].count(False) == 1 for row in rows)


def test_what_the_asking_process_took_is_no_figure_of_a_server(run):
    out = json.loads(run(report("a", runtime="remote"), report("b", runtime="remote"), options=["--json"]))
    figures = {row["figure"] for row in out["rows"]}
    assert {"one image, p50 ms", "batches of 16, images/s", "package, MiB"} <= figures
    assert not figures & {"to load, s", "memory at most, MiB", "batches of 16, CPU ms/image"}


def test_tables_for_a_terminal_and_for_markdown(run):
    reports = [report("laptop"), report("server", p50=5.0, gpus=["a GPU, 80 GiB"])]
    table = run(*reports)
    assert "5.0 (4.00×)" in table
    assert "a GPU, 80 GiB" in table
    text = run(*reports, options=["--markdown"])
    lines = text.splitlines()
    assert "| phantom fp32, onnxruntime | one image, p50 ms | 20.0 | 5.0 (4.00×) |" in lines
    assert "| processors | 4 of 8 | 4 of 8 |" in lines
    assert lines[0] == "| machine | laptop | server |"


def test_names_that_are_the_same_or_hostile_stay_apart_and_in_their_cells(run):
    name = "<b>x|[red]\x1b[31m\n| y"
    text = run(report(name), report(name), options=["--markdown"])
    assert text.splitlines()[0] == r"| machine | &lt;b>x\|[red] [31m \| y (a) | &lt;b>x\|[red] [31m \| y (b) |"
    table = run(report(name))
    assert "<b>x|[red] [31m | y" in table
    assert "\x1b" not in table


def test_a_case_without_figures_is_left_out(run):
    failed = report("server")
    failed["results"][0] |= {"figures": None, "error": "its process died; out of memory?"}
    out = run(report("laptop"), failed, options=["--json"])
    assert all(row["cells"][1] is None for row in json.loads(out)["rows"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.pop("machine"), "machine: Field required"),
        (lambda r: r.update(schema_version=2), "schema_version: "),
        (lambda r: r.update(more=1), "more: "),
        (lambda r: r["machine"].update(cores=0), "machine.cores: "),
        (lambda r: r["machine"].update(name="x" * 201), "machine.name: "),
        (lambda r: r["results"][0]["figures"]["single"].update(p50_ms=0), "results.0.figures.single.p50_ms: "),
        (lambda r: r["results"][0]["figures"]["single"].update(p50_ms="fast\x1b"), "results.0.figures.single.p50_ms: "),
        (lambda r: r["results"][0]["figures"].update(load_s=float("inf")), ""),
    ],
)
def test_a_report_that_is_none_is_one_line_that_names_the_field(run, tmp_path, change, said):
    bad = report("bad")
    change(bad)
    with pytest.raises(ConfigError) as refused:
        run(report("good"), bad)
    assert str(refused.value).startswith(f"{tmp_path / 'b.json'}: {said}")
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("content", ["", "[", "null", "[]", "\ud7ff\x00", "[" * 100_000, '"' + "x" * (5 << 20) + '"'])
def test_what_is_no_report_is_one_line(run, content):
    with pytest.raises(ConfigError, match="wetread bench --json") as refused:
        run(content)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 600


def test_a_file_that_is_not_there_or_a_folder_is_one_line(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match="cannot be read"):
            bench_compare.read(path)
