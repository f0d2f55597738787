"""Settings: file, environment and command line, in this order, and errors that name the culprit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wetread.config import Settings, by_site, load
from wetread.errors import ConfigError


def write(folder, text):
    file = folder / "wetread.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_without_file_or_environment_the_defaults_hold(tmp_path):
    assert load(environment={}) == Settings()
    assert load(tmp_path / "missing.toml", environment={}) == Settings()


def test_the_environment_wins_over_the_file_and_the_command_line_over_both(tmp_path):
    file = write(tmp_path, "batch_size = 3\nthreads = 3\nqueue_limit = 3\n")
    environment = {"WETREAD_THREADS": "4", "WETREAD_QUEUE_LIMIT": "4", "PATH": "/bin"}
    settings = load(file, environment, queue_limit=5, batch_delay_ms=None)
    assert (settings.batch_size, settings.threads, settings.queue_limit) == (3, 4, 5)
    assert settings.batch_delay_ms == Settings().batch_delay_ms


def test_os_environ_is_read_by_default(monkeypatch):
    monkeypatch.setenv("WETREAD_THREADS", "7")
    assert load().threads == 7


def test_lists_are_comma_separated_in_the_environment(tmp_path):
    assert load(environment={"WETREAD_MODELS": "pneumonia, /models/a b,"}).models == ["pneumonia", "/models/a b"]
    assert load(write(tmp_path, 'models = ["phantom"]'), environment={}).models == ["phantom"]


def test_a_list_in_the_environment_may_be_json():
    peers = load(environment={"WETREAD_DICOM_PEERS": ' ["*@127.0.0.1", "PACS@10.0.0.7:104"]'}).dicom_peers
    assert peers == ["*@127.0.0.1", "PACS@10.0.0.7:104"]


@pytest.mark.parametrize("word", ["0", "false", "off", "no"])
def test_switches_read_the_usual_words(word):
    assert load(environment={"WETREAD_AI": word}).ai is False


@pytest.mark.parametrize("name", ["WETREAD_REQUIRE", "WETREAD_TOKEN", "WETREAD_SHARED"])
def test_variables_of_tests_and_clients_are_no_settings(name):
    assert load(environment={name: "x"}) == Settings()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WETREAD_BATCHSIZE": "4"}, ["WETREAD_BATCHSIZE", "'batchsize'", "batch_size"]),
        ({"WETREAD_BATCH_SIZE": "many"}, ["WETREAD_BATCH_SIZE", "'many'", "integer"]),
        ({"WETREAD_BATCH_SIZE": "0"}, ["WETREAD_BATCH_SIZE", "'0'", "greater than or equal to 1"]),
        ({"WETREAD_POINT": "best"}, ["WETREAD_POINT", "'best'", "screen", "balanced"]),
        ({"WETREAD_BATCH_DELAY_MS": "nan"}, ["WETREAD_BATCH_DELAY_MS", "'nan'"]),
    ],
)
def test_a_bad_variable_is_named_with_its_value_and_what_is_allowed(environment, words):
    with pytest.raises(ConfigError) as caught:
        load(environment=environment)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batchsize = 4", ["wetread.toml", "'batchsize'", "batch_size"]),
        ('models = "pneumonia"', ["wetread.toml", "models", "'pneumonia'", "list"]),
        ("models = [1]", ["wetread.toml", "models"]),
        ("threads = 2.5", ["wetread.toml", "threads", "2.5"]),
        ("threads = ", ["wetread.toml", "not a TOML file"]),
    ],
)
def test_a_bad_file_is_named_with_key_and_value(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text), environment={})
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_a_file_of_other_bytes_is_an_error_of_ours(tmp_path):
    (tmp_path / "wetread.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"wetread\.toml: not a TOML file"):
        load(tmp_path / "wetread.toml", environment={})


def test_an_unknown_override_is_blamed_on_the_command_line():
    with pytest.raises(ConfigError, match=r"command line: .*'colour'"):
        load(environment={}, colour="red")


@given(st.dictionaries(st.sampled_from(sorted(Settings.model_fields)), st.text(max_size=12), max_size=3))
def test_any_text_gives_settings_or_one_line_that_names_a_variable(values):
    environment = {f"WETREAD_{name.upper()}": value for name, value in values.items()}
    message = ""
    try:
        load(environment=environment)
    except ConfigError as error:
        message = str(error)
    assert not message or any(name in message for name in environment)
    assert len(message.splitlines()) <= 1


def test_each_site_has_a_value_of_its_own():
    """The last one counts; a site may have the sign in its name."""
    assert by_site("days", [], int, "site=days") == {}
    found = by_site("days", [" north = 3", "north=4", "a=b=5"], int, "site=days")
    assert found == {"north": 4, "a=b": 5}


@pytest.mark.parametrize("bad", ["", "3", "north", "=3", " =3", "north=", "north=x", "north=1=x"])
def test_what_is_no_value_of_a_site_is_named(bad):
    with pytest.raises(ConfigError) as caught:
        by_site("days", ["south=1", bad], int, "site=days, such as north=3")
    assert str(caught.value) == f"days: {bad!r} must be site=days, such as north=3"


def test_settings_cannot_be_changed_while_the_application_runs():
    with pytest.raises(ValueError, match="frozen"):
        Settings().threads = 4


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_a_help_text_that_is_a_sentence(name):
    description = Settings.model_fields[name].description or ""
    assert description.endswith(".")
