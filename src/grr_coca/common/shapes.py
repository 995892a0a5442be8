"""Types and shapes of arrays in annotations: `Float[np.ndarray, "B E"]`, for code that runs without PyTorch.

They are jaxtyping's if a type checker reads the code, or if jaxtyping has been imported before, as the tests do, which
check every shape. Otherwise an annotation is the type of the array alone, so inference does not need jaxtyping.
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
