"""Following: each record once, in whatever way the file changes under the eyes of the reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from loopguard.show.board import Board
from loopguard.show.follow import Follower
from loopguard.tell.jsonl import json_line
from tests.show.records import STARTED_AT, stall, write


def append(path: Path, *numbers: int) -> None:
    with path.open("a") as file:
        file.writelines(f"{json_line(stall(number).to_dict())}\n" for number in numbers)


def came(follower: Follower) -> list[int]:
    return [int(each.id, 16) for each in follower.poll()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "a.jsonl", [stall(1)])


def test_what_is_there_comes_first_and_then_what_is_added(path: Path) -> None:
    follower = Follower([str(path)])
    assert came(follower) == [1]
    assert came(follower) == []
    append(path, 2, 3)
    assert came(follower) == [2, 3]


def test_half_a_line_waits_for_its_end(path: Path) -> None:
    follower = Follower([str(path)])
    came(follower)
    line = f"{json_line(stall(2).to_dict())}\n"
    for piece, expected in ((line[:100], []), (line[100:-1], []), (line[-1:], [2])):
        with path.open("a") as file:
            file.write(piece)
        assert came(follower) == expected
    assert follower.left_out == 0


def test_a_file_that_was_rotated_is_read_to_its_end_and_then_the_new_one(path: Path) -> None:
    follower = Follower([str(path)])
    came(follower)
    append(path, 2)
    path.rename(path.with_suffix(".1"))
    append(path, 3)
    assert came(follower) == [2, 3]
    append(path, 4)
    assert came(follower) == [4]


def test_a_file_that_was_truncated_is_read_from_its_beginning(path: Path) -> None:
    follower = Follower([str(path)])
    append(path, 2)
    came(follower)
    path.write_text("")
    assert came(follower) == []
    append(path, 3)
    assert came(follower) == [3]


def test_a_file_that_was_removed_is_waited_for(path: Path) -> None:
    follower = Follower([str(path)])
    came(follower)
    path.unlink()
    assert came(follower) == []
    assert follower.files == 0
    append(path, 2)
    assert came(follower) == [2]
    assert follower.files == 1


def test_a_file_that_appears_later_is_followed_in_a_directory_too(tmp_path: Path) -> None:
    follower = Follower([str(tmp_path), str(tmp_path / "late" / "b.jsonl")])
    assert came(follower) == []
    append(tmp_path / "a.jsonl", 1)
    (tmp_path / "late").mkdir()
    append(tmp_path / "late" / "b.jsonl", 2)
    assert sorted(came(follower)) == [1, 2]


def test_of_a_large_file_only_the_latest_is_read(path: Path) -> None:
    append(path, *range(2, 40))
    follower = Follower([str(path)], tail=5000)
    numbers = came(follower)
    assert numbers[-1] == 39
    assert 1 <= len(numbers) < 10
    assert follower.left_out == 0


def test_what_is_no_record_is_counted(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"no\n\xff\n{}\n\n")
    follower = Follower([str(path)])
    assert came(follower) == [1]
    assert follower.left_out == 3


def test_its_descriptors_are_given_back(path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    follower = Follower([str(path)])
    for number in range(2, 6):
        came(follower)
        path.rename(path.with_suffix(".1"))
        append(path, number)
    follower.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_an_early_record_stands_until_the_final_one() -> None:
    board = Board()
    board.add([stall(1, ongoing=True, duration=0.5)])
    assert [each.duration for each in board.ongoing(STARTED_AT + 60.6)] == [0.5]
    board.add([stall(1, ongoing=True, duration=1.0)])
    assert [each.duration for each in board.ongoing(STARTED_AT + 61.1)] == [1.0]
    board.add([stall(1, duration=1.3)])
    assert board.ongoing(STARTED_AT + 61.4) == []
    assert (board.summary.stalls, board.summary.seconds) == (1, 1.3)


def test_an_early_record_that_comes_late_brings_nothing_back() -> None:
    board = Board()
    board.add([stall(1, duration=1.3), stall(1, ongoing=True, duration=0.5)])
    assert board.ongoing(STARTED_AT + 60.6) == []
    assert [each.duration for each in board.since(0)] == [1.3]


def test_what_nobody_tells_of_any_more_is_not_shown_as_lasting() -> None:
    """The process died: else it would hold the loop for ever."""
    board = Board()
    board.add([stall(1, ongoing=True, duration=4.0)])
    assert board.ongoing(STARTED_AT + 60 + 12.9)
    assert not board.ongoing(STARTED_AT + 60 + 13.1)


def test_what_came_after_a_change_is_given_once() -> None:
    board = Board()
    board.add([stall(1), stall(2, ongoing=True)])
    seen = board.changes
    board.add([stall(2), stall(3)])
    assert [int(each.id, 16) for each in board.since(seen)] == [2, 3]
    assert [int(each.id, 16) for each in board.since(0)] == [1, 2, 3]
    assert board.since(board.changes) == []
