"""`grr-coca match`: find the equivalents of images in another library."""

import csv
import io
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from grr_coca.cli.flags import EngineFlag, ExcludeFlag, Flag, OptionalCheckpointFlag
from grr_coca.cli.output import print_first, print_line
from grr_coca.cli.progress import late_bar
from grr_coca.common.errors import UserError, count_of, escape_control_chars, require_extra
from grr_coca.common.outputs import require_suffix, require_writable, to_json, write_output

if TYPE_CHECKING:
    from grr_coca_icons.match.candidates import PictureMatch
    from grr_coca_icons.match.icon_map import DoubtfulEntry, UnknownIcon
    from grr_coca_icons.match.matcher import Matcher, UsedIcons
    from grr_coca_icons.match.picture_set import OpenPictureSet

_MAX_PLACES = 3
"""Maximum number of code locations to list per line."""


def run(
    sources: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FROM TO")] = (),
    used_in: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None,
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 5,
    names: bool = True,
    decided: Annotated[Path | None, tyro.conf.arg(metavar="MAP.json")] = None,
    check: Annotated[Path | None, tyro.conf.arg(metavar="TABLE")] = None,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    apply: Flag = False,
    dry_run: Flag = False,
    force: Flag = False,
    min_probability: Annotated[float, tyro.conf.arg(metavar="P")] = 0.5,
    json: Flag = False,
    exclude: ExcludeFlag = (),
    checkpoint: OptionalCheckpointFlag = None,
    engine: EngineFlag = "auto",
) -> int:
    """Find the equivalent of each image of one library in others, such as each icon of lucide in tabler.

    Each output line has the name of an image, and its candidates with the probability that they are the equivalent, or
    "none" if nothing is likely. The exit code is 1 if --check finds errors.

    Args:
        sources: first the images to match, then one or more libraries to search: iconify:PREFIX (downloaded once by
            npm), a JSON file of Iconify, a folder, an SVG sprite, an icon font, or an index.
        used_in: match the icons that the code in this folder uses, instead of an entire library. All sources are then
            libraries to search.
        n: maximum number of candidates per image.
        names: also compare the names of icons.
        decided: a map that was created or reviewed manually; its entries are kept.
        check: a table to check (a map, a flat JSON object, or a CSV with two columns): report entries that look wrong,
            and names that do not exist.
        out: also write review.html, a page to choose equivalents; matches.csv; map.json; or icons/index.json, the map
            that `shadcn migrate icons` reads below its REGISTRY_URL.
        apply: rewrite the code of --used-in: imports, components, their properties and types, names and classes, and
            package.json. Locations that are not changed are listed.
        dry_run: with --apply, print a diff and write nothing.
        force: with --apply, write even if git has uncommitted changes.
        min_probability: with --apply or icons/index.json, minimum probability of an equivalent that is not in
            --decided.
        json: print JSON lines: icon, and matches with icon, probability and same_name; an empty list means none.
        exclude: exclude paths that match this .gitignore pattern.
        checkpoint: folder, name of a model (see `grr-coca models`), or OWNER/NAME on the Hugging Face hub; default:
            the model of the index, or icons.
        engine: onnx (on a CPU) or torch; auto chooses by a fixed rule.
    """
    if n < 1:
        raise UserError(f"-n must be at least 1, got {n}")
    from_, to = _source_and_targets(sources, used_in)
    if out is not None:
        require_suffix(out, (".html", ".csv", ".json"))
        require_writable(out)
    if check is not None and (json or out or decided):
        raise UserError("--check cannot be combined with --json, --out or --decided")
    if (dry_run or force) and not apply:
        raise UserError("--dry-run and --force require --apply")
    if apply and (used_in is None or json or check):
        raise UserError("--apply requires --used-in DIR, and cannot be combined with --json or --check")
    if not 0 <= min_probability <= 1:
        raise UserError(f"--min-probability must be from 0 to 1, got {min_probability:g}")
    if apply:
        require_extra("codemod", "rewriting code", unneeded=("fontTools", "brotli"))
    require_extra("icons", "matching", unneeded=("fontTools", "brotli"))
    from grr_coca_icons.match.icon_map import read_map
    from grr_coca_icons.match.matcher import Matcher
    from grr_coca_icons.match.used_icons import find_uses
    from grr_coca_search.store import is_index  # lazy import: NumPy and Pillow

    decisions = None if decided is None else read_map(decided)
    table = None if check is None else read_map(check)
    uses = None if used_in is None else find_uses(used_in, exclude)
    matcher = Matcher(checkpoint, engine, names=names)

    def open_set(arguments: Sequence[str], *, retired: bool = False) -> "OpenPictureSet":
        with late_bar("embedded") as on_progress:
            return matcher.open(arguments, exclude=exclude, retired=retired, on_progress=on_progress)

    target = open_set(to) if any(map(is_index, to)) else None  # opened first, because its model is used
    used = None
    if uses is not None:
        if target is None:
            target = open_set(to)
        theirs = {name.partition(":")[0] for name in target.set.names}
        uses = [use for use in uses if use.prefix not in theirs]
        if not uses:
            print(f"nothing to match: the code uses only icons of {', '.join(sorted(theirs))}", file=sys.stderr)
            return 0
        with late_bar("embedded") as on_progress:
            used = matcher.used(uses, on_progress)
    source = used.icons if used else open_set(from_, retired=True)
    target = target or open_set(to)
    _report_excluded([*source.failures, *target.failures])
    if table is not None:
        return _check(table, source, target, matcher)
    rows = None if used is None else list(used.uses)
    matches = matcher.match(source, target, n=n, rows=rows, decided=decisions, where=str(decided))
    if out is not None:
        used_at = {} if used is None else {at: [use.location for use in found] for at, found in used.uses.items()}
        _write(out, matches, source, target, used_at, min_probability)
    if apply and used is not None:
        _apply(Path(str(used_in)), exclude, matches, used, min_probability, write=not dry_run, force=force)
        return 0
    _print(matches, used, json)
    return 0


