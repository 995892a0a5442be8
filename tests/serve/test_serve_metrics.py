"""`/metrics` has exactly the metrics and labels that docs/serving.md lists."""

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from serving import DRAWINGS

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
METRIC = re.compile(r"`(grr_coca_\w+)(?:\{([\w, ]+)\})?`")


def listed() -> dict[str, set[str]]:
    """Metrics in the table of the page: name → names of its labels."""
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `grr_coca_")]
    found = [match for row in rows for match in METRIC.findall(row.split("|")[1])]
    return {name: set(labels.split(", ")) - {""} for name, labels in found}


def test_metrics_on_the_page_exist_on_a_server(served):
    assert served.post("/caption", (DRAWINGS / "guitar.webp").read_bytes()).status == 200
    shown, families = {}, list(text_string_to_metric_families(served.get("/metrics").body.decode()))
    for family in families:
        if family.name.startswith("grr_coca_") and not family.name.endswith("_created"):
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            shown[family.name + "_total" * (family.type == "counter")] = labels
    assert shown == listed()
    assert {"process_resident_memory_bytes", "process_cpu_seconds", "process_open_fds"} <= {
        one.name for one in families
    }
