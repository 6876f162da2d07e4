"""Whatever stands in a dump, a file of a black box or the environment: nothing breaks, and what is right comes back."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopguard.black_box.rebuild import rebuild
from loopguard.black_box.remains import Head, fatal_record, remains
from loopguard.capture.clocks import RunDelay
from loopguard.capture.probe import SeenFrame, parse, shown
from loopguard.capture.resolve import resolve
from loopguard.config import PREFIX, Config, ConfigError, read_config
from loopguard.record import Stall
from loopguard.tell.jsonl import json_line
from loopguard.tell.log import stall_fields
from loopguard.tell.resource import resource_attributes

# A machine that is busy is no failure.
often = settings(deadline=None, max_examples=100)


def of_kind(kind: Any) -> st.SearchStrategy[Any]:
    """Any value that a field of this type may have, as long as JSON knows it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return st.one_of(*map(of_kind, inner))
    if origin is Literal:
        return st.sampled_from(inner)
    if origin is tuple:
        return st.lists(of_kind(inner[0]), max_size=3).map(tuple)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return st.builds(kind, **{name: of_kind(hint) for name, hint in hints.items()})
    plain = {
        float: st.floats(allow_nan=False, allow_infinity=False),
        int: st.integers(-(10**30), 10**30),
        str: st.text(max_size=20),
        bool: st.booleans(),
        type(None): st.none(),
    }
    return plain[kind]


STALLS, HEADS = of_kind(Stall), of_kind(Head)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=12,
)

# What faulthandler writes: printable ASCII.
NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=30)
FRAMES = st.lists(
    st.builds(SeenFrame, NAMES, st.integers(0, 999_999), NAMES), min_size=1, max_size=6
)
NOISE = st.sampled_from(
    ["  ...", "  <invalid frame>", "  plus 40 frames", "\xff", "", "Extension modules: a, b (total: 2)",
     'Current thread\'s C stack trace (most recent call first):', '  File "x", line ' + "9" * 5000 + " in y",
     '  File "x", line ??? in y', '  Binary file "/usr/bin/python", at +0x1a2b [0x7f]'],
) | st.text(max_size=40)  # fmt: skip


def as_dumped(frames: list[SeenFrame]) -> str:
    lines = [f'  File "{frame.file}", line {frame.line} in {frame.function}' for frame in frames]
    return "\n".join(["Stack (most recent call first):", *lines, ""])


def unambiguous(frames: list[SeenFrame]) -> bool:
    """Names may hold what the format itself is made of; a file's name then cannot be told from its line."""
    return not any('", line ' in f"{frame.file}|{frame.function}" for frame in frames)


# The probe's dump


@often
@given(FRAMES.filter(unambiguous))
def test_a_dump_comes_back_as_it_was_seen(frames: list[SeenFrame]) -> None:
    assert parse(as_dumped(frames), 7) == [(tuple(frames), True, 7)]


@often
@given(FRAMES, st.lists(NOISE, max_size=4), st.integers(0, 400))
def test_no_dump_breaks_what_reads_it_or_what_looks_for_its_code(
    frames: list[SeenFrame], noise: list[str], cut: int
) -> None:
    """Cut anywhere, with anything before or behind: what is found is resolved to code of that file and name."""
    text = "\n".join([*noise[:1], as_dumped(frames), *noise[1:]])
    for dump in parse(text[: len(text) - cut], 0):
        resolved = resolve(dump, [])
        seen = [(shown(raw.code.co_filename), raw.code.co_name) for raw in resolved.stack]
        assert len(seen) == len(dump.frames)
        assert [file for file, _ in seen] == [frame.file for frame in dump.frames]


@given(st.text())
def test_no_text_breaks_what_reads_dumps(text: str) -> None:
    assert all(dump.frames for dump in parse(text, 0))


@given(st.text())
def test_a_text_is_shown_as_faulthandler_would(text: str) -> None:
    assert shown(text).isascii()
    assert len(shown(text)) <= 10 * 500 + 3


# The black box


@often
@given(STALLS)
def test_a_record_comes_back_from_its_line(stall: Stall) -> None:
    assert rebuild(Stall, json.loads(json_line(stall.to_dict()))) == stall


@often
@given(HEADS)
def test_what_a_process_tells_of_itself_comes_back(head: Head) -> None:
    assert rebuild(Head, json.loads(json_line(dataclasses.asdict(head)))) == head