def _source_and_targets(sources: Sequence[str], used_in: str | None) -> tuple[Sequence[str], Sequence[str]]:
    if used_in is not None:
        if not sources:
            raise UserError("no library to search; pass a set, such as iconify:tabler")
        return (), sources
    if len(sources) < 2:
        raise UserError("pass the images to match and the libraries to search, such as iconify:lucide iconify:tabler")
    return sources[:1], sources[1:]


def _report_excluded(failures: Sequence[str]) -> None:
    if failures:
        print(f"excluding {count_of(len(failures), 'image')}:", file=sys.stderr)
        print_first(list(map(escape_control_chars, failures)))


def _likely_equivalents(matches: "Sequence[PictureMatch]", min_probability: float) -> dict[str, str]:
    """Return the name of the decided or likely equivalent of each icon that has one, by the icon's name."""
    found = ((match.name, match.best) for match in matches)
    return {name: best.name for name, best in found if best and (best.probability or 0) >= min_probability}


# --- Rewriting code


def _apply(
    root: Path,
    exclude: Sequence[str],
    matches: "Sequence[PictureMatch]",
    used: "UsedIcons",
    min_probability: float,
    *,
    write: bool,
    force: bool,
) -> None:
    from grr_coca_icons.codemod.apply import plan_changes  # lazy import, because it needs an extra
    from grr_coca_icons.match.used_icons import Use

    by_use: dict[tuple[str, str], PictureMatch] = {}
    for match in matches:
        by_use |= {(use.prefix, use.name): match for use in used.uses[match.row]}
    likely = _likely_equivalents(matches, min_probability)
    icons = {icon: likely[match.name] for icon, match in by_use.items() if match.name in likely}

    def reason(use: Use) -> str | None:
        match = by_use.get((use.prefix, use.name))
        if match is None:
            return f"{use.prefix} has no icon '{use.name}'"
        line = f"{match.name} → {match.best.name if match.best else 'none'}"
        if (use.prefix, use.name) in icons:
            return f"{line}, manually: this kind of code is not rewritten"
        if match.is_decided:
            return f"{line}, as decided"
        return line + (f" {match.best.probability:.0%}, not applied" if match.best and match.best.probability else "")

    by_file: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for match in matches:
        if match.name in likely:
            for use in used.uses[match.row]:
                by_file[use.file, likely[match.name]][match.name] = None
    plan = plan_changes(root, icons, exclude, reason)
    if write:
        backup = plan.write(root, force=force)
        if backup is not None:
            print(f"a backup of the files is in {backup}", file=sys.stderr)
    else:
        for line in plan.diff():
            print_line(line)
    for one in plan.unchanged:
        print_line(escape_control_chars(f"{one.file}:{one.line}: {one.reason}"))
    for (file, equivalent), names in by_file.items():
        if len(names) > 1:  # for example, two states of a button
            print_line(escape_control_chars(f"{file}: {' and '.join(sorted(names))} become one icon, {equivalent}"))
    print(
        f"{'replaced' if write else 'would replace'} {count_of(plan.replaced, 'name')} in "
        + count_of(len(plan.changes), "file")
        + (f"; unchanged: {count_of(len(plan.unchanged), 'location')}, listed above" if plan.unchanged else ""),
        file=sys.stderr,
    )
    for command in plan.commands:
        print(f"next, run: {command}", file=sys.stderr)


# --- Output


