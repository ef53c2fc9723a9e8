"""The precisions in which a device is compared with float32 on the CPU."""

import pytest

FLOAT32, TF32, BFLOAT16, FLOAT16 = "float32", "tf32", "bfloat16", "float16"
PRECISIONS = (FLOAT32, pytest.param(TF32, marks=pytest.mark.gpu), BFLOAT16, FLOAT16)
"""Arguments of a test; a CPU has no TF32."""
