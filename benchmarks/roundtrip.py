"""Go the whole way and print it: Orthanc → Wetread → SR and SC back in Orthanc, found, parsed, and sent no further.

Real processes on free ports of this machine: Orthanc with DICOMweb, `wetread serve` with its DICOM listener, DCMTK. The
patient is a phantom. Needs Orthanc (Debian: orthanc, orthanc-dicomweb) and DCMTK.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import httpx
import pydicom

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the peers of the tests
import peers


def say(words: str) -> None:
    print(words, flush=True)


def shell(*command: str | Path, lines: tuple[int, int] = (0, 12)) -> None:
    """Run a command and print it with a part of what it says."""
    done = peers.dcmtk(str(command[0]), *command[1:])
    say(f"$ {' '.join(Path(str(word)).name if '/' in str(word) else str(word) for word in command)}")
    for line in done.stdout.splitlines()[slice(*lines)]:
        say(f"  {line}")
    if done.returncode:
        sys.exit(f"{command[0]}: exit code {done.returncode}: {done.stderr}")


@contextmanager
def wetread(data: Path, dicom_port: int, orthanc: peers.Orthanc) -> Iterator[httpx.Client]:
    """Run `wetread serve` that sends SR by STOW-RS and SC by C-STORE."""
    settings = {
        "WETREAD_MODELS": "phantom",
        "WETREAD_COMPLETE_AFTER_S": "2",
        "WETREAD_DICOM_PEERS": "ORTHANC@127.0.0.1",
        "WETREAD_OUTPUTS_SR": f"dicomweb+{orthanc.dicomweb}",
        "WETREAD_OUTPUTS_SC": f"dicom://{orthanc.peer}",
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WETREAD_")} | settings
    for name, value in settings.items():
        say(f"$ export {name}={value}")
    options = ["--data", str(data), "--port", "0", "--dicom-port", str(dicom_port), "--ae-title", "WETREAD"]
    say(f"$ wetread serve --data clinic --dicom-port {dicom_port} --ae-title WETREAD &")
    command = [sys.executable, "-m", "wetread"]
    with (
        (data.parent / "serve.log").open("w") as log,
        subprocess.Popen(
            [*command, "serve", *options],
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            cwd=data.parent,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        url = process.stdout.readline().strip().split("/login")[0]
        made = subprocess.run(
            [*command, "token", "create", "transcript", "--role", "engineer", "--data", str(data)],
            env=environment, cwd=data.parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
        try:
            with httpx.Client(
                base_url=url, headers={"Authorization": f"Bearer {made.stdout.strip()}"}, timeout=60
            ) as client:
                yield client
        finally:
            process.terminate()
            process.wait(60)


def describe(orthanc: peers.Orthanc) -> list[dict[str, Any]]:
    """Print what Orthanc has, and return its instances' tags."""
    found = []
    for instance in orthanc.instances():
        tags = orthanc.rest.get(f"/instances/{instance}/simplified-tags").json()
        found.append(tags | {"id": instance})
    for tags in sorted(found, key=lambda t: int(t.get("SeriesNumber") or 0)):
        words = (tags["Modality"], tags.get("SeriesDescription", ""), f"from {tags.get('Manufacturer') or '?'}")
        say(f"  series {tags.get('SeriesNumber') or '-':>4}  {words[0]:<3} {words[1]:<56} {words[2]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for the SR, the SC and the SC as PNG")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with peers.orthanc(folder / "orthanc", "ORTHANC") as orthanc:
            dicom_port = peers.free_port()
            orthanc.add_modality("wetread", "WETREAD", dicom_port)
            with wetread(folder / "clinic", dicom_port, orthanc) as client:
                run(orthanc, client, folder, chosen.out or folder)


