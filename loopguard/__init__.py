"""What held the event loop: the line, the reason, the request. `loopguard.install(app)` at startup.

The house, in the order of the data's way: `watch` (is the loop late?), `capture` (what was it doing?), `explain` (why,
and whose code?), `tell` (who hears of it?), `black_box` (what outlives the process); `guard` wires them, `integrations` are doors to other libraries, `cli` is
the command line.
"""

from loopguard.config import AlreadyInstalledError, ConfigError
from loopguard.exempt import allow_blocking
from loopguard.guard import Guard
from loopguard.installation import install, uninstall, wrap
from loopguard.record import Frame, Stall

__all__ = [
    "AlreadyInstalledError",
    "ConfigError",
    "Frame",
    "Guard",
    "Stall",
    "allow_blocking",
    "install",
    "uninstall",
    "wrap",
]
