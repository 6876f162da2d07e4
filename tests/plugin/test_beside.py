"""Beside what people test with: other plugins, test clients, loop scopes, frozen clocks, debuggers, forks."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.plugin.conftest import Run
from tests.plugin.test_verdicts import SLEEPS

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).resolve().parents[2]


def failed(result: pytest.RunResult) -> list[str]:
    """The tests that failed for a stall, each with where it was."""
    text = "\n".join(result.outlines)
    where = re.findall(r"^FAILED test_suite\.py::(\S+) - Failed: ", text, re.MULTILINE)
    assert len(where) == len(re.findall(r"^FAILED", text, re.MULTILINE)), text
    return sorted(where)


def lines_of_stalls(result: pytest.RunResult, verdict: str = "fails") -> list[str]:
    """From the summary: each test that stalled, with the function that did it."""
    found, test = [], ""
    for line in result.outlines:
        if named := re.fullmatch(r"[\d.]+ s in \d+ stalls?: \S+::(\S+)", line):
            test = named[1]
        elif by := re.fullmatch(rf"    .* in (\S+) \({verdict}\)", line):
            found.append(f"{test} {by[1]}")
    return sorted(found)


def test_every_loop_scope_of_pytest_asyncio(run: Run) -> None:
    """Bodies and fixtures, with a loop of their own, a module's and the session's: each in its own test."""
    pytest.importorskip("pytest_asyncio")
    result = run(
        """
        import asyncio, time, pytest, pytest_asyncio

        def block():
            time.sleep(0.4)

        @pytest_asyncio.fixture
        async def slow_fixture():
            block()
            yield
            await asyncio.sleep(0)

        @pytest_asyncio.fixture(loop_scope="session", scope="session")
        async def innocent():
            await asyncio.sleep(0.15)
            yield

        @pytest.mark.asyncio
        async def test_function():
            block()

        @pytest.mark.asyncio(loop_scope="module")
        async def test_module_first():
            await asyncio.sleep(0.15)

        @pytest.mark.asyncio(loop_scope="module")
        async def test_module_second():
            block()

        @pytest.mark.asyncio(loop_scope="session")
        async def test_session_first(innocent):
            await asyncio.sleep(0.15)

        @pytest.mark.asyncio(loop_scope="session")
        async def test_session_second(innocent):
            await asyncio.sleep(0.01)
            block()

        @pytest.mark.asyncio(loop_scope="session")
        async def test_session_third(innocent):
            await asyncio.sleep(0.15)

        @pytest.mark.asyncio
        async def test_fixture(slow_fixture):
            await asyncio.sleep(0)
        """,
        "-o",
        "stall_phases=setup call teardown",
    )
    result.assert_outcomes(passed=3, failed=3, errors=1)
    assert failed(result) == ["test_function", "test_module_second", "test_session_second"]
    result.stdout.fnmatch_lines(["ERROR test_suite.py::test_fixture - Failed: *"])


def test_the_plugin_of_anyio_on_both_loops(run: Run) -> None:
    pytest.importorskip("uvloop")
    result = run(
        """
        import anyio, time, pytest

        @pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
        def anyio_backend(request):
            return "asyncio", {"use_uvloop": request.param}

        @pytest.fixture
        async def fixture():
            await anyio.sleep(0.01)
            yield 1
            await anyio.sleep(0.01)

        @pytest.mark.anyio
        async def test_blocks(fixture):
            await anyio.sleep(0.01)
            time.sleep(0.4)

        @pytest.mark.anyio
        async def test_waits(fixture):
            await anyio.sleep(0.15)
        """,
        *("-p", "no:asyncio"),
    )
    result.assert_outcomes(passed=2, failed=2)
    assert failed(result) == ["test_blocks[asyncio]", "test_blocks[uvloop]"]


def test_clients_of_web_applications(run: Run) -> None:
    """TestClient's loop lives in another thread, with `with` for as long as a fixture; ASGITransport has no server."""
    pytest.importorskip("fastapi")
    result = run(
        """
        import asyncio, time, httpx, pytest
        from fastapi import FastAPI
        from fastapi.testclient import TestClient

        app = FastAPI()

        @app.get("/slow")
        async def slow():
            time.sleep(0.4)

        @app.get("/quick")
        async def quick():
            await asyncio.sleep(0.15)

        @app.get("/thread")
        def in_a_thread():
            time.sleep(0.4)

        @pytest.fixture(scope="module")
        def client():
            with TestClient(app) as client:
                yield client

        @pytest.mark.parametrize("path", ["slow", "quick", "thread"])
        def test_of_a_module(client, path):
            assert client.get("/" + path).status_code == 200

        @pytest.mark.parametrize("path", ["slow", "quick", "thread"])
        def test_of_its_own(path):
            assert TestClient(app).get("/" + path).status_code == 200

        @pytest.mark.parametrize("path", ["slow", "quick"])
        def test_transport(path):
            async def main():
                transport = httpx.ASGITransport(app)
                async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
                    return await client.get("/" + path)
            assert asyncio.run(main()).status_code == 200
        """,
    )
    result.assert_outcomes(passed=5, failed=3)
    assert failed(result) == [
        "test_of_a_module[slow]",
        "test_of_its_own[slow]",
        "test_transport[slow]",
    ]
    assert {line.split()[1] for line in lines_of_stalls(result)} == {"slow"}


