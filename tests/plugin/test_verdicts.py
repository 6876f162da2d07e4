"""What fails a test, what does not, and what is said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.plugin.conftest import Run

pytestmark = pytest.mark.core

SLEEPS = """
    import asyncio, time

    def test_sleeps():
        async def list_users():
            time.sleep(0.3)
        asyncio.run(list_users())
"""
FIRST_LINE = re.compile(
    r"test_suite\.py:5: event loop blocked 0\.[23]\d\d s \(budget 0\.100 s\)"
    r" by time\.sleep in test_sleeps\.<locals>\.list_users"
)


def message_of(result: pytest.RunResult, test: str) -> list[str]:
    """The lines of a test's failure."""
    text = "\n".join(result.outlines)
    found = re.search(
        rf"^_+ (?:ERROR at \w+ of )?{re.escape(test)} _+\n(.*?)^(?:_{{3}}|={{3}})",
        text,
        re.MULTILINE | re.DOTALL,
    )
    assert found, text
    return found[1].splitlines()


def test_a_test_that_blocks_fails_at_its_line_with_cause_call_and_advice(run: Run) -> None:
    result = run(SLEEPS)
    result.assert_outcomes(failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    first, *rest = message_of(result, "test_sleeps")
    assert FIRST_LINE.fullmatch(first)
    assert rest[0] == "    time.sleep(0.3)"
    assert rest[1].startswith("    cause: blocking_call, waited on clock_nanosleep, 0.0")
    assert "asyncio.sleep" in rest[2]
    assert any("allow_stalls" in line for line in rest)
    assert not any("pytest_plugin.py" in line for line in rest)


def test_it_is_off_unless_asked_for(run: Run) -> None:
    result = run(SLEEPS, on=False)
    result.assert_outcomes(passed=1)
    assert "stalls" not in result.stdout.str()


def test_the_ini_file_can_ask_for_it_and_set_the_budget(
    run: Run, pytester: pytest.Pytester
) -> None:
    pytester.makeini("[pytest]\nstalls = true\nstall_budget = 0.2\n")
    result = run(SLEEPS, on=False)
    result.assert_outcomes(failed=1)
    assert "(budget 0.200 s)" in message_of(result, "test_sleeps")[0]
    run.again("--stall-budget", "1", on=False).assert_outcomes(passed=1)  # type: ignore[attr-defined]


def test_markers_and_the_fixture_are_there_also_where_it_is_off(run: Run) -> None:
    """The marker with a budget, and the fixture, turn it on for their tests; the verdict of the fixture's is its own."""
    result = run(
        """
        import asyncio, time, pytest

        def block(seconds=0.3):
            async def main():
                time.sleep(seconds)
            asyncio.run(main())

        def test_is_not_watched():
            block()

        @pytest.mark.stall_budget(0.2)
        def test_over_its_own_budget():
            block()

        @pytest.mark.stall_budget(0.5)
        def test_within_its_own_budget():
            block()

        def test_judges_for_itself(stalls):
            assert stalls == []
            block()
            assert [stall.call for stall in stalls] == ["time.sleep"]
            assert stalls[0].culprit.function == "block.<locals>.main"

        def test_that_judges_can_fail(stalls):
            block()
            assert not stalls

        @pytest.mark.allow_stalls("it is old")
        def test_is_allowed():
            block()
        """,
        "--strict-markers",
        on=False,
    )
    result.assert_outcomes(passed=4, failed=2)
    result.stdout.fnmatch_lines(
        ["FAILED *test_over_its_own_budget*", "FAILED *test_that_judges_can_fail*"]
    )
    assert "test_is_not_watched" not in result.stdout.str()


def test_a_name_of_their_own_that_is_our_fixtures_asks_for_nothing(run: Run) -> None:
    result = run(
        """
        import asyncio, threading, time, pytest

        def block():
            async def main():
                time.sleep(0.3)
            asyncio.run(main())
            assert not [each for each in threading.enumerate() if each.name.startswith("loopguard")]

        @pytest.mark.parametrize("stalls", [1])
        def test_parameter(stalls):
            block()

        class TestOwn:
            @pytest.fixture
            def stalls(self):
                return 2

            def test_fixture(self, stalls):
                block()
        """,
        on=False,
    )
    result.assert_outcomes(passed=2)


def test_what_is_allowed_passes(run: Run) -> None:
    result = run(
        """
        import asyncio, time, pytest, loopguard

        async def block():
            time.sleep(0.3)

        @pytest.mark.allow_stalls("it is old")
        def test_by_its_marker():
            asyncio.run(block())

        @pytest.mark.stall_budget(seconds=1)
        def test_by_its_budget():
            asyncio.run(block())

        def test_by_the_code_itself():
            asyncio.run(loopguard.allow_blocking("fills a cache")(block)())

        def test_by_the_fixture(stalls):
            asyncio.run(block())

        def test_not_on_a_loop_at_all():
            time.sleep(0.3)

        def test_waits():
            asyncio.run(asyncio.sleep(0.3))

        def test_many_short_ones():
            async def main():
                for _ in range(30):
                    time.sleep(0.01)
                    await asyncio.sleep(0)
            asyncio.run(main())
        """,
    )
    result.assert_outcomes(passed=7)
    result.stdout.fnmatch_lines(["*test_suite.py:4: event loop blocked * in block (allowed)"])


def test_a_test_that_fails_by_itself_keeps_its_failure(run: Run) -> None:
    """And one that was marked for another reason shows the stall in a section of its report."""
    result = run(
        """
        import asyncio, time, unittest, pytest

        async def block():
            time.sleep(0.3)

        def test_fails():
            asyncio.run(block())
            assert 1 == 2

        @pytest.mark.xfail(strict=True)
        def test_is_expected_to_fail():
            asyncio.run(block())
            raise ValueError

        def test_skips():
            asyncio.run(block())
            pytest.skip("for today")

        class TestCase(unittest.IsolatedAsyncioTestCase):
            async def test_blocks(self):
                time.sleep(0.3)

            async def test_fails(self):
                time.sleep(0.3)
                self.assertEqual(1, 2)
        """,
    )
    result.assert_outcomes(failed=3, xfailed=1, skipped=1)
    assert "assert 1 == 2" in "\n".join(message_of(result, "test_fails"))
    section = message_of(result, "TestCase.test_fails")
    assert any(line.startswith("E ") and "1 != 2" in line for line in section)
    assert any("Captured stall call" in line for line in section)
    assert "by time.sleep in TestCase.test_blocks" in message_of(result, "TestCase.test_blocks")[0]


def test_phases_can_be_added(run: Run, pytester: pytest.Pytester) -> None:
    source = """
        import asyncio, time, pytest

        async def block():
            time.sleep(0.3)

        @pytest.fixture
        def slow_to_begin():
            asyncio.run(block())

        @pytest.fixture
        def slow_to_end():
            yield
            asyncio.run(block())

        def test_begins(slow_to_begin): pass
        def test_ends(slow_to_end): pass
    """
    run(source).assert_outcomes(passed=2)
    pytester.makeini("[pytest]\nstall_phases = setup teardown\n")
    result = run(source)
    result.assert_outcomes(errors=2, passed=1)
    result.stdout.fnmatch_lines(["ERROR *test_begins*", "ERROR *test_ends*"])


def test_an_import_only_warns_even_where_warnings_are_errors(
    run: Run, pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(slow_to_import="import time\ntime.sleep(0.3)\n")
    source = """
        import asyncio

        async def main():
            import slow_to_import

        def test_imports():
            asyncio.run(main())
    """
    result = run(source, "-W", "default")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(
        ["*StallWarning: *event loop blocked*", "* in 1 stall: *test_imports"]
    )
    pytester.path.joinpath("slow_to_import.py").write_text("import time\ntime.sleep(0.31)\n")
    run.again("-W", "error::loopguard.testing.StallWarning").assert_outcomes(passed=1)  # type: ignore[attr-defined]


def test_the_worst_tests_are_summed_up_first(run: Run, pytester: pytest.Pytester) -> None:
    """And each stall goes to the JUnit file and the JSONL, with the longest one first in the message."""
    result = run(
        """
        import asyncio, time

        async def block(*seconds):
            for each in seconds:
                time.sleep(each)
                await asyncio.sleep(0.06)

        def test_good():
            asyncio.run(asyncio.sleep(0.01))

        def test_bad():
            asyncio.run(block(0.2))

        def test_worst():
            asyncio.run(block(0.2, 0.4))
        """,
        *("--junitxml", "junit.xml", "--stall-jsonl", "stalls.jsonl"),
    )
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*= stalls =*",
            "0.[56]?? s in 2 stalls: test_suite.py::test_worst",
            "0.[12]?? s in 1 stall: test_suite.py::test_bad",
        ]
    )
    assert re.search(r"blocked 0\.[34]", message_of(result, "test_worst")[0])
    junit = ET.fromstring((pytester.path / "junit.xml").read_text())
    properties = {
        case.get("name"): [each.get("name") for each in case.iter("property")]
        for case in junit.iter("testcase")
    }
    assert properties == {"test_good": [], "test_bad": ["stall"], "test_worst": ["stall", "stall"]}
    lines = (pytester.path / "stalls.jsonl").read_text().splitlines()
    calls = [json.loads(line)["call"] for line in lines]
    assert [call for call in calls if call is not None] == ["time.sleep"] * 3


