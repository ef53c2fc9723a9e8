"""What the device does at best, measured: products of large matrices, copies within it, and copies to it.

They stand beside what dlth reaches as its limits. Datasheets promise more: a card that gets hot or is capped does not.
"""

from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from device.counts import Cost
from device.scope import Scope
from device.timing import NO_TIME, Deadline, Row, Seconds, timed

PRODUCTS = {
    "bf16 product": (torch.bfloat16, "highest"),
    "TF32 product": (torch.float32, "high"),
    "fp32 product": (torch.float32, "highest"),
}
"""Name -> type of the matrices, and torch's precision of float32 products; without tensor cores TF32 is fp32."""
COPY, HOST = "copy on the device", "copy from the host"


@dataclass(frozen=True)
class Limits:
    """Operations and bytes per second; 0 where not measured."""

    products: float = 0.0
    copies: float = 0.0
    from_host: float = 0.0

    def images(self, cost: Cost | None) -> Row:
        """Images per second that operations, and bytes, would allow by themselves."""
        if cost is None or not (self.products and self.copies):
            return {}
        unfused, least = (self.copies / moved for moved in (cost.traffic, cost.least))
        return {
            "limit by FLOPs": round(self.products / cost.flops),
            "limit by bytes: unfused / least": f"{unfused:.0f} / {least:.0f}",
        }

    def sent(self, size: float) -> Row:
        """Images per second that copies from the host would allow, at so many bytes an image."""
        return {"limit by sending": round(self.from_host / size)} if self.from_host else {}


def measure_limits(scope: Scope, device: torch.device, deadline: Deadline) -> tuple[Limits, list[Row]]:
    """The limits, and a row for each."""
    products = _products(scope, device, deadline)
    operations = 2 * scope.matmul**3
    copied = scope.copied * 2**20
    copies = timed(_copies(copied, device), scope, device, deadline)
    sizes = f"{scope.matmul} x {scope.matmul} matrices"
    rows = [_row(name, products, operations / 1e12, "TFLOP/s", sizes) for name in PRODUCTS]
    rows.append(_row(COPY, copies, 2 * copied / 1e9, "GB/s", f"{scope.copied} MiB, read and written"))
    host = "pinned" if device.type == "cuda" else "no other device: a copy in memory"
    rows.append(_row(HOST, copies, copied / 1e9, "GB/s", f"{scope.copied} MiB, {host}"))
    rate = operations / median(products["bf16 product"]) if "bf16 product" in products else 0.0
    on_device, from_host = (copied / median(copies[name]) if name in copies else 0.0 for name in (COPY, HOST))
    return Limits(rate, 2 * on_device, from_host), rows


def _products(scope: Scope, device: torch.device, deadline: Deadline) -> Seconds:
    """Seconds of each product; torch's precision of float32 is put back."""
    times: Seconds = {}
    before = torch.get_float32_matmul_precision()
    for name, (dtype, precision) in PRODUCTS.items():
        left, right = torch.randn(2, scope.matmul, scope.matmul, device=device, dtype=dtype)
        result = torch.empty_like(left)
        torch.set_float32_matmul_precision(precision)
        try:
            times |= timed({name: lambda a=left, b=right, c=result: torch.mm(a, b, out=c)}, scope, device, deadline)
        finally:
            torch.set_float32_matmul_precision(before)
    return times


def _copies(size: int, device: torch.device) -> dict[str, Any]:
    """Copies of so many bytes, none of which lies in a cache."""
    source = torch.randint(0, 256, (size,), dtype=torch.uint8)
    there, target = source.to(device), torch.empty(size, dtype=torch.uint8, device=device)
    host = source.pin_memory() if device.type == "cuda" else source
    return {COPY: lambda: target.copy_(there), HOST: lambda: target.copy_(host, non_blocking=True)}


def _row(name: str, times: Seconds, amount: float, unit: str, of: str) -> Row:
    if name not in times:
        return {"limit": name, "of": of, "rate": NO_TIME, "unit": unit}
    rates = {
        "median": amount / median(times[name]),
        "low": amount / max(times[name]),
        "high": amount / min(times[name]),
    }
    return {"limit": name, "of": of, "rate": rates, "unit": unit}
