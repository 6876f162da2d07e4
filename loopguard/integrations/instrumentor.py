"""`opentelemetry-instrument`: guards an application without a line of code in it."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined] # its types are switched off
    BaseInstrumentor,
)

from loopguard import installation
from loopguard.config import ConfigError


class LoopguardInstrumentor(BaseInstrumentor):  # type: ignore[misc] # for the same reason
    """Guards each loop that this process runs, and the FastAPI and Starlette applications that it serves.

    All options come from the environment. A call of `loopguard.install()` replaces it.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        return ()

    def _instrument(self, **_: Any) -> None:
        try:
            installation.install_without_code()
        except ConfigError as error:
            # Were it raised, the instrumentors after this one would not be loaded.
            logging.getLogger("loopguard").error("loopguard guards nothing: %s", error)

    def _uninstrument(self, **_: Any) -> None:
        installation.uninstall_without_code()
