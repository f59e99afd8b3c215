from __future__ import annotations

import pytest

from app.errors import SettingsFault
from app.settings import effective_rows, load_settings, reference_rows
from tests.delivery.peers import Authority

SINK = {"JETHOOK_SINKS__CRM__URL": "https://crm.example.com/hooks"}
OAUTH = {
    "JETHOOK_SINKS__CRM__OAUTH_TOKEN_URL": "https://id.example.com/token",
    "JETHOOK_SINKS__CRM__OAUTH_CLIENT_ID": "relay",
    "JETHOOK_SINKS__CRM__OAUTH_CLIENT_SECRET": "hunter2",
}


def crm(**values: str) -> dict[str, str]:
    return SINK | {f"JETHOOK_SINKS__CRM__{name}": value for name, value in values.items()}


def faults_of(environ: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsFault) as raised:
        load_settings(environ, env_file=None)
    return [fault.removeprefix("JETHOOK_SINKS__CRM__") for fault in raised.value.faults]


def test_a_setting_that_ends_in_file_is_no_twin(tmp_path):
    authority = Authority(tmp_path, "ours")
    us = authority.issue()

    sink = load_settings(
        crm(CA_FILE=authority.ca_file, CLIENT_CERT_FILE=us.cert_file, CLIENT_KEY_FILE=us.key_file), env_file=None
    ).sinks["crm"]

    # The paths themselves, not what the files hold.
    assert (sink.ca_file, sink.client_cert_file, sink.client_key_file) == (authority.ca_file, us.cert_file, us.key_file)


def test_such_a_setting_may_come_from_the_env_file_too(tmp_path):
    authority = Authority(tmp_path, "ours")
    env_file = tmp_path / ".env"
    env_file.write_text(f"JETHOOK_SINKS__CRM__CA_FILE={authority.ca_file}\n", encoding="utf-8")

    assert load_settings(SINK, env_file=env_file).sinks["crm"].ca_file == authority.ca_file
    assert load_settings(crm(CA_FILE=authority.ca_file), env_file=env_file).sinks["crm"].ca_file == authority.ca_file


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("CA", "CA_FILE"),
        ("CA_FILE_FILE", "CA_FILE"),
        ("CLIENT_KEY", "CLIENT_KEY_FILE"),
        ("OAUTH_SCOPE_FILE", "OAUTH_SCOPE"),
    ],
)
def test_what_is_no_setting_and_no_twin_is_unknown(name, near):
    assert faults_of(crm(**{name: "x"})) == [f"{name}: no such setting; did you mean JETHOOK_SINKS__CRM__{near}?"]


def test_secrets_of_the_way_may_come_from_files(tmp_path):
    for name, text in (("secret", "hunter2\n"), ("id", "relay\n"), ("proxy", "http://u:p@proxy.example:3128\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")

    sink = load_settings(
        crm(
            OAUTH_TOKEN_URL="https://id.example.com/token",
            OAUTH_CLIENT_ID_FILE=str(tmp_path / "id"),
            OAUTH_CLIENT_SECRET_FILE=str(tmp_path / "secret"),
            PROXY_FILE=str(tmp_path / "proxy"),
        ),
        env_file=None,
    ).sinks["crm"]

    assert sink.oauth_client_secret.get_secret_value() == "hunter2"
    assert (sink.oauth_client_id, sink.proxy) == ("relay", "http://u:p@proxy.example:3128")


def test_all_faults_of_a_way_are_told_together_and_with_others(tmp_path):
    us = Authority(tmp_path, "ours").issue()

    assert faults_of(
        crm(
            CA_FILE="/none.pem",
            CLIENT_CERT_FILE=us.cert_file,
            OAUTH_CLIENT_ID="relay",
            CONCURRENCY="0",
            PROXY="socks5://p",
        )
    ) == [
        "CA_FILE: cannot read '/none.pem': No such file or directory",
        "CLIENT_KEY_FILE: is required with CLIENT_CERT_FILE",
        "OAUTH_TOKEN_URL: is required with OAUTH_CLIENT_ID",
        "OAUTH_CLIENT_SECRET: is required with OAUTH_CLIENT_ID",
        "PROXY: must be a URL that starts with http:// or https:// and names a host",
        "CONCURRENCY: input should be greater than or equal to 1",
    ]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"PROXY": "http://p:1/path"}, "PROXY: must have no path, query and fragment"),
        ({"PROXY": "http://u:%E2%82%AC@p:1"}, "PROXY: may hold Latin-1 characters only in its user and password"),
        ({"OAUTH_SCOPE": "x"}, "OAUTH_TOKEN_URL: is required with OAUTH_SCOPE"),
        (
            {"SECRETS": "whpk_AAAA"},
            "SECRETS: is the receiver's public key (whpk_); signing needs the private one (whsk_)",
        ),
    ],
)
def test_a_way_that_cannot_work_is_refused(values, fault):
    assert fault in faults_of(crm(**values))


@pytest.mark.parametrize(
    "other",
    [{"HEADERS": '{"Authorization": "Bearer x"}'}, {"URL": "https://u:p@crm.example.com/"}],
    ids=["headers", "url"],
)
def test_a_token_and_other_credentials_exclude_each_other(other):
    assert faults_of(OAUTH | crm(**other)) == [
        "OAUTH_TOKEN_URL: HEADERS or URL give credentials too; a request can carry one kind"
    ]


