"""Annotations with the types and shapes of arrays, such as `Float[np.ndarray, "B E"]`, for code without PyTorch.

For type checkers, the types are those of jaxtyping. At runtime, they are those of jaxtyping only if jaxtyping has
already been imported, as in the tests, which check every shape. Otherwise, an annotation is just the type of the array,
such as `np.ndarray`, so inference does not need jaxtyping.
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or sys.modules.get("jaxtyping"):
    from jaxtyping import Bool, Float, Int, UInt8
else:

    class _ArrayType:
        def __class_getitem__(cls, type_and_shape: tuple[Any, str]) -> Any:
            return type_and_shape[0]

    Bool = Float = Int = UInt8 = _ArrayType

__all__ = ["Bool", "Float", "Int", "UInt8"]
