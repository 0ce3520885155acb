#!/usr/bin/python3
"""Holds tests/requirements.yaml (requirement id -> tests that prove it) against the list of ids
(tests/requirement_ids.txt) and the tests that exist. A test is named "<file>::<function>"."""
import pathlib
import re
import sys

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]


def exists(name):
    path, _, function = name.partition("::")
    file = ROOT / path
    if not file.is_file() or not function:
        return False
    start = r"^\s*(async )?def " if path.endswith(".py") else r"^static void "
    return re.search(start + re.escape(function) + r"\(", file.read_text(), re.M) is not None


def main():
    known = {line.split()[0] for line in (ROOT / "tests/requirement_ids.txt").read_text().splitlines()
             if line and not line.startswith("#")}
    claimed = yaml.safe_load((ROOT / "tests/requirements.yaml").read_text()) or {}
    problems = [f"unknown requirement '{i}'" for i in claimed if i not in known]
    for requirement, tests in claimed.items():
        if not isinstance(tests, list) or not tests:
            problems.append(f"{requirement}: needs a list of tests")
            continue
        problems += [f"{requirement}: no such test '{t}'" for t in tests if not exists(t)]
    for problem in problems:
        print(problem)
    print("FAILED requirements" if problems
          else f"ok requirements ({len(claimed)} of {len(known)} have tests)")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
