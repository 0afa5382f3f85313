"""Image -> logits, one file per paper; importing this package registers them all."""

from segzoo.models import unet

__all__ = ["unet"]
