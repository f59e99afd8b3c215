"""The chart by Helm's own engine, and all manifests by Kubernetes' own schemas. Run by `.ci/deploy` with its packages:

`python tests/deploy/manifests.py` prints what is wrong and exits 1.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "helm/jethook"
VERSIONS = ("1.25", "1.31", kubernetes_validate.latest_version())  # the chart's oldest, and newer ones
NOT_KUBERNETES = {"ServiceMonitor", "Kustomization"}  # other people's kinds
EVERYTHING: dict[str, Any] = {
    "replicas": 5,
    "settings": {"JETHOOK_PUBLIC_URL": "https://hooks.example.com", "JETHOOK_MAX_BODY_BYTES": 10485760},
    "imagePullSecrets": [{"name": "registry"}],
    "ingress": {"enabled": True, "paths": ["/webhooks/", "/livez"]},
    "serviceMonitor": {"enabled": True},
    "podLabels": {"team": "mail"},
    "podAnnotations": {"a/b": "c"},
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "x", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
}
REFUSED: tuple[dict[str, Any], ...] = (
    {"replicas": 0}, {"settings": {"jethook_port": 1}}, {"existingSecret": ""}, {"ingres": {}},
)  # fmt: skip


def main() -> int:
    faults = [*chart_faults(), *schema_faults("kubernetes", plain()), *likeness_faults()]
    for name, values in (("chart", {}), ("chart with everything", EVERYTHING)):
        faults += schema_faults(name, rendered(values))
    print("\n".join(faults) or "all fit")
    return 1 if faults else 0


def chart_faults() -> Iterator[str]:
    for values in ({}, EVERYTHING):
        found = helm_python.lint(CHART, values, strict=True)
        yield from (f"lint: {message}" for message in found["messages"] if message["severity"] > 1)
        yield from (f"lint: {error}" for error in found["errors"])
    for values in REFUSED:
        try:
            rendered(values)
        except helm_python.HelmError:
            continue
        yield f"values {values} should be refused"


def rendered(values: dict[str, Any]) -> list[dict[str, Any]]:
    chart = helm_python.Chart.load(CHART)
    texts = [text for path, text in chart.render(values, name="jethook").items() if not path.endswith(".txt")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def plain() -> list[dict[str, Any]]:
    return [d for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")) for d in yaml.safe_load_all(path.read_text())]


def schema_faults(where: str, documents: list[dict[str, Any]]) -> Iterator[str]:
    for document in documents:
        for version in VERSIONS if document["kind"] not in NOT_KUBERNETES else ():
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{where}, {document['kind']}, Kubernetes {version}: {error.message}"


def likeness_faults() -> Iterator[str]:
    """The chart's pod by its default values is that of the plain manifest."""
    ours, theirs = (
        next(d for d in documents if d["kind"] == "Deployment")["spec"]["template"]["spec"]
        for documents in (plain(), rendered({}))
    )
    for part in ours:
        if part == "topologySpreadConstraints":  # names the release
            continue
        if without_pull(ours[part]) != without_pull(theirs[part]):
            yield f"the chart's {part} is not the plain manifest's: {theirs[part]} and {ours[part]}"


def without_pull(part: Any) -> Any:
    if isinstance(part, list):
        return [{key: value for key, value in one.items() if key != "imagePullPolicy"} for one in part]
    return part


if __name__ == "__main__":
    sys.exit(main())
