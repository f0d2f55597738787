"""Simulated readers at the real application: what they sign is what they saw, and they do as a person does."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
import ward
from clinic.conftest import MEMORY
from starlette.testclient import TestClient
from typer.testing import CliRunner
from web.conftest import BASE

from wetread.cli import app
from wetread.clinic import access, accounts
from wetread.clinic.store import Store
from wetread.config import Settings
from wetread.errors import ClinicError, ConfigError, DeniedError
from wetread.improve.lock import alone
from wetread.simulate import crew, perception, truth
from wetread.simulate.perception import Skill, generator
from wetread.simulate.readers import CLASSES, Habit, Reader, hours
from wetread.simulate.truth import Case, Clock
from wetread.web.app import create_app

CLOCK = Clock(datetime(2026, 3, 2, tzinfo=UTC), datetime.now(UTC), 1e6)
NAMES = [name for name in ward.FINDINGS if name != "No Finding"]


class Room:
    """An application with studies whose truth is known; its model reads the name of the file."""

    def __init__(self, folder, **settings):
        self.app = create_app(
            folder, Settings.model_validate({"read_seconds": 0} | settings), models=[ward.NameReader()]
        )
        self.cases, self.numbers = {}, count()

    def __enter__(self):
        self.http = TestClient(self.app, base_url=BASE)
        self.http.__enter__()
        self.database = self.app.state.clinic.database
        self.secrets = {name: self.token(name, "radiologist") for name in ("ann", "bob")}
        self.service = {"Authorization": f"Bearer {self.token('modality', 'service')}"}
        return self

    def __exit__(self, *error):
        self.http.__exit__(*error)

    def token(self, name, role):
        return access.create(self.database, name, role, ward.SITE)

    def client(self, name):
        return TestClient(self.app, base_url=BASE, headers={"Authorization": f"Bearer {self.secrets[name]}"})

    def send(self, told, *there):
        """Send a study of which the model says `told`, and in which `there` is."""
        number = next(self.numbers)
        files = {"files": (f"{told}-{number}.png", ward.png(number))}
        sent = self.http.post("/api/v1/studies?wait=30", files=files, headers=self.service)
        study = sent.json()["studies"][0]["study"]
        labels = {name: int(name in there) for name in NAMES} | {"No Finding": int(not set(there))}
        case = Case(
            "", study, f"p{number}", "", datetime.now(UTC).isoformat(), "", "accepted", truth.abnormal(labels), labels
        )
        self.cases[study] = case
        return study

    def reader(self, name, skill=None, habit=None, **more):
        habit = habit or Habit(dict.fromkeys(CLASSES, 1.0))
        return Reader(
            name, self.client(name), skill or Skill(1.0, 1.0), habit, clock=CLOCK, seed=1,
            truth=lambda uid, study: self.cases.get(study), **more,
        )  # fmt: skip

    def study(self, key):
        return self.http.get(f"/api/v1/studies/{key}", headers=self.service).json()


@pytest.fixture(scope="module")
def shared_room():
    """Open a room for all tests, in memory: the clinic flushes each step to disk."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder, Room(Path(folder)) as opened:
        yield opened


@pytest.fixture
def room(shared_room):
    """Give the room; what earlier tests left there is not of the simulation."""
    shared_room.cases = {}
    return shared_room


def test_what_is_signed_is_what_was_seen_and_followed(room):
    told = ["Edema", "Pneumothorax", "No Finding", "Cardiomegaly"]
    there = [("Edema",), (), ("Pneumothorax",), ("Cardiomegaly", "Edema"), ("Support Devices",)]
    keys = [room.send(told[n % 4], *there[n % 5]) for n in range(6)]
    skill = Skill(0.6, 0.7, anchoring=0.5)
    reader = room.reader("ann", skill)
    while reader.step() is not None:
        pass
    assert reader.done["signed"] == 6
    for key in keys:
        found, case = room.study(key), room.cases[key]
        rng = generator(1, "ann", case.patient)
        rng.random(), rng.lognormal()  # whether it is handed over, and how long it takes
        expected = skill.follows(skill.sees(case, rng), case, perception.highest(found["findings"]), rng)
        review = found["review"]
        assert (found["status"], review["reader"], review["anchored"]) == ("reviewed", "ann", True)
        assert review["normal"] == perception.is_normal(expected)
        calls = {f["finding"]: f["call"] for f in found["findings"]}
        for answer in review["findings"]:
            name = answer["finding"]
            if name == "No Finding":
                continue
            signed = answer["answer"] == "added" or (answer["answer"] == "agree") == (calls[name] != "unlikely")
            assert signed == expected[name]
        assert {a["finding"] for a in review["findings"]} >= {name for name, yes in expected.items() if yes}


