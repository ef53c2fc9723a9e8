"""Signatures of ticket files, in the OpenSSF model-signing format, with keys and without any network.

What is signed is the folder `manifest` of the ticket file: its two files fix every other byte, so one small signature
covers a file of any size, and `model_signing verify key FILE/manifest` checks it without dlth. The signature lies
beside the file and not in it: signing does not change the identity, and several people may sign.
"""

import base64
import os
import tempfile
from pathlib import Path
from typing import Any

from dlth.tickets.errors import DlthError, InputError, MissingFileError, SignatureError, shown
from dlth.tickets.format.jsontext import parse
from dlth.tickets.store.disk import new_file, read_file, reading
from dlth.tickets.store.stored_file import StoredFile

PASSWORD = "DLTH_KEY_PASSWORD"
MAX_SIGNATURE = 2**20  # bytes
MAX_KEY = 2**16  # bytes; a key on the largest curve has 400

_FOLDER, _FILES = "manifest", {"c.0", "zarr.json"}


def beside(path: Path) -> Path:
    """Where a file's signature lies unless somebody says otherwise."""
    return path.with_name(f"{path.name}.sig")


def sign(store: StoredFile, key: Path, signature: Path) -> None:
    """Write a signature with a private key: PEM, elliptic curve P-256, P-384 or P-521.

    The password of an encrypted key is taken from $DLTH_KEY_PASSWORD. Raises InputError (no such key, not such a key, a
    signature stands there).
    """
    signing = _library("signing")
    _require(key, "private key")
    password = os.environ.get(PASSWORD)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "signature"
        try:
            config = signing.Config().use_elliptic_key_signer(
                private_key=key, password=password.encode() if password else None
            )
            config.sign(store.path / _FOLDER, made)
        except (ValueError, TypeError) as error:
            raise InputError(f"{shown(key)} cannot sign: {shown(error)} (encrypted? set ${PASSWORD})") from error
        with new_file(signature) as file:
            file.write(made.read_bytes())


def check_signature(store: StoredFile, key: Path, signature: Path) -> None:
    """Check that the holder of `key` (its public part, PEM) signed this very ticket file.

    Only the manifest is covered; that the rest is what the manifest says is for `store.verify` to find. Raises
    SignatureError, MissingFileError (no signature, no key).
    """
    verifying = _library("verifying")
    _require(key, "public key")
    bundle = read_file(signature, MAX_SIGNATURE, shown(signature))
    try:
        with tempfile.TemporaryDirectory() as folder:
            copied = Path(folder) / "signature"
            copied.write_bytes(bundle)
            verifying.Config().use_elliptic_key_verifier(public_key=key).verify(store.path / _FOLDER, copied)
        signed = _signed_files(bundle)
    except DlthError:
        raise
    except Exception as error:  # the library raises whatever its parsers raise
        cause = shown(error) or type(error).__name__
        raise SignatureError(f"{shown(signature.name)} is no signature of {shown(store.path.name)}: {cause}") from error
    if set(signed) != _FILES or signed["c.0"] != store.identity:
        raise SignatureError(f"{shown(signature.name)} was not made for the identity {store.identity}")


def _signed_files(bundle: bytes) -> dict[str, str]:
    """Name and sha256 of what a bundle, whose signature was found good, is about: a signer may leave files out."""
    statement = parse(base64.b64decode(parse(bundle, "signature")["dsseEnvelope"]["payload"]), "signed statement")
    resources = statement["predicate"]["resources"]
    return {item["name"]: item["digest"] for item in resources if item["algorithm"] == "sha256"}


def _library(name: str) -> Any:
    try:
        import model_signing
    except ImportError as error:
        raise InputError(f"signatures need the extra 'sign': pip install 'dlth[sign]' ({error})") from error
    return getattr(model_signing, name)


def _require(key: Path, what: str) -> None:
    """Refuse what the library could not read, or not to its end; a link to a key is the user's choice."""
    with reading(key):
        if not key.is_file():
            raise MissingFileError(f"there is no {what} {shown(key)}")
        read_file(Path(os.path.realpath(key)), MAX_KEY, shown(key))
