"""A line in the JSONL file is whole, is one line, and outlives the process that wrote it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loopguard.tell.jsonl import JsonLines, json_line
from tests.records import CULPRIT, make_report, make_stall
from tests.reliability import Say

pytestmark = pytest.mark.core

ROOT = Path(__file__).parent.parent

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def ids(path: Path) -> list[str]:
    return [record["id"] for record in records(path)]


def write(sink: JsonLines, *names: str) -> None:
    for name in names:
        sink(make_report(make_stall(id=name)))


def python(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    prelude = (
        "import os, signal, sys\n"
        "from loopguard.tell.jsonl import JsonLines\n"
        "from tests.records import make_report, make_stall\n"
        "sink = JsonLines(sys.argv[1])\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", prelude + code, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stalls.jsonl"


def test_a_record_is_one_line_with_all_of_its_keys(path: Path) -> None:
    stall = make_stall(task="two\nlines\u2028three\x85four")
    sink = JsonLines(path)
    sink(make_report(stall))
    sink.close()
    assert path.read_bytes().count(b"\n") == 1
    assert records(path) == [json.loads(json.dumps(stall.to_dict()))]


def test_a_record_is_written_whatever_the_limits_of_the_log_say(path: Path) -> None:
    JsonLines(path)(make_report(allowed=False))
    assert len(records(path)) == 1


@posix
def test_only_its_owner_can_read_the_file(path: Path) -> None:
    write(JsonLines(path), "a")
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_file_is_not_handed_on_to_child_processes(path: Path) -> None:
    before = open_descriptors()
    write(JsonLines(path), "a")
    (descriptor,) = open_descriptors() - before
    assert not os.get_inheritable(descriptor)


def open_descriptors() -> set[int]:
    def is_open(descriptor: int) -> bool:
        try:
            os.fstat(descriptor)
        except OSError:
            return False
        return True

    return {descriptor for descriptor in range(256) if is_open(descriptor)}


def test_what_was_in_the_file_stays(path: Path) -> None:
    path.write_text('{"id": "old"}\n')
    write(JsonLines(path), "new")
    assert ids(path) == ["old", "new"]


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_a_number_that_json_does_not_know_becomes_null(number: float) -> None:
    line = json_line({"a": number, "b": [{"c": number}], "d": 1.5})
    assert json.loads(line) == {"a": None, "b": [{"c": None}], "d": 1.5}


def test_a_file_name_that_is_no_text_is_written_all_the_same(path: Path) -> None:
    name = os.fsdecode(b"app/caf\xe9.py")
    JsonLines(path)(make_report(make_stall(culprit=replace(CULPRIT, file=name))))
    assert records(path)[0]["culprit"]["file"] == name


@posix
def test_a_record_survives_a_process_that_is_killed_right_after(path: Path) -> None:
    child = python("sink(make_report())\nos.kill(os.getpid(), signal.SIGKILL)", path)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert ids(path) == [make_stall().id]


def test_lines_of_several_processes_never_mix(path: Path) -> None:
    code = """
print("ready", flush=True)
sys.stdin.readline()
for number in range(60):
    sink(make_report(make_stall(id=f"{sys.argv[2]}-{number}", task=sys.argv[2] * 30_000)))
