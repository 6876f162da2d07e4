"""docs/reliability.md has exactly the rows of the tests, each with what a run saw."""

from __future__ import annotations

import ast

from tests.reliability import PAGE, TABLES, TESTS, Seen, Stated, rows_of, stated, with_tables

ROWS = [
    Stated("fault", "a | b", "one | two"),
    Stated("company", "`c`", "three"),
    Stated("fault", "d", "four"),
]
SEEN = {each: Seen(f"saw {each.fault}", "nothing") for each in ROWS}
EMPTY = "".join(f"<!-- {table} -->\n<!-- end of {table} -->\n" for table in TABLES)


def test_the_page_has_the_rows_of_the_tests() -> None:
    """`pytest -n 0 -m "fault or company" --reliability` writes it."""
    assert set(rows_of(PAGE.read_text())) == set(stated())


def test_each_row_says_what_happened_and_what_was_lost() -> None:
    assert [
        row for row in rows_of(PAGE.read_text()).values() if not (row.happened and row.lost)
    ] == []


def test_no_two_tests_state_the_same() -> None:
    rows = list(stated())
    assert len(rows) == len(set(rows)) > 0


def test_each_test_of_a_fault_says_its_row() -> None:
    silent = []
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marked = any(
                    f"pytest.mark.{t}(" in ast.unparse(d)
                    for d in node.decorator_list
                    for t in TABLES
                )
                says = any(argument.arg == "row" for argument in node.args.args)
                silent += [node.name] if marked and not says else []
    assert silent == []


def test_what_is_written_is_read_again() -> None:
    page = with_tables(EMPTY, SEEN, ROWS)
    assert rows_of(page) == SEEN
    assert with_tables(page, rows_of(page), ROWS) == page


def test_the_rows_stand_in_the_order_of_the_tests_and_those_of_none_are_gone() -> None:
    page = with_tables(EMPTY, SEEN, ROWS)
    assert list(rows_of(with_tables(page, SEEN, reversed(ROWS[1:])))) == [ROWS[2], ROWS[1]]