def run(orthanc: peers.Orthanc, client: httpx.Client, folder: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    phantoms = [sys.executable, "-m", "wetread", "phantom", str(folder / "inbox"), "1", "--dicom", "--seed", "7"]
    subprocess.run(phantoms, check=True, capture_output=True)
    [file] = (folder / "inbox").glob("*.dcm")
    say("\n# 1. A radiograph is in the PACS.")
    shell("storescu", "-aec", "ORTHANC", "127.0.0.1", str(orthanc.dicom_port), file)
    [image] = describe(orthanc)

    say("\n# 2. The PACS sends it to Wetread by C-STORE (a route, or by hand as here).")
    start = time.monotonic()
    answer = orthanc.rest.post("/modalities/wetread/store", content=image["id"]).raise_for_status().json()
    say(f"  Orthanc: {answer['InstancesCount']} sent, {answer['FailedInstancesCount']} failed")

    say("\n# 3. Wetread analyses it at once and puts it into the worklist.")
    study = peers.wait(lambda: analysed(client), "the analysis")
    say(f"  after {time.monotonic() - start:.1f} s: {study['priority']}: {study['reason']}")

    say("\n# 4. Two quiet seconds later the study is complete, and SR (STOW-RS) and SC (C-STORE) are in the PACS.")
    peers.wait(lambda: len(orthanc.instances()) == 3, "SR and SC")
    sent = peers.wait(lambda: arrived(client), "both to be marked as sent")
    say(f"  after {time.monotonic() - start:.1f} s")
    for row in sent:
        say(f"  {row['kind']} → {row['destination']}: {row['state']}, {row['tries']} try")
    series = describe(orthanc)
    assert len({tags["StudyInstanceUID"] for tags in series}) == 1
    for modality, end in (("SR", "sr.dcm"), ("OT", "sc.dcm")):
        own = next(t for t in series if t["Modality"] == modality and t["Manufacturer"] == "Wetread")
        (out / end).write_bytes(orthanc.file(own["id"]))

    say("\n# 5. DCMTK reads the report as it came back from the PACS.")
    shell("dsrdump", "+Pn", out / "sr.dcm", lines=(0, 9))
    flagged(out / "sr.dcm")
    say("\n# 6. And the capture.")
    capture = pydicom.dcmread(out / "sc.dcm")
    for keyword in ("ImageType", "ConversionType", "BurnedInAnnotation", "SeriesDescription", "DerivationDescription"):
        value = capture[keyword].value
        say(f"  {keyword}: {value if isinstance(value, str) else chr(92).join(value)}")
    same = capture.SourceImageSequence[0].ReferencedSOPInstanceUID == image["SOPInstanceUID"]
    say(f"  SourceImageSequence names the radiograph: {'yes' if same else 'no'}")
    cv2.imwrite(str(out / "sc.png"), capture.pixel_array[..., ::-1])

    say("\n# 7. The PACS sends everything to Wetread again, as a route without a filter does.")
    for instance in orthanc.instances():
        orthanc.rest.post("/modalities/wetread/store", content=instance).raise_for_status()
    rows = client.get("/api/v1/worklist").json()["studies"]
    time.sleep(5)  # longer than the study takes to be complete: what could go round, would
    say(f"  studies in Wetread: {len(rows)}; instances in the PACS: {len(orthanc.instances())}")
    assert len(rows) == 1
    assert len(orthanc.instances()) == 3


def analysed(client: httpx.Client) -> dict[str, Any] | None:
    rows = client.get("/api/v1/worklist", params={"status": "analysed"}).json()["studies"]
    return rows[0] if rows else None


def arrived(client: httpx.Client) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = client.get("/api/v1/deliveries", params={"state": "sent"}).json()
    return rows if len(rows) == 2 else []


def flagged(file: Path) -> None:
    """Print what the SR says of each finding that is flagged, read by highdicom."""
    import highdicom as hd

    report = hd.sr.srread(file)
    for group in report.content.get_image_measurement_groups():
        words = {e.name.value: e.value.meaning for e in group.get_qualitative_evaluations()}
        numbers = {m.name.value: m.value for m in group.get_measurements()}
        if words["FLAG"] == "Yes":
            code = group.finding_type
            named = f"{code.meaning} ({code.value}, {code.scheme_designator})"
            say(f"  {named}: {words['CALL']}, probability {numbers['PROBABILITY']:.2f}")


if __name__ == "__main__":
    main()