"""
    children = [python(code, path, name) for name in "abcd"]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == b"ready"
    for child in children:
        assert child.stdin is not None
        child.stdin.write(b"go\n")
        child.stdin.flush()
    for child in children:
        child.communicate()
        assert child.returncode == 0
    written = ids(path)
    for name in "abcd":
        assert [record for record in written if record.startswith(name)] == [
            f"{name}-{number}" for number in range(60)
        ]
    assert len(written) == 240


@pytest.mark.parametrize("remains", ["{", '{"id": "half'])
def test_a_line_that_somebody_left_half_written_spoils_no_other(path: Path, remains: str) -> None:
    path.write_text('{"id": "whole"}\n' + remains)
    write(JsonLines(path), "a", "b")
    first, half, *rest = path.read_text().splitlines()
    assert (first, half) == ('{"id": "whole"}', remains)
    assert [json.loads(line)["id"] for line in rest] == ["a", "b"]


@pytest.mark.parametrize("more", ['": 1}\n', '": [1, 2, 3, '], ids=["to its end", "further"])
def test_a_line_that_another_process_is_writing_at_this_moment_is_not_taken_for_a_half_one(
    path: Path, more: str
) -> None:
    """A file grows page by page, and the others can see it."""
    path.write_text('{"theirs')

    def meanwhile(_: float) -> None:
        with path.open("a") as file:
            file.write(more)

    write(JsonLines(path, sleep=meanwhile), "ours")
    ours = json_line(make_stall(id="ours").to_dict()) + "\n"
    assert path.read_text() == '{"theirs' + more + ours


@posix
@pytest.mark.fault("the JSONL file rotated", "the file is renamed between two records")
def test_a_file_that_was_rotated_away_is_created_anew(path: Path, tmp_path: Path, row: Say) -> None:
    rotated = tmp_path / "stalls.jsonl.1"
    sink = JsonLines(path)
    write(sink, "a")
    path.rename(rotated)
    write(sink, "b", "c")
    assert (ids(rotated), ids(path)) == (["a"], ["b", "c"])
    row("the next record goes into a new file of that name")


@posix
@pytest.mark.fault("the JSONL file removed", "the file is unlinked between two records")
def test_a_file_that_was_removed_is_created_anew(path: Path, row: Say) -> None:
    sink = JsonLines(path)
    write(sink, "a")
    path.unlink()
    write(sink, "b")
    assert ids(path) == ["b"]
    assert path.stat().st_mode & 0o777 == 0o600
    row(
        "the next record goes into a new file of that name, for its owner alone",
        "what was in the file",
    )


def test_a_file_that_was_emptied_in_place_is_written_from_its_beginning(path: Path) -> None:
    sink = JsonLines(path)
    write(sink, "a")
    os.truncate(path, 0)
    write(sink, "b")
    assert ids(path) == ["b"]


@posix
def test_rotation_leaves_no_descriptor_behind(path: Path) -> None:
    sink = JsonLines(path)
    before = open_descriptors()
    for name in "abc":
        write(sink, name)
        path.unlink()
    sink.close()
    assert open_descriptors() == before


def test_after_close_the_next_record_opens_the_file_again(path: Path) -> None:
    sink = JsonLines(path)
    write(sink, "a")
    sink.close()
    sink.close()
    write(sink, "b")
    assert ids(path) == ["a", "b"]


@linux
@pytest.mark.parametrize("file, left", [("there", ["a", "b"]), ("removed", ["b"])])
def test_a_descriptor_that_has_become_somebody_elses_is_neither_written_nor_closed(
    path: Path, file: str, left: list[str]
) -> None:
    """A daemon closes every descriptor; the numbers then go to its sockets."""
    child = python(
        """
sink(make_report(make_stall(id="a")))
os.closerange(3, 64)
if sys.argv[2] == "removed":
    os.unlink(sys.argv[1])
foreign = [os.pipe() for _ in range(20)]
sink(make_report(make_stall(id="b")))
sink.close()
for reader, writer in foreign:
    os.write(writer, b"x")
    assert os.read(reader, 100) == b"x"
""",
        path,
        file,
    )
    child.communicate()
    assert child.returncode == 0
    assert ids(path) == left


@linux
def test_a_descriptor_that_was_closed_with_its_file_removed_is_opened_anew(path: Path) -> None:
    child = python(
        """
sink(make_report(make_stall(id="a")))
os.closerange(3, 64)
os.unlink(sys.argv[1])
sink(make_report(make_stall(id="b")))
""",
        path,
    )
    child.communicate()
    assert child.returncode == 0
    assert ids(path) == ["b"]


@posix
def test_the_file_may_be_a_pipe(path: Path) -> None:
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write(JsonLines(path), "a")
        assert json.loads(os.read(reader, 65536))["id"] == "a"
    finally:
        os.close(reader)


@linux
def test_a_full_disk_is_an_error_for_the_caller() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        write(JsonLines("/dev/full"), "a")
    assert caught.value.errno == errno.ENOSPC


@linux
@pytest.mark.fault(
    "a disk that fills up within a line",
    "a limit of the file's size (`RLIMIT_FSIZE`), lifted later",
)
def test_a_line_that_a_full_disk_cut_short_spoils_no_later_one(path: Path, row: Say) -> None:
    child = python(
        """
import resource
sink(make_report(make_stall(id="a")))
size = os.path.getsize(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
for name in "bc":
    try:
        sink(make_report(make_stall(id=name)))
    except OSError:
        pass
    else:
        raise AssertionError
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
sink(make_report(make_stall(id="d")))
""",
        path,
    )
    child.communicate()
    assert child.returncode == 0
    first, cut, last = path.read_text().splitlines()
    assert json.loads(first)["id"] == "a"
    assert len(cut) == 100
    assert json.loads(last)["id"] == "d"
    row(
        "the half line is ended; what comes after it is whole",
        "2 records of 4, counted as `sink_errors`",
    )


def test_a_directory_that_is_gone_is_an_error_until_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "stalls.jsonl"
    sink = JsonLines(path)
    with pytest.raises(FileNotFoundError):
        write(sink, "a")
    path.parent.mkdir()
    write(sink, "b")
    assert ids(path) == ["b"]
