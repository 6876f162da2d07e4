"""An old project: what it has already is kept in a file, and only what is new fails."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import Run

pytestmark = pytest.mark.core

OLD = """
    import asyncio, time

    def block(seconds):
        async def main():
            old(seconds)
        asyncio.run(main())

    def old(seconds):
        time.sleep(seconds)

    def new(seconds):
        time.sleep(seconds)

    def test_old():
        block(0.25)
"""
OPTIONS = ("--stall-baseline", "stalls.txt")


def test_it_is_adopted_in_one_command_and_fails_what_is_new(
    run: Run, pytester: pytest.Pytester
) -> None:
    adopted = run(OLD, *OPTIONS, "--stall-baseline-update")
    adopted.assert_outcomes(passed=1)
    adopted.stdout.fnmatch_lines(["baseline written: stalls.txt"])
    lines = (pytester.path / "stalls.txt").read_text().splitlines()
    assert [line.rpartition(" ")[0] for line in lines[1:]] == ["test_suite.old time.sleep"]
    changed = "\n\n" + OLD.replace("block(0.25)", "block(0.35)")
    known = run(changed, *OPTIONS)  # on another line, and somewhat longer
    known.assert_outcomes(passed=1)
    known.stdout.fnmatch_lines(["*in old (known)"])
    fails = run(
        OLD.replace("old(seconds)\n        asyncio", "new(seconds)\n        asyncio"), *OPTIONS
    )
    fails.assert_outcomes(failed=1)
    fails.stdout.fnmatch_lines(
        [
            "*by time.sleep in new",
            "in the baseline, and not seen any more: test_suite.old time.sleep",
        ]
    )


def test_what_takes_more_than_twice_as_long_fails_and_says_so(
    run: Run, pytester: pytest.Pytester
) -> None:
    (pytester.path / "stalls.txt").write_text("test_suite.old time.sleep 0.110\n")
    result = run(OLD, *OPTIONS)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the baseline knows it with 0.110 s"])


def test_what_is_gone_is_said_only_where_the_whole_suite_ran(
    run: Run, pytester: pytest.Pytester
) -> None:
    file = pytester.path / "stalls.txt"
    file.write_text("test_suite.gone time.sleep 0.5\n")
    suite = "def test_one(): pass\n\ndef test_two(): pass\n"
    whole = run(suite, *OPTIONS)
    assert whole.ret == pytest.ExitCode.OK
    whole.stdout.fnmatch_lines(
        ["in the baseline, and not seen any more: test_suite.gone time.sleep"]
    )
    for part in (("-k", "one"), ("test_suite.py::test_one",), ("--maxfail", "1", "-k", "two")):
        run.again(*OPTIONS, *part).stdout.no_fnmatch_line("in the baseline*")  # type: ignore[attr-defined]
    run.again(*OPTIONS, "--stall-baseline-update", "-k", "one")  # type: ignore[attr-defined]
    assert "test_suite.gone" in file.read_text()
    run.again(*OPTIONS, "--stall-baseline-update")  # type: ignore[attr-defined]
    assert "test_suite.gone" not in file.read_text()


def test_a_file_that_is_none_is_refused(run: Run, pytester: pytest.Pytester) -> None:
    (pytester.path / "stalls.txt").write_text("<<<<<<< HEAD\n")
    result = run("def test_one(): pass\n", *OPTIONS)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "stalls.txt: line 1" in result.stderr.str()
