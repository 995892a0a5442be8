"""Wording of prose: docstrings, comments, messages, names of tests and pages use the field's standard English.

`wording.json` has the number of occurrences of each pattern in each part of the repository; these counts may only fall.
`python tests/docs/test_wording.py` stores lower counts after an edit. With names of parts, it lists each occurrence
and its replacement.
"""

import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
COUNTS = Path(__file__).with_name("wording.json")
PAGES = {"README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"}

PATTERNS = {
    r"\btold apart\b": "distinguished",
    r"\btold\b(?! apart)": "reported",
    r"\btells?\b": "reports; identifies",
    r"\bsays?\b": "states; specifies; reports",
    r"\basked\b": "requested",
    r"\b(?:looked|looks) (?:at|for)\b": "inspected; searched",
    r"\bheld to\b": "checked against",
    r"\banew\b": "again; re-",
    r"\balone\b": "only",
    r"\bmeanwhile\b": "in the meantime",
    r"\bhardly\b": "barely",
    r"\bfor ever\b": "forever",
    r"(?<!there )\bis no\b(?! (?:longer|more|less|better|larger|smaller|different)\b)": "is not a; is invalid",
    r"\bthat (?:is|are) none\b": "not; invalid",
    r"\bthere is no\b": "unknown X; X not found",
    r"\bWhat (?!if\b)[a-z][^.?]*\.": "a noun in place of the clause",
    r"\bl(?:ies|ie|ay) (?:in|on|below|beside|at|there|under|beneath)\b": "is in",
    r"\bstands? (?:in|on|at|beside|below|behind|there)\b": "is in; is listed in",
    r"\bbrings?\b": "installs; yields; contains",
    r"\bgoes on\b": "continues",
    r"\bcut off\b": "truncated",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\bleft out\b": "excluded; omitted",
    r"\bpassed over\b": "skipped",
    r"\blacking\b": "missing",
    r"\bdamaged\b": "corrupt",
    r"\b(?:nobody|somebody)\b": "no user; no client; another user",
    r"\bso many\b": "this many; that many",
    r"\bof (?:its|their) own\b": "its own; separate",
    r"\bby itself\b": "separately",
    r"\bcertaint(?:y|ies)\b": "confidence",
    r"\brefusals?\b": "error response; error",
    r"(?<=[;:,] )give \b": "pass, set, use",
    r"\bverbs?\b": "command",
    r"\b(?:likeliest|surest)\b": "most likely; most confident",
}
TEST_NAMES = {
    r"^test_(?:what|of|to|who)_": "test_SUBJECT_CONDITION_RESULT",
    r"_(?:told|said|says|anew|alone|refused|asked)(?:_|$)": "raises, returns, rejects, reports",
    r"^test_.{56,}": "at most 60 characters",
}


ANY_PATTERN = re.compile(r"\b(?:" + "|".join(pattern.removeprefix(r"\b") for pattern in PATTERNS) + ")", re.IGNORECASE)
"""Any of `PATTERNS`. One word boundary in front of all of them makes the search five times as fast."""
JOINED_STRINGS = re.compile(r'"\s*\n\s*f?"')

COMMENT = re.compile(r"(?:^ *|  )#:? (.*)")
"""A comment of a line outside strings; the `tokenize` module takes ten times as long to find them."""


