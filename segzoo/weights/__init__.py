"""Weights with their description, in and out; other libraries' too. Nothing is ever unpickled."""

from segzoo.weights.fit import flatten, unflatten
from segzoo.weights.info import ModelInfo
from segzoo.weights.source import Source, read
from segzoo.weights.start import start_from
from segzoo.weights.store import check_fits, load, save, variable_shapes

__all__ = [
    "ModelInfo",
    "Source",
    "check_fits",
    "flatten",
    "load",
    "read",
    "save",
    "start_from",
    "unflatten",
    "variable_shapes",
]
