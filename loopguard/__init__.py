"""What held the event loop: the line, the reason, the request. `loopguard.install(app)` at startup.

The house, in the order of the data's way: `watch` (is the loop late?), `capture` (what was it doing?), `explain` (why,
and whose code?), `tell` (who hears of it?), `black_box` (what outlives the process), `show` (how it looks). `engine`
wires them, `guard` is what `install()` gives, `integrations` are doors to other libraries, `testing` is for tests, `cli`
is the command line.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loopguard.config import AlreadyInstalledError, ConfigError
    from loopguard.exempt import allow_blocking
    from loopguard.guard import Guard
    from loopguard.installation import install, uninstall, wrap
    from loopguard.record import Frame, Stall
else:
    _HOMES = {
        "AlreadyInstalledError": "config",
        "ConfigError": "config",
        "Frame": "record",
        "Guard": "guard",
        "Stall": "record",
        "allow_blocking": "exempt",
        "install": "installation",
        "uninstall": "installation",
        "wrap": "installation",
    }

    def __getattr__(name):
        """Imported when first asked for: pytest imports this package, for our plugin's options, in every project."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        found = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return found


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