def _print(matches: "Sequence[PictureMatch]", used: "UsedIcons | None", json: bool) -> None:
    for match in matches:
        uses = [] if used is None else [use.location for use in used.uses[match.row]]
        print_line(to_json(_record(match, uses)) if json else _line(match, uses))
    if used is not None:
        for use in used.unknown:
            print(f"{use.location}: {use.prefix} has no icon '{escape_control_chars(use.name)}'", file=sys.stderr)
    if not json:
        some = sum(match.best is not None for match in matches)
        decided = sum(match.is_decided for match in matches)
        print(
            f"{count_of(len(matches), 'image')}: {some:,} with an equivalent, {len(matches) - some:,} without"
            + (f"; {decided:,} decided before" if decided else ""),
            file=sys.stderr,
        )


def _record(match: "PictureMatch", uses: Sequence[str]) -> Mapping[str, object]:
    record: dict[str, object] = {
        "icon": match.name,
        "matches": [
            {"icon": one.name, "probability": one.probability, "same_name": one.same_name} for one in match.candidates
        ],
    }
    return {**record, "used": list(uses)} if uses else record


def _line(match: "PictureMatch", uses: Sequence[str]) -> str:
    candidates = ", ".join(
        one.name
        + ("" if one.probability is None or match.is_decided else f" {one.probability:.0%}")
        + (" shared name" if one.same_name else "")
        for one in match.candidates
    )
    more = f", and {len(uses) - _MAX_PLACES} more" if len(uses) > _MAX_PLACES else ""
    where = f"  ({', '.join(uses[:_MAX_PLACES])}{more})" if uses else ""
    decided = " (decided)" if match.is_decided else ""
    return escape_control_chars(f"{match.name}: {candidates or 'none'}{decided}{where}")


def _write(
    out: Path,
    matches: "Sequence[PictureMatch]",
    source: "OpenPictureSet",
    target: "OpenPictureSet",
    uses: Mapping[int, Sequence[str]],
    min_probability: float,
) -> None:
    suffix = out.suffix.lower()
    if suffix == ".html":
        from grr_coca_icons.match.review import review_page  # lazy import, because only this output needs it

        title = f"{_set_names(source.set.names)} to {_set_names(target.set.names)}"
        content = review_page(matches, source, target, title, uses)
    elif suffix == ".json":
        from grr_coca_icons.match.icon_map import SHADCN_PATH, format_map, format_shadcn_map

        if out.parts[-2:] == SHADCN_PATH:
            content = format_shadcn_map(_likely_equivalents(matches, min_probability))
        else:
            content = format_map({match.name: match.best.name if match.best else None for match in matches})
    else:
        content = _csv(matches)
    write_output(out, lambda file: file.write(content.encode("utf-8", "backslashreplace")))
    print(f"matches of {count_of(len(matches), 'image')} written to {out}", file=sys.stderr)


def _set_names(names: Sequence[str]) -> str:
    sets = list(dict.fromkeys(name.partition(":")[0] for name in names))
    return ", ".join(sets[:3]) + (" …" if len(sets) > 3 else "")


def _csv(matches: "Sequence[PictureMatch]") -> str:
    """Convert matches to one row per candidate, and one row without a candidate for each image that has none."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("icon", "rank", "match", "probability", "same_name"))
    for match in matches:
        for rank, one in enumerate(match.candidates, 1):
            writer.writerow((match.name, rank, one.name, one.probability, int(one.same_name)))
        if not match.candidates:
            writer.writerow((match.name, "", "", "", ""))
    return file.getvalue()


def _check(
    table: "Mapping[str, str | None]", source: "OpenPictureSet", target: "OpenPictureSet", matcher: "Matcher"
) -> int:
    from grr_coca_icons.match.icon_map import check_map

    numbers = matcher.numbers(source.set, target.set)
    findings = check_map(dict(table), source.lookup, target.lookup, numbers)
    for finding in findings:
        print_line(escape_control_chars(_finding_line(finding)))
    print(f"entries that look wrong: {len(findings):,} of {len(table):,}", file=sys.stderr)
    return 1 if findings else 0


def _finding_line(finding: "UnknownIcon | DoubtfulEntry") -> str:
    from grr_coca_icons.match.icon_map import UnknownIcon

    entry = f"{finding.icon} → {finding.equivalent or 'none'}"
    if isinstance(finding, UnknownIcon):
        hint = f"; did you mean '{finding.nearest}'?" if finding.nearest else f" in {', '.join(finding.sets)}"
        return f"{entry}: unknown icon '{finding.name}'{hint}"
    likelier = f"{finding.likelier_probability:.0%}"
    if finding.probability is None:
        return f"{entry}: {finding.likelier} shows it ({likelier})"
    return f"{entry}: looks wrong ({finding.probability:.0%}); {finding.likelier} is more likely ({likelier})"
