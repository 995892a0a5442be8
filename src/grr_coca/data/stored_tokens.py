"""Find the stored tokens of an image by the digest of the image.

Only folders whose features this process has read are searched. Therefore, an image from an untrusted source cannot
refer to any other file.
"""

import threading
from typing import Protocol, runtime_checkable
from weakref import WeakSet

import numpy as np

from grr_coca.common.shapes import Float


@runtime_checkable
class TokenStore(Protocol):
    """Folder with the tokens of images; see `grr_coca.data.features.FeatureCache`."""

    def find_tokens(self, encoder: str, digest: bytes) -> Float[np.ndarray, "N D"] | None:
        """Return all tokens of an image, or None if this folder does not have them.

        Args:
            encoder: Digest of the encoder.
            digest: SHA-256 of the image.
        """
        ...


_OFFERED: WeakSet[TokenStore] = WeakSet()
_OFFERED_LOCK = threading.Lock()


def offer_tokens(store: TokenStore) -> None:
    """Let `find_tokens` search a folder of features as long as other code references the object `store`."""
    with _OFFERED_LOCK:
        _OFFERED.add(store)


def find_tokens(encoder: str, digest: bytes) -> Float[np.ndarray, "N D"] | None:
    """Return all tokens of an image from the offered folders (see `TokenStore`), or None if no folder has them."""
    with _OFFERED_LOCK:
        stores = list(_OFFERED)
    found = (store.find_tokens(encoder, digest) for store in stores)
    return next((tokens for tokens in found if tokens is not None), None)