def test_a_client_certificate_needs_tls(tmp_path):
    us = Authority(tmp_path, "ours").issue()

    faults = faults_of(crm(URL="http://crm.example.com", CLIENT_CERT_FILE=us.cert_file, CLIENT_KEY_FILE=us.key_file))

    assert faults == ["CLIENT_CERT_FILE: needs a URL that starts with https://"]


def test_the_ways_secrets_are_masked():
    settings = load_settings(SINK | OAUTH | crm(PROXY="http://u:hunter2@proxy.example:3128"), env_file=None)

    shown = dict(effective_rows(settings))
    assert shown["JETHOOK_SINKS__CRM__PROXY"] == "http://u:***@proxy.example:3128"
    assert shown["JETHOOK_SINKS__CRM__OAUTH_CLIENT_SECRET"] == "***"
    assert "hunter2" not in str(shown)
    assert {row.variable.rpartition("__")[2] for row in reference_rows() if row.secret} >= {
        "PROXY", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET"
    }  # fmt: skip


# --- addresses that may not be connected to --------------------------------------------------------------------------

NEVER = "its address is never connected to: link-local, multicast, unspecified or a cloud's metadata service; change the URL"  # noqa: E501  # fmt: skip
DENIED = "its address is in JETHOOK_SINK_DENY_CIDRS, and JETHOOK_SINK_ALLOW_CIDRS makes no exception for it"


def test_addresses_are_lists_of_networks():
    settings = load_settings(
        {"JETHOOK_SINK_DENY_CIDRS": "10.0.0.0/8, fd00::/8,", "JETHOOK_SINK_ALLOW_CIDRS": '["10.1.2.0/24"]'},
        env_file=None,
    )

    assert [str(network) for network in settings.address_rules.deny] == ["10.0.0.0/8", "fd00::/8"]
    assert [str(network) for network in settings.address_rules.allow] == ["10.1.2.0/24"]
    assert ("JETHOOK_SINK_DENY_CIDRS", "10.0.0.0/8,fd00::/8") in effective_rows(settings)


@pytest.mark.parametrize("url", ["http://169.254.169.254/x", "http://2852039166/", "http://[::ffff:169.254.1.1]/"])
def test_a_literal_address_that_is_never_connected_to_is_refused_at_the_start_wherever_it_stands(url):
    assert faults_of(crm(URL=url)) == [f"URL: {NEVER}"]
    assert faults_of(crm(**{name.removeprefix("JETHOOK_SINKS__CRM__"): v for name, v in OAUTH.items()}) | {
        "JETHOOK_SINKS__CRM__OAUTH_TOKEN_URL": url
    }) == [f"OAUTH_TOKEN_URL: {NEVER}"]  # fmt: skip
    assert faults_of(crm(PROXY=url.removesuffix("x"))) == [f"PROXY: {NEVER}"]


def test_a_metadata_host_is_refused_by_its_name():
    assert faults_of(crm(URL="http://metadata.google.internal/")) == [f"URL: {NEVER}"]


def test_a_literal_address_that_the_settings_deny_is_refused_with_all_other_faults():
    environ = crm(URL="http://10.0.0.7/", PROXY="http://10.1.2.3:3128", TIMEOUT_SECONDS="soon") | {
        "JETHOOK_SINK_DENY_CIDRS": "10.0.0.0/8",
        "JETHOOK_SINK_ALLOW_CIDRS": "10.1.2.0/24",
    }

    faults = faults_of(environ)

    assert faults[0] == f"URL: {DENIED}"
    assert [fault.partition(":")[0] for fault in faults] == ["URL", "TIMEOUT_SECONDS"]


def test_networks_that_are_none_are_told_together_by_their_place_and_not_repeated():
    environ = SINK | {
        "JETHOOK_SINK_DENY_CIDRS": "10.1.2.3/8, 192.168.0.0/16, hunter2",
        "JETHOOK_SINK_ALLOW_CIDRS": "10.0.0.0/8, 169.254.169.254",
    }

    assert faults_of(environ) == [
        "JETHOOK_SINK_DENY_CIDRS: entry 1 has bits set behind its prefix; write 10.0.0.0/8; entry 3 is no network;"
        " write it as 10.0.0.0/8, fd00::/8 or a single address",
        "JETHOOK_SINK_ALLOW_CIDRS: entry 2 is link-local or the like, which no setting opens",
    ]


def test_exceptions_to_nothing_are_refused_as_they_would_close_no_door():
    assert faults_of(SINK | {"JETHOOK_SINK_ALLOW_CIDRS": "203.0.113.0/24"}) == [
        "JETHOOK_SINK_ALLOW_CIDRS: has no effect without JETHOOK_SINK_DENY_CIDRS;"
        " 0.0.0.0/0,::/0 there denies all others"
    ]


@pytest.mark.parametrize("deny", ['["10.0.0.0/8", 7]', "[10", '[["10.0.0.0/8"]]', '{"a":1}'])
def test_a_list_of_another_kind_is_a_fault_and_no_crash(deny):
    (fault,) = faults_of(SINK | {"JETHOOK_SINK_DENY_CIDRS": deny})

    assert fault.startswith("JETHOOK_SINK_DENY_CIDRS: ")
