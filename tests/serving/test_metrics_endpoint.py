"""The figures for Prometheus, read with its own parser."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from hematokit.serving.guard import Metrics
from servingkit import Server, figure

TYPES = {
    "hematokit_model_info": "gauge",
    "hematokit_start_time_seconds": "gauge",
    "hematokit_waiting_patches": "gauge",
    "hematokit_waiting_fields": "gauge",
    "hematokit_requests": "counter",
    "hematokit_refusals": "counter",
    "hematokit_patches": "counter",
    "hematokit_fields": "counter",
    "hematokit_field_cells": "counter",
    "hematokit_request_seconds": "histogram",
    "hematokit_batch_seconds": "histogram",
    "hematokit_batch_patches": "histogram",
}


def test_figures_are_in_the_text() -> None:
    metrics = Metrics({"name": 'a "name"\\ with\nlines'})
    metrics.waiting_patches.set_function(lambda: 3)
    metrics.requests.labels("/", 200).inc()
    metrics.requests.labels("/", 200).inc()
    for seconds in (0.001, 0.3, 1000.0):
        metrics.request_seconds.labels("/").observe(seconds)
    text = metrics.text().decode()
    assert figure(text, "hematokit_model_info", name='a "name"\\ with\nlines') == 1
    assert figure(text, "hematokit_requests_total", route="/", status="200") == 2
    assert figure(text, "hematokit_waiting_patches") == 3
    for bound, count in (("0.25", 1), ("0.5", 2), ("+Inf", 3)):
        assert figure(text, "hematokit_request_seconds_bucket", route="/", le=bound) == count
    assert figure(text, "hematokit_request_seconds_count", route="/") == 3


def test_two_applications_in_one_process_count_apart() -> None:
    first, second = Metrics({"name": "one"}), Metrics({"name": "another"})
    first.patches.inc(5)
    assert figure(first.text().decode(), "hematokit_patches_total") == 5
    assert figure(second.text().decode(), "hematokit_patches_total") == 0


def test_a_server_gives_these_figures_and_no_others(server: Server) -> None:
    with server.client() as client:
        client.get("/health")
        answer = client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = list(text_string_to_metric_families(answer.text))
    assert {family.name: family.type for family in families} == TYPES
    assert figure(answer.text, "hematokit_requests_total", route="/health", status="200") >= 1
    model = next(family for family in families if family.name == "hematokit_model_info").samples[0].labels
    assert set(model) == {"name", "backbone", "runtime", "device"}
