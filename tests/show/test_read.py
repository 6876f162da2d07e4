"""Reading: each stall once, from whatever holds it, and a count of all that was left out."""

from __future__ import annotations

import gzip
import json
import math
import os
import threading
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopguard.record import Stall
from loopguard.show import read as reading
from loopguard.show.parse import (
    LONGEST_TEXT,
    ForeignError,
    NewerError,
    stall_from,
)
from loopguard.show.read import Reader, ReadError
from tests.records import make_stall
from tests.show.records import delayed, stall, write

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
NAMES = st.sampled_from([field.name for field in fields(Stall)])


def ids(*paths: Path | str) -> list[str]:
    return [found.stall.id for found in Reader(map(str, paths))]


def left_out(*paths: Path) -> dict[str, int]:
    reader = Reader(map(str, paths))
    list(reader)
    return {each.reason: each.lines for each in reader.left_out.skipped.values()}


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = make_stall(delayed=(delayed("/a", 0.3),), delayed_requests=1)
    (found,) = Reader([str(write(tmp_path / "a.jsonl", [written]))])
    assert found.whole() == written
    assert found.stall.stack == ()


def test_gzip_is_known_by_its_content(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.jsonl", [stall(1), stall(2)])
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert ids(packed) == ids(plain)


def test_compressed_data_that_breaks_off_gives_what_came_before(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.jsonl", [stall(number) for number in range(500)])
    packed = tmp_path / "a.jsonl.gz"
    data = gzip.compress(plain.read_bytes(), compresslevel=0)
    packed.write_bytes(data[: len(data) // 2])
    assert 0 < len(ids(packed)) < 500
    assert "the compressed data breaks off or is damaged" in left_out(packed)


def test_of_a_directory_the_jsonl_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [stall(1)])
    write(tmp_path / "a.jsonl.1", [stall(2)])
    (tmp_path / "readme.txt").write_text("no record\n")
    assert ids(tmp_path) == [f"{1:032x}", f"{2:032x}"]
    assert left_out(tmp_path) == {}


def test_a_pipe_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    content = write(tmp_path / "a.jsonl", [stall(1)]).read_bytes()
    writer = threading.Thread(target=pipe.write_bytes, args=[content])
    writer.start()
    assert ids(pipe) == [f"{1:032x}"]
    writer.join()


def test_a_file_of_two_names_is_read_once(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [stall(1)])
    (tmp_path / "b.jsonl").symlink_to(file)
    assert ids(file, tmp_path / "b.jsonl", file) == [f"{1:032x}"]


def test_a_copy_of_a_stall_counts_once(tmp_path: Path) -> None:
    reader = Reader(
        [
            str(write(tmp_path / "a.jsonl", [stall(1), stall(2)])),
            str(write(tmp_path / "b.jsonl", [stall(2)])),
        ]
    )
    assert len(list(reader)) == 2
    assert reader.left_out.repeated == 1


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_an_early_record_gives_way_to_the_final_one(order: tuple[int, ...], tmp_path: Path) -> None:
    """In whatever order they are read, as where files were rotated in between."""
    records = [
        stall(1, ongoing=True, duration=0.5),
        stall(1, ongoing=True, duration=1.0),
        stall(1, duration=1.3),
    ]
    (found,) = Reader([str(write(tmp_path / "a.jsonl", [records[at] for at in order]))])
    assert (found.stall.ongoing, found.stall.duration) == (False, 1.3)


def test_of_a_stall_that_never_ended_the_latest_early_record_is_kept(tmp_path: Path) -> None:
    records = [stall(1, ongoing=True, duration=seconds) for seconds in (0.5, 2.0, 1.0)]
    (found,) = Reader([str(write(tmp_path / "a.jsonl", records))])
    assert (found.stall.ongoing, found.stall.duration) == (True, 2.0)
    assert found.whole().stack


def test_what_is_no_record_is_counted_by_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps(stall(1).to_dict()).encode()
    newer = json.dumps({**stall(2).to_dict(), "schema": 2}).encode()
    deep = b"[" * 100_000 + b"]" * 100_000
    lines = [b"{", b"\xff\xfe\x00", deep, b'{"event": "start"}', b"[1]", newer, b"", b"  ", good]
    path.write_bytes(b"\n".join(lines) + b"\n" + good[: len(good) // 2])
    assert ids(path) == [f"{1:032x}"]
    assert left_out(path) == {
        "no JSON, or half a line": 4,
        "no record of a stall": 2,
        "of a later version of loopguard": 1,
    }


def test_a_line_too_long_for_memory_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "LONGEST_LINE", 2**16)
    path = write(tmp_path / "a.jsonl", [stall(1)])
    with path.open("ab") as file:
        file.write(b'"' + b"x" * 2**18 + b'"\n')
    write(tmp_path / "b.jsonl", [stall(2)])
    assert len(ids(path, tmp_path / "b.jsonl")) == 2
    assert sum(left_out(path).values()) == 1


def test_what_was_left_out_is_named_with_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{}\n\nno\nno\n")
    reader = Reader([str(path)])
    assert list(reader) == []
    assert [str(each) for each in reader.left_out.skipped.values()] == [
        f"{path}: 1 left out, no record of a stall (line 1)",
        f"{path}: 2 left out, no JSON, or half a line (the first is line 3)",
    ]


@pytest.mark.parametrize("missing", ["missing.jsonl", "nul\0byte"])
def test_a_file_that_is_not_there_is_named_at_once(missing: str, tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"missing|nul"):
        Reader([str(tmp_path / missing)])


@given(name=NAMES, value=ANYTHING)
def test_a_field_of_any_other_type_is_null_or_the_line_is_foreign(name: str, value: Any) -> None:
    record = {**make_stall().to_dict(), name: value}
    try:
        parsed = stall_from(record)
    except (ForeignError, NewerError):
        assert name in ("schema", "id", "fingerprint", "started_at", "duration")
    else:
        assert harmless(parsed.to_dict())


@given(ANYTHING)
def test_whatever_is_no_record_is_foreign(value: Any) -> None:
    with pytest.raises((ForeignError, NewerError)):
        stall_from(value)


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=60), max_size=5))
def test_any_bytes_are_counted_and_never_fatal(tmp_path_factory: Any, lines: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    assert ids(path) == []


@given(st.text())
def test_every_text_is_printable_and_short(text: str) -> None:
    frame = {"file": text, "line": 1, "function": text, "module": text, "code": text}
    parsed = stall_from({**make_stall().to_dict(), "call": text, "culprit": frame})
    assert harmless(parsed.to_dict())


def test_a_text_of_a_megabyte_is_cut() -> None:
    parsed = stall_from({**make_stall().to_dict(), "call": "x" * 2**20})
    assert parsed.call == "x" * (LONGEST_TEXT - 1) + "…"


@pytest.mark.parametrize("identity", ["../../etc", "A" * 32, "0" * 31, "0" * 33, 7, None])
def test_what_is_no_trace_id_becomes_part_of_no_address(identity: object) -> None:
    assert stall_from({**make_stall().to_dict(), "trace_id": identity}).trace_id is None


def harmless(value: Any) -> bool:
    """Text that is safe to print, numbers that are finite."""
    if isinstance(value, str):
        return value.isprintable() and len(value) <= 10 * LONGEST_TEXT
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(harmless, value.values()))
    return all(map(harmless, value)) if isinstance(value, list) else True
