"""A run's numbers for those who gather them: Prometheus, lines of JSON, a summary for scripts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.request
from http.server import BaseHTTPRequestHandler

import pytest
from conftest import command
from endpoint import Reply
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from web import http_server


def test_events_are_lines_of_json(make_input, endpoint, run_command):
    """Each of them; what a person would read is in them, and nothing else is written."""
    endpoint.behave = lambda call: (
        Reply(400, {"error": {"message": "no\nthanks"}}) if call.number == 1 else None
    )
    options = ["--base-url", endpoint.base_url, "--model", "m", "--log-json"]
    ended = run_command(make_input(3), *options)
    assert ended.returncode == 3
    events = list(map(json.loads, ended.stderr.splitlines()))
    assert [event["event"] for event in events] == ["started", "finished"]
    assert (events[-1]["captioned"], events[-1]["codes"]) == (2, {"http_400": 1})
    assert all(re.match(r"\d{4}-\d\d-\d\dT.*\+00:00", event["time"]) for event in events)


def test_what_ends_a_run_is_an_event_too(make_input, endpoint, run_command):
    endpoint.behave = lambda _: Reply(401, {"error": {"message": "wrong key"}})
    options = ["--base-url", endpoint.base_url, "--model", "m", "--log-json"]
    ended = run_command(make_input(1), *options)
    last = json.loads(ended.stderr.splitlines()[-1])
    assert (ended.returncode, last["event"], last["exit_code"]) == (2, "error", 2)
    assert "wrong key" in last["message"]


def test_the_summary_for_scripts(make_input, endpoint, run_command):
    """On standard output, whole; what people read stays on standard error."""
    source = make_input(4)
    ended = run_command(source, "--base-url", endpoint.base_url, "--model", "m", "--json")
    found = json.loads(ended.stdout)
    assert (found["captioned"], found["complete"], found["failed"]) == (4, True, 0)
    assert "4 captioned" in ended.stderr


def test_prometheus_reads_a_run_while_it_goes_on(make_input, endpoint):
    endpoint.behave = lambda call: Reply(delay_s=30) if call.number > 5 else None
    options = ["--base-url", endpoint.base_url, "--model", "m", "--concurrency", 2]
    process = subprocess.Popen(
        command(make_input(8), *options, "--metrics-port", 0), stderr=subprocess.PIPE, text=True
    )
    url = process.stderr.readline().split()[1]
    assert url.startswith("http://127.0.0.1:")
    while endpoint.count < 7:
        assert process.poll() is None
    while True:
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        if 'captioner_records_total{state="captioned"} 5.0' in text:
            break
    assert "captioner_in_flight 2.0" in text
    assert "captioner_requests_total 7.0" in text
    assert f'captioner_endpoint_in_flight{{endpoint="{endpoint.base_url}"}} 2.0' in text
    assert float(re.search(r"^captioner_oldest_seconds (\S+)", text, re.MULTILINE)[1]) > 0
    process.kill()
    process.communicate()


def test_a_port_that_is_taken_is_told(make_input, endpoint, run_command):
    port = endpoint.base_url.split(":")[2].partition("/")[0]
    options = ["--base-url", endpoint.base_url, "--model", "m", "--metrics-port", port]
    ended = run_command(make_input(1), *options)
    assert (ended.returncode, "cannot listen" in ended.stderr) == (2, True)


@pytest.fixture
def collector():
    """What OpenTelemetry's exporter sends to: the spans that came, and the address."""
    came = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            came.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

    with http_server(Collector) as address:
        yield came, address


def test_spans_of_requests(make_input, endpoint, run_command, collector):
    """With --otel each request is a span with model, status and tokens, and nothing of its text."""
    endpoint.behave = lambda call: Reply(status=503) if call.number == 2 else None
    came, url = collector
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_SERVICE_NAME": "mine"}
    options = ["--base-url", endpoint.base_url, "--model", "m", "--concurrency", 1, "--otel"]
    ended = run_command(make_input(3), *options, env=environment)
    assert ended.returncode == 0, ended.stderr
    (resource,) = [one for request in came for one in request.resource_spans]
    service = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert service["service.name"] == "mine"
    spans = [span for scope in resource.scope_spans for span in scope.spans]
    assert [span.name for span in spans] == ["chat m"] * 4
    said = [{one.key: one.value for one in span.attributes} for span in spans]
    assert [one["http.response.status_code"].int_value for one in said] == [200, 503, 200, 200]
    assert said[0]["gen_ai.usage.input_tokens"].int_value == 100
    assert said[0]["gen_ai.request.model"].string_value == "m"
    assert said[1]["error.type"].string_value == "503"
    host, port = endpoint.base_url.split("/")[2].split(":")
    assert {one["server.address"].string_value for one in said} == {host}
    assert {one["server.port"].int_value for one in said} == {int(port)}
    assert b"q0" not in b"".join(request.SerializeToString() for request in came)


def test_spans_that_nobody_takes_do_not_end_a_run(make_input, endpoint, run_command):
    """Where no collector listens, that is said, and captions are made all the same."""
    environment = {
        **os.environ,
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    }
    options = ["--base-url", endpoint.base_url, "--model", "m", "--otel"]
    ended = run_command(make_input(3), *options, env=environment)
    assert ended.returncode == 0
    assert "3 captioned" in ended.stderr
    assert "spans: " in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_log_file_beside_the_display(make_input, endpoint, run_command, tmp_path):
    """Settings, warnings and the result, of every run one after the other; no secret."""
    source, log = make_input(3), tmp_path / "run.log"
    with source.open("a") as file:
        file.write('{"image": "gone.jpg"}\n')
    words = ["--base-url", endpoint.base_url, "--model", "m", "--header", "X-Own: secret-1"]
    ended = run_command(source, *words, "--log-file", log, "--workers", "2")
    assert "captioned in" in ended.stderr
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [one["event"] for one in lines] == ["started", "warning", "finished"]
    assert lines[0]["settings"]["model"] == "m"
    assert "--workers has no effect" in lines[1]["message"]
    assert (lines[2]["captioned"], lines[2]["codes"]) == (3, {"image_missing": 1})
    assert "secret-1" not in log.read_text()
    run_command(source, "--log-file", log, "--model", "other")
    last = json.loads(log.read_text().splitlines()[-1])
    assert (last["event"], "model was" in last["message"]) == ("error", True)
    ended = run_command(source, *words, "--log-file", tmp_path / "no" / "run.log")
    assert (ended.returncode, "log-file: cannot write" in ended.stderr) == (2, True)