@often
@given(STALLS, st.sampled_from([field.name for field in dataclasses.fields(Stall)]), JSON)
def test_a_record_with_another_value_somewhere_is_refused_or_comes_back_whole(
    stall: Stall, name: str, value: object
) -> None:
    spoilt = {**stall.to_dict(), name: value}
    try:
        found = rebuild(Stall, spoilt)
    except (ValueError, OverflowError):
        return
    assert json.loads(json_line(found.to_dict())).keys() == spoilt.keys()


@often
@given(st.lists(st.binary(max_size=200), max_size=5), st.binary(max_size=300))
def test_no_bytes_break_what_reads_a_black_box(lines: list[bytes], dump: bytes) -> None:
    found = remains(b"\n".join(lines), dump)
    assert found.stalls == ()
    assert found.broken <= sum(line.count(b"\n") + 1 for line in lines)


@often
@given(HEADS, st.lists(STALLS, max_size=2), FRAMES, JSON, st.integers(0, 3000), st.integers(0, 300))
def test_however_its_files_were_cut_each_stall_that_is_told_can_be_written_and_logged(
    head: Head, stalls: list[Stall], frames: list[SeenFrame], junk: object, cut: int, cut_dump: int
) -> None:
    lines = [
        json_line(dataclasses.asdict(head)),
        *(json_line({"stall": s.to_dict()}) for s in stalls),
    ]
    text = "\n".join([*lines, json.dumps(junk), ""]).encode()
    dump = as_dumped(frames).encode()
    found = remains(
        text[: len(text) - cut], dump[: len(dump) - cut_dump], 1_700_000_000_000_000_000
    )
    assert len(found.stalls) <= len(stalls) + 1
    for stall in found.stalls:
        assert not stall.ongoing
        record = json.loads(json_line(fatal_record(stall)))
        assert record["fatal"] is True
        assert rebuild(Stall, record) == stall
        assert stall_fields(stall)["stall_id"] == stall.id


@often
@given(HEADS, STALLS)
def test_of_a_stall_that_was_survived_nothing_is_told(head: Head, stall: Stall) -> None:
    lines = [dataclasses.asdict(head), {"stall": stall.to_dict()}, {"ended": stall.id}]
    assert remains("\n".join(map(json_line, lines)).encode()).stalls == ()


# /proc and the environment


@often
@given(data=st.binary(max_size=80))
def test_no_schedstat_breaks_its_reader(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "schedstat"
    path.write_bytes(data)
    delay = RunDelay(0)  # no thread has that number
    with path.open("rb") as file:
        delay._fd = file.fileno()
        found = delay.read()
    words = data.split()
    assert found is None or found == int(words[1])


@often
@given(
    st.dictionaries(st.sampled_from(["OTEL_RESOURCE_ATTRIBUTES", "OTEL_SERVICE_NAME"]), st.text())
)
def test_no_environment_breaks_who_the_process_says_it_is(environ: Mapping[str, str]) -> None:
    attributes = resource_attributes(environ)
    assert all(key and value for key, value in attributes.items())


VARIABLES = [
    *(PREFIX + field.name.upper() for field in dataclasses.fields(Config)),
    *(PREFIX + name for name in ("PROFILE_TOKEN", "PROFILE_DIR", "NO_SUCH_OPTION")),
]
VALUES = st.text(max_size=60) | st.floats().map(str) | st.integers().map(str) | st.just("9" * 6000)


@often
@given(st.dictionaries(st.sampled_from(VARIABLES), VALUES, max_size=4))
def test_any_environment_gives_options_or_an_error_that_names_its_variable(
    environ: Mapping[str, str],
) -> None:
    refused = ""
    config = Config()
    try:
        config = read_config({}, environ)
    except ConfigError as error:
        refused = str(error)
    named = [name for name in environ if f"(from environment variable {name})" in refused]
    assert len(named) == bool(refused)
    assert len(refused) < 10_000
    assert math.isfinite(config.budget)
    assert 0.005 <= config.budget <= 3600
    assert config.root.is_dir()


@often
@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=12, max_size=60))
def test_a_token_is_in_no_message_and_in_no_repr(token: str) -> None:
    for arguments, environ in (
        ({"profile_token": token}, {}),
        ({}, {"LOOPGUARD_PROFILE_TOKEN": token}),
    ):
        try:
            said = repr(read_config(arguments, environ))
        except ConfigError as error:
            said = str(error)
        assert token not in said
