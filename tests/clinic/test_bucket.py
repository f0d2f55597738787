"""The archive in S3 keeps the promises of the folder; moto's server stands in for Amazon's."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from ward import SITE, NameReader, Ward, png

from wetread.clinic import backup, retention, reviews, store, verify, worklist
from wetread.clinic.archive import Archive, TooLargeError, open_archive
from wetread.clinic.intake import Intake
from wetread.clinic.worker import Worker
from wetread.config import Settings
from wetread.errors import ConfigError, FullError, ReadError


@pytest.mark.system
def test_the_base_install_imports_no_s3(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "import wetread.web.app\n"
        "from pathlib import Path\n"
        "from wetread.clinic.archive import open_archive\n"
        "from wetread.config import Settings\n"
        "open_archive(Path('data'), Settings())\n"
        "assert not any(name.startswith(('botocore', 'aiobotocore', 'fsspec')) for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Start moto's server on a free port."""
    server = pytest.importorskip("moto.server", reason="needs moto, of the extra dev")
    pytest.importorskip("s3fs", reason="needs s3fs, of the extra s3")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    patch = pytest.MonkeyPatch()
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        patch.setenv(f"AWS_{name}", value)
    try:
        yield f"http://{host}:{port}"
    finally:
        patch.undo()
        running.stop()


@pytest.fixture
def client(endpoint: str, request: pytest.FixtureRequest) -> Iterator[tuple[object, str]]:
    """Give boto3's client, which is not what the archive uses, and a bucket of one test."""
    import boto3

    made = boto3.client("s3", endpoint_url=endpoint)
    bucket = f"b{hashlib.sha256(request.node.name.encode()).hexdigest()[:20]}"
    made.create_bucket(Bucket=bucket)
    yield made, bucket
    made.close()


@pytest.fixture
def settings(endpoint: str, client: tuple[object, str]) -> Settings:
    return Settings(archive=f"s3://{client[1]}/clinic/a", archive_endpoint=endpoint, disk_reserve=0)


@pytest.mark.system
def test_bytes_go_to_s3_once_and_come_back(tmp_path: Path, settings: Settings, client: tuple) -> None:
    s3, bucket = client
    archive = open_archive(tmp_path / "one", settings)
    content = bytes(range(256)) * 9000
    stored = archive.put(BytesIO(content), limit=len(content))
    assert stored.sha256 == hashlib.sha256(content).hexdigest()
    key = f"clinic/a/{stored.sha256[:2]}/{stored.sha256}"
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == content
    s3.put_object(Bucket=bucket, Key=key, Body=bytes(len(content)))
    assert archive.put(BytesIO(content), limit=len(content)) == stored
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == bytes(len(content))  # nothing is written twice
    s3.put_object(Bucket=bucket, Key=key, Body=content)
    assert list(archive.names()) == [stored.sha256]
    assert archive.size(stored.sha256) == len(content)
    assert 0 <= archive.age_s(stored.sha256) < 60
    other = open_archive(tmp_path / "two", settings)  # another machine, without a copy
    assert other.path(stored.sha256).read_bytes() == content
    with other.open(stored.sha256) as file:
        assert file.read() == content
    other.export(stored.sha256, tmp_path / "exported")
    assert (tmp_path / "exported").read_bytes() == content
    other.remove(stored.sha256)
    assert list(archive.names()) == []
    assert other.size(stored.sha256) is None
    assert other.age_s(stored.sha256) == float("inf")
    with pytest.raises(FileNotFoundError):
        other.open(stored.sha256).read()
    assert not other.path(stored.sha256).exists()
    with pytest.raises(TooLargeError):
        archive.put(BytesIO(b"12345"), limit=4)
    assert list((tmp_path / "one" / "cache" / "incoming").iterdir()) == []


@pytest.mark.system
def test_foreign_objects_are_no_files_of_ours_and_changed_ones_are_not_believed(
    tmp_path: Path, settings: Settings, client: tuple
) -> None:
    s3, bucket = client
    archive = open_archive(tmp_path / "one", settings)
    name = "ab" + "0" * 62
    for key in ("clinic/a/readme.txt", f"clinic/a/cd/{name}", f"other/ab/{name}", f"clinic/a/ab/{name}"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"not what its name says")
    assert list(archive.names()) == [name]
    with pytest.raises(ReadError, match="other bytes") as caught:
        archive.path(name)
    assert not isinstance(caught.value, FullError)
    assert not (tmp_path / "one" / "cache" / "ab" / name).exists()


