"""Memory of decoding: large images are converted in strips, which changes no pixel, and a server's limit suffices."""

import io
import sys

import numpy as np
import pytest
from PIL import Image, ImageCms

from grr_coca.data import images, isolated
from grr_coca.data.images import decode_in_process as decode_image
from grr_coca.data.isolated import Helpers
from grr_coca.data.preprocess import Preprocess
from grr_coca_serve.guard import Limits as ServerLimits
from grr_coca_serve.pictures import limits_of_helpers

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def noise(mode: str, size: tuple[int, int] = (61, 47)) -> Image.Image:
    """Random pixels of a mode."""
    made = np.random.default_rng(0)
    if mode == "F":
        values = made.standard_normal(size[::-1]).astype(np.float32) * 1e3
        values[3, 4:7] = [np.nan, np.inf, -np.inf]
        return Image.fromarray(values)
    if mode in ("I", "I;16"):
        return Image.fromarray(made.integers(0, 65536, size[::-1], np.int32 if mode == "I" else np.uint16))
    image = Image.fromarray(made.integers(0, 256, (*size[::-1], 4), np.uint8))
    return image.convert("RGB").quantize(17) if mode == "P" else image.convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("F", "TIFF", {}),
        ("I", "TIFF", {}),
        ("I;16", "PNG", {}),
        ("I;16", "PNG", {"transparency": 5}),
        ("1", "PNG", {}),
        ("L", "PNG", {"transparency": 7}),
        ("LA", "PNG", {}),
        ("P", "PNG", {}),
        ("P", "PNG", {"transparency": 3}),
        ("P", "GIF", {"transparency": 3}),
        ("RGB", "PNG", {"transparency": (1, 2, 3)}),
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"exif": bytes.fromhex("4d4d002a000000080001011200030000000100060000")}),
        ("CMYK", "JPEG", {}),
        ("RGBA", "PNG", {}),
        ("RGBA", "PNG", {"icc_profile": PROFILE}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("RGBA", "TIFF", {}),
    ],
)
@pytest.mark.parametrize("to_srgb", [False, True])
def test_image_in_strips_is_the_same_image(monkeypatch, mode, kind, options, to_srgb):
    image = noise(mode)
    if mode == "I;16" and options:
        image.putpixel((2, 2), 5)
    data = encoded(image, kind, **options)
    for opening in ("upright_on_white", "as_stored"):
        whole = decode_image(data, "a", opening, to_srgb=to_srgb)
        with monkeypatch.context() as patches:
            patches.setattr(images, "_STRIP_PIXELS", 200)  # three rows at a time
            strips = decode_image(data, "a", opening, to_srgb=to_srgb)
        assert strips.mode == whole.mode == "RGB"
        assert np.array_equal(np.asarray(strips), np.asarray(whole))
        assert strips.info.keys() == whole.info.keys()


def test_signalling_nan_of_a_corrupt_file_gives_no_warning():
    values = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    values.view(np.uint32)[3, 4] = 0x7F800001
    image = decode_image(encoded(Image.fromarray(values), "TIFF"), "a")
    assert image.getpixel((4, 3)) == (0, 0, 0)
    assert image.getpixel((29, 19)) == (255, 255, 255)


def test_jpeg_is_decoded_at_least_at_the_requested_size():
    data = encoded(noise("RGB", (1000, 700)), "JPEG")
    sizes = {at_least: decode_image(data, "a", at_least=at_least).size for at_least in [(350, 350), (351, 351), (1, 1)]}
    assert sizes == {(350, 350): (500, 350), (351, 351): (1000, 700), (1, 1): (125, 88)}
    assert decode_image(data, "a").size == (1000, 700)
    assert decode_image(encoded(noise("RGB"), "PNG"), "a", at_least=(1, 1)).size == (61, 47)


FORMS = {
    "jpeg": ("RGB", "JPEG", {"quality": 80, "subsampling": 0}),
    "progressive": ("CMYK", "JPEG", {"quality": 80, "progressive": True}),
    "png": ("RGBA", "PNG", {"compress_level": 1}),
    "tiff": ("F", "TIFF", {"compression": "tiff_deflate", "strip_size": 2**30}),
    "webp": ("RGBA", "WEBP", {"quality": 10, "method": 0}),
    "avif": ("RGBA", "AVIF", {"quality": 10, "speed": 10}),
    "gif": ("P", "GIF", {}),
}


@pytest.mark.ci
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit memory")
@pytest.mark.parametrize("form", FORMS)
def test_helper_of_a_server_has_memory_for_the_largest_images(form):
    """Within the same limits, a JPEG 2000 may have three quarters of the pixels."""
    mode, kind, options = FORMS[form]
    large = encoded(noise(mode, (300, 300)).resize((3600, 3600), Image.Resampling.NEAREST), kind, **options)
    helpers = Helpers(limits_of_helpers(ServerLimits(max_pixels=3600 * 3600)))
    content = isolated._content(large, "a")
    facts, _ = helpers.call("grr_coca.data.decoding", "square", content, preprocess=Preprocess(224))
    assert facts == {"more": False}
    helpers.end()
