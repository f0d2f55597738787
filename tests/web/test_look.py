"""Theme and time zone: what the server writes, before any script runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from ward import NameReader, dicom

from wetread.clinic import access
from wetread.clinic.access import Role
from wetread.config import Settings, load
from wetread.errors import ConfigError
from wetread.web import look
from wetread.web.app import create_app
from wetread.web.security import COOKIE, csrf_token

BERLIN = ZoneInfo("Europe/Berlin")


def browser(app: Any, name: str, role: Role = Role.RADIOLOGIST) -> TestClient:
    http = TestClient(app, base_url="http://127.0.0.1")
    assert http.post("/login", data={"code": access.login_code(app.state.clinic.database, name, role, "default")}).url
    return http


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    app = create_app(tmp_path_factory.mktemp("clinic"), Settings(threads=1, zone="Asia/Tokyo"), models=[NameReader()])
    with TestClient(app, base_url="http://127.0.0.1") as http:
        token = access.create(app.state.clinic.database, "feeder", "service", "default")
        headers = {"Authorization": f"Bearer {token}"}
        assert http.post("/api/v1/studies", files={"files": ("1.dcm", dicom(0))}, headers=headers).status_code == 201
        yield app


def keep(http: TestClient, **form: str) -> Any:
    return http.post("/settings", data={"csrf": csrf_token(http.cookies[COOKIE]), **form})


def test_the_theme_is_in_the_page_before_any_script_and_is_the_readers_wherever_they_log_in(app: Any) -> None:
    first, other = browser(app, "Dr Light"), browser(app, "Dr Dark")
    assert '<html lang="en" class="dark"' in first.get("/").text
    assert keep(first, theme="light", zone="").status_code == 200
    for page in ("/", "/settings", "/password"):
        assert 'class="light"' in browser(app, "Dr Light").get(page).text
    assert 'class="dark"' in other.get("/").text
    assert keep(first, theme="system", zone="").status_code == 200
    assert '<meta name="color-scheme" content="light dark">' in first.get("/").text


def test_what_cannot_be_is_refused_and_nothing_kept(app: Any) -> None:
    http = browser(app, "Dr Odd")
    for form in ({"theme": "pink"}, {"theme": "dark", "zone": "Mars/Olympus"}, {"theme": "light", "zone": "../passwd"}):
        answer = keep(http, **form)
        assert (answer.status_code, 'role="alert"' in answer.text) == (422, True)
    assert 'class="dark"' in http.get("/").text
    assert http.post("/settings", data={"theme": "light"}).status_code == 403  # not from our own page


def test_times_are_told_in_the_zone_of_reader_else_site_else_browser(app: Any) -> None:
    http = browser(app, "Dr Zone")
    http.cookies.set(look.COOKIE, "America%2FNew_York")
    found = re.search(r'class="arrived nowrap"><time datetime="([^"]+)"', http.get("/").text)
    assert found
    arrived = datetime.fromisoformat(found[1])
    for chosen, zone in (("", "Asia/Tokyo"), ("browser", "America/New_York"), ("Europe/Berlin", "Europe/Berlin")):
        keep(http, theme="dark", zone=chosen)
        text = http.get("/").text
        assert f'data-zone="{zone}"' in text
        assert f">{arrived.astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M}</time>" in text
        assert f'name="zone" id="zone" value="{zone}"' in text  # the days of the filter are the reader's, too


def test_a_cookie_that_is_no_zone_says_nothing(app: Any) -> None:
    http = browser(app, "Dr Cookie")
    keep(http, theme="dark", zone="browser")
    for made_up in ("../../etc/passwd", "x" * 300, "%00", "Europe", ""):
        http.cookies.set(look.COOKIE, made_up)
        answer = http.get("/")
        assert answer.status_code == 200
        assert 'data-zone=""' in answer.text


@pytest.mark.parametrize(
    ("moment", "local", "exact"),
    [
        # Clocks go forward: 02:00 does not come. They go back: 02:30 comes twice, and the offset tells them apart.
        ("2026-03-29T00:59:59", "2026-03-29 01:59", "2026-03-29 01:59:59 UTC+01:00"),
        ("2026-03-29T01:00:00", "2026-03-29 03:00", "2026-03-29 03:00:00 UTC+02:00"),
        ("2026-10-25T00:30:00", "2026-10-25 02:30", "2026-10-25 02:30:00 UTC+02:00"),
        ("2026-10-25T01:30:00", "2026-10-25 02:30", "2026-10-25 02:30:00 UTC+01:00"),
        ("2026-12-31T23:30:00", "2027-01-01 00:30", "2027-01-01 00:30:00 UTC+01:00"),
    ],
)
def test_the_edges_of_summer_time(moment: str, local: str, exact: str) -> None:
    at = datetime.fromisoformat(moment).replace(tzinfo=UTC)
    with look.shown(look.Look(zone=BERLIN)):
        assert (look.local(at), look.exact(at)) == (local, exact)
    assert look.exact(at) == f"{at:%Y-%m-%d %H:%M:%S} UTC"  # without a reader


@given(st.datetimes(datetime(1900, 1, 2), datetime(2200, 1, 1), timezones=st.just(UTC)), st.sampled_from(look.zones()))
def test_the_exact_time_is_one_moment_only(moment: datetime, name: str) -> None:
    zone = ZoneInfo(name)
    with look.shown(look.Look(zone=zone)):
        words = look.exact(moment)
    day, clock, offset = words.split(" ")
    sign, hours, minutes = re.fullmatch(r"UTC([+-])(\d\d):(\d\d)", offset).groups()  # type: ignore[union-attr]
    shift = timedelta(hours=int(hours), minutes=int(minutes)) * (1 if sign == "+" else -1)
    back = datetime.fromisoformat(f"{day} {clock}").replace(tzinfo=timezone(shift))
    assert abs(back - moment) < timedelta(minutes=1)  # before 1972 some offsets had seconds


def test_the_ends_of_the_calendar_are_told_in_utc() -> None:
    with look.shown(look.Look(zone=ZoneInfo("Asia/Tokyo"))):
        assert look.local(datetime.max.replace(tzinfo=UTC)) == "9999-12-31 23:59"


def test_a_site_zone_that_is_none_is_an_error_that_names_it() -> None:
    assert load(environment={"WETREAD_ZONE": "Europe/Paris"}).zone == "Europe/Paris"
    for wrong in ("Mars/Olympus", "../etc", "/etc/localtime"):
        with pytest.raises(ConfigError, match=r"WETREAD_ZONE: zone = .* no time zone is called so"):
            load(environment={"WETREAD_ZONE": wrong})


def test_settings_lead_to_what_the_role_may_see_and_nowhere_else(app: Any) -> None:
    for role in (Role.RADIOLOGIST, Role.ENGINEER, Role.ADMINISTRATOR):
        http = browser(app, f"Dr {role}", role)
        text = http.get("/settings").text
        links = set(re.findall(r'<a href="(/[^"]*)"', text))
        assert {address: http.get(address).status_code for address in links} == dict.fromkeys(links, 200)
        assert ("/settings/rule" in links) == (role is Role.ADMINISTRATOR)
