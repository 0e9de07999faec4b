"""Requests that schemathesis makes up from the OpenAPI schema: no 5xx, and what is documented."""

import tempfile
from pathlib import Path

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import close, make_app
from tiny import make_weights

from engine import Engine

CHECKS = (
    not_a_server_error, status_code_conformance, content_type_conformance,
    response_schema_conformance,
)  # fmt: skip


def run_schema(count: int, seed: int) -> tuple[int, list[str]]:
    """About `count` requests over all routes: how many were sent, and what was wrong."""
    sent, failures = 0, []
    with tempfile.TemporaryDirectory() as folder:
        weights = make_weights(Path(folder))
        app, _ = make_app(Engine(weights), Path(folder) / "voices")
        schema = schemathesis.openapi.from_asgi("/openapi.json", app)
        operations = [result.ok() for result in schema.get_all_operations()]
        each = max(1, count // len(operations))
        quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]

        @settings(
            max_examples=each, deadline=None, database=None, suppress_health_check=quiet,
            phases=[Phase.explicit, Phase.generate],
        )  # fmt: skip
        def one(case):
            nonlocal sent
            sent += 1
            try:
                case.call_and_validate(checks=CHECKS)
            except Exception as error:
                failures.append(f"{case.method} {case.path}: {error!s}"[:800])

        while sent < count:  # routes without parameters have few examples
            for operation in operations:
                seeded(seed)(given(case=operation.as_strategy())(one))()
            seed += 1
        close(app)
    return sent, failures


def test_requests_from_the_schema_meet_no_server_error():
    sent, failures = run_schema(100, seed=1)
    assert sent >= 100
    assert not failures, "\n".join(failures[:5])


def test_every_route_is_in_the_schema(tmp_path):
    app, _ = make_app(Engine(make_weights(tmp_path)), tmp_path / "voices")
    try:
        paths = set(app.openapi()["paths"])
    finally:
        close(app)
    assert paths == {
        "/v1/audio/speech", "/v1/audio/speech/batch", "/v1/audio/voices", "/v1/models",
        "/v1/audio/voices/{voice_id}", "/v1/audio/voices/{voice_id}/export", "/v1/audio/models",
        "/livez", "/readyz",
    }  # fmt: skip
