"""Shrink, pack, push, pull, sign and train by address, as a user types them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers.keys import write_keys
from makers.runs import SMALL

from dlth.tickets import TicketStore
from dlth.tickets.derive.shrink import shrink

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every command runs in the test's folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def shards(make_shards: Callable[..., Any]) -> Any:
    return make_shards(2, 4, num_classes=2)


@pytest.fixture
def file(dlth: Run, shards: Any, tmp_path: Path) -> Path:
    """A ticket file as `dlth select` wrote it, in the evaluation's view."""
    code, _, err = dlth(
        *("select", *SMALL, "--data", shards.spec, "--out", "t.zarr", "--view", "center", "--random-weights"),
        *("--keep", "0.5", "--blocks", "0,1", "--num-classes", 2, "--workers", 1),
    )
    assert code == 0, err
    return tmp_path / "t.zarr"


def test_shrink_says_what_is_lost(dlth: Run, file: Path) -> None:
    """The command, `info` and the refusal of a smaller keep name what a mask cannot give."""
    code, _, err = dlth("tickets", "shrink", file, "--form", "mask", "--out", "m.zarr")
    assert code == 0
    assert "cannot give: any keep but its own; projection to crops and other views; the order of patches" in err
    code, out, _ = dlth("tickets", "info", "m.zarr")
    assert "cannot give" in out
    assert "■ kept" in out
    code, _, err = dlth("tickets", "shrink", "m.zarr", "--form", "top", "--keep", "0.25", "--out", "n.zarr")
    assert code == 2
    assert "error[E_MISMATCH]: the file is of form 'mask'" in err


def test_pack_and_unpack(dlth: Run, file: Path, tmp_path: Path) -> None:
    """The zip gets its card; unpacked under another name it is the same file; a second pack refuses."""
    code, out, _ = dlth("tickets", "pack", file, "--json")
    assert code == 0
    assert json.loads(out)["identity"] == TicketStore(file).identity
    assert f"dlth tickets unpack {file.name}.zip" in (tmp_path / "README.md").read_text()
    assert dlth("tickets", "unpack", f"{file.name}.zip", "--out", "u.zarr")[0] == 0
    assert TicketStore("u.zarr").identity == TicketStore(file).identity
    code, _, err = dlth("tickets", "pack", file)
    assert (code, "exists and is not overwritten" in err) == (2, True)


def test_push_sign_pull_verify(dlth: Run, file: Path, tmp_path: Path) -> None:
    """What one lab signs and sends, the other fetches by the line that `push` prints and checks with the public key."""
    private, public = write_keys(tmp_path)
    (tmp_path / "hub").mkdir()
    identity = TicketStore(file).identity
    assert dlth("tickets", "sign", file, "--key", private)[0] == 0
    assert TicketStore(file).identity == identity
    code, out, _ = dlth("tickets", "push", file, tmp_path / "hub")
    assert (code, sorted(path.name for path in (tmp_path / "hub").iterdir())) == (
        0,
        ["README.md", "t.zarr.zip", "t.zarr.zip.sig"],
    )
    assert dlth(*out.split()[1:], "--out", "mine.zarr")[0] == 0
    code, _, err = dlth("tickets", "verify", "mine.zarr", "--key", public)
    assert code == 0
    assert f"mine.zarr is whole and signed with {public}" in err


def test_a_signature_of_something_else_is_refused(dlth: Run, file: Path, tmp_path: Path) -> None:
    """Another key, another file, a changed signature and no signature: each named, exit code 1 or 2."""
    private, public = write_keys(tmp_path)
    _, other = write_keys(tmp_path, "other")
    signature = tmp_path / "t.zarr.sig"
    assert dlth("tickets", "sign", file, "--key", private)[0] == 0
    code, _, err = dlth("tickets", "verify", file, "--key", other)
    assert code == 1
    assert "damaged[E_SIGNATURE]: t.zarr.sig is no signature of t.zarr: Key mismatch" in err
    shrink(TicketStore(file), "top").write(tmp_path / "small.zarr")
    code, _, err = dlth("tickets", "verify", "small.zarr", "--key", public, "--signature", signature)
    assert (code, "E_SIGNATURE" in err) == (1, True)
    raw = json.loads(signature.read_text())
    payload = raw["dsseEnvelope"]["payload"]
    raw["dsseEnvelope"]["payload"] = payload[:40] + ("A" if payload[40] != "A" else "B") + payload[41:]
    signature.write_text(json.dumps(raw))
    assert dlth("tickets", "verify", file, "--key", public)[0] == 1
    signature.write_text("{")
    assert dlth("tickets", "verify", file, "--key", public)[0] == 1
    signature.unlink()
    code, _, err = dlth("tickets", "verify", file, "--key", public)
    assert (code, "t.zarr.sig is missing" in err) == (2, True)
    code, _, err = dlth("tickets", "sign", file, "--key", public)
    assert (code, "cannot sign" in err) == (2, True)


def test_openssf_tools_check_the_signature(dlth: Run, file: Path, tmp_path: Path) -> None:
    """The signature is of the OpenSSF format: its own command, without dlth, accepts it and notices a change."""
    private, public = write_keys(tmp_path)
    dlth("tickets", "sign", file, "--key", private)
    tool = Path(sys.executable).with_name("model_signing")
    command = [tool, "verify", "key", "--public_key", public, "--signature", "t.zarr.sig", file / "manifest"]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    (file / "manifest/c.0").write_bytes(b"{}")
    assert subprocess.run(command, capture_output=True, timeout=60).returncode != 0


def test_train_and_evaluate_with_tickets_by_address(
    dlth: Run, file: Path, shards: Any, tmp_path: Path, serve: Callable[..., Any]
) -> None:
    """Training fetches tickets of an address once and records their identity; a mask serves evaluation alone."""
    dlth("tickets", "shrink", file, "--form", "mask", "--out", "m.zarr")
    (tmp_path / "served").mkdir()
    for name in ("t.zarr", "m.zarr"):
        dlth("tickets", "push", name, tmp_path / "served")
    server = serve(tmp_path / "served")
    url = f"{server.url}/m.zarr.zip#identity={TicketStore('m.zarr').identity}"
    words = (*SMALL, "--recipe", "smoke", "--data", shards.spec, "--val", shards.spec, "--epochs", 2, "--batch-size", 4)
    code, out, err = dlth(
        *("train", *words, "--tickets", f"{server.url}/t.zarr.zip", "--val-tickets", url, "--out", "run"),
        *("--workers", 0, "--json"),
    )
    assert code == 0, err
    result = json.loads(out)
    assert result["tickets"] == TicketStore(file).identity
    assert result["val_tickets"] == TicketStore("m.zarr").identity
    assert sum(method == "GET" for method, path in server.requests if path.endswith(".zip")) == 2
    code, _, err = dlth("train", *words, "--tickets", url, "--out", "other", "--workers", 0)
    assert code == 2
    assert "form: the file is 'mask' and cannot give any keep but its own" in err
