"""Weights with their description: safetensors files and run folders."""

from segzoo.weights.info import ModelInfo
from segzoo.weights.start import start_from
from segzoo.weights.store import check_fits, load, save, variable_shapes

__all__ = ["ModelInfo", "check_fits", "load", "save", "start_from", "variable_shapes"]
