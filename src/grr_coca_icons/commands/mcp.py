"""`grr-coca mcp`: serve icon indexes as tools for agents."""

from typing import Annotated

import tyro

from grr_coca.cli.flags import EngineFlag
from grr_coca.common.errors import UserError, require_extra


def run(
    indexes: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")] = (),
    engine: EngineFlag = "auto",
) -> None:
    """Serve icon indexes to agents by the Model Context Protocol, over standard input and output.

    Tools: search_icons, search_by_picture, match_icons, caption_picture, get_icon, check_names. They are read-only.

    Args:
        indexes: folders of indexes of the same model, such as one per icon set.
        engine: onnx (on a CPU) or torch; auto chooses by a fixed rule.
    """
    if not indexes:
        raise UserError(
            "no index given; pass at least one, such as lucide.index (create it with: grr-coca index iconify:lucide "
            "--out lucide.index)"
        )
    require_extra("mcp", "serving agents")
    from grr_coca_icons.tools.mcp import serve_stdio  # lazy import, because it needs an extra

    serve_stdio(list(indexes), engine)
