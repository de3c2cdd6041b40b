"""Smaller weights for generating and encoding: bfloat16, or 8-bit integers in the products of the backbone.

| precision | linear layers of the backbone | the rest of the model | quantizer, and with it KL and codes |
|---|---|---|---|
| fp32 | float32 | float32 | float32 |
| bf16 | bfloat16 | bfloat16 | float32 |
| int8 | int8, a scale for each row of a matrix, multiplied as bfloat16 | bfloat16 | float32 |
"""

from __future__ import annotations

import logging
import warnings
from typing import Literal

import torch
from torch import nn

from lvlm.errors import MissingLibrary, one_of
from lvlm.model.latent_lm import LatentLM

Precision = Literal["fp32", "bf16", "int8"]


def check_precision(precision: str) -> None:
    """Check the name of a precision, and that its library is there, before anything is read.

    Raises:
        UserError: the precision is unknown.
        MissingLibrary: int8 without torchao.
    """
    if one_of(precision, Precision, "precision") == "int8":
        try:
            # What it says while it is imported is of kernels for GPUs that aren't there.
            before = logging.root.manager.disable
            logging.disable(max(before, logging.WARNING))
            try:
                import torchao  # noqa: F401
            finally:
                logging.disable(before)
        except ImportError as error:
            raise MissingLibrary.of("torchao", "int8") from error


def convert(model: LatentLM, precision: Precision) -> LatentLM:
    """Convert a model's weights to less precision, in place. There is no way back, and no training.

    Raises:
        UserError: an unknown precision.
        MissingLibrary: int8 without torchao.
    """
    check_precision(precision)
    if precision == "fp32":
        return model
    model.eval().requires_grad_(False)
    paths = model.paths.values()
    for part in (*model.children(), *(part for path in paths for part in path.children())):
        if part not in (*paths, *(path.quantizer for path in paths)):  # which keeps its digits, tables too
            part.bfloat16()
    for path in paths:
        path.quantizer.float()
    if precision == "int8":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchao has warnings of its own
            from torchao.quantization import Int8WeightOnlyConfig, quantize_

            quantize_(model.backbone, Int8WeightOnlyConfig(), lambda module, _: isinstance(module, nn.Linear))
    return model


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights and buffers."""
    held = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(_bytes(tensor) for tensor in held.values())


def _bytes(tensor: torch.Tensor) -> int:
    parts = [
        getattr(tensor, name) for name in getattr(tensor, "tensor_data_names", ())
    ]  # torchao's hold others
    return sum(_bytes(part) for part in parts) if parts else tensor.numel() * tensor.element_size()
