"""Labels and templates of zero-shot classification."""

from collections import Counter
from collections.abc import Sequence

from grr_coca.errors import UserError

LABEL_ALONE = ("{}",)
"""The template of a model whose captions are labels."""


def check_labels(labels: Sequence[str]) -> None:
    """Make sure that there is something to choose between, and no two that are one to the model.

    Raises:
        UserError: fewer than two labels, an empty one, or some that are equal but for case and spaces.
    """
    if isinstance(labels, str):
        raise UserError(f"labels must be a list of texts, not the one text '{labels}'")
    if len(labels) < 2:
        raise UserError(f"classifying takes two labels or more; here are {len(labels)}")
    counts = Counter(" ".join(label.split()).lower() for label in labels)
    if "" in counts:
        raise UserError("a label is empty")
    repeated = [label for label, count in counts.items() if count > 1]
    if repeated:
        raise UserError(f"labels given more than once (case and spaces do not count): {', '.join(repeated)}")


def fill_templates(labels: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every label in every template, label by label.

    Raises:
        UserError: there is no template, or one without a place for the label.
    """
    if isinstance(templates, str):
        raise UserError(f"templates must be a list of texts, not the one text '{templates}'")
    if not templates:
        raise UserError("there is no template; '{}' is the label alone")
    for template in templates:
        if "{}" not in template:
            raise UserError(f"template '{template}' has no {{}} where the label goes, as in 'a photo of a {{}}'")
    # Not `str.format`: labels and templates may hold other braces.
    return [template.replace("{}", label) for label in labels for template in templates]
