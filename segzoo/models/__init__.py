"""Image -> logits, one file per paper; importing this package registers them all."""

from segzoo.models import attention_unet, fcn, unet

__all__ = ["attention_unet", "fcn", "unet"]
