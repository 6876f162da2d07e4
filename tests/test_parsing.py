"""What the kernel hands out, parsed: whatever it is, nothing breaks, and what is right comes out as it went in."""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopguard.capture import cgroup, system_calls
from loopguard.capture.system_calls import address_of, parse

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such addresses")

WORDS = st.lists(st.integers(0, 2**64 - 1), min_size=8, max_size=8)
PORTS = st.integers(0, 65535)


@given(st.integers(0, 999), WORDS)
def test_a_line_of_a_call_gives_its_number_and_six_arguments(number: int, words: list[int]) -> None:
    line = " ".join([str(number), *map(hex, words)]) + "\n"
    assert parse(line.encode()) == (number, words[:6])


@given(WORDS)
def test_a_thread_outside_of_any_call_is_in_none(words: list[int]) -> None:
    assert parse(f"-1 {words[0]:#x} {words[1]:#x}\n".encode()) is None
    assert parse(b"running\n") is None


@given(st.binary(max_size=256))
def test_no_line_breaks_the_parser(line: bytes) -> None:
    call = parse(line)
    assert call is None or len(call[1]) == 6


@given(st.ip_addresses(v=4), PORTS, st.binary(max_size=8))
def test_an_address_of_v4_is_written_as_usual(
    host: ipaddress.IPv4Address, port: int, rest: bytes
) -> None:
    data = struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + host.packed + rest
    assert address_of(data) == f"{host}:{port}"


@given(st.ip_addresses(v=6), PORTS)
def test_an_address_of_v6_stands_in_brackets(host: ipaddress.IPv6Address, port: int) -> None:
    data = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, 0) + host.packed
    shown, _, after = address_of(data + bytes(4))[1:].partition("]:")
    assert ipaddress.IPv6Address(shown) == host
    assert after == str(port)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=100))
def test_the_path_of_a_unix_socket_ends_at_its_zero(name: str) -> None:
    family = struct.pack("=H", socket.AF_UNIX)
    assert address_of(family + name.encode() + b"\0left over") == name
    assert address_of(family + b"\0" + name.encode()) == f"@{name}"


@given(st.sampled_from([0, 1, 2, 10, 16]), st.binary(max_size=128))
def test_no_address_breaks_the_parser_or_a_line(family: int, rest: bytes) -> None:
    assert address_of(struct.pack("=H", family) + rest).isprintable()
    assert address_of(rest[:1]) == ""


@given(st.sampled_from(sorted(set(system_calls._X86_64.values()))), WORDS)
def test_no_call_breaks_what_names_its_target(name: str, words: list[int]) -> None:
    """Pointers and descriptors that are none: read by way of the kernel, they are errors."""
    assert isinstance(system_calls._target(name, words[:6]), str)
    assert isinstance(system_calls._restarted(words[:6]), str)


@given(st.text(max_size=200), st.text(max_size=200))
def test_no_text_breaks_the_search_for_a_group(membership: str, mounts: str) -> None:
    assert all(isinstance(group, str) for group in cgroup.groups(membership, mounts))


@given(st.text(max_size=100), st.text(max_size=30))
def test_no_text_breaks_the_reading_of_a_limit(stat: str, limit: str) -> None:
    assert cgroup.parse(stat, limit) is None


@pytest.mark.parametrize(
    "header, calls",
    [
        ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", system_calls._X86_64),
        ("/usr/include/asm-generic/unistd.h", system_calls._AARCH64),
    ],
    ids=["x86_64", "aarch64"],
)
def test_the_numbers_are_the_kernels(header: str, calls: dict[int, str]) -> None:
    if not Path(header).exists():
        pytest.skip("the kernel's headers are not installed")
    found = {}
    for line in Path(header).read_text().splitlines():
        define, name, number, *_ = [*line.split(), "", "", ""]
        if define == "#define" and name.startswith("__NR") and number.isdigit():
            found[name.partition("_NR_")[2] or name.partition("_NR3264_")[2]] = int(number)
    found.setdefault("newfstatat", found.get("fstatat", -1))
    assert {name: found[name] for name in calls.values()} == {v: k for k, v in calls.items()}
