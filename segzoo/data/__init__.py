"""Data: from files on disk to batches of arrays, without TensorFlow and without a model."""

from __future__ import annotations

from segzoo.data.spec import (
    VOID,
    Dataset,
    DatasetSpec,
    Example,
    Source,
    get,
    list_datasets,
    register_dataset,
)

__all__ = [
    "VOID",
    "Dataset",
    "DatasetSpec",
    "Example",
    "Source",
    "get",
    "list_datasets",
    "register_dataset",
]
