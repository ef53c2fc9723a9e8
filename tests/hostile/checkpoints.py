"""Seeded mutants of checkpoints (safetensors, zipped and old .pth): refused, or loaded under their own digest.

    python checkpoints.py [--count 600] [--first 0] [--weaken]

safetensors and .pth carry no checksum of their tensors, so a flipped weight loads; what dlth promises is that it is
then another selector by its digest, that shapes are the model's, and that nothing crashes, hangs or runs. With
`--weaken` the digest looks at names and shapes alone, and findings must come. Prints one JSON object; exit code 1 with
findings.
"""

import io
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import timm
import torch
from makers.campaign import Tally, numbered
from makers.tampering import flipped
from safetensors.torch import save

from dlth.training.models import weights

SIZE = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}


def sound_files(model: torch.nn.Module) -> list[bytes]:
    """The same weights in each form."""
    files = [save(dict(model.state_dict()))]
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save({"model": model.state_dict(), "epoch": 3}, buffer, _use_new_zipfile_serialization=zipped)
        files.append(buffer.getvalue())
    return files


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """Bits flipped (in the first kilobyte as often as anywhere), cut, grown, blanked, or a stretch moved."""
    kind, place = rng.randrange(6), rng.randrange(rng.choice((1_024, len(raw))))
    if kind <= 1:
        return flipped(raw, 8 * place + rng.randrange(8))
    if kind == 2:
        return raw[:place]
    if kind == 3:
        return raw + rng.randbytes(rng.randint(1, 64))
    size = rng.randint(1, 64)
    if kind == 4:
        return raw[:place] + rng.choice((bytes(size), b"\xff" * size)) + raw[place + size :]
    other = rng.randrange(len(raw))
    return raw[:place] + raw[other : other + size] + raw[place + size :]


def main() -> int:
    arguments = numbered(__doc__, 600).parse_args()
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **SIZE)
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    files = sound_files(model)
    if arguments.weaken:
        weights.weights_digest = lambda vit: str([(name, value.shape) for name, value in vit.state_dict().items()])
    digest = weights.weights_digest(model)

    def judged() -> str:
        loaded = weights.load_weights(model, path)
        same = all(value.numpy().tobytes() == wanted[name].numpy().tobytes()
                   for name, value in model.state_dict().items())  # fmt: skip
        if same != (loaded.sha256 == digest):
            return "FINDING: the digest does not tell what was loaded"
        return "loaded, the same weights" if same else "loaded under another digest"

    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutant"
        for number in range(arguments.first, arguments.first + arguments.count):
            rng = random.Random(number)
            path.write_bytes(mutated(rng.choice(files), rng))
            model.load_state_dict(wanted)
            tally.judge(number, judged, seconds=5)
    return tally.tell(mutants=arguments.count)


if __name__ == "__main__":
    sys.exit(main())
