"""Rewrite the icons in the code of an app and the dependencies in package.json, and list the uses that remain.

A plan is created first, and can be shown as a diff. Each file is then written atomically. Links, `node_modules`,
generated code, lockfiles and files that git ignores are not changed.
"""

import difflib
import json
import os
import re
import shlex
import subprocess
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ast_grep_py import SgNode, SgRoot

from grr_coca.common.errors import UserError
from grr_coca.common.files import read_file_bytes, write_bytes_atomic
from grr_coca.common.outputs import disk_errors
from grr_coca_icons.codemod.packages import PACKAGES
from grr_coca_icons.codemod.rewrite import SUFFIXES, ParseError, Replacements, rewrite
from grr_coca_icons.match import used_icons
from grr_coca_icons.match.used_icons import Use, code_files, normalize_name, uses_in

_GENERATED = re.compile(r"@generated|\bauto(?:matically)?[- ]generated\b|\bdo not (?:edit|modify)\b", re.IGNORECASE)
_HEAD = 500
"""Number of characters at the start of a file that are searched for a sign of generated code."""
_LOCKS = {
    "pnpm-lock.yaml": "pnpm install",
    "yarn.lock": "yarn install",
    "bun.lock": "bun install",
    "bun.lockb": "bun install",
    "package-lock.json": "npm install",
}
"""Lockfiles, and the commands that update them."""
_SECTIONS = frozenset({"dependencies", "devDependencies", "peerDependencies", "optionalDependencies"})


@dataclass(frozen=True)
class UnchangedLocation:
    """Location in code that needs manual work, and the reason why it was not rewritten.

    `use` is the icon use at this location, or None if the reason does not concern an icon use.
    """

    file: str
    line: int
    reason: str
    use: Use | None = None


@dataclass
class CodeChanges:
    """Planned changes to the code of an app.

    Attributes:
        changes: Changed files, with their bytes before and after.
        replaced: Number of replaced uses. A use is an icon on a line; it does not count if the same icon is still used
            in the file.
        unchanged: Locations that need manual work, by file and line.
        commands: Shell commands that install the new packages.
    """

    changes: dict[Path, tuple[bytes, bytes]] = field(default_factory=dict)
    replaced: int = 0
    unchanged: list[UnchangedLocation] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    def diff(self) -> Iterator[str]:
        """Yield the lines of a unified diff of all changes."""
        for path, (old, new) in self.changes.items():
            name = path.as_posix()
            before, after = (content.decode().splitlines(keepends=True) for content in (old, new))
            for line in difflib.unified_diff(before, after, f"a/{name}", f"b/{name}"):
                yield line.rstrip("\r\n")

    def write(self, root: Path, *, force: bool = False) -> Path | None:
        """Write the changed files, each atomically.

        Args:
            root: Folder or file with the code.
            force: Whether to write even if the git repository has uncommitted changes.

        Returns:
            Path of a ZIP file with the original files, which is created if the code is not in a git repository. None in
            a git repository, or if nothing changes.

        Raises:
            UserError: If the git repository has uncommitted changes in tracked files, a file to change is not tracked,
                or a file has changed since it was read, or cannot be read or written.
        """
        backup = None
        if not self.changes:
            return None
        if _repository(root) is None:
            backup = _create_backup(root, list(self.changes))
        elif not force:
            _require_clean(root, list(self.changes))
        for path, (old, new) in self.changes.items():
            if read_file_bytes(path) != old:
                raise UserError(f"{path}: changed since it was read; run the command again")
            with disk_errors(path):
                write_bytes_atomic(path, new)
        return backup


def plan_changes(
    root: Path, icons: Mapping[tuple[str, str], str], exclude: Sequence[str], reason: Callable[[Use], str | None]
) -> CodeChanges:
    """Plan the changes in the code of a folder or file, without writing anything.

    Args:
        root: Folder or file with the code.
        icons: Full name of the equivalent of each icon to replace, by the icon's prefix and name.
        exclude: Patterns, as in .gitignore, of files to skip.
        reason: Function that returns why a remaining use was not replaced, or None if the use need not be listed. Uses
            of icons from the sets of the equivalents are not passed to it.

    Raises:
        UserError: If a file cannot be read.
    """
    plan = CodeChanges()
    texts = dict(_read_code(root, exclude))
    uses = {path: list(uses_in(text, str(path))) for path, text in texts.items()}
    known = {(prefix, normalize_name(name)) for prefix, name in icons}
    targets = {name.partition(":")[0] for name in icons.values()}
    stays = {
        use.prefix for each in uses.values() for use in each if (use.prefix, normalize_name(use.name)) not in known
    }
    replacements = Replacements(dict(icons), frozenset(stays - targets))
    after: dict[Path, str] = {}
    for path, text in texts.items():
        after[path] = new = _rewrite_file(path, text, replacements, plan)
        if new != text:
            plan.changes[path] = (text.encode(), new.encode())
        rest = [use for use in uses_in(new, str(path)) if use.prefix not in targets] if new != text else uses[path]
        for use in rest:
            if use.prefix not in targets and (why := reason(use)) is not None:
                plan.unchanged.append(UnchangedLocation(str(path), use.line, why, use))
        remaining = {(use.prefix, normalize_name(use.name)) for use in rest}
        keys = ((use.prefix, normalize_name(use.name)) for use in uses[path])
        plan.replaced += sum(key in known and key not in remaining for key in keys)
    _change_manifests(root, texts, after, plan)
    plan.unchanged.sort(key=lambda one: (one.file, one.line))
    return plan


