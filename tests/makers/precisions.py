"""The precisions in which a device is compared with float32 on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

FLOAT32, TF32, BFLOAT16, FLOAT16 = "float32", "tf32", "bfloat16", "float16"
PRECISIONS = (FLOAT32, pytest.param(TF32, marks=pytest.mark.gpu), BFLOAT16, FLOAT16)
"""Arguments of a test; a CPU has no TF32."""


@contextmanager
def float32_as(kind: str) -> Iterator[None]:
    """Let a GPU multiply float32 matrices as IEEE has it, or, for "tf32", with 10 bits of mantissa."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    matmul.fp32_precision = conv.fp32_precision = "tf32" if kind == TF32 else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision, conv.fp32_precision = before