def test_the_most_urgent_study_is_read_first_and_a_critical_finding_is_acknowledged_and_told(room):
    routine, critical = room.send("No Finding"), room.send("Pneumothorax", "Pneumothorax")
    reader = room.reader("ann")
    assert reader.step() == "signed"
    assert room.study(critical)["status"] == "reviewed"
    assert room.study(routine)["status"] == "analysed"
    done = room.http.get(f"/api/v1/studies/{critical}/communications", headers=room.service).json()
    assert [each["kind"] for each in done["communications"]] == ["acknowledged", "communicated"]
    assert done["alert"] is None
    assert (reader.done["acknowledged"], reader.done["told"], reader.done["pictures"]) == (1, 1, 1)


def test_a_blind_study_gets_the_reader_s_own_call_first_which_the_model_cannot_change(tmp_path):
    with Room(tmp_path / "data", blind_sites=["default"]) as room:
        key = room.send("Edema", "Cardiomegaly")
        reader = room.reader("ann", Skill(1.0, 1.0, anchoring=1.0))
        assert reader.step() == "signed"
        review = room.study(key)["review"]
        assert review["own_call"] == {"normal": False, "findings": ["Cardiomegaly"]}
        assert not review["anchored"]
        assert {a["finding"]: a["answer"] for a in review["findings"]}["Edema"] == "disagree"
        assert reader.done["read blind"] == 1


def test_what_is_not_of_the_simulation_and_what_another_holds_is_left_alone(room):
    strange, held, own = room.send("Edema"), room.send("Edema", "Edema"), room.send("No Finding")
    del room.cases[strange]
    assert room.client("bob").post(f"/api/v1/studies/{held}/claim").status_code == 200
    reader = room.reader("ann")
    assert reader.step() == "signed"
    assert reader.step() is None
    assert room.study(own)["status"] == "reviewed"
    assert room.study(strange)["status"] == "analysed"  # and given back
    assert room.study(held)["claim"]["reader"] == "bob"


def test_a_study_is_handed_over_once_to_another_of_the_crew_who_reads_it_first(room):
    for name in ("Dee", "Eve"):  # without a password: as whom an identity provider vouches for
        accounts.create(room.database, name, "radiologist", ward.SITE, None)
    key = room.send("No Finding")
    giver = room.reader("ann", habit=Habit(hand_over=1.0), crew=["ann", "Dee"])
    assert giver.step() == "handed over"
    row = room.study(key)
    assert (row["claimed_by"], row["handed_by"]) == ("Dee", "ann")
    assert giver.step() is None


def test_an_image_that_came_late_is_looked_at_before_it_is_signed(room, monkeypatch):
    key = room.send("Edema", "Edema")
    reader = room.reader("ann")
    wait = reader._wait

    def late(study, minutes):
        wait(study, minutes)
        files = {"files": ("Edema-late.png", ward.png(77))}
        sent = room.http.post("/api/v1/studies?wait=30", files=files, data={"study": key}, headers=room.service)
        assert sent.json()["studies"][0]["study"] == key

    monkeypatch.setattr(reader, "_wait", late)
    assert reader.step() == "signed"
    assert reader.done["images came late"] == 1
    assert room.study(key)["image_count"] == 2


def test_a_reader_who_is_not_let_in_says_so(room):
    room.send("Edema")
    room.secrets["zoe"] = "no token"
    with pytest.raises(DeniedError, match="zoe"):
        room.reader("zoe").step()


def write(path, cases, *, ended=True):
    with truth.Writer(path, CLOCK) as writer:
        for case in cases:
            writer.write(case)
        if ended:
            writer.end()
    return path


