#!/usr/bin/python3
"""Checks of the C style that no tool knows: banned functions, lengths of functions and files,
thin main.c. Prints "ok ..." or "FAILED ..." per check; a line that must break a rule carries
`lint: <reason>` in a comment."""
import re
import sys

FUNCTION_LINES_MAX = 100
FILE_LINES_MAX = 1000
MAIN_LINES_MAX = 150
BANNED = re.compile(
    r"\b(strcpy|strcat|strncat|stpcpy|sprintf|vsprintf|strtok|gets|atoi|atol|atoll|atof|alloca|"
    r"system|popen|strerror|perror|tmpnam|mktemp|sleep|usleep|rand|srand|asctime|ctime|gmtime|"
    r"localtime|bcopy|bzero|vfork|longjmp)\s*\(")
# exit and getenv have their places
PLACED = [
    (re.compile(r"(?<![_\w])getenv\s*\("), ("common/config.c",), "getenv (secure_getenv in settings)"),
    (re.compile(r"(?<![_\w])exit\s*\("), ("common/service.c",), "exit"),
    (re.compile(r'#include [<"](nng/)'), ("common/bus.c", "common/bus_link.h"),
     "nng outside common/bus"),
]
NOTES = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


def code_lines(text):
    """Lines with comments and string contents blanked out."""
    def blank(match):
        s = match.group(0)
        if s.startswith("/"):
            return re.sub(r"[^\n]", " ", s)
        return s[0] + " " * (len(s) - 2) + s[-1]
    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', blank, text,
                  flags=re.S).split("\n")


def functions(lines):
    """(first line, length) of each function body: brace in column 0 to brace in column 0."""
    start = None
    for i, line in enumerate(lines):
        if line == "{":
            start = i
        elif line == "}" and start is not None:
            yield start + 1, i - start - 1
            start = None


def unset_autos(lines):
    """(line, name) of buffers that a return may release before they are initialised."""
    for i, line in enumerate(lines):
        found = re.search(r"\bauto_strbuf ((?:\w+(?:, )?)+);", line)
        for name in found.group(1).split(", ") if found else ():
            for later in lines[i + 1:]:
                if re.search(rf"strbuf_init\(&{name}\b", later):
                    break
                if "return" in later or later == "}":
                    yield i + 1, name
                    break


def check(path, problems):
    with open(path, encoding="utf-8") as f:
        text = f.read()
    raw = text.split("\n")
    lines = code_lines(text)
    if path.endswith(".c") and len(raw) > FILE_LINES_MAX:
        problems["lengths"].append(f"{path}: {len(raw)} lines, at most {FILE_LINES_MAX}")
    if re.fullmatch(r"services/.*/main\.c", path) and len(raw) > MAIN_LINES_MAX:
        problems["lengths"].append(f"{path}: {len(raw)} lines, at most {MAIN_LINES_MAX} in a main.c")
    for first, length in functions(lines):
        if length > FUNCTION_LINES_MAX:
            problems["lengths"].append(
                f"{path}:{first}: function of {length} lines, at most {FUNCTION_LINES_MAX}")
    for first, name in unset_autos(lines):
        problems["autos"].append(f"{path}:{first}: '{name}' is released on a way that does not "
                                 "initialise it: = {0}")
    for i, line in enumerate(lines):
        if "lint:" in raw[i]:
            continue
        found = BANNED.search(line)
        if found:
            problems["banned"].append(f"{path}:{i + 1}: {found.group(1)}")
        for pattern, places, name in PLACED:
            if not path.startswith("tests/") and path not in places and pattern.search(raw[i] if "include" in pattern.pattern else line):
                problems["banned"].append(f"{path}:{i + 1}: {name}")
        if NOTES.search(raw[i]):
            problems["notes"].append(f"{path}:{i + 1}: {raw[i].strip()}")
        if re.search(r"\bgoto\b", line) and not re.search(r"goto (out|fail|bad)\b", line):
            problems["banned"].append(f"{path}:{i + 1}: goto other than forward to out, fail or bad")


def main():
    problems = {"banned": [], "lengths": [], "notes": [], "autos": []}
    for path in sys.argv[1:]:
        check(path, problems)
    for name, found in problems.items():
        for line in found:
            print(line)
        print(f"FAILED style: {name}" if found else f"ok style: {name}")
    return 1 if any(problems.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
