"""segzoo: the segmentation model zoo for JAX.

Importing the package is cheap and touches no device; heavier parts are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from segzoo.errors import SegzooError
from segzoo.registry import get, list_models, register

if TYPE_CHECKING:
    from segzoo.initializers import init
    from segzoo.predict import Predictor
    from segzoo.weights import load

__version__ = "0.1.0"
__all__ = [
    "Predictor",
    "SegzooError",
    "__version__",
    "get",
    "init",
    "list_models",
    "load",
    "register",
]

_LAZY = {"Predictor": "segzoo.predict", "init": "segzoo.initializers", "load": "segzoo.weights"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'segzoo' has no attribute {name!r}")