def test_a_crew_reads_all_that_is_of_the_simulation_and_ends(room, tmp_path):
    for _ in range(3):
        room.send("Edema", "Edema")
    members = [crew.Member(name, Skill(), Habit(dict.fromkeys(CLASSES, 1.0), look=False)) for name in ("ann", "bob")]
    clients = {name: room.client(name) for name in ("ann", "bob")}
    done = crew.read(members, clients, write(tmp_path / "t.jsonl", room.cases.values()), seed=1)
    assert sum(each["signed"] for each in done.values()) == 3
    assert {room.study(key)["status"] for key in room.cases} == {"reviewed"}


def test_a_crew_ends_at_a_count_and_when_it_is_stopped(room, tmp_path):
    for _ in range(3):
        room.send("No Finding")
    path = write(tmp_path / "t.jsonl", room.cases.values(), ended=False)
    member = [crew.Member("ann", Skill(), Habit(dict.fromkeys(CLASSES, 0.0), look=False))]
    assert crew.read(member, {"ann": room.client("ann")}, path, seed=1, count=1)["ann"]["signed"] == 1
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    assert crew.read(member, {"ann": room.client("ann")}, path, seed=1, stop=stop)["ann"].get("signed", 0) <= 2


class Turns(threading.Event):
    """Does something at the fifth wait of who follows it."""

    def __init__(self, act):
        super().__init__()
        self.act, self.turns = act, 0

    def wait(self, timeout=None):
        self.turns += 1
        if self.turns == 5:
            self.act()
        return super().wait(timeout)


def test_a_crew_waits_for_who_still_sends_however_quiet_it_is(room, tmp_path, monkeypatch):
    monkeypatch.setattr(crew, "_POLL_S", 0.01)
    member = [crew.Member("ann", Skill(), Habit(dict.fromkeys(CLASSES, 0.0), look=False))]
    with truth.Writer(tmp_path / "t.jsonl", CLOCK) as writer:
        turns = Turns(writer.end)
        crew.read(member, {"ann": room.client("ann")}, tmp_path / "t.jsonl", seed=1, stop=turns, idle_s=0.001)
    assert turns.turns == 5


def test_a_crew_ends_when_nobody_writes_the_truth_any_more_without_a_last_line(room, tmp_path):
    room.send("No Finding")
    path = write(tmp_path / "t.jsonl", room.cases.values(), ended=False)
    member = [crew.Member("ann", Skill(), Habit(dict.fromkeys(CLASSES, 0.0), look=False))]
    done = crew.read(member, {"ann": room.client("ann")}, path, seed=1, idle_s=0.3)
    assert done["ann"]["signed"] == 1


def test_what_is_being_read_when_it_is_stopped_is_given_back_unsigned(room):
    key, stop = room.send("No Finding"), threading.Event()
    reader = room.reader("ann", stop=stop)
    reader._wait = lambda study, minutes: stop.set()
    assert reader.step() is None
    assert (reader.done["given back"], reader.done["signed"]) == (1, 0)
    found = room.study(key)
    assert (found["status"], found["claim"]) == ("analysed", None)


@pytest.mark.parametrize("idle_s", [float("nan"), float("inf"), -1.0])
def test_a_crew_that_would_never_end_does_not_begin(tmp_path, idle_s):
    with pytest.raises(ConfigError, match="idle"):
        crew.read([], {}, write(tmp_path / "t.jsonl", []), seed=1, idle_s=idle_s)


def test_reading_times_have_their_mean_and_spread():
    habit, rng = Habit({"critical": 4.0}, spread=0.5), generator(1, "a", "b")
    times = [habit.takes("critical", rng) for _ in range(20_000)]
    assert sum(times) / len(times) == pytest.approx(4.0, rel=0.03)
    assert (sum((t - 4) ** 2 for t in times) / len(times)) ** 0.5 == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [("8-16", (8, 15.9), (7.9, 16)), ("22-6", (22, 3, 5.9), (6, 21.9)), ("0-24", (0, 23), ())],
)
def test_shifts_are_hours_of_the_day(text, inside, outside):
    habit = Habit(shift=hours(text))
    assert all(habit.works(hour) for hour in inside)
    assert not any(habit.works(hour) for hour in outside)


@pytest.mark.parametrize("text", ["", "8", "8-25", "a-b", "-3-4"])
def test_a_shift_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="shift"):
        hours(text)


