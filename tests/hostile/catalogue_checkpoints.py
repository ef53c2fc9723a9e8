"""Exploits in checkpoints and archives."""

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from hostile.exploit_tools import VIT, Action, Exploit, Payload, raw, use_shards, use_tickets, use_weights


def t10(canary: Path, secret: Path) -> list[Exploit]:
    """Zip archives where folders, shards and checkpoints are expected."""

    def packed(name: str, entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> Action:
        def make(folder: Path) -> None:
            with zipfile.ZipFile(folder / name, "w", method) as archive:
                for entry, content in entries:
                    archive.writestr(entry, content)

        return make

    slip = [("../../escaped", b"x"), ("/tmp/escaped", b"x")]
    bomb = [("w/data.pkl", bytes(2**28)), ("w/version", b"3")]
    return [
        Exploit("T10 slip as tickets", packed("t.zarr", slip), use_tickets),
        Exploit("T10 slip as shard", packed("a.tar", slip), use_shards("a.tar")),
        Exploit(
            "T10 bomb as checkpoint",
            packed("w.pth", bomb, zipfile.ZIP_DEFLATED),
            use_weights,
            lambda folder: zipfile.ZipFile(folder / "w.pth").read("w/data.pkl") and "wrong: unpacked",
        ),
        Exploit("T10 twins as checkpoint", packed("w.pth", [("w/data.pkl", b"."), ("w/data.pkl", b"..")]), use_weights),
    ]


def t13(canary: Path, secret: Path) -> list[Exploit]:
    """Checkpoints."""

    def saved(content: Any, zipped: bool = True) -> Action:
        return lambda folder: torch.save(content, folder / "w.pth", _use_new_zipfile_serialization=zipped)

    def naive(folder: Path) -> None:
        torch.load(next(path for path in folder.iterdir() if path.name.startswith("w.")), map_location="cpu")

    def code(text: str) -> bytes:
        return b"\x80\x02cbuiltins\neval\n(X" + struct.pack("<I", len(text)) + text.encode() + b"tR."

    weights = VIT.state_dict()
    evil = Payload(canary)
    stride = torch.zeros(1).expand(2**36)
    open_secret = code(f"open({str(secret)!r}).read()")
    lying = json.dumps({"head.weight": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 2**60]}}).encode()
    return [
        Exploit("T13 zip", saved({"model": weights, "args": evil}), use_weights, naive),
        Exploit("T13 legacy", saved({"model": weights, "args": evil}, False), use_weights, naive),
        Exploit("T13 weights are code", saved(evil), use_weights, naive),
        Exploit("T13 inside a list", saved({"state_dict": weights, "epoch": [[evil]]}), use_weights, naive),
        Exploit("T13 bare pickle", raw("w.pth", pickle.dumps(evil)), use_weights, None),
        Exploit("T13 builtins.eval", raw("w.pth", open_secret), use_weights),
        Exploit("T13 named safetensors", raw("w.safetensors", pickle.dumps(evil)), use_weights),
        Exploit("T13 stride 0", saved(weights | {"head.bias": stride}), use_weights, None),
        Exploit("T13 huge safetensors header", raw("w.safetensors", struct.pack("<Q", 2**62) + b"{}"), use_weights),
        Exploit("T13 lying safetensors", raw("w.safetensors", struct.pack("<Q", len(lying)) + lying), use_weights),
    ]


def exploits(canary: Path, secret: Path) -> list[Exploit]:
    """All of this file; commands leave `canary`, and `secret` must not be read."""
    return [exploit for make in (t10, t13) for exploit in make(canary, secret)]
