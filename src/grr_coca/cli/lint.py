"""`grr-coca lint`: names and labels that contradict their picture."""

import json as json_module
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

import grr_coca
from grr_coca.cli.flags import EngineFlag, ExcludeFlag, Flag
from grr_coca.cli.output import say
from grr_coca.common.errors import UserError, on_one_line
from grr_coca.common.extras import require_extra
from grr_coca.common.files import read_json
from grr_coca.common.outputs import require_suffix, require_writable, to_json, write_output
from grr_coca.model.shipped_models import DEFAULT

if TYPE_CHECKING:
    from grr_coca.infer.image_text_model import ImageTextModel
    from grr_coca.search.match.label_check import Contradiction, Labelled

_SARIF = "https://json.schemastore.org/sarif-2.1.0.json"
_RULE = "label-contradicts-picture"
_MAX_SHOWN = 20


def run(
    sources: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")] = (),
    false_alarms: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.01,
    baseline: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None,
    update_baseline: Flag = False,
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.sarif")] = None,
    json: Flag = False,
    exclude: ExcludeFlag = (),
    checkpoint: Annotated[str, tyro.conf.arg(aliases=["-c"], metavar="NAME|DIR")] = DEFAULT,
    engine: EngineFlag = "auto",
) -> int:
    """Find names and alternative texts that contradict their picture.

    Checked are the names of icons, the captions of tables, and the labels in HTML, JSX and Markdown: alt, aria-label
    and title of images, inline SVG and icons of known sets. What the model does not know, and alt="", is passed over.
    The exit code is 1 if something is found.

    Args:
        sources: folders of icons or of code; icon sets, sprites and fonts, as in match; tables of images and captions;
            files of code.
        false_alarms: share of right names that may be reported by mistake, on icon sets like those of the training;
            on others it is about twice as high. The higher it is, the more is found.
        baseline: findings that are known, and left out.
        update_baseline: write all findings into --baseline, instead of reporting them.
        out: also write the findings as SARIF, for code hosts.
        json: print JSON lines: label, file, line, cosine, suggestions.
        exclude: leave out what this pattern of .gitignore matches.
        checkpoint: folder, name of a model (see `grr-coca models`), or OWNER/NAME on the Hugging Face hub.
        engine: onnx (on a CPU) or torch; auto chooses by a fixed rule.
    """
    if not sources:
        raise UserError("nothing to check; give folders, icon sets, tables or files of code")
    if update_baseline and baseline is None:
        raise UserError("--update-baseline: give the file by --baseline FILE.json")
    if out is not None:
        require_suffix(out, (".sarif", ".json"))
        require_writable(out)
    require_extra("icons", "checking names", unneeded=("fontTools", "brotli", "rapidfuzz"))
    known = set() if baseline is None or update_baseline else _read_baseline(baseline)
    from grr_coca.infer.image_text_model import load  # late: imports an engine
    from grr_coca.infer.locate import locate_checkpoint
    from grr_coca.search.match.label_check import check_labels, require_limit
    from grr_coca.search.match.numbers import match_numbers
    from grr_coca.search.update import is_there

    for source in sources:
        if not is_there(source):
            raise UserError(f"{source}: no such file or folder")
    numbers = match_numbers(locate_checkpoint(checkpoint))
    limit = require_limit(
        [] if numbers is None else [(one, other) for one, other in numbers.label_limits], false_alarms
    )
    model = load(checkpoint, engine=engine)
    failures: list[str] = []
    checked = check_labels(_labelled(sources, exclude, model, failures), model, limit)
    found = [one for one in checked.contradictions if one.key not in known]
    if update_baseline and baseline is not None:
        keys = sorted({one.key for one in checked.contradictions})
        write_output(baseline, lambda file: file.write((json_module.dumps({"known": keys}, indent=1) + "\n").encode()))
        print(f"{len(keys):,} findings are in {baseline}", file=sys.stderr)
        return 0
    for one in found:
        say(to_json(_record(one)) if json else on_one_line(f"{_place(one)}: {one.message}"))
    if out is not None:
        write_output(out, lambda file: file.write(_sarif(found).encode()))
    for line in failures[:_MAX_SHOWN]:
        print(f"  {on_one_line(line)}", file=sys.stderr)
    left_out = len(checked.contradictions) - len(found)
    print(
        f"{len(found):,} of {checked.judged:,} labels contradict their picture"
        + (f", {left_out:,} more are known" if left_out else "")
        + (
            f"; {checked.passed_over:,} are of words or pictures that the model does not know"
            if checked.passed_over
            else ""
        )
        + (f"; {len(failures):,} pictures cannot be read" if failures else ""),
        file=sys.stderr,
    )
    return 1 if found else 0


def _read_baseline(path: Path) -> set[str]:
    known = read_json(path).get("known")
    if not isinstance(known, list):
        raise UserError(f"{path}: not a file of known findings; write one with --update-baseline")
    return set(map(str, known))


# --- Pictures with their labels