def test_the_message_names_the_route(run: Run) -> None:
    """With the prefixes of routers and mounts, and without the path that was asked for; Starlette is left as it was."""
    starlette = pytest.importorskip("starlette.applications")
    pytest.importorskip("fastapi")
    before = starlette.Starlette.__call__
    result = run(
        """
        import asyncio, time, httpx
        from fastapi import APIRouter, FastAPI
        from fastapi.testclient import TestClient

        app, mounted, router = FastAPI(), FastAPI(), APIRouter()

        def block():
            time.sleep(0.3)

        @router.post("/users/{user}")
        async def add(user: str):
            block()

        @mounted.get("/items/{item}")
        async def item(item: str):
            await asyncio.sleep(0)
            block()

        app.include_router(router, prefix="/v1")
        app.mount("/shop", mounted)

        def test_router():
            assert TestClient(app).post("/v1/users/secret").status_code == 200

        def test_mount():
            with TestClient(app) as client:
                assert client.get("/shop/items/secret").status_code == 200

        def test_transport():
            async def main():
                transport = httpx.ASGITransport(app)
                async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
                    return await client.post("/v1/users/secret")
            assert asyncio.run(main()).status_code == 200

        def test_beside_a_request():
            async def main():
                block()
            asyncio.run(main())
        """,
    )
    result.assert_outcomes(failed=4)
    routes = [line.strip() for line in result.outlines if line.startswith("    in ")]
    of_router, of_mount = "in POST /v1/users/{user}", "in GET /shop/items/{item}"
    assert routes == [of_router, of_mount, of_router]
    assert starlette.Starlette.__call__ is before


def test_workers_of_xdist(run: Run, pytester: pytest.Pytester) -> None:
    """They judge; the one that started them sums up, writes the baseline and names the worst first."""
    pytest.importorskip("xdist")
    source = """
        import asyncio, time, pytest

        async def block(seconds):
            time.sleep(seconds)

        @pytest.mark.parametrize("tenths", [0, 3, 5, 7])
        def test_blocks(tenths):
            asyncio.run(block(tenths / 10))
    """
    result = run(source, "-n", "2", "--junitxml", "junit.xml")
    result.assert_outcomes(passed=1, failed=3)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    named = [line for line in result.outlines if " stall: test_suite.py" in line]
    assert [line[-3:] for line in named] == ["[7]", "[5]", "[3]"]
    assert (pytester.path / "junit.xml").read_text().count('<property name="stall"') == 3
    options = ("-n", "2", "--stall-baseline", "stalls.txt")
    again = run.again  # type: ignore[attr-defined]
    again(*options, "--stall-baseline-update").assert_outcomes(passed=4)
    assert "test_suite.block time.sleep" in (pytester.path / "stalls.txt").read_text()
    again(*options).assert_outcomes(passed=4)


