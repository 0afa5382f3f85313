"""Weights with their description, in and out; other libraries' too. Nothing is ever unpickled."""

from segzoo.weights.fit import flatten, unflatten
from segzoo.weights.info import ModelInfo
from segzoo.weights.known import pretrained
from segzoo.weights.source import Source, is_pin_of, pin, read
from segzoo.weights.start import start_from
from segzoo.weights.store import check_fits, export, load, save, variable_shapes

__all__ = [
    "ModelInfo",
    "Source",
    "check_fits",
    "export",
    "flatten",
    "is_pin_of",
    "load",
    "pin",
    "pretrained",
    "read",
    "save",
    "start_from",
    "unflatten",
    "variable_shapes",
]
