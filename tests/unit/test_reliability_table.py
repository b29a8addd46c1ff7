"""The table of ``tests/README.md`` says of each of the thirty tests of a server of trust which files hold it."""

import ast
import re
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).parents[1]
NUMBERS = range(1, 31)
_ROW = re.compile(r"\| (\d+) \|([^|]+)\|([^|]+)\|([^|]+)\|")
_NAMED = re.compile(r"Reliability (\d+)\b")


def held() -> dict[int, set[str]]:
    """Return the files whose tests begin their docstring with a number, by number."""
    found: dict[int, set[str]] = defaultdict(set)
    for file in sorted(TESTS.rglob("test_*.py")):
        functions = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)]
        for test in functions:
            named = _NAMED.match(ast.get_docstring(test) or "")
            if named and test.name.startswith("test_"):
                found[int(named[1])].add(file.relative_to(TESTS).as_posix())
    return found


def listed() -> dict[int, set[str]]:
    """Return the files of each row of the table, by number."""
    rows = [row for line in (TESTS / "README.md").read_text().splitlines() if (row := _ROW.fullmatch(line))]
    assert [int(row[1]) for row in rows] == list(NUMBERS), "one row a number, in their order"
    return {int(row[1]): set(re.findall(r"`([^`]+)`", row[3])) for row in rows}


def test_each_of_the_thirty_tests_is_there():
    assert sorted(held()) == list(NUMBERS), f"missing: {sorted(set(NUMBERS) - set(held()))}"


def test_the_table_names_the_files_that_hold_each_test():
    tests, table = held(), listed()
    wrong = [f"{number}: {sorted(tests[number])}" for number in NUMBERS if tests[number] != table[number]]
    assert wrong == [], "rows of tests/README.md that differ from the docstrings under tests/"