def test_reruns_timeouts_and_coverage(run: Run, pytester: pytest.Pytester) -> None:
    for plugin in ("pytest_rerunfailures", "pytest_timeout", "pytest_cov"):
        pytest.importorskip(plugin)
    result = run(
        """
        import asyncio, time, pytest

        runs = []

        def block(seconds):
            async def main():
                time.sleep(seconds)
            asyncio.run(main())

        @pytest.mark.flaky(reruns=1)
        def test_again():
            runs.append(1)
            block(0.4 if len(runs) == 1 else 0)

        @pytest.mark.timeout(0.8)
        def test_times_out():
            block(5)

        def test_blocks():
            block(0.4)
        """,
        *("-p", "rerunfailures", "--cov", ".", "--cov-report", "term"),
    )
    result.assert_outcomes(passed=1, failed=2)
    text = result.stdout.str()
    assert "1 rerun" in text
    assert "FAILED test_suite.py::test_times_out - Failed: Timeout" in text
    assert re.search(r"^test_suite\.py +\d+ +\d+ +\d+%", text, re.MULTILINE)
    assert lines_of_stalls(result) == [
        "test_again block.<locals>.main",
        "test_blocks block.<locals>.main",
        "test_times_out block.<locals>.main",
    ]


def test_without_any_other_plugin_and_without_this_one(pytester: pytest.Pytester) -> None:
    """In processes of their own, as a user runs them; a plugin that is blocked leaves no option."""
    pytester.makepyfile(test_suite=SLEEPS)
    environment = {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        alone = pytester.run(
            *(sys.executable, "-m", "pytest", "-p", "asyncio_loopguard", "--stalls")
        )
        blocked = pytester.run(*(sys.executable, "-m", "pytest", "-p", "no:asyncio_loopguard"))
        refused = pytester.run(
            *(sys.executable, "-m", "pytest", "-p", "no:asyncio_loopguard", "--stalls")
        )
    alone.assert_outcomes(failed=1)
    assert alone.ret == 1
    blocked.assert_outcomes(passed=1)
    assert refused.ret == pytest.ExitCode.USAGE_ERROR


def test_only_its_door_is_imported_while_it_is_off(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_suite="""
        import sys

        def test_imported():
            imported = {name for name in sys.modules if name.startswith("loopguard")}
            assert imported == {
                "loopguard",
                "loopguard.integrations",
                "loopguard.integrations.pytest_stalls",
            }
        """
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        done = pytester.run(sys.executable, "-m", "pytest", "-p", "asyncio_loopguard")
    done.assert_outcomes(passed=1)


def test_frozen_clocks_do_not_matter(run: Run) -> None:
    pytest.importorskip("freezegun")
    result = run(
        """
        import asyncio, time, freezegun

        async def block():
            await asyncio.sleep(0.01)
            time.sleep(0.4)

        def test_frozen_and_blocks():
            with freezegun.freeze_time("2020-01-01", real_asyncio=True):
                asyncio.run(block())

        def test_frozen_and_innocent():
            with freezegun.freeze_time("2020-01-01", real_asyncio=True):
                asyncio.run(asyncio.sleep(0.25))

        def test_frozen_with_its_loop():
            async def main():
                for _ in range(30):
                    time.sleep(0.01)
                    await asyncio.sleep(0)
            with freezegun.freeze_time("2020-01-01"):
                asyncio.run(main())

        def test_afterwards():
            asyncio.run(block())
        """,
    )
    result.assert_outcomes(passed=2, failed=2)
    assert failed(result) == ["test_afterwards", "test_frozen_and_blocks"]


def test_a_debugger_silences_it(run: Run) -> None:
    """One that stops in the code, and one that was stopped in by way of pytest."""
    result = run(
        """
        import asyncio, bdb, io, pdb, sys, time

        class Slow(io.StringIO):
            def readline(self):
                time.sleep(0.4)
                return "continue\\n"

        async def stops():
            debugger = pdb.Pdb(stdin=Slow(), stdout=io.StringIO(), nosigint=True)
            debugger.use_rawinput = False
            debugger.set_trace()
            await asyncio.sleep(0)

        def test_stops_in_a_debugger():
            asyncio.run(stops())
            sys.settrace(None)

        def test_has_one_attached():
            async def main():
                time.sleep(0.4)
            debugger = bdb.Bdb()
            debugger.reset()
            sys.settrace(debugger.trace_dispatch)
            asyncio.run(main())

        def test_after_it():
            sys.settrace(None)
            async def main():
                time.sleep(0.4)
            asyncio.run(main())
        """,
    )
    result.assert_outcomes(passed=2, failed=1)
    assert failed(result) == ["test_after_it"]


def test_an_application_that_installs_loopguard_itself(run: Run) -> None:
    result = run(
        """
        import asyncio, time, loopguard

        async def block():
            time.sleep(0.4)

        def test_installs():
            with loopguard.install(budget=0.1, log=False, traces=False, metrics=False) as guard:
                asyncio.run(block())
                assert guard.flush()
                assert [stall.call for stall in guard.stalls] == ["time.sleep"]

        def test_blocks_before_anything_else():
            asyncio.run(block())
        """,
    )
    assert failed(result) == ["test_blocks_before_anything_else", "test_installs"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_a_test_forks_is_no_harm(run: Run) -> None:
    result = run(
        """
        import asyncio, multiprocessing, time, warnings

        def child():
            asyncio.run(asyncio.sleep(0.1))

        def test_forks():
            async def main():
                await asyncio.sleep(0.06)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    process = multiprocessing.get_context("fork").Process(target=child)
                    process.start()
                while process.is_alive():
                    await asyncio.sleep(0.01)
                assert process.exitcode == 0
            asyncio.run(main())

        def test_blocks_afterwards():
            async def main():
                time.sleep(0.4)
            asyncio.run(main())
        """,
    )
    assert failed(result) == ["test_blocks_afterwards"]
    result.assert_outcomes(passed=1, failed=1)


def test_native_code_that_keeps_the_gil_is_told_at_its_line(run: Run) -> None:
    """Also in the first moment of a short loop, when no heartbeat has begun."""
    result = run(
        """
        import asyncio, re

        exponent = 5_000_000

        async def power():
            return (3 ** exponent).bit_length()

        async def match():
            return re.match(r"(a+)+$", "a" * 24 + "b")

        def test_power():
            asyncio.run(power())

        def test_match():
            asyncio.run(match())
        """,
    )
    assert lines_of_stalls(result) == ["test_match match", "test_power power"]
    result.stdout.fnmatch_lines(["*re.match(*"])
    result.stdout.fnmatch_lines(["*3 ?? exponent*"])


def test_a_task_left_over_names_the_test_that_made_it(run: Run) -> None:
    result = run(
        """
        import asyncio, time, pytest

        async def later():
            await asyncio.sleep(0.2)
            time.sleep(0.4)

        @pytest.mark.asyncio(loop_scope="session")
        async def test_leaves_a_task():
            global task
            task = asyncio.create_task(later())

        @pytest.mark.asyncio(loop_scope="session")
        async def test_victim():
            await asyncio.sleep(0.6)

        @pytest.mark.asyncio(loop_scope="session")
        async def test_blocks_itself():
            time.sleep(0.4)
        """,
    )
    assert failed(result) == ["test_blocks_itself", "test_victim"]
    text = result.stdout.str()
    assert text.count("in the context of an earlier test: test_suite.py::test_leaves_a_task") == 1


def test_a_thread_that_is_slow_to_begin_fails_no_test(run: Run) -> None:
    """The loop waits in `Thread.start` until the system gives the new thread a CPU: that only warns."""
    result = run(
        """
        import asyncio, threading, time

        name = "_start_new_thread"
        if hasattr(threading, "_start_joinable_thread"):
            name = "_start_joinable_thread"
        start = getattr(threading, name)

        def start_slowly(function, *rest, **more):
            def late(*arguments):
                time.sleep(0.4)
                function(*arguments)
            return start(late, *rest, **more)

        def test_waits(monkeypatch):
            async def main():
                monkeypatch.setattr(threading, name, start_slowly)
                await asyncio.to_thread(int)
            asyncio.run(main())
        """,
    )
    result.assert_outcomes(passed=1)
    assert lines_of_stalls(result, "warns") != []
