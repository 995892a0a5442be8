"""`grr-coca lint`: find names and labels that contradict their image."""

import json as json_module
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

import grr_coca
from grr_coca.cli.flags import EngineFlag, ExcludeFlag, Flag
from grr_coca.cli.output import failure_lines, print_first, print_line
from grr_coca.common.errors import UserError, count_of, escape_control_chars, require_extra
from grr_coca.common.files import read_json
from grr_coca.common.outputs import require_suffix, require_writable, to_json, write_output
from grr_coca.model.checkpoint_files import DEFAULT, require_not_adapted

if TYPE_CHECKING:
    from grr_coca_icons.match.label_check import Contradiction

_SARIF = "https://json.schemastore.org/sarif-2.1.0.json"
_RULE = "label-contradicts-picture"


def run(
    sources: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")] = (),
    false_alarms: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.0005,
    baseline: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None,
    update_baseline: Flag = False,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.sarif")] = None,
    json: Flag = False,
    exclude: ExcludeFlag = (),
    checkpoint: Annotated[str, tyro.conf.arg(aliases=["-c"], metavar="NAME|DIR")] = DEFAULT,
    engine: EngineFlag = "auto",
) -> int:
    """Find names and alternative texts that contradict their image.

    This checks names of icons, captions in tables, and labels in HTML, JSX and Markdown: alt, aria-label and title of
    images, inline SVG and icons of known sets. Images that clearly show something else are reported. Content that the
    model does not know, names with a number, and alt="" are skipped. The exit code is 1 if any contradiction is
    reported.

    Args:
        sources: folders of icons or of code; icon sets, sprites and fonts, as in match; tables of images and captions;
            files of code.
        false_alarms: accepted fraction of correct names that are reported, measured on icon sets; from 0.0005 to 0.002
            with -c icons. Higher values find more contradictions.
        baseline: file of known findings to exclude.
        update_baseline: write all findings to --baseline instead of reporting them.
        out: also write the findings as SARIF, for code hosts.
        json: print JSON lines: label, file, line, cosine, suggestions.
        exclude: exclude paths that match this .gitignore pattern.
        checkpoint: folder, name of a model (see `grr-coca models`), or OWNER/NAME on the Hugging Face hub.
        engine: onnx (on a CPU) or torch; auto chooses by a fixed rule.
    """
    if not sources:
        raise UserError("no sources given; pass folders, icon sets, tables or code files")
    if update_baseline and baseline is None:
        raise UserError("--update-baseline requires --baseline FILE.json")
    if out is not None:
        require_suffix(out, (".sarif", ".json"))
        require_writable(out)
    require_extra("icons", "checking names", unneeded=("fontTools", "brotli", "rapidfuzz"))
    known = set() if baseline is None or update_baseline else _read_baseline(baseline)
    from grr_coca.infer.load import load, locate_checkpoint  # lazy import of an engine
    from grr_coca_icons.match.label_check import check_labels, interpolate_limit
    from grr_coca_icons.match.labelled_pictures import labelled_pictures
    from grr_coca_icons.match.match_numbers import match_numbers
    from grr_coca_search.update import argument_exists

    for source in sources:
        if not argument_exists(source):
            raise UserError(f"{source}: no such file or folder")
    folder = locate_checkpoint(checkpoint)
    require_not_adapted(folder, "lint")
    numbers = match_numbers(folder)
    limit = interpolate_limit([] if numbers is None else numbers.label_limits, false_alarms)
    model = load(checkpoint, engine=engine)
    failures: list[str] = []
    outside: list[str] = []
    checked = check_labels(labelled_pictures(sources, exclude, model, failures, outside), model, limit)
    found = [one for one in checked.contradictions if one.key not in known]
    if update_baseline and baseline is not None:
        keys = sorted({one.key for one in checked.contradictions})
        write_output(baseline, lambda file: file.write((json_module.dumps({"known": keys}, indent=1) + "\n").encode()))
        print(f"{count_of(len(keys), 'finding')} written to {baseline}", file=sys.stderr)
        return 0
    for one in found:
        location = f"{one.where}:{one.line}" if one.line else one.where
        print_line(to_json(_record(one)) if json else escape_control_chars(f"{location}: {_message(one)}"))
    if out is not None:
        write_output(out, lambda file: file.write(_sarif(found).encode()))
    print_first(failure_lines(failures))
    left_out = len(checked.contradictions) - len(found)
    print(
        f"labels that contradict their image: {len(found):,} of {checked.judged:,}"
        + (f"; in the baseline: {left_out:,}" if left_out else "")
        + (f"; with words or images that the model does not know: {checked.skipped:,}" if checked.skipped else "")
        + (f"; with images that cannot be read: {len(failures):,}" if failures else "")
        + (f"; not checked, with images outside the given folders: {_locations(outside)}" if outside else ""),
        file=sys.stderr,
    )
    return 1 if found else 0


def _read_baseline(path: Path) -> set[str]:
    known = read_json(path).get("known")
    if not isinstance(known, list):
        raise UserError(f"{path}: not a baseline file; create one with --baseline FILE.json --update-baseline")
    return set(map(str, known))


# --- Output


def _locations(outside: Sequence[str]) -> str:
    more = ", …" if len(outside) > 1 else ""
    return f"{len(outside):,} ({escape_control_chars(outside[0])}{more})"


def _message(one: "Contradiction") -> str:
    shown = " or ".join(f"“{text}”" for text in one.suggestions)
    return f"“{one.label}” does not match the image ({shown})"


def _record(one: "Contradiction") -> dict[str, object]:
    return {
        "label": one.label,
        "file": one.where,
        "line": one.line or None,
        "cosine": one.cosine,
        "suggestions": list(one.suggestions),
    }


def _sarif(found: Sequence["Contradiction"]) -> str:
    """Convert findings to SARIF 2.1.0, for code hosts."""
    results = [
        {
            "ruleId": _RULE,
            "level": "warning",
            "message": {"text": _message(one)},
            "partialFingerprints": {"grrCoca/v1": one.key},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": one.where},
                        "region": {"startLine": max(1, one.line)},
                    }
                }
            ],
        }
        for one in found
    ]
    driver = {
        "name": "grr-coca",
        "version": grr_coca.__version__,
        "rules": [{"id": _RULE, "shortDescription": {"text": "A name or label contradicts its image"}}],
    }
    runs = [{"tool": {"driver": driver}, "results": results}]
    return json_module.dumps({"$schema": _SARIF, "version": "2.1.0", "runs": runs}, indent=1) + "\n"
