"""Who this process is, as OpenTelemetry's environment variables say it."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote


def resource_attributes(environ: Mapping[str, str]) -> dict[str, str]:
    """The resource attributes that are set in the environment, of whatever key.

    `OTEL_SERVICE_NAME` wins over a `service.name` in `OTEL_RESOURCE_ATTRIBUTES`; a malformed pair is passed over.
    """
    attributes: dict[str, str] = {}
    for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        key, _, value = pair.partition("=")
        if key.strip() and value.strip():
            attributes[key.strip()] = unquote(value.strip())
    name = environ.get("OTEL_SERVICE_NAME", "").strip()
    if name:
        attributes["service.name"] = name
    return attributes
