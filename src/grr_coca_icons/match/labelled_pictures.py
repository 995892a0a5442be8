"""Images with their labels: names of icons, captions in tables, and labels in code."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from grr_coca.common.errors import UserError
from grr_coca.data.image_files import TABLE_SUFFIXES, find_images
from grr_coca.data.walk import Exclusions
from grr_coca.infer.image_text_model import ImageTextModel
from grr_coca_icons.icon_names import caption_of, style_words, words_of_name
from grr_coca_icons.match.label_check import LabelledImage
from grr_coca_icons.match.labels_in_code import CODE, labels_in_code
from grr_coca_icons.match.picture_set import aliases_in
from grr_coca_icons.match.used_icons import normalize_name
from grr_coca_icons.sources.iconify import SCHEME, read_package


def labelled_pictures(
    sources: Sequence[str], exclude: Sequence[str], model: ImageTextModel, failures: list[str], outside: list[str]
) -> Iterator[LabelledImage]:
    """Yield the images in folders, icon sets, tables and code whose labels can be checked.

    Args:
        sources: Sources, as in `grr-coca lint`.
        exclude: Patterns of files to skip, as in .gitignore.
        model: Model that determines the image size.
        failures: List to which a line is added for each unreadable image and each unavailable icon set.
        outside: List to which the location of each label in code is added whose image is outside the folders of the
            sources and their git repositories. Such an image is not opened.

    Raises:
        UserError: If a source is neither a folder nor code, and has no images, or if code cannot be read.
    """
    folders = [path for path in map(Path, sources) if path.is_dir()]
    for source in sources:
        path = Path(source)
        is_code = path.is_file() and path.suffix.lower().removeprefix(".") in CODE
        if path.is_dir() or is_code:
            yield from _labelled_images_in_code(path, exclude, folders, model, failures, outside)
        if not is_code:
            yield from _labelled_files(source, exclude, model, failures, may_be_empty=path.is_dir())


def _labelled_files(
    source: str, exclude: Sequence[str], model: ImageTextModel, failures: list[str], *, may_be_empty: bool
) -> Iterator[LabelledImage]:
    """Yield icons with their names, and images in tables with their captions."""
    try:
        files = find_images([source], Exclusions(exclude))
    except UserError:
        if may_be_empty:
            return
        raise
    may_be_table = Path(source.partition("#")[0]).suffix.lower() in TABLE_SUFFIXES
    named = []
    for file in files:
        fields = file.fields()
        is_caption = may_be_table and "icon" not in fields  # a JSON file may also be an icon set
        if "icon" in fields:
            names = [str(fields["icon"]).partition(":")[2], *aliases_in(fields)]
        elif is_caption:
            names = [
                str(next((fields[key] for key in ("caption", "text", "alt", "label", "title") if fields.get(key)), ""))
            ]
        elif file.path is not None and file.path.suffix.lower() == ".svg":
            names = [file.path.stem]
        else:
            continue  # file names of photographs are meaningless
        named.append((file, [name for name in names if name], is_caption))
    styles = style_words([words_of_name(names[0]).replace(" ", "-") for _, names, _ in named if names], ())
    for file, names, is_caption in named:
        if names and not is_caption and any(word.isdigit() for word in words_of_name(names[0]).split()):
            continue  # without its number, the name may refer to a series of drawings
        texts = names if is_caption else [caption_of(words_of_name(name).replace(" ", "-"), styles) for name in names]
        texts = list(dict.fromkeys(text for text in texts if text))
        if not texts:
            continue
        try:
            image = model.preprocess.decode_square(file.read(), file.name)
        except UserError as error:
            failures.append(str(error))
            continue
        yield LabelledImage(image=image, texts=tuple(texts), where=file.name)


def _labelled_images_in_code(
    path: Path,
    exclude: Sequence[str],
    folders: Sequence[Path],
    model: ImageTextModel,
    failures: list[str],
    outside: list[str],
) -> Iterator[LabelledImage]:
    """Yield images with labels in code, and skip icons of unavailable sets and images outside the allowed folders."""
    sets: dict[str, dict[str, str]] = {}
    for label in labels_in_code(path, exclude, folders):
        if label.image is None and label.svg is None and label.icon is None:
            outside.append(f"{label.file}:{label.line}")
            continue
        try:
            svg = label.svg or ""
            if label.icon is not None:
                prefix = label.icon.prefix
                if prefix not in sets:
                    sets[prefix] = _download_icons(prefix, failures)
                svg = sets[prefix].get(normalize_name(label.icon.name), "")
                if not svg:
                    continue
            content = label.image.read_bytes() if label.image else svg.encode()
            image = model.preprocess.decode_square(content, f"{label.file}:{label.line}")
        except (UserError, OSError) as error:
            failures.append(str(error))
            continue
        yield LabelledImage(image=image, texts=(label.text,), where=label.file, line=label.line)


def _download_icons(prefix: str, failures: list[str]) -> dict[str, str]:
    """Return the SVG of each icon in a set by its normalized names. The set is downloaded if it is not cached.

    If the set is unavailable, the result is empty, and the reason is added to `failures`.
    """
    try:
        icons = read_package(f"{SCHEME}{prefix}").icons
    except UserError as error:
        failures.append(str(error))
        return {}
    return {normalize_name(written): icon.svg for icon in icons for written in (*icon.aliases, icon.name) if icon.svg}
