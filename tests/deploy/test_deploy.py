"""The files under deploy/ against the code: what they name exists, and what must hold for them holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import __version__
from app.main import MAX_CONNECTOR_BODY_BYTES
from app.metrics import Metrics
from app.settings import load_settings, reference_rows

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".png")
YAML = [path for path in FILES if path.suffix in (".yaml", ".yml") and "templates" not in path.parts]


def name(path: Path) -> str:
    return str(path.relative_to(DEPLOY))


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


@pytest.fixture(scope="module")
def labels() -> dict[str, set[str]]:
    """Every sample name of ours -> its labels."""
    found: dict[str, set[str]] = {}
    metrics = Metrics(webhooks=["orders"], sinks=["crm"])
    for gauge in (metrics.registration_ok, metrics.last_event, metrics.completeness):
        gauge.labels("orders", "open")
    for family in metrics.registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.suffix in (".yaml", ".json") and "helm" not in p.parts], ids=name
)
def test_every_metric_that_is_named_exists_with_its_labels(path: Path, labels: dict[str, set[str]]) -> None:
    text = path.read_text().replace('\\"', '"')

    for metric, selector in re.findall(r"\b(jethook_[a-z_]+[a-z])(\{[^}]*\})?", text):
        assert metric in labels, metric
        asked = set(re.findall(r"([a-z_]+)(?:=~|!=|!~|=)", selector))
        assert asked <= labels[metric] | {"job", "instance"}, (metric, asked)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_setting_that_is_named_exists(path: Path) -> None:
    known = [re.sub(r"\\{N\\}", "[A-Z0-9_{}N]+", re.escape(row.variable)) for row in reference_rows()]
    every = re.compile("|".join(rf"{pattern}(_FILE)?" for pattern in known))

    for variable in re.findall(r"\bJETHOOK_[A-Z0-9_{}]*[A-Z0-9}]", path.read_text()):
        assert every.fullmatch(variable), variable


@pytest.mark.parametrize("path", YAML, ids=name)
def test_yaml_can_be_read(path: Path) -> None:
    assert documents(path)


def test_the_example_environment_is_taken_when_filled_in() -> None:
    lines = (DEPLOY / "example.env").read_text().splitlines()
    given = [line.lstrip("# ") for line in lines if re.match(r"(# )?(JETHOOK|MJ)_[A-Z0-9_]+=", line)]
    variables = dict(line.split("=", 1) for line in given)
    variables["JETHOOK_SECRET_KEY"] = "0123456789abcdef0123456789abcdef"
    variables["JETHOOK_SINKS__CRM__SECRETS"] = "whsec_c2lnbmluZy1zZWNyZXQtb2YtdGhlLWUyZS10ZXN0cw=="
    variables["JETHOOK_PUBLIC_URL"] = "https://hooks.example.com"

    settings = load_settings({name: value for name, value in variables.items() if value}, env_file=None)

    assert list(settings.sinks) == ["crm"]


def pods() -> list[dict[str, Any]]:
    return [d["spec"]["template"]["spec"] for d in documents(DEPLOY / "kubernetes/deployment.yaml")]


def test_pods_can_do_nothing_that_they_need_not() -> None:
    [pod] = pods()

    # A Service named jethook would become the variable JETHOOK_PORT, which is a setting: the pod would not start.
    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    for container in pod["initContainers"] + pod["containers"]:
        allowed = container["securityContext"]
        assert allowed["readOnlyRootFilesystem"] is True
        assert allowed["allowPrivilegeEscalation"] is False
        assert allowed["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]


def test_pods_migrate_first_and_are_asked_how_they_are() -> None:
    [pod] = pods()
    [container] = pod["containers"]

    assert [c["args"] for c in pod["initContainers"]] == [["migrate"]]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    # 5 s before SIGTERM, a second of 503, 20 s for what is in flight
    assert pod["terminationGracePeriodSeconds"] >= 5 + 1 + 20


def test_all_objects_select_the_pods_of_the_deployment() -> None:
    every = [d for path in (DEPLOY / "kubernetes").glob("*.yaml") for d in documents(path)]
    by_kind = {document["kind"]: document for document in every}
    pod_labels = by_kind["Deployment"]["spec"]["template"]["metadata"]["labels"]

    listed = by_kind["Kustomization"]["resources"]
    assert {path.name for path in (DEPLOY / "kubernetes").glob("*.yaml")} == {*listed, "kustomization.yaml"}
    assert by_kind["Service"]["spec"]["selector"].items() <= pod_labels.items()
    assert by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items() <= pod_labels.items()
    assert by_kind["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"].items() <= pod_labels.items()
    assert by_kind["NetworkPolicy"]["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_the_version_is_the_release() -> None:
    [chart] = documents(DEPLOY / "helm/jethook/Chart.yaml")

    assert chart["appVersion"] == __version__
    assert f"jethook:{__version__}" in (DEPLOY / "kubernetes/deployment.yaml").read_text()


@pytest.mark.parametrize("file", ["compose.yaml", "compose.postgres.yaml"])
def test_containers_run_with_a_root_they_cannot_write_and_without_capabilities(file: str) -> None:
    [compose] = documents(DEPLOY / file)

    for name in ("jethook", *(["migrate"] if "migrate" in compose["services"] else [])):
        service = compose["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["mem_limit"] == "512m"  # as in Kubernetes


def test_three_replicas_start_after_the_migration() -> None:
    [compose] = documents(DEPLOY / "compose.postgres.yaml")
    jethook = compose["services"]["jethook"]

    assert jethook["deploy"]["replicas"] == 3
    assert jethook["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    assert compose["services"]["migrate"]["command"] == ["migrate"]


def test_proxies_know_the_body_limit_and_keep_credentials_out_of_their_logs() -> None:
    default = load_settings({}, env_file=None).max_body_bytes
    nginx = (DEPLOY / "nginx/jethook.conf").read_text()
    caddy = (DEPLOY / "caddy/Caddyfile").read_text()

    assert default == 10 * 1024**2
    assert "client_max_body_size 10m;" in nginx
    # Above ours: the answer is then the service's 413, of which Caddy 2.6 makes a 502 where it is the one that refuses.
    assert "max_size 11MiB" in caddy
    log_format = nginx[nginx.index("log_format") : nginx.index("upstream jethook {")]
    assert not re.search(r"http_authorization|remote_user|request_uri|\$request\b|args", log_format)
    assert "\n\t\tlog_credentials" not in caddy


def test_behind_nginx_large_messages_pass_and_only_callbacks_are_posted_twice() -> None:
    nginx = (DEPLOY / "nginx/jethook.conf").read_text()
    connections, webhooks = (
        nginx[nginx.index(f"location {path} {{") :].partition("}")[0] for path in ("/v1/connections/", "/webhooks/")
    )

    assert MAX_CONNECTOR_BODY_BYTES < 25 * 1024**2
    assert "client_max_body_size 25m;" in connections
    assert nginx.count("non_idempotent") == webhooks.count("non_idempotent") == 1


PEOPLE = (
    "/v1/recipients/a@example.com",
    "/v1/connections/default/contacts/a@example.com",
    "/v1/events?email=a@example.com",
)


def test_proxies_keep_addresses_of_people_out_of_their_logs() -> None:
    nginx = (DEPLOY / "nginx/jethook.conf").read_text()
    caddy = (DEPLOY / "caddy/Caddyfile").read_text()
    [head] = re.findall(r'^    "~\^\(\?<jethook_head>(.*)\)" \$jethook_head;$', nginx, re.MULTILINE)
    [(pattern, instead)] = re.findall(r'request>uri regexp "(.*)" "(.*)"', caddy)

    assert instead == "$1"
    for uri in PEOPLE:
        assert "@" not in re.sub(pattern, lambda found: found[1] or "", uri), uri
        path = uri.partition("?")[0]  # all that nginx logs
        found = re.match(f"({head})", path)
        assert "@" not in (found[1] if found else path), uri
    assert "$uri" not in nginx[nginx.index("log_format") : nginx.index("upstream jethook {")]
    # The log of requests, and what Caddy writes of those that failed.
    assert caddy.count("import without_people") == 2


def test_the_chart_lets_the_doctor_in_as_the_plain_manifests_do() -> None:
    [values] = documents(DEPLOY / "helm/jethook/values.yaml")
    [ingress] = documents(DEPLOY / "kubernetes/ingress.yaml")

    assert values["ingress"]["paths"] == [path["path"] for path in ingress["spec"]["rules"][0]["http"]["paths"]]


def test_every_alert_has_its_words_and_the_tests_name_real_ones() -> None:
    [rules] = documents(DEPLOY / "prometheus/alerts.yaml")
    every = {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"]}
    [tests] = documents(DEPLOY / "prometheus/alerts.test.yaml")

    assert all(rule["labels"]["severity"] in ("warning", "critical") for rule in every.values())
    assert all(rule["annotations"]["summary"].endswith(".") for rule in every.values())
    assert {case["alertname"] for test in tests["tests"] for case in test["alert_rule_test"]} <= every.keys()


def test_the_dashboard_has_no_panel_twice_and_none_that_overlap() -> None:
    dashboard = json.loads((DEPLOY / "grafana/jethook.json").read_text())
    panels = dashboard["panels"]
    places = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len(set(places)) == len(places)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