def test_github_is_told_at_the_line(
    run: Run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths are relative to the checkout, and what GitHub would read as syntax is escaped."""
    monkeypatch.setenv("GITHUB_WORKSPACE", str(pytester.path.parent))
    run(SLEEPS).stdout.no_fnmatch_line("::error*")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = run.again()  # type: ignore[attr-defined]
    at = f"file={pytester.path.name}/test_suite.py,line=5,title=event loop blocked"
    said = "test_suite.py:5: event loop blocked * in test_suite.py::test_sleeps"
    result.stdout.fnmatch_lines([f"::error {at}::{said}"])


@pytest.mark.parametrize(
    "arguments, ini, said",
    [
        (("--stall-budget", "soon"), "", "'soon' is no number of seconds"),
        (("--stall-budget", "0.001"), "", "budget=0.001"),
        ((), "stall_budget = soon", "ini stall_budget: 'soon' is no number of seconds"),
        ((), "stall_phases = call bed", "ini stall_phases: 'bed' is none of setup, call, teardown"),
        (("--stall-baseline", "none.txt"), "", "none.txt: no such file"),
        (("--stall-baseline-update",), "", "needs --stall-baseline"),
        (("--stall-jsonl", "no/such/folder"), "", "jsonl="),
    ],
)
def test_what_cannot_be_used_is_refused_at_once(
    run: Run, pytester: pytest.Pytester, arguments: tuple[str, ...], ini: str, said: str
) -> None:
    pytester.makeini(f"[pytest]\n{ini}\n")
    result = run("def test_nothing(): pass", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert said in result.stderr.str()


def test_a_marker_that_says_nothing_is_an_error(run: Run) -> None:
    result = run(
        """
        import pytest

        @pytest.mark.allow_stalls
        def test_no_reason(): pass

        @pytest.mark.stall_budget("long")
        def test_no_number(): pass

        @pytest.mark.stall_budget
        def test_no_seconds(): pass

        def test_after_them(): pass
        """,
    )
    result.assert_outcomes(errors=3, passed=1)
    text = result.stdout.str()
    assert "allow_stalls of test_suite.py::test_no_reason needs a reason in words" in text
    assert "stall_budget of test_suite.py::test_no_number" in text


def test_a_stall_belongs_to_the_test_in_which_it_began(run: Run, tmp_path: Path) -> None:
    """One on a thread that goes on after its test is noticed later: then it fails the run, by that test's name."""
    result = run(
        """
        import asyncio, threading, time

        async def block():
            await asyncio.sleep(0.1)
            time.sleep(2.5)

        def test_leaves_a_thread():
            threading.Thread(target=asyncio.run, args=(block(),)).start()
            time.sleep(0.4)

        def test_innocent():
            time.sleep(0.1)

        def test_another():
            time.sleep(1.5)
        """,
    )
    text = result.stdout.str()
    assert result.ret == pytest.ExitCode.TESTS_FAILED, text
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        ["* in 1 stall: test_suite.py::test_leaves_a_thread", "*noticed after its test)"]
    )
