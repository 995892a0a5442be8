"""`grr-coca serve`: run the HTTP server and its page."""

from typing import Annotated

import tyro

from grr_coca.cli.flags import EngineFlag, Flag, Lists, OptionalCheckpointFlag, PicturesFlag, join_lists
from grr_coca.cli.output import print_line
from grr_coca.common.errors import UserError, require_extra


def run(
    index: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")] = None,
    checkpoint: OptionalCheckpointFlag = None,
    pictures: PicturesFlag = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    open: Flag = False,
    engine: EngineFlag = "auto",
    queue: int = 64,
    seconds: float = 30,
    max_megabytes: int = 20,
    max_megapixels: int = 50,
    plugin: Annotated[Lists[str], tyro.conf.arg(metavar="NAME")] = (),
) -> None:
    """Serve captions, embeddings and search over HTTP, with a web page and endpoints for OpenAI clients.

    Ctrl-C or SIGTERM stops the server after it has answered accepted requests. If GRR_COCA_API_KEY is set, requests
    must send this key, as "Authorization: Bearer KEY".

    Args:
        index: folder of an index, or http://HOST:PORT/NAME of a Milvus server, to search and browse.
        checkpoint: folder, name of a model (see `grr-coca models`), or OWNER/NAME on the Hugging Face hub; default:
            the model of the index, or icons.
        pictures: show only pictures in this folder. Required to show images of an index from `import index`, because
            such an index may name any file on this machine.
        host: address to listen on; 0.0.0.0 allows other machines to connect.
        port: port to listen on; 0 for any free port.
        open: open the page in a browser.
        engine: onnx (on a CPU) or torch; auto chooses by a fixed rule.
        queue: maximum number of images that are waiting or being processed; further requests are rejected (429).
        seconds: maximum time until an answer begins, after which a request is rejected (504).
        max_megabytes: maximum size of the body of a request.
        max_megapixels: maximum size of an image.
        plugin: add the endpoints of another installed distribution.
    """
    limited = {"queue": queue, "seconds": seconds, "max-megabytes": max_megabytes, "max-megapixels": max_megapixels}
    for name, value in limited.items():
        if not value > 0:
            raise UserError(f"--{name} must be above 0, got {value}")
    if not 0 <= port < 2**16:
        raise UserError(f"--port must be from 0 to 65535, got {port}")
    for folder in pictures:
        if not folder.is_dir():
            raise UserError(f"--pictures {folder}: not found, or not a folder; pass an existing folder")
    require_extra("serve", "serving")
    from grr_coca_serve.guard import Limits
    from grr_coca_serve.server import RunningServer, ServeOptions

    limits = Limits(
        max_bytes=max_megabytes * 2**20,
        max_pixels=max_megapixels * 1_000_000,
        seconds=seconds,
        max_held_bytes=max(Limits.max_held_bytes, 4 * max_megabytes * 2**20),
    )
    options = ServeOptions(
        index=index,
        pictures=pictures,
        model=checkpoint,
        engine=engine,
        host=host,
        port=port,
        opens_browser=open,
        capacity=queue,
        limits=limits,
        plugins=join_lists(plugin),
    )
    RunningServer(options, print_line).run()