# --- Files


def _read_code(root: Path, exclude: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Yield the code files that may be changed, each with its text.

    Links, lockfiles, generated code, and files that git ignores or that are not UTF-8 are skipped.
    """
    for path in _not_ignored(root, list(code_files(root, used_icons.SUFFIXES | SUFFIXES, exclude))):
        is_own = not path.is_symlink() and path.resolve().is_relative_to(root.resolve())
        if not is_own or path.name in _LOCKS or path.name == "npm-shrinkwrap.json":
            continue
        try:
            text = read_file_bytes(path).decode("utf-8")
        except UnicodeDecodeError:
            continue
        if not _GENERATED.search(text[:_HEAD]):
            yield path, text


def _rewrite_file(path: Path, text: str, icons: Replacements, plan: CodeChanges) -> str:
    """Return the new text of a file, and add remaining manual work to the plan."""
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in SUFFIXES:
        return text
    try:
        new, notes = rewrite(text, suffix, icons)
    except ParseError as error:
        plan.unchanged.append(UnchangedLocation(str(path), 1, f"not changed: {error}"))
        return text
    plan.unchanged += [UnchangedLocation(str(path), note.line, note.text) for note in notes]
    return new


def _repository(root: Path) -> Path | None:
    """Return the git repository that contains a folder or file, or None if git is not installed or finds no
    repository.
    """
    found = _git(root, "rev-parse", "--show-toplevel")
    return Path(found.strip()) if found else None


def _git(root: Path, *arguments: str, given: str = "") -> str | None:
    """Return the output of git, or None if it fails or is not installed."""
    folder = root if root.is_dir() else root.parent
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, input=given, capture_output=True, text=True, encoding="utf-8", check=False
        )
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _not_ignored(root: Path, paths: Sequence[Path]) -> Sequence[Path]:
    given = "\0".join(str(path.absolute()) for path in paths)
    ignored = _git(root, "check-ignore", "-z", "--stdin", given=given)  # git fails if no file is ignored
    left_out = set((ignored or "").split("\0"))
    return [path for path in paths if str(path.absolute()) not in left_out]


def _require_clean(root: Path, paths: Iterable[Path]) -> None:
    changed = _git(root, "status", "--porcelain", "--untracked-files=no") or ""
    untracked = _git(root, "ls-files", "-z", "--others", "--", *(str(path.absolute()) for path in paths)) or ""
    lines = [line[3:] for line in changed.splitlines()] + [name for name in untracked.split("\0") if name]
    if lines:
        raise UserError(
            f"git has uncommitted changes ({lines[0]}{f' and {len(lines) - 1} more' if len(lines) > 1 else ''}); "
            "commit them first, so that changes can be undone, or pass --force"
        )


def _create_backup(root: Path, paths: Sequence[Path]) -> Path:
    """Create `NAME-before-1.zip` with the original files next to the code's folder NAME, and return its path. The
    number is the first unused one.
    """
    top = root.resolve() if root.is_dir() else root.resolve().parent
    number = 1
    while (backup := top.parent / f"{top.name}-before-{number}.zip").exists():
        number += 1
    with disk_errors(backup), zipfile.ZipFile(backup, "x", zipfile.ZIP_DEFLATED) as file:
        for path in paths:
            file.write(path, os.path.relpath(path.resolve(), top.parent))
    return backup


# --- package.json


def _change_manifests(root: Path, texts: Mapping[Path, str], after: Mapping[Path, str], plan: CodeChanges) -> None:
    """Add to the plan the new dependencies of each package.json that belongs to changed files, and the commands that
    install them.

    An old package is removed only if no other code below the package.json needs it.
    """
    top = _repository(root) or root.resolve().parent
    by_manifest: dict[Path, list[Path]] = defaultdict(list)
    by_place = {path.resolve(): text for path, text in after.items()}
    for path in plan.changes:
        manifest = _manifest_of(path, top)
        if manifest is not None:
            by_manifest[manifest].append(path)
    for manifest, paths in by_manifest.items():
        before = {name for path in paths for name in _packages_in(texts[path])}
        now = {name: version for path in paths for name, version in _packages_in(after[path]).items()}
        added = {name: version for name, version in now.items() if name not in before}
        gone = before - now.keys()
        if gone:
            inside = code_files(manifest.parent, used_icons.SUFFIXES | SUFFIXES, ())
            others = (path for path in inside if path.name != manifest.name and path.name not in _LOCKS)
            rest = (by_place.get(path) or path.read_text(encoding="utf-8", errors="replace") for path in others)
            gone -= {name for text in rest for name in _packages_in(text)}
        text = read_file_bytes(manifest).decode("utf-8", "replace")
        new = replace_dependencies(text, gone, added)
        if new == text:
            continue
        here = manifest.relative_to(Path.cwd()) if manifest.is_relative_to(Path.cwd()) else manifest
        plan.changes[here] = (text.encode(), new.encode())
        plan.commands.append(_install_command(manifest.parent, top))


def _manifest_of(path: Path, top: Path) -> Path | None:
    """Return the package.json that belongs to a file, or None if the file has no package.json above it.

    This is the nearest package.json that lists an icon package or, if none of them does, the nearest of all.
    """
    found = []
    for folder in path.resolve().parents:
        if (folder / "package.json").is_file():
            found.append(folder / "package.json")
        if folder == top:
            break
    names = {f'"{package.name}"' for package in PACKAGES} | {'"@iconify-json/'}
    return next((one for one in found if any(name in one.read_text("utf-8", "replace") for name in names)), None) or (
        found[0] if found else None
    )


_ICONIFY = "@iconify-json/"


def _packages_in(text: str) -> dict[str, str]:
    """Return the npm packages with icons that a code file needs, each with its version range.

    The version range of Iconify packages is `*`.
    """
    found = {one.name: one.version for one in PACKAGES if re.search(rf"['\"]{re.escape(one.name)}['\"/]", text)}
    uses = [
        use for use in uses_in(text, "") if any(f"{use.prefix}{sep}{use.name}" in text for sep in (":", "-", "--", "/"))
    ]
    return found | {f"{_ICONIFY}{use.prefix}": "*" for use in uses}


def replace_dependencies(text: str, gone: Iterable[str], added: Mapping[str, str]) -> str:
    """Return the text of a package.json in which some packages are replaced.

    The first added package takes the place of the first removed package or, if none is removed, follows the last icon
    package or else the last dependency. Nothing is added to a file without dependencies.

    Args:
        text: Text of the package.json.
        gone: Names of the packages to remove.
        added: Version ranges of the packages to add, by name. Listed packages are not added again, and Iconify packages
            are added only if another Iconify package is removed.
    """
    there = _dependencies(text)
    removed = [name for name in there if name in set(gone)]
    missing = {
        name: version
        for name, version in added.items()
        if name not in there and (not name.startswith(_ICONIFY) or any(one.startswith(_ICONIFY) for one in removed))
    }
    lines = [f"{json.dumps(name)}: {json.dumps(version)}" for name, version in missing.items()]
    known = [name for name in there if any(name == one.name for one in PACKAGES)]
    anchor = next(iter([*removed, *reversed(known), *reversed(list(there))]), None)
    if lines and anchor is not None:
        start, end = _span(there[anchor])
        space = text[len(text[:start].rstrip()) : start]
        text = text[:start] + f",{space}".join([*([] if removed else [text[start:end]]), *lines]) + text[end:]
    for name in removed[1:] if lines else removed:
        pair = _dependencies(text)[name]
        start, end = _span(pair)
        following = next((one for one in pair.next_all() if one.kind() == "pair"), None)
        preceding = next((one for one in pair.prev_all() if one.kind() == "pair"), None)
        if following is not None:
            end = _span(following)[0]
        elif preceding is not None:
            start = _span(preceding)[1]
        text = text[:start] + text[end:]
    return text


def _dependencies(text: str) -> dict[str, SgNode]:
    """Return the syntax nodes of the dependencies in a package.json, by package name."""
    pairs = SgRoot(text, "json").root().find_all(kind="pair")
    return {_key(pair): pair for pair in pairs if _section(pair) in _SECTIONS}


def _span(pair: SgNode) -> tuple[int, int]:
    return pair.range().start.index, pair.range().end.index


def _key(pair: SgNode) -> str:
    key = pair.field("key")
    return key.text()[1:-1] if key is not None else ""


def _section(pair: SgNode) -> str:
    """Return the section of a package.json that contains a pair, or an empty string if no section does."""
    outer = pair.parent()
    section = outer.parent() if outer is not None else None
    return _key(section) if section is not None and section.kind() == "pair" else ""


def _install_command(folder: Path, top: Path) -> str:
    for parent in (folder, *folder.parents):
        for lock, command in _LOCKS.items():
            if (parent / lock).is_file():
                return command if parent == Path.cwd() else f"cd {shlex.quote(str(parent))} && {command}"
        if parent == top:
            break
    return "npm install" if folder == Path.cwd() else f"cd {shlex.quote(str(folder))} && npm install"
