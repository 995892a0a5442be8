"""Extract the data that an index needs from an image file: size, hashes and metadata. Subprocesses run this module."""

from contextlib import suppress
from datetime import datetime

from grr_coca.data.decoding import Answer, square_of
from grr_coca.data.images import decode_in_process, has_more_frames
from grr_coca.data.preprocess import Preprocess
from grr_coca_search.photo import found_in
from grr_coca_search.picture_hashes import compute_pixel_signature, perceptual_hash

datetime.strptime("2026", "%Y")  # makes `strptime` import its modules now, because files cannot be opened later
with suppress(ImportError):  # without this package, Pillow does not read XMP
    import defusedxml.ElementTree  # noqa: F401


def described(data: bytes, name: str, *, preprocess: Preprocess | None = None, renderer: str | None = None) -> Answer:
    """Return the size, hashes and metadata of an image, and the pixels of the model's input square, S S 3, as bytes.

    If `preprocess` is None, the bytes are empty.
    """
    if preprocess is None:
        image = decode_in_process(data, name, renderer=renderer)
    else:
        side, opening = preprocess.vector_side, preprocess.opening
        image = decode_in_process(
            data, name, opening, to_srgb=True, is_scaled=True, vector_side=side, renderer=renderer
        )
    facts = {
        "size": image.size,
        "more": has_more_frames(image),
        "phash": perceptual_hash(image),
        "look": compute_pixel_signature(image).hex(),
        "found": found_in(data, name),
    }
    return facts, b"" if preprocess is None else square_of(image, name, preprocess).tobytes()
