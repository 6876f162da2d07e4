"""Options: an argument beats the environment, that beats the default, and no bad value is silently accepted."""

from __future__ import annotations

import gc
import os
import sys
import threading
from asyncio import BaseEventLoop
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import loopguard
from loopguard.config import Config, ConfigError, read_config

pytestmark = pytest.mark.core

BUDGET_LIMIT = "must be a number of seconds from 0.005 to 3600"
SWITCH_LIMIT = "must be on or off (True, False; 1, 0, true, false, yes, no, on, off)"
NAMES_LIMIT = "must be a list of names, or names separated by commas"
APPENDED_LIMIT = "must be a file that can be appended to"


def listen(stall: loopguard.Stall) -> None:
    """A listener that does nothing."""


def refused(arguments: Mapping[str, object], environ: Mapping[str, str] | None = None) -> str:
    """What the error says."""
    with pytest.raises(ConfigError) as caught:
        read_config(arguments, environ or {})
    return str(caught.value)


def test_the_defaults_are_those_of_the_documentation() -> None:
    config = read_config({}, {})
    assert config == Config(
        budget=0.1,
        error_budget=None,
        on_stall=None,
        jsonl=None,
        ignore=(),
        log=True,
        traces=True,
        enabled=True,
        in_app=(),
        source=True,
        root=Path.cwd(),
    )
    assert config.severe_from == 0.5


@pytest.mark.parametrize(
    "name, argument, variable, from_argument, from_variable",
    [
        ("budget", 0.2, "0.3", 0.2, 0.3),
        ("budget", 1, "0.005", 1.0, 0.005),
        ("budget", 3600, " 5e-2 ", 3600.0, 0.05),
        ("error_budget", 2.5, "3600", 2.5, 3600.0),
        ("log", False, "1", False, True),
        ("log", "off", " YES ", False, True),
        ("traces", True, "0", True, False),
        ("enabled", True, "False", True, False),
        ("enabled", "on", "no", True, False),
        ("source", "true", "OFF", True, False),
        ("ignore", ["app.*", "startup"], "/health, app.legacy.*,", ("app.*", "startup"),
         ("/health", "app.legacy.*")),
        ("ignore", "a,b", "c", ("a", "b"), ("c",)),
        ("in_app", ("shop",), "shop,bakery", ("shop",), ("shop", "bakery")),
        ("in_app", iter(["shop"]), " , ", ("shop",), ()),
    ],
)  # fmt: skip
def test_an_argument_beats_the_environment_and_that_the_default(
    name: str, argument: object, variable: str, from_argument: object, from_variable: object
) -> None:
    environ = {f"LOOPGUARD_{name.upper()}": variable}
    assert getattr(read_config({name: argument}, environ), name) == from_argument
    assert getattr(read_config({name: None}, environ), name) == from_variable
    assert getattr(read_config({}, environ), name) == from_variable
    default = getattr(read_config({}, {}), name)
    assert getattr(read_config({name: None}, {f"LOOPGUARD_{name.upper()}": ""}), name) == default


def test_paths_are_made_whole_against_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").mkdir()
    config = read_config({"jsonl": "stalls.jsonl"}, {"LOOPGUARD_ROOT": "src"})
    assert (config.jsonl, config.root) == (tmp_path / "stalls.jsonl", tmp_path / "src")


def test_the_error_budget_follows_the_budget_unless_it_was_given() -> None:
    assert read_config({"budget": 0.2}, {}).with_threshold(
        "budget", 0.3
    ).severe_from == pytest.approx(1.5)
    fixed = read_config({"budget": 0.2, "error_budget": 0.7}, {})
    assert fixed.with_threshold("budget", 0.3).severe_from == 0.7


BAD_SECONDS: list[Any] = [
    (0, "0"),
    (-1, "-1"),
    (0.0049, "0.0049"),
    (3600.1, "3600.1"),
    (float("nan"), "nan"),
    (float("inf"), "inf"),
    (float("-inf"), "-inf"),
    ("soon", "'soon'"),
    ("", "''"),
    ("None", "'None'"),
    ("1,5", "'1,5'"),
    ("100ms", "'100ms'"),
    (True, "True"),
    (False, "False"),
    (b"0.1", "b'0.1'"),
    ([0.1], "[0.1]"),
    (0.1j, "0.1j"),
    (10**400, "1000000"),
    pytest.param(10**5000, "<int>", id="an integer that Python refuses to write out"),
]


@pytest.mark.parametrize("name", ["budget", "error_budget"])
@pytest.mark.parametrize("value, shown", BAD_SECONDS)
def test_a_bad_duration_is_refused_with_value_limit_and_source(
    name: str, value: object, shown: str
) -> None:
    said = refused({name: value}, {f"LOOPGUARD_{name.upper()}": "0.2"})
    assert said.startswith(f"{name}={shown}")
    assert said.endswith(f" (from argument {name}): {BUDGET_LIMIT}")