def prose_of_python(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line numbers and texts of a module: docstrings, comments, and strings of several words."""
    source = path.read_text(encoding="utf-8")
    quoted = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.end_lineno != node.lineno:
                quoted.update(range(node.lineno, node.end_lineno + 1))
            if " " in node.value.strip():
                yield node.lineno, node.value
    for line, text in enumerate(source.splitlines(), start=1):
        comment = COMMENT.search(text) if line not in quoted else None
        if comment:
            yield line, comment[1]


def prose_of_markdown(path: Path) -> Iterator[tuple[int, str]]:
    """Yield paragraphs of a page, without blocks of code and without code between backticks."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"^(```|~~~).*?^\1", lambda block: "\n" * block[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)
    text, line = re.sub(r"`[^`\n]*`", "", text), 1
    for paragraph in re.split(r"(\n\s*\n)", text):
        yield line, paragraph
        line += paragraph.count("\n")


def names_of_tests(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the names of a file's test functions."""
    for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if name := re.match(r"\s*(?:async )?def (test_\w+)", text):
            yield line, name[1]


def parts() -> dict[str, list[Path]]:
    """Return the files of each part: packages, tests, docs and the other pages."""
    files: dict[str, list[Path]] = {}
    for folder in sorted((ROOT / "src").iterdir()):
        if (folder / "__init__.py").exists():
            names = sorted(folder.rglob("*.py"))
            subpackages = {path.relative_to(folder).parts[0] for path in names} if folder.name == "grr_coca" else set()
            for name in names:
                first = name.relative_to(folder).parts[0]
                is_part = first in subpackages and not first.endswith(".py")
                files.setdefault(f"src/{folder.name}/{first}" if is_part else f"src/{folder.name}", []).append(name)
    files["tests"] = sorted((ROOT / "tests").rglob("*.py"))
    files["docs"] = sorted((ROOT / "docs").glob("*.md"))
    files["pages"] = [ROOT / name for name in sorted(PAGES)] + sorted((ROOT / "benchmarks").glob("*.md"))
    files["studies"] = sorted((ROOT / "studies").glob("**/README.md"))
    return files


def occurrences(part: str, paths: list[Path]) -> Iterator[tuple[Path, int, str, str, str]]:
    """Yield file, line, pattern, text around it and replacement of each occurrence in a part."""
    if part == "tests":
        read, patterns, any_pattern = names_of_tests, TEST_NAMES, re.compile("test_")
    else:
        read = prose_of_python if part.startswith("src") else prose_of_markdown
        patterns, any_pattern = PATTERNS, ANY_PATTERN
    for path in paths:
        if not any_pattern.search(JOINED_STRINGS.sub("", path.read_text(encoding="utf-8"))):
            continue
        for line, text in read(path):
            for pattern, better in patterns.items() if any_pattern.search(text) else ():
                for match in re.finditer(pattern, text, flags=0 if "What" in pattern else re.IGNORECASE):
                    around = " ".join(text[max(0, match.start() - 50) : match.end() + 50].split())
                    yield path, line + text.count("\n", 0, match.start()), pattern, around, better


def counts() -> dict[str, dict[str, int]]:
    """Count the occurrences of each pattern in each part."""
    return {
        part: dict(sorted(Counter(pattern for _, _, pattern, _, _ in occurrences(part, paths)).items()))
        for part, paths in parts().items()
    }


def test_counts_of_discouraged_wording_only_fall() -> None:
    stored, excess = json.loads(COUNTS.read_text(encoding="utf-8")), []
    for part, paths in parts().items():
        found = [*occurrences(part, paths)]
        counted = Counter(pattern for _, _, pattern, _, _ in found)
        grown = {pattern for pattern, count in counted.items() if count > stored.get(part, {}).get(pattern, 0)}
        for path, line, pattern, around, better in found:
            if pattern in grown:
                excess.append(f"{path.relative_to(ROOT)}:{line}: “…{around}…”: {better}")
    assert not excess, "new wording to replace (among older occurrences):\n" + "\n".join(excess)


def test_each_pattern_is_found_where_it_occurs(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('"""What is told anew."""\nraise ValueError("--n 0: is no number; give 1")  # lies in a cache\n')
    found = {better for *_, better in occurrences("src/x", [module])}
    assert found >= {"reported", "again; re-", "a noun in place of the clause", "is not a; is invalid"}
    assert found >= {"pass, set, use", "is in"}


if __name__ == "__main__":
    for part in sys.argv[1:]:
        for path, line, _, around, better in occurrences(part, parts()[part]):
            print(f"{path.relative_to(ROOT)}:{line}: …{around}…  ->  {better}")
    if not sys.argv[1:]:
        stored = json.loads(COUNTS.read_text(encoding="utf-8"))
        now = {
            part: {pattern: min(count, stored.get(part, {}).get(pattern, 0)) for pattern, count in found.items()}
            for part, found in counts().items()
        }
        COUNTS.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        print(*(f"{sum(found.values()):6} {part}" for part, found in now.items()), sep="\n")
