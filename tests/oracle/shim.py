"""Imports torch and torchvision, also where torchvision's compiled operators do not load.

Its wheels are built for a build of torch with CUDA. Beside one without, the library of operators
does not load, and `import torchvision` ends in an error about `torchvision::nms`. The networks
compared here use none of these operators: it is enough that those named during the import exist.
Where torchvision imports by itself, nothing is done.
"""

import os
import warnings

# Without this torch compiles torchvision's fall-backs, which takes longer than they do.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

with warnings.catch_warnings():  # theirs
    warnings.simplefilter("ignore")
    import torch

    LIBRARY = None  # what is declared in it lasts as long as it does
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            LIBRARY.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

__all__ = ["torch", "torchvision"]