@pytest.mark.parametrize(
    "name, value, limit",
    [
        *(("budget", value, BUDGET_LIMIT) for value in ("0", "-1", "nan", "inf", "1e9", "x", " ")),
        *(("error_budget", value, BUDGET_LIMIT) for value in ("0", "nan", "never")),
        *(("log", value, SWITCH_LIMIT) for value in ("2", "maybe", "yes please", " ")),
        ("traces", "none", SWITCH_LIMIT),
        ("enabled", "disabled", SWITCH_LIMIT),
        ("source", "-1", SWITCH_LIMIT),
        ("root", "no-such-directory", "must be a directory"),
        ("jsonl", "no-such-directory/stalls.jsonl", APPENDED_LIMIT),
        ("on_stall", "print", "must be a function"),
    ],
)
def test_a_bad_variable_is_refused_with_value_limit_and_source(
    name: str, value: str, limit: str
) -> None:
    variable = f"LOOPGUARD_{name.upper()}"
    said = refused({}, {variable: value})
    assert f"{name}={value!r} (from environment variable {variable}): {limit}" in said


@pytest.mark.parametrize(
    "name, value, shown, limit",
    [
        *(
            ("log", value, repr(value), SWITCH_LIMIT)
            for value in ("maybe", "", 2, 1.0, b"on", ["on"])
        ),
        ("traces", "ON!", "'ON!'", SWITCH_LIMIT),
        ("enabled", object, "<class 'object'>", SWITCH_LIMIT),
        ("source", "never", "'never'", SWITCH_LIMIT),
        ("ignore", b"app.*", "b'app.*'", NAMES_LIMIT),
        ("ignore", {"app.*": 1}, "{'app.*': 1}", NAMES_LIMIT),
        ("ignore", 7, "7", NAMES_LIMIT),
        ("ignore", ["app.*", 7], "('app.*', 7)", NAMES_LIMIT),
        ("in_app", b"shop", "b'shop'", NAMES_LIMIT),
        ("in_app", 1.5, "1.5", NAMES_LIMIT),
        ("in_app", [None], "(None,)", NAMES_LIMIT),
        ("on_stall", "print", "'print'", "must be a function that takes the stall's record"),
        ("on_stall", [listen], "[<function listen", "must be a function"),
        ("root", "no-such-directory", "'no-such-directory'", "must be a directory"),
        ("root", __file__, repr(__file__)[:100], "must be a directory"),
        ("root", 7, "7", "must be a path"),
        ("root", "", "''", "must be a path"),
        ("root", "a\0b", r"'a\x00b'", "must be a directory"),
        ("black_box", "nowhere", "'nowhere'", "must be a directory"),
        pytest.param("root", "x" * 5000, "'xxxx", "must be a directory", id="a root too long"),
        ("black_box", __file__, repr(__file__)[:100], "must be a directory"),
        ("jsonl", "", "''", "must be a path"),
        ("jsonl", True, "True", "must be a path"),
        ("jsonl", b"stalls.jsonl", "b'stalls.jsonl'", "must be a path"),
        ("jsonl", "a\0b", r"'a\x00b'", APPENDED_LIMIT),
        pytest.param("jsonl", "x" * 5000, "'xxxx", APPENDED_LIMIT, id="a name that is too long"),
        ("jsonl", Path(os.sep), repr(Path(os.sep)), APPENDED_LIMIT),
        ("jsonl", "no-such-directory/x.jsonl", "'no-such-directory/x.jsonl'", APPENDED_LIMIT),
        ("jsonl", f"{__file__}/x.jsonl", f"'{__file__}"[:50], APPENDED_LIMIT),
    ],
)
def test_a_bad_argument_is_refused_with_value_limit_and_source(
    name: str, value: object, shown: str, limit: str
) -> None:
    said = refused({name: value}, {})
    assert said.startswith(f"{name}={shown}")
    assert f" (from argument {name}): {limit}" in said
    assert len(said) < 6000


