"""Reading the environment: every form a value may take, and every fault told at once and without the value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import SettingsFault
from app.settings import Settings, effective_rows, load_settings, mask_url, reference_rows

SECRET = "whsec_" + "QUFB" * 8
SINK = {"JETHOOK_SINKS__CRM__URL": "https://crm.example.com/hooks"}


def load(environ: dict[str, str], env_file: Path | None = None) -> Settings:
    return load_settings(environ, env_file=env_file)


def faults_of(environ: dict[str, str], env_file: Path | None = None) -> list[str]:
    with pytest.raises(SettingsFault) as raised:
        load(environ, env_file)
    return list(raised.value.faults)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


# --- values ----------------------------------------------------------------------------------------------------------


def test_nothing_set_is_a_working_service_with_one_webhook():
    settings = load({})

    assert list(settings.effective_webhooks) == ["default"]
    assert list(settings.effective_connections) == ["default"]
    assert not settings.effective_connections["default"].has_keys
    assert settings.sinks == {}
    assert settings.database_url.get_secret_value() == "sqlite:///jethook.db"


def test_nested_variables_make_groups_by_name():
    settings = load(
        {
            "JETHOOK_CONNECTIONS__EU__API_KEY": "public",
            "JETHOOK_CONNECTIONS__EU__SECRET_KEY": "private",
            "JETHOOK_WEBHOOKS__BIG_ORDERS__CONNECTION": "eu",
            "JETHOOK_SINKS__CRM_2__URL": "https://crm.example.com",
            "JETHOOK_SINKS__CRM_2__TIMEOUT_SECONDS": "2.5",
        }
    )

    assert settings.webhooks["big_orders"].connection == "eu"
    assert settings.connections["eu"].has_keys
    assert settings.sinks["crm_2"].timeout_seconds == 2.5


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("open,click", id="comma"),
        pytest.param(" open , click ,", id="blanks and a comma too many"),
        pytest.param('["open", "click"]', id="JSON"),
        pytest.param("open,click,open", id="a repeated one"),
    ],
)
def test_a_list_is_comma_separated_or_json(text: str):
    assert load({"JETHOOK_WEBHOOKS__A__EVENTS": text}).webhooks["a"].events == ("open", "click")


@pytest.mark.parametrize("text", ["0.5,2", "[0.5, 2]"])
def test_a_list_of_numbers_takes_fractions(text: str):
    settings = load(SINK | {"JETHOOK_SINKS__CRM__RETRY_SCHEDULE_SECONDS": text})

    assert settings.sinks["crm"].retry_schedule_seconds == (0.5, 2)


def test_headers_are_a_json_object_and_masked():
    settings = load(SINK | {"JETHOOK_SINKS__CRM__HEADERS": '{"Authorization": "Bearer s3cr3t"}'})

    assert settings.sinks["crm"].headers["Authorization"].get_secret_value() == "Bearer s3cr3t"
    assert dict(effective_rows(settings))["JETHOOK_SINKS__CRM__HEADERS"] == "Authorization=***"


def test_a_blank_variable_is_not_set():
    settings = load({"JETHOOK_PORT": "", "JETHOOK_API_KEYS": " ", "JETHOOK_SECRET_KEY_FILE": ""})

    assert (settings.port, settings.api_keys, settings.secret_key) == (8000, (), None)


def test_names_may_be_written_in_small_letters():
    assert load({"jethook_port": "9000"}).port == 9000


def test_foreign_variables_are_none_of_our_business():
    assert load({"PORT": "x", "MJ_APIKEY_OTHER": "x", "MYJETHOOK_X": "x"}) == load({})


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_comes_from_a_file_without_the_line_break_at_its_end(file: Callable[[str, str], Path], end: str):
    path = file("key", "sixteen characters or more" + end)

    key = load({"JETHOOK_SECRET_KEY_FILE": str(path)}).secret_key

    assert key is not None
    assert key.get_secret_value() == "sixteen characters or more"


@pytest.mark.parametrize(
    "variable",
    [
        "JETHOOK_API_KEYS",
        "JETHOOK_READ_API_KEYS",
        "JETHOOK_WEBHOOKS__A__PASSWORDS",
        "JETHOOK_CONNECTIONS__A__API_KEY",
        "JETHOOK_CONNECTIONS__A__SECRET_KEY",
        "MJ_APIKEY_PUBLIC",
        "MJ_APIKEY_PRIVATE",
    ],
)
def test_a_value_from_a_file_is_the_same_as_one_set(file: Callable[[str, str], Path], variable: str):
    assert load({f"{variable}_FILE": str(file("f", "abc\n"))}) == load({variable: "abc"})


def test_the_database_url_a_sinks_url_and_its_secrets_come_from_files(file: Callable[[str, str], Path]):
    settings = load(
        {
            "JETHOOK_DATABASE_URL_FILE": str(file("db", "postgresql://u:p@db/jethook\n")),
            "JETHOOK_SINKS__CRM__URL_FILE": str(file("url", "https://crm.example.com/token\n")),
            "JETHOOK_SINKS__CRM__SECRETS_FILE": str(file("secrets", f"{SECRET},{SECRET}\n")),
            "JETHOOK_SINKS__CRM__HEADERS_FILE": str(file("headers", '{"x-token": "t"}\n')),
        }
    )

    assert settings.database_url.get_secret_value() == "postgresql://u:p@db/jethook"
    assert settings.sinks["crm"].url == "https://crm.example.com/token"
    assert len(settings.sinks["crm"].secrets) == 2
    assert list(settings.sinks["crm"].headers) == ["x-token"]


def test_what_is_no_secret_has_no_file_twin():
    assert faults_of({"JETHOOK_PORT_FILE": "x"}) == ["JETHOOK_PORT_FILE: no such setting; did you mean JETHOOK_PORT?"]


def test_a_file_that_cannot_be_read_is_a_fault_that_repeats_nothing(tmp_path: Path):
    faults = faults_of({"JETHOOK_SECRET_KEY_FILE": "the-secret-itself", "JETHOOK_API_KEYS_FILE": str(tmp_path)})

    assert faults == [
        "JETHOOK_SECRET_KEY_FILE: cannot read the file it names: No such file or directory",
        "JETHOOK_API_KEYS_FILE: cannot read the file it names: Is a directory",
    ]


def test_a_file_that_is_empty_or_no_text_is_a_fault(file: Callable[[str, str], Path], tmp_path: Path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")

    faults = faults_of(
        {"JETHOOK_API_KEYS_FILE": str(file("empty", "\n")), "JETHOOK_SECRET_KEY_FILE": str(tmp_path / "binary")}
    )

    assert faults == [
        "JETHOOK_API_KEYS_FILE: the file it names is empty",
        "JETHOOK_SECRET_KEY_FILE: cannot read the file it names: not UTF-8",
    ]


def test_a_secret_and_its_file_at_once_is_a_fault(file: Callable[[str, str], Path]):
    faults = faults_of({"JETHOOK_API_KEYS": "abc", "JETHOOK_API_KEYS_FILE": str(file("f", "abc"))})

    assert faults == ["JETHOOK_API_KEYS_FILE: JETHOOK_API_KEYS is set too; set one of them"]


# --- .env and precedence ---------------------------------------------------------------------------------------------


def test_a_dotenv_file_is_read_and_the_environment_wins(file: Callable[[str, str], Path]):
    env_file = file(
        ".env", "# ours\nJETHOOK_PORT=9001\nJETHOOK_HOST='0.0.0.0'\nexport JETHOOK_LOG_LEVEL=debug\nOTHER=1\n"
    )

    settings = load({"jethook_port": "9002"}, env_file)

    assert (settings.port, settings.host, settings.log_level) == (9002, "0.0.0.0", "debug")


def test_a_file_named_in_the_environment_wins_over_a_value_in_dotenv(file: Callable[[str, str], Path]):
    env_file = file(".env", "JETHOOK_API_KEYS=old\n")

    settings = load({"JETHOOK_API_KEYS_FILE": str(file("key", "new"))}, env_file)

    assert [key.get_secret_value() for key in settings.api_keys] == ["new"]


def test_a_dotenv_file_that_is_no_text_is_a_fault(tmp_path: Path):
    env_file = tmp_path / ".env"
    env_file.write_bytes(b"JETHOOK_PORT=\xff\n")

    assert faults_of({}, env_file) == [f"{env_file}: cannot be read: not UTF-8"]


def test_unknown_names_in_dotenv_are_faults_too(file: Callable[[str, str], Path]):
    assert faults_of({}, file(".env", "JETHOOK_PROT=1\n")) == [
        "JETHOOK_PROT: no such setting; did you mean JETHOOK_PORT?"
    ]


@pytest.mark.parametrize("mailjet_first", [True, False])
def test_mailjets_own_names_combine_with_the_connection_default_which_wins(mailjet_first: bool):
    mailjet = {"MJ_APIKEY_PUBLIC": "public", "MJ_APIKEY_PRIVATE": "private"}
    ours = {
        "JETHOOK_CONNECTIONS__DEFAULT__SECRET_KEY": "newer",
        "JETHOOK_CONNECTIONS__DEFAULT__BASE_URL": "https://api.us.mailjet.com/",
    }

    connection = load(mailjet | ours if mailjet_first else ours | mailjet).effective_connections["default"]

    assert connection.api_key == "public"
    assert connection.secret_key is not None
    assert connection.secret_key.get_secret_value() == "newer"
    assert connection.base_url == "https://api.us.mailjet.com"


# --- faults ----------------------------------------------------------------------------------------------------------


def test_all_faults_are_told_together_each_by_its_variable():
    faults = faults_of(
        {
            "JETHOOK_PROT": "8000",
            "JETHOOK_PORT": "none",
            "JETHOOK_PUBLIC_URL": "hooks.example.com",
            "JETHOOK_SECRET_KEY": "short",
            "JETHOOK_API_KEYS_FILE": "/does/not/exist",
            "JETHOOK_DATABASE_URL": "mysql://db/jethook",
            "JETHOOK_WEBHOOKS__A__EVENTS": "open,opened",
            "JETHOOK_WEBHOOKS__A__CONNECTION": "eu",
            "JETHOOK_WEBHOOKS__A__ON_CONFLICT": "fight",
            "JETHOOK_SINKS__CRM__TIMEOUT_SECONDS": "0",
            "JETHOOK_SINKS__CRM__CONNECT_TIMEOUT_SECONDS": "1e12",
            "JETHOOK_SINKS__CRM__WEBHOOKS": "a,b",
            "JETHOOK_SINKS__CRM__EVENTS": "opened",
            "JETHOOK_SINKS__CRM__RETRY_SCHEDULE_SECONDS": "[1, 2",
        }
    )

    assert sorted(fault.partition(":")[0] for fault in faults) == [
        "JETHOOK_API_KEYS_FILE",
        "JETHOOK_DATABASE_URL",
        "JETHOOK_PORT",
        "JETHOOK_PROT",
        "JETHOOK_PUBLIC_URL",
        "JETHOOK_SECRET_KEY",
        "JETHOOK_SINKS__CRM__CONNECT_TIMEOUT_SECONDS",
        "JETHOOK_SINKS__CRM__EVENTS",
        "JETHOOK_SINKS__CRM__RETRY_SCHEDULE_SECONDS",
        "JETHOOK_SINKS__CRM__TIMEOUT_SECONDS",
        "JETHOOK_SINKS__CRM__URL",
        "JETHOOK_SINKS__CRM__WEBHOOKS",
        "JETHOOK_WEBHOOKS__A__CONNECTION",
        "JETHOOK_WEBHOOKS__A__EVENTS",
        "JETHOOK_WEBHOOKS__A__ON_CONFLICT",
    ]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("bounced", "did you mean bounce?"),
        ("jethook.sink.open", "did you mean jethook.sink.opened?"),
        ("jethook", "did you mean jethook.*?"),
        ("jethook.deliveries.dead", "did you mean jethook.delivery.dead?"),
        ("xyz", "(known: sent, open, "),
    ],
)
def test_an_event_type_that_nobody_sends_is_refused_with_the_nearest_one(word: str, told: str):
    (fault,) = faults_of(SINK | {"JETHOOK_SINKS__CRM__EVENTS": f"bounce,{word}"})

    assert fault.startswith(f"JETHOOK_SINKS__CRM__EVENTS: no event type {word!r}")
    assert told in fault


def test_a_sink_may_ask_for_operator_events_beside_mailjets():
    settings = load(SINK | {"JETHOOK_SINKS__CRM__EVENTS": "bounce,jethook.*,jethook.delivery.dead"})

    assert settings.sinks["crm"].events == ("bounce", "jethook.*", "jethook.delivery.dead")


def test_the_name_of_operator_events_is_no_webhooks():
    assert faults_of({"JETHOOK_WEBHOOKS__JETHOOK__EVENTS": "open"}) == [
        "JETHOOK_WEBHOOKS__JETHOOK: this name is kept for what Jethook tells about itself; choose another"
    ]
    assert faults_of(SINK | {"JETHOOK_SINKS__CRM__WEBHOOKS": "jethook"}) == [
        "JETHOOK_SINKS__CRM__WEBHOOKS: no webhook 'jethook' is configured (configured: default)"
    ]


def test_names_that_are_used_but_not_configured_are_all_told():
    faults = faults_of(
        SINK
        | {
            "JETHOOK_WEBHOOKS__A__CONNECTION": "eu",
            "JETHOOK_WEBHOOKS__B__CONNECTION": "us",
            "JETHOOK_SINKS__CRM__WEBHOOKS": "a,c",
        }
    )

    assert faults == [
        "JETHOOK_WEBHOOKS__A__CONNECTION: no connection 'eu' is configured (configured: default)",
        "JETHOOK_WEBHOOKS__B__CONNECTION: no connection 'us' is configured (configured: default)",
        "JETHOOK_SINKS__CRM__WEBHOOKS: no webhook 'c' is configured (configured: a, b)",
    ]


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("JETHOOK_SINKS__CRM__TIMEOUT", "JETHOOK_SINKS__CRM__TIMEOUT_SECONDS"),
        ("JETHOOK_SINKS__CRM__RETRY_SCHEDULE", "JETHOOK_SINKS__CRM__RETRY_SCHEDULE_SECONDS"),
        ("JETHOOK_SINK__CRM__URL", "JETHOOK_SINKS__CRM__URL"),
        ("JETHOOK_SINKS__URL", "JETHOOK_SINKS__{N}__URL"),
        ("JETHOOK_WEBHOOKS__BIG_ORDERS__EVENT", "JETHOOK_WEBHOOKS__BIG_ORDERS__EVENTS"),
        ("JETHOOK_CONNECTIONS__EU__KEY", "JETHOOK_CONNECTIONS__EU__API_KEY"),
        ("JETHOOK_DATABASE", "JETHOOK_DATABASE_URL"),
        ("JETHOOK_API_KEY", "JETHOOK_API_KEYS"),
        ("JETHOOK_REGISTER_EVERY", "JETHOOK_REGISTER_EVERY_SECONDS"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(variable: str, meant: str):
    assert faults_of({variable: "1"}) == [f"{variable}: no such setting; did you mean {meant}?"]


def test_a_name_like_no_other_is_refused_without_a_guess():
    assert faults_of({"JETHOOK_XYZZY_QQ": "1"}) == ["JETHOOK_XYZZY_QQ: no such setting"]


@pytest.mark.parametrize("name", ["MY-CRM", "_CRM", "X" * 64])
def test_a_name_of_our_own_is_letters_digits_and_single_underscores(name: str):
    (fault,) = faults_of({f"JETHOOK_WEBHOOKS__{name}__CONNECTION": "default"})

    assert fault.startswith(f"JETHOOK_WEBHOOKS__{name}")


@pytest.mark.parametrize("variable", ["JETHOOK_API_KEYS", "JETHOOK_READ_API_KEYS", "JETHOOK_WEBHOOKS__A__PASSWORDS"])
def test_an_empty_key_is_refused_since_it_would_let_everybody_in(variable: str):
    assert faults_of({variable: '["", "abc"]'}) == [f"{variable}: must not be empty"]


def test_the_fault_of_a_value_from_a_file_names_the_variable_that_was_set(file: Callable[[str, str], Path]):
    (fault,) = faults_of({"JETHOOK_SECRET_KEY_FILE": str(file("f", "short"))})

    assert fault.startswith("JETHOOK_SECRET_KEY_FILE: ")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("JETHOOK_SECRET_KEY", "HUSH"),
        ("JETHOOK_DATABASE_URL", "mysql://u:HUSH@h/d"),
        ("JETHOOK_PUBLIC_URL", "https://u:HUSH@hooks.example.com"),
        ("JETHOOK_PUBLIC_URL", "https://u:HUSH/x@hooks.example.com"),
        ("JETHOOK_SINKS__CRM__URL", "https://u:HUSH/x@crm.example.com"),
        ("JETHOOK_SINKS__CRM__URL", "HUSH"),
        ("JETHOOK_SINKS__CRM__SECRETS", "HUSH"),
        ("JETHOOK_SINKS__CRM__SECRETS", "whsec_HUSH"),
        ("JETHOOK_SINKS__CRM__SECRETS", '["HUSH'),
        ("JETHOOK_SINKS__CRM__HEADERS", "HUSH"),
        ("JETHOOK_SINKS__CRM__HEADERS", '"HUSH"'),
        ("JETHOOK_SINKS__CRM__HEADERS", '{"x: HUSH": "y"}'),
        ("JETHOOK_SINKS__CRM__HEADERS", '{"x": "HUSH\\n"}'),
        ("JETHOOK_SINKS__CRM__HEADERS", '{"x": ["HUSH"]}'),
        ("JETHOOK_API_KEYS", '[["HUSH"]]'),
        ("JETHOOK_API_KEYS_FILE", "HUSH"),
        ("JETHOOK_WEBHOOKS__A__PASSWORDS", '[{"HUSH": 1}]'),
    ],
)
def test_no_fault_repeats_a_secret(variable: str, value: str):
    faults = faults_of(SINK | {variable: value})

    assert [fault.partition(":")[0] for fault in faults] == [variable]
    assert "HUSH" not in str(faults)


# --- showing ---------------------------------------------------------------------------------------------------------


def test_the_effective_settings_hold_no_secret():
    settings = load(
        {
            "JETHOOK_DATABASE_URL": "postgresql://jethook:HUSH@db:5432/jethook?password=HUSH",
            "JETHOOK_SECRET_KEY": "HUSH" * 4,
            "JETHOOK_API_KEYS": "HUSH1,HUSH2",
            "JETHOOK_READ_API_KEYS": "HUSH",
            "MJ_APIKEY_PUBLIC": "public",
            "MJ_APIKEY_PRIVATE": "HUSH",
            "JETHOOK_WEBHOOKS__A__PASSWORDS": "HUSH",
            "JETHOOK_SINKS__CRM__URL": "https://HUSH@crm.example.com/in?token=HUSH&HUSH#HUSH",
            "JETHOOK_SINKS__CRM__SECRETS": SECRET,
            "JETHOOK_SINKS__CRM__HEADERS": '{"x-token": "HUSH"}',
        }
    )

    rows = dict(effective_rows(settings))

    assert "HUSH" not in str(rows)
    assert SECRET not in str(rows)
    assert rows["JETHOOK_DATABASE_URL"] == "postgresql://jethook:***@db:5432/jethook?password=***"
    assert rows["JETHOOK_API_KEYS"] == "***,***"
    assert rows["JETHOOK_CONNECTIONS__DEFAULT__API_KEY"] == "public"
    assert rows["JETHOOK_SINKS__CRM__URL"] == "https://***@crm.example.com/in?token=***&***#***"


@pytest.mark.parametrize(
    "url",
    ["sqlite:///jethook.db", "sqlite:////data/jethook.db", "https://example.com/a/b", "http://[::1]:8000", "plain"],
)
def test_a_url_without_secrets_is_shown_as_it_is(url: str):
    assert mask_url(url) == url


def test_every_setting_is_in_the_reference_and_described():
    rows = reference_rows()

    assert len({row.variable for row in rows}) == len(rows)
    assert all(row.description for row in rows)
    assert {row.variable: row.default for row in rows}["JETHOOK_SINKS__{N}__URL"] == "required"
    assert {row.variable for row in rows if row.secret} == {
        "JETHOOK_SEND_API_KEYS",
        "JETHOOK_CONNECTIONS__{N}__SMS_TOKEN",
        "JETHOOK_SINKS__{N}__PROXY",
        "JETHOOK_SINKS__{N}__OAUTH_CLIENT_ID",
        "JETHOOK_SINKS__{N}__OAUTH_CLIENT_SECRET",
        "JETHOOK_DATABASE_URL",
        "JETHOOK_SECRET_KEY",
        "JETHOOK_API_KEYS",
        "JETHOOK_READ_API_KEYS",
        "JETHOOK_CONNECTIONS__{N}__API_KEY",
        "JETHOOK_CONNECTIONS__{N}__SECRET_KEY",
        "JETHOOK_WEBHOOKS__{N}__PASSWORDS",
        "JETHOOK_SINKS__{N}__URL",
        "JETHOOK_SINKS__{N}__SECRETS",
        "JETHOOK_SINKS__{N}__HEADERS",
        "MJ_APIKEY_PUBLIC",
        "MJ_APIKEY_PRIVATE",
    }


def test_a_sink_whose_url_is_blank_is_missed():
    assert faults_of({"JETHOOK_SINKS__CRM__URL": " "}) == ["JETHOOK_SINKS__CRM__URL: is required"]