def test_a_crew_is_read_from_toml(tmp_path):
    (tmp_path / "crew.toml").write_text(
        '[[reader]]\nname = "ann"\nsensitivity = 0.8\nanchoring = 0.3\nshift = [8, 16]\nminutes = {critical = 1.5}\n'
        'findings = {Edema = [0.7, 0.9]}\n[[reader]]\nname = "bob"\ntoken = "secret"\n'
    )
    ann, bob = crew.load(tmp_path / "crew.toml")
    assert (ann.skill, ann.token) == (Skill(0.8, findings={"Edema": (0.7, 0.9)}, anchoring=0.3), "")
    assert (ann.habit.shift, ann.habit.minutes) == ((8.0, 16.0), {"critical": 1.5})
    assert (bob.skill, bob.token) == (Skill(), "secret")


@pytest.mark.parametrize(
    "text",
    ["", "x = 1", "[[reader]]", '[[reader]]\nname = "a"\nage = 3', '[[reader]]\nname = "a"\nsensitivity = 2',
     '[[reader]]\nname = "a"\nshift = [8, 8]', '[[reader]]\nname = "a"\nminutes = {routine = inf}',
     '[[reader]]\nname = "a"\nspread = nan', '[[reader]]\nname = "a"\nhand_over = 2',
     '[[reader]]\nname = "a"\nshift = 3', '[[reader]]\nname = "a"\n[[reader]]\nname = "a"'],
)  # fmt: skip
def test_a_crew_that_is_none_is_refused_by_name(tmp_path, text):
    (tmp_path / "crew.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"crew\.toml"):
        crew.load(tmp_path / "crew.toml")


@pytest.mark.system  # Argon2 takes its time
def test_readers_get_accounts_for_as_long_as_they_read_and_never_somebody_s(tmp_path):
    with Room(tmp_path / "data") as room:
        taken = accounts.create(room.database, "Simulated 2", "radiologist", ward.SITE, "correct horse battery")
        members = crew.alike(1, Skill(), Habit())
        for _ in range(2):  # the second time it is there, disabled
            with crew.employed(room.database, members, ward.SITE) as passwords:
                accounts.log_in(room.database, "Simulated 1", passwords["Simulated 1"])
            with pytest.raises(DeniedError):
                accounts.log_in(room.database, "Simulated 1", passwords["Simulated 1"])
        own = accounts.find(room.database, ward.SITE, "Simulated 1")
        accounts.change(room.database, ward.SITE, own.id, disabled=False)  # as one whose simulation was killed
        with crew.employed(room.database, members, ward.SITE) as passwords:
            accounts.log_in(room.database, "Simulated 1", passwords["Simulated 1"])

        def refused():
            with (
                pytest.raises(ClinicError, match="is somebody's"),
                crew.employed(room.database, crew.alike(2, Skill(), Habit()), ward.SITE),
            ):
                pass

        refused()
        assert accounts.find(room.database, ward.SITE, "Simulated 1").disabled_at is not None
        assert accounts.find(room.database, ward.SITE, "Simulated 2").disabled_at is None
        accounts.change(room.database, ward.SITE, taken.id, disabled=True)
        refused()  # nobody who left comes back as a simulated reader


def test_each_reader_needs_a_token_of_their_own():
    with pytest.raises(ConfigError, match="2 tokens for 3"):
        crew.alike(3, Skill(), Habit(), ["a", "b"])
    assert [m.token for m in crew.alike(2, Skill(), Habit(), ["a", "b"])] == ["a", "b"]


def test_the_case_of_a_study_is_found_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "t.jsonl"
    case = Case("1.2", "", "p", "", datetime.now(UTC).isoformat(), "", "accepted", 0)
    with truth.Writer(path, CLOCK) as writer:
        following = crew.Following(path)
        assert following.case("1.2", "") is None
        writer.write(case)
        assert following.case("1.2", "") == case
    assert CLOCK.at(CLOCK.began + timedelta(seconds=1)) > CLOCK.start


def test_two_crews_of_the_same_names_do_not_read_at_once(tmp_path):
    Store.open(tmp_path / "clinic").close()
    place = tmp_path / "clinic" / "improve" / "simulate" / hashlib.sha256(b"Simulated 1").hexdigest()[:16]
    words = ["simulate", "readers", str(tmp_path / "t.jsonl"), "--data", str(tmp_path / "clinic"), "--readers", "1"]
    with alone(place, "simulate readers"):
        said = CliRunner().invoke(app, words)
    assert "another `wetread simulate readers` is at work" in str(said.exception)