@pytest.mark.system
def test_without_s3_nothing_is_accepted(tmp_path: Path, settings: Settings, endpoint: str) -> None:
    for url in ("https://x/y", "s3://", "s3://UPPER/x", "s3://a..b"):
        with pytest.raises(ConfigError, match="archive"):
            open_archive(tmp_path / "x", settings.model_copy(update={"archive": url}))
    with pytest.raises(ConfigError, match="cannot be reached"):
        open_archive(tmp_path / "x", settings.model_copy(update={"archive": "s3://no-such-bucket-here"}))
    archive = open_archive(tmp_path / "one", settings)
    archive._s3 = type(archive._s3)(  # type: ignore[attr-defined]
        endpoint_url="http://127.0.0.1:9", skip_instance_cache=True,
        config_kwargs={"connect_timeout": 1, "retries": {"max_attempts": 1}},
    )  # fmt: skip
    with pytest.raises(FullError, match="accepted"):
        archive.put(BytesIO(b"1"), limit=4)
    assert list((tmp_path / "one" / "cache" / "incoming").iterdir()) == []
    assert list(Archive.names(archive)) == []


@pytest.mark.system
def test_copies_make_room_for_others_but_not_those_in_use(tmp_path: Path, settings: Settings) -> None:
    archive = open_archive(tmp_path / "one", settings.model_copy(update={"archive_cache_bytes": 2500}))
    names = [archive.put(BytesIO(bytes([number]) * 1000), limit=1000).sha256 for number in range(5)]
    assert len(list(Archive.names(archive))) == 5  # all were just used
    for name in names[:4]:
        os.utime(Archive.path(archive, name), (0, 0))
    archive.path(names[0])  # used again
    archive.put(BytesIO(b"x" * 1000), limit=1000)
    kept = set(Archive.names(archive))
    assert names[0] in kept
    assert not kept & set(names[1:4])
    assert archive.path(names[1]).read_bytes() == b"\x01" * 1000


@pytest.mark.system
def test_many_put_the_same_at_a_time(tmp_path: Path, settings: Settings) -> None:
    archives = [open_archive(tmp_path / str(number), settings) for number in range(2)]
    content, results, lock = os.urandom(200_000), [], threading.Lock()

    def put(archive: Archive) -> None:
        stored = archive.put(BytesIO(content), limit=len(content))
        with lock:
            results.append(stored.sha256)

    threads = [threading.Thread(target=put, args=(archive,)) for archive in archives * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [hashlib.sha256(content).hexdigest()] * 6
    assert list(archives[0].names()) == results[:1]


@pytest.mark.system
def test_after_a_crash_objects_go_where_they_were_sent_and_a_changed_one_keeps_no_other_out(
    tmp_path: Path, settings: Settings, client: tuple
) -> None:
    s3, bucket = client
    ward = Ward(tmp_path / "clinic")
    ward.archive = ward.intake.archive = open_archive(tmp_path / "clinic", settings)
    origin = json.dumps({"site": "nørth", "actor": "AE XRAY"})
    stored = [ward.archive.put(BytesIO(png(seed)), limit=2**20, origin=origin).sha256 for seed in range(3)]
    changed = sorted(stored)[0]
    s3.put_object(Bucket=bucket, Key=f"clinic/a/{changed[:2]}/{changed}", Body=b"other bytes")
    ward.intake.archive = open_archive(tmp_path / "elsewhere", settings)  # without copies
    adopted, missing, unreadable = ward.intake.adopt(SITE)
    assert (len(adopted), missing) == (2, [])
    assert [line.partition(":")[0] for line in unreadable] == [changed]
    assert "other bytes" in unreadable[0]
    assert {worklist.row(ward.database, "nørth", key).study for key in adopted} == set(adopted)


@pytest.mark.system
def test_a_clinic_lives_in_s3(tmp_path: Path, settings: Settings) -> None:
    """Taken in on one machine, analysed on another, read, backed up, restored, verified and removed."""
    ward = Ward(tmp_path / "clinic", [NameReader()])
    ward.archive = open_archive(tmp_path / "clinic", settings)
    ward.intake = Intake(
        ward.database, ward.archive, policy=lambda c, s: ward.ranking, models=lambda: list(ward.models), max_bytes=2**20
    )
    key = ward.take(png(1), "edema.png").study
    elsewhere = open_archive(tmp_path / "elsewhere", settings)
    ward.worker = Worker(ward.database, elsewhere, ward.models, lambda c, s: ward.ranking)
    assert ward.work() == 1
    assert worklist.row(ward.database, SITE, key).priority == "urgent"
    assert ward.intake.adopt(SITE) == ([], [], [])
    assert verify.run(tmp_path / "clinic", settings).whole
    backup.backup(tmp_path / "clinic", settings, tmp_path / "backup")
    assert verify.run(tmp_path / "backup", settings).whole
    backup.restore(tmp_path / "backup", tmp_path / "disk", Settings())
    moved = settings.model_copy(update={"archive": settings.archive + "/moved"})
    backup.restore(tmp_path / "backup", tmp_path / "s3", moved)
    assert verify.run(tmp_path / "s3", moved).whole
    reviews.save(ward.database, SITE, key, "dr", answers={}, verdict="right", sign=True)
    assert retention.remove(ward.database, elsewhere, [key]) == 1
    assert list(ward.archive.names()) == []
    with ward.database.write() as connection:
        connection.execute(store.removal.delete())
    assert verify.run(tmp_path / "clinic", settings).whole
    ward.database.close()
