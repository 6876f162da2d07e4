"""pytest: a test whose code blocks an event loop for longer than its budget fails, at the line that did it."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, overload

import pytest

from loopguard.clock import monotonic_ns
from loopguard.config import ConfigError
from loopguard.integrations.pytest_stalls import asks
from loopguard.record import Stall
from loopguard.testing import StallWarning
from loopguard.testing.baseline import Baseline, BaselineError, Known, known_by
from loopguard.testing.recorder import Recorder, running_test
from loopguard.testing.verdict import Seen, outcome_of
from loopguard.testing.windows import When, Windows
from loopguard.testing.words import explanation, headline, to_blame

_SHOWN = 20  # tests in the summary
_PHASES: tuple[When, ...] = ("setup", "call", "teardown")
_ACCEPT = (
    'To allow it: @pytest.mark.allow_stalls("reason"), @pytest.mark.stall_budget(seconds), or in the code '
    '`with loopguard.allow_blocking("reason"):`.'
)

Verdict = Literal["fails", "warns", "known", "allowed"]


class Told(TypedDict):
    """A stall as a report carries it from a worker of pytest-xdist: plain data."""

    test: str
    verdict: Verdict
    belated: bool
    headline: str
    file: str | None
    line: int | None
    seconds: float
    function: str
    call: str


@dataclass(slots=True)
class _Run:
    """One run of one test."""

    test: str
    budget: float
    watched: bool
    allowed: str | None
    seen: list[tuple[Seen, When]] = field(default_factory=list)
    judged: int = 0
    told: list[Told] = field(default_factory=list)
    left_to_test: bool = False
    debugged: bool = False
    refused: str | None = None


class Stalls(Sequence[Stall]):
    """The stalls of one test, the earliest first; each look at it takes in what there was until then.

    What the system took from the test is not among them: no record without anybody to blame.
    """

    def __init__(self, plugin: StallPlugin, run: _Run) -> None:
        self._plugin = plugin
        self._run = run

    @overload
    def __getitem__(self, index: int) -> Stall: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Stall, ...]: ...
    def __getitem__(self, index: int | slice) -> Stall | tuple[Stall, ...]:
        return self._now()[index]

    def __len__(self) -> int:
        return len(self._now())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._now() == tuple(other)

    __hash__ = None  # type: ignore[assignment] # it changes

    def __repr__(self) -> str:
        return repr([headline(stall, self._run.budget) for stall in self._now()])

    def _now(self) -> tuple[Stall, ...]:
        return self._plugin.stalls_of(self._run)


class StallPlugin:
    """The hooks. Under pytest-xdist the workers judge, and the one that started them sums up.

    `everywhere`: for all tests; else for those that ask.
    """

    def __init__(self, config: pytest.Config, everywhere: bool) -> None:
        self._config = config
        self._everywhere = everywhere
        self._budget = _budget_of(config)
        self._phases = _phases_of(config)
        self._baseline_path: Path | None = config.getoption("--stall-baseline")
        self._update: bool = config.getoption("--stall-baseline-update")
        self._baseline = _baseline_of(self._baseline_path, self._update)
        self._windows = Windows()
        self._recorder: Recorder | None = None
        self._failed_to_start: str | None = None
        self._run: _Run | None = None
        self._belated: list[Told] = []
        self._told: list[Told] = []
        self._deselected = False
        self._gone: list[Known] = []
        jsonl: Path | None = config.getoption("--stall-jsonl")
        self._jsonl = None if jsonl is None else jsonl.absolute()
        self._new_recorder()  # an option that cannot be used is refused here

    # While tests run.

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._start()
        token = running_test.set(item.nodeid)
        try:
            return (yield)
        finally:
            running_test.reset(token)
            self._run = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        self._run = self._new_run(item)
        return (yield from self._phase(item, "setup"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._phase(item, "call"))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._phase(item, "teardown"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        told = [*self._belated, *(self._run.told if self._run else ())]
        if told:
            self._belated.clear()
            if self._run is not None:
                self._run.told = []
            report.stalls = told  # type: ignore[attr-defined] # it travels with the report
        return report

    def pytest_enter_pdb(self) -> None:
        if self._run is not None:
            self._run.debugged = True

    def leave_to_test(self, item: pytest.Item) -> Stalls:
        """The stalls of a test that judges them itself."""
        self._start()
        if self._run is None:
            self._run = self._new_run(item)
        self._run.left_to_test = True
        return Stalls(self, self._run)

    def stalls_of(self, run: _Run) -> tuple[Stall, ...]:
        self._take(run)
        return tuple(seen.stall for seen, _ in run.seen if self._outcome(seen, run) != "passes")

    # When all are over.

    def pytest_deselected(self) -> None:
        self._deselected = True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._told += getattr(report, "stalls", ())

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._told += getattr(node, "workeroutput", {}).get("stalls", ())

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self._recorder is not None:
            self._take(None)
            self._told += self._belated
        if hasattr(self._config, "workeroutput"):
            self._config.workeroutput["stalls"] = self._belated
            return
        if exitstatus == 0 and any(
            told["belated"] and told["verdict"] == "fails" for told in self._told
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        self._keep_baseline(exitstatus, _ran_everything(session) and not self._deselected)

    def pytest_unconfigure(self) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.stop()

    def pytest_report_header(self) -> str | None:
        return f"stalls: budget {self._budget:g} s" if self._everywhere else None

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if hasattr(self._config, "workerinput"):
            return
        lines = list(self._summary())
        if lines:
            terminalreporter.section("stalls")
            for line in lines:
                terminalreporter.line(line)
        if os.environ.get("GITHUB_ACTIONS") == "true":
            for told in self._told:
                if told["verdict"] in ("fails", "warns"):
                    terminalreporter.line(annotation(told, self._config.rootpath))

    # Inside.

    def _new_recorder(self) -> Recorder:
        try:
            return Recorder(self._budget, root=self._config.rootpath, jsonl=self._jsonl, brief=True)
        except ConfigError as error:
            raise pytest.UsageError(str(error)) from error

    def _start(self) -> None:
        """Begin to watch. Where this process may have no more threads, no test suffers for it."""
        if self._recorder is not None or self._failed_to_start is not None:
            return
        recorder = self._new_recorder()
        try:
            recorder.start()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is not the test's fault
            recorder.stop()
            self._failed_to_start = f"{type(error).__name__}: {error}"
        else:
            self._recorder = recorder

    def _new_run(self, item: pytest.Item) -> _Run:
        budget, allowed = item.get_closest_marker("stall_budget"), _allowance(item)
        run = _Run(
            test=item.nodeid,
            budget=self._budget if budget is None else _seconds_of(budget),
            watched=self._everywhere or asks(item),
            allowed=allowed,
        )
        if self._recorder is not None:
            try:
                self._recorder.allow(run.budget)
            except ConfigError as error:
                run.refused = f"marker stall_budget of {item.nodeid}: {error}"
        if allowed == "":
            run.refused = f"marker allow_stalls of {item.nodeid} needs a reason in words"
        item.user_properties[:] = [each for each in item.user_properties if each[0] != "stall"]
        return run

    def _phase(self, item: pytest.Item, when: When) -> Generator[None, object, object]:
        self._windows.begin(monotonic_ns(), item.nodeid, when)
        try:
            result = yield
        except BaseException:
            # The test's own failure stays what it is.
            for text in self._judge(item, when):
                item.add_report_section(when, "stall", text)
            raise
        if self._run is not None and self._run.refused is not None and when == "setup":
            raise pytest.fail.Exception(self._run.refused, pytrace=False)
        failing = self._judge(item, when)
        if failing and getattr(item, "_excinfo", None):  # unittest keeps a test's own errors there
            item.add_report_section(when, "stall", "\n\n".join(failing))
        elif failing:
            raise pytest.fail.Exception("\n\n".join([*failing, _ACCEPT]), pytrace=False)
        return result

    def _judge(self, item: pytest.Item, when: When) -> list[str]:
        """Tell of all that was found by the end of a phase; what is to fail it is returned, in words."""
        run = self._run
        if run is None or self._recorder is None:
            return []
        self._take(run)
        found, run.judged = run.seen[run.judged :], len(run.seen)
        failing: list[str] = []
        if not run.watched:
            return failing
        for seen, phase in sorted(found, key=lambda each: -each[0].stall.duration):
            verdict = self._verdict(seen, phase, run)
            if verdict is None:
                continue
            told = _told(seen, verdict, run.test, run.budget)
            run.told.append(told)
            item.user_properties.append(("stall", told["headline"]))
            text = self._text(seen, told)
            if verdict == "fails":
                failing.append(text)
                continue
            item.add_report_section(when, "stall", text)
            if verdict == "warns":
                self._warn(item, text)
        return failing

    def _verdict(self, seen: Seen, phase: When, run: _Run) -> Verdict | None:
        outcome = self._outcome(seen, run)
        if outcome == "passes" or phase not in self._phases:
            return None
        if run.left_to_test or run.allowed is not None:
            return "allowed"
        if outcome == "fails" and self._is_known(seen.stall):
            return "known"
        return outcome

    def _outcome(self, seen: Seen, run: _Run) -> Literal["fails", "warns", "passes"]:
        if run.debugged or _debugger_is_on() or self._recorder is None:
            return "passes"
        return outcome_of(seen, run.budget, self._recorder.evidence)

    def _is_known(self, stall: Stall) -> bool:
        if self._update:
            return True
        baseline = self._baseline
        return baseline is not None and (
            baseline.standing(known_by(stall), stall.duration) == "known"
        )

    def _text(self, seen: Seen, told: Told) -> str:
        lines = [told["headline"], explanation(seen)]
        baseline, key = self._baseline, Known(told["function"], told["call"])
        if baseline is not None and baseline.standing(key, told["seconds"]) == "worse":
            lines.append(f"    the baseline knows it with {baseline.longest[key]:.3f} s")
        return "\n".join(lines)

    def _take(self, run: _Run | None) -> None:
        """Take in what was seen: each stall for the test that ran when it began, which may be over by now."""
        for seen in self._recorder.take() if self._recorder else ():
            stall = seen.stall
            error_ns, lasted_ns = int(stall.duration_error * 1e9), int(stall.duration * 1e9)
            window = self._windows.at(seen.began_ns, error_ns, seen.began_ns + lasted_ns)
            if window is None:
                continue
            if run is not None and window.test == run.test:
                context = seen.context if seen.context != run.test else None
                run.seen.append((_in_context(seen, context), window.when))
            elif self._everywhere and window.when in self._phases:
                self._note_belated(seen, window.test)

    def _note_belated(self, seen: Seen, test: str) -> None:
        """A stall whose test was over before it ended."""
        assert self._recorder is not None
        outcome = outcome_of(seen, self._budget, self._recorder.evidence)
        if outcome != "passes":
            verdict: Verdict = (
                "known" if outcome == "fails" and self._is_known(seen.stall) else outcome
            )
            self._belated.append({**_told(seen, verdict, test, self._budget), "belated": True})

    def _warn(self, item: pytest.Item, text: str) -> None:
        """By pytest's own way; but where warnings are errors it fails nothing: it is nobody's fault."""
        with suppress(StallWarning):
            item.warn(StallWarning(text))

    def _keep_baseline(self, exitstatus: int, everything: bool) -> None:
        found = [
            (Known(told["function"], told["call"]), told["seconds"])
            for told in self._told
            if told["verdict"] in ("fails", "known")
        ]
        everything = everything and exitstatus in (0, 1)
        baseline = self._baseline or Baseline({})
        if everything:
            self._gone = baseline.gone(known for known, _ in found)
        if self._update and self._baseline_path is not None and exitstatus in (0, 1):
            self._baseline_path.write_text(baseline.updated(found, everything).text(), "utf-8")

    def _summary(self) -> Iterator[str]:
        if self._failed_to_start is not None:
            yield f"nothing was watched: {self._failed_to_start}"
        if self._told and self._recorder is not None and not self._recorder.evidence:
            yield "this system does not tell how long a thread had no CPU: twice the budget was allowed"
        by_test: dict[str, list[Told]] = {}
        for told in self._told:
            by_test.setdefault(told["test"], []).append(told)
        worst = sorted(by_test, key=lambda test: -sum(each["seconds"] for each in by_test[test]))
        for test in worst[:_SHOWN]:
            stalls = by_test[test]
            seconds = sum(each["seconds"] for each in stalls)
            yield f"{seconds:.3f} s in {len(stalls)} stall{'s' * (len(stalls) > 1)}: {test}"
            for each in stalls:
                mark = each["verdict"] + (", noticed after its test" if each["belated"] else "")
                yield f"    {each['headline']} ({mark})"
        if len(worst) > _SHOWN:
            yield f"… and {len(worst) - _SHOWN} more tests"
        if self._update and self._baseline_path is not None:
            yield f"baseline written: {self._baseline_path}"
        for gone in () if self._update else self._gone:
            yield f"in the baseline, and not seen any more: {gone.function} {gone.call}"


def annotation(told: Told, root: Path) -> str:
    """A line that GitHub shows at the place in the sources."""
    kind = "error" if told["verdict"] == "fails" else "warning"
    properties = ["title=event loop blocked"]
    if told["file"] is not None:
        file = os.path.relpath(root / told["file"], os.environ.get("GITHUB_WORKSPACE") or root)
        properties = [
            f"file={_escaped(file, ':,')}",
            *([f"line={told['line']}"] if told["line"] is not None else []),
            *properties,
        ]
    return f"::{kind} {','.join(properties)}::{_escaped(told['headline'] + ' in ' + told['test'])}"


def _escaped(text: str, more: str = "") -> str:
    for character in "%\r\n" + more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def _told(seen: Seen, verdict: Verdict, test: str, budget: float) -> Told:
    frame, key = to_blame(seen.stall), known_by(seen.stall)
    return {
        "test": test,
        "verdict": verdict,
        "belated": False,
        "headline": headline(seen.stall, budget),
        "file": None if frame is None else frame.file,
        "line": None if frame is None else frame.line,
        "seconds": seen.stall.duration,
        "function": key.function,
        "call": key.call,
    }


def _in_context(seen: Seen, context: str | None) -> Seen:
    return Seen(seen.stall, seen.began_ns, seen.withheld, context)


def _allowance(item: pytest.Item) -> str | None:
    """The reason why a test may block; empty where it has a marker without one."""
    marker = item.get_closest_marker("allow_stalls")
    if marker is None:
        return None
    reason = marker.args[0] if marker.args else marker.kwargs.get("reason")
    return reason.strip() if isinstance(reason, str) else ""


def _seconds_of(marker: pytest.Mark) -> Any:
    return marker.args[0] if marker.args else marker.kwargs.get("seconds")


def _budget_of(config: pytest.Config) -> float:
    given: float | None = config.getoption("--stall-budget")
    if given is not None:
        return given
    text = config.getini("stall_budget")
    try:
        return float(text)
    except ValueError:
        raise pytest.UsageError(f"ini stall_budget: {text!r} is no number of seconds") from None


def _phases_of(config: pytest.Config) -> frozenset[When]:
    named = config.getini("stall_phases")
    unknown = [name for name in named if name not in _PHASES]
    if unknown:
        raise pytest.UsageError(f"ini stall_phases: {unknown[0]!r} is none of {', '.join(_PHASES)}")
    return frozenset(named)


def _baseline_of(path: Path | None, update: bool) -> Baseline | None:
    if path is None:
        if update:
            raise pytest.UsageError("--stall-baseline-update needs --stall-baseline PATH")
        return None
    try:
        return Baseline.parse(path.read_text("utf-8"))
    except FileNotFoundError:
        if update:
            return None
        raise pytest.UsageError(
            f"--stall-baseline {path}: no such file; --stall-baseline-update writes it"
        ) from None
    except (OSError, UnicodeDecodeError, BaselineError) as error:
        raise pytest.UsageError(f"--stall-baseline {path}: {error}") from error


def _ran_everything(session: pytest.Session) -> bool:
    """Whether no test was left out: none named on the command line, none deselected, no early stop."""
    config = session.config
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    stopped = session.shouldstop or session.shouldfail
    return not (named or stopped)


def _debugger_is_on() -> bool:
    """Whether a debugger is attached; coverage, which traces too, is none."""
    tracer = sys.gettrace()
    kind = type(getattr(tracer, "__self__", tracer))
    names = {getattr(tracer, "__module__", None) or "", *(each.__module__ for each in kind.__mro__)}
    if any("pydevd" in name or name.partition(".")[0] in ("bdb", "pdb") for name in names):
        return True
    monitoring = getattr(sys, "monitoring", None)
    return monitoring is not None and monitoring.get_tool(monitoring.DEBUGGER_ID) is not None
