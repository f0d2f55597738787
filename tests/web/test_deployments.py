"""What is deployed, as pages, API, events and Prometheus tell it."""

from __future__ import annotations

from typing import Any

from page import Page
from ward import SITE, NameReader, png

from wetread.clinic import deploying, store
from wetread.clinic.deploying import Candidate

NEW = Candidate("names/any", "f" * 64, "next<b>", "2")


def test_what_is_deployed_is_told_alike(client: Any) -> None:
    old, clinic = NameReader(), client.clinic
    first = Candidate("names/any", old.id, old.name, old.version)
    with clinic.database.write() as connection:
        store.ensure_site(connection, SITE)
        deploying.first(connection, SITE, [first], (), whole=False)
        deploying.shadow(connection, "", NEW, "Dr <N>", "a try", home=SITE)
        row = deploying.find(connection, "").challenger
        verdict = {"id": "v", "at": "2026-01-01T00:00:00+00:00", "outcome": "hold", "reasons": ["3 studies & few"]}
        deploying.judged(connection, row, verdict | {"studies": 3, "reviewed": 0})
        deploying.canary(connection, deploying.find(connection, ""), 0.25, "Dr <N>", "looks good", home=SITE)

    found = client("GET", "/api/v1/deployments", "engineer").json()["deployments"]
    assert [(d["stage"], d["share"], d["here"], d["until"]) for d in found] == [
        ("canary", 0.25, False, None),
        ("champion", 1.0, True, None),
    ]
    everything = client("GET", "/api/v1/deployments?ended=true").json()["deployments"]
    assert [(d["stage"], d["ended"]) for d in everything] == [
        ("canary", None),
        ("shadow", "promoted"),
        ("champion", None),
    ]
    assert everything[1]["verdict"]["outcome"] == "hold"
    assert all("salt" not in d for d in everything)

    client.send(("edema.png", png(1)))
    for path in ("/models", f"/models/{old.id}", f"/models/{NEW.model}"):
        text = client("GET", path).text
        words = " ".join(Page(text).text)
        assert "Rollout" in words
        assert "<N>" not in text
        assert "next<b>" not in text
    for said in ("25 %", "canary", "every site", "champion", "looks good"):
        assert said in " ".join(Page(client("GET", "/models").text).text)
    assert "3 studies & few" in " ".join(Page(client("GET", f"/models/{NEW.model}").text).text)

    metrics = client("GET", "/metrics").text
    label = 'model="next<b>",package="ffffffffffff",site="",slot="names/any",stage="canary",version="2"'
    assert f"wetread_deployment_share{{{label}}} 0.25" in metrics
    assert f"wetread_deployment_jobs{{{label}}} 0.0" in metrics
    # A reader is told of the AI that orders the list, and of nothing that challenges it.
    assert [model["name"] for model in client("GET", "/api/v1/ai").json()["models"]] == [old.name]

    with clinic.database.write() as connection:
        slot = deploying.find(connection, "")
        deploying.rollback(connection, slot, "Dr <N>", "worse", home=SITE)
    with clinic.database.read() as connection:
        table = store.event.c
        kinds = [row.payload for row in connection.execute(
            store.event.select().where(table.kind == "model.rolled_back", table.site == SITE)
        )]  # fmt: skip
    assert [(p["model"], p["by"], p["reason"]) for p in kinds] == [(NEW.model, "Dr <N>", "worse")]