def _labelled(
    sources: Sequence[str], exclude: Sequence[str], model: "ImageTextModel", failures: list[str]
) -> Iterator["Labelled"]:
    from grr_coca.search.match.labelled_pictures import CODE  # late: imports NumPy and Pillow

    for source in sources:
        path = Path(source)
        is_code = path.is_file() and path.suffix.lower().removeprefix(".") in CODE
        if path.is_dir() or is_code:
            yield from _in_code(path, exclude, model, failures)
        if not is_code:
            yield from _named(source, exclude, model, failures, may_be_empty=path.is_dir())


def _named(
    source: str, exclude: Sequence[str], model: "ImageTextModel", failures: list[str], *, may_be_empty: bool
) -> Iterator["Labelled"]:
    """Icons with their names, and images of tables with their captions."""
    from grr_coca.data.icon_names import caption_of, style_words, words_of_name
    from grr_coca.data.walk import Exclusions
    from grr_coca.search.image_files import TABLE_SUFFIXES, find_images
    from grr_coca.search.match.label_check import Labelled

    try:
        files = find_images([source], Exclusions(exclude))
    except UserError:
        if may_be_empty:
            return
        raise
    is_table = Path(source.partition("#")[0]).suffix.lower() in TABLE_SUFFIXES
    named = []
    for file in files:
        fields = file.fields()
        if "icon" in fields:
            own = str(fields["icon"]).partition(":")[2]
            names = [own, *str(fields.get("aliases", "")).split(", ")]
        elif is_table:
            names = [
                str(next((fields[key] for key in ("caption", "text", "alt", "label", "title") if fields.get(key)), ""))
            ]
        elif file.path is not None and file.path.suffix.lower() == ".svg":
            names = [file.path.stem]
        else:
            continue  # names of photographs say nothing
        named.append((file, [name for name in names if name]))
    styles = style_words([words_of_name(names[0]).replace(" ", "-") for _, names in named if names], ())
    for file, names in named:
        texts = names if is_table else [caption_of(words_of_name(name).replace(" ", "-"), styles) for name in names]
        texts = list(dict.fromkeys(text for text in texts if text))
        if not texts:
            continue
        try:
            image = model.preprocess.square(model.preprocess.decode(file.read(), file.name))
        except UserError as error:
            failures.append(str(error))
            continue
        yield Labelled(image=image, texts=tuple(texts), where=file.name)


def _in_code(path: Path, exclude: Sequence[str], model: "ImageTextModel", failures: list[str]) -> Iterator["Labelled"]:
    """Pictures of labels in code. Icons of sets that cannot be had are passed over."""
    from grr_coca.search.match.label_check import Labelled
    from grr_coca.search.match.labelled_pictures import labels_in_code

    icons = _Icons(failures)
    for label in labels_in_code(path, exclude):
        try:
            content = label.image.read_bytes() if label.image else (label.svg or "").encode()
            if label.icon is not None:
                found = icons.find(label.icon.prefix, label.icon.name)
                if found is None:
                    continue
                content = found
            image = model.preprocess.square(model.preprocess.decode(content, f"{label.file}:{label.line}"))
        except (UserError, OSError) as error:
            failures.append(str(error))
            continue
        yield Labelled(image=image, texts=(label.text,), where=label.file, line=label.line)


class _Icons:
    """The SVG of icons of known sets, which are fetched when they are needed."""

    def __init__(self, failures: list[str]) -> None:
        self._failures = failures
        self._sets: dict[str, dict[str, str]] = {}

    def find(self, prefix: str, name: str) -> bytes | None:
        """An icon by its set, and by its name as code writes it; None if there is none."""
        from grr_coca.data.sources.iconify import SCHEME, read_package
        from grr_coca.search.match.used_icons import squashed

        if prefix not in self._sets:
            self._sets[prefix] = {}
            try:
                icons = read_package(f"{SCHEME}{prefix}").icons
            except UserError as error:
                self._failures.append(str(error))
                return None
            self._sets[prefix] = {
                squashed(written): icon.svg for icon in icons for written in (*icon.aliases, icon.name) if icon.svg
            }
        svg = self._sets[prefix].get(squashed(name))
        return None if svg is None else svg.encode()


# --- Output


def _place(one: "Contradiction") -> str:
    return f"{one.where}:{one.line}" if one.line else one.where


def _record(one: "Contradiction") -> dict[str, object]:
    return {
        "label": one.label,
        "file": one.where,
        "line": one.line or None,
        "cosine": one.cosine,
        "suggestions": list(one.suggestions),
    }


def _sarif(found: Sequence["Contradiction"]) -> str:
    """SARIF 2.1.0, as code hosts read it."""
    results = [
        {
            "ruleId": _RULE,
            "level": "warning",
            "message": {"text": one.message},
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
        "rules": [{"id": _RULE, "shortDescription": {"text": "A name or label contradicts its picture"}}],
    }
    runs = [{"tool": {"driver": driver}, "results": results}]
    return json_module.dumps({"$schema": _SARIF, "version": "2.1.0", "runs": runs}, indent=1) + "\n"