class Unprintable:
    """An object that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __fspath__(self) -> Any:
        return 3


@pytest.mark.parametrize("name", ["budget", "log", "ignore", "on_stall", "jsonl", "root"])
def test_a_value_that_cannot_be_shown_is_refused_by_its_type(name: str) -> None:
    assert refused({name: Unprintable()}).startswith(f"{name}=<Unprintable> (from argument {name})")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    forbidden = tmp_path / "stalls.jsonl"
    forbidden.touch(mode=0o400)
    assert "Permission denied" in refused({"jsonl": forbidden})
    tmp_path.chmod(0o500)
    assert APPENDED_LIMIT in refused({"jsonl": tmp_path / "new.jsonl"})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_pipe_that_nobody_reads_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert APPENDED_LIMIT in refused({"jsonl": tmp_path / "pipe"})


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_device_is_a_file_to_append_to() -> None:
    """A disk may be full today and not tomorrow: what fails then is contained and counted."""
    assert read_config({"jsonl": "/dev/full"}, {}).jsonl == Path("/dev/full")


def test_reading_the_options_makes_no_file(tmp_path: Path) -> None:
    read_config({"jsonl": tmp_path / "stalls.jsonl"}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_working_directory_that_is_gone_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert read_config({"jsonl": tmp_path / "stalls.jsonl"}, {}).budget == 0.1
    assert refused({"jsonl": "stalls.jsonl"}).startswith("jsonl='stalls.jsonl' (from argument")


def test_profiles_need_a_token_and_a_directory(tmp_path: Path) -> None:
    token = "correct-horse-battery"
    both = read_config({"profile_token": token, "profile_dir": tmp_path}, {})
    assert (both.profile_token, both.profile_dir) == (token, tmp_path)
    alone = refused({"profile_dir": tmp_path})
    assert alone.endswith("(from argument profile_dir): needs profile_token too")
    assert "(from argument profile_token): needs profile_dir too" in refused(
        {"profile_token": token}
    )
    short = refused({"profile_token": "fifteen letters", "profile_dir": tmp_path})
    assert short.startswith("profile_token=<15 characters> ")


def test_a_secret_is_told_by_its_length_only() -> None:
    secret = "correct-horse-battery"
    for said in (
        refused({"profile_token": secret}),
        refused({}, {"LOOPGUARD_PROFILE_TOKEN": secret}),
    ):
        assert "horse" not in said
        assert said.startswith("profile_token=<21 characters> (from ")


def test_an_unknown_variable_is_none_of_our_business() -> None:
    assert read_config({}, {"LOOPGUARD_COLOUR": "blue"}) == read_config({}, {})


class Foreign:
    """An application, but none that Starlette made."""

    def __call__(self, scope: dict[str, Any]) -> None: ...


def traces_left() -> dict[str, object]:
    """All that an installed guard changes in a process."""
    loops: list[Any] = [BaseEventLoop]
    if "uvloop" in sys.modules:
        loops.append(sys.modules["uvloop"].Loop)
    return {
        "threads": threading.enumerate(),
        "callbacks": list(gc.callbacks),
        "loops": [vars(kind).get("run_forever") for kind in loops],
    }


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda **rest: loopguard.install(0.1, **rest), "app=builtins.float (from argument app)"),
        (lambda **rest: loopguard.install("app:app", **rest), "app=builtins.str"),
        (lambda **rest: loopguard.install(Foreign(), **rest), "loopguard.wrap(app)"),
        (lambda **rest: loopguard.install(listen, **rest), "app=builtins.function"),
        (lambda **rest: loopguard.wrap("app:app", **rest), "must be an ASGI 3 application"),
        (lambda **rest: loopguard.install(budget=0, **rest), "budget=0 (from argument budget)"),
        (lambda **rest: loopguard.install(root="no-such-directory", **rest), "must be a directory"),
        (lambda **rest: loopguard.wrap(Foreign(), budget="soon", **rest), "budget='soon'"),
        (lambda **rest: loopguard.install(profile_dir="x", **rest), "must be a directory"),
        (lambda **rest: loopguard.install(black_box="nowhere", **rest), "must be a directory"),
    ],
)
def test_a_refused_install_leaves_nothing(
    call: Callable[..., object], named: str, tmp_path: Path
) -> None:
    """No thread, no patch, no file; and the next install is free."""
    with loopguard.install(log=False):
        pass  # imports what is imported once
    before = traces_left()
    with pytest.raises(ConfigError) as caught:
        call(jsonl=tmp_path / "stalls.jsonl")
    assert named in str(caught.value)
    assert traces_left() == before
    assert list(tmp_path.iterdir()) == []
    with loopguard.install(budget=0.2, log=False) as guard:
        assert guard.budget == 0.2


def test_options_are_given_by_name_only() -> None:
    with pytest.raises(TypeError):
        loopguard.install(None, 0.1)  # type: ignore[call-arg]


def test_the_environment_is_read_at_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPGUARD_BUDGET", "0.25")
    monkeypatch.setenv("LOOPGUARD_LOG", "0")
    with loopguard.install() as guard:
        assert guard.budget == 0.25
    monkeypatch.setenv("LOOPGUARD_BUDGET", "never")
    with pytest.raises(ConfigError, match="LOOPGUARD_BUDGET"):
        loopguard.install()


def test_the_errors_are_of_the_kinds_that_python_knows() -> None:
    assert issubclass(loopguard.ConfigError, ValueError)
    assert issubclass(loopguard.AlreadyInstalledError, RuntimeError)
