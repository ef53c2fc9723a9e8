"""Cut shards at 64-byte steps and flip bits in them: no sample is lost or exchanged without a word.

    python tars.py [--cuts 1] [--flips 1000] [--seed 0] [--weaken]

A damaged shard is indexed as a run does (`scan`), and an accepted one must hold every sample: the same keys, at the
same places, of the same sizes, with labels. What then is left is a flip inside a label's or an image's content: an
image is told by its content hash in the ticket file, and everything by the digest that `dlth pack` writes; both are
asked here. With `--weaken` headers' checksums are not compared, and samples must get lost. Prints one JSON object; exit
code 1 with findings.
"""

import argparse
import io
import os
import random
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from makers.campaign import Tally
from makers.pictures import write_shards
from makers.tampering import flipped

from dlth.data.shards import scan as scanning
from dlth.data.shards import tar
from dlth.data.shards.identity import content_hash
from dlth.tickets.errors import DlthError
from dlth.tickets.format.manifest import digest_of


class Shard:
    """One file whose bytes are replaced again and again."""

    def __init__(self, folder: Path) -> None:
        path = write_shards(folder, 1, 10, num_classes=3, size=(16, 16), quality=60).paths[0]
        self.sound = path.read_bytes()
        self.descriptor = os.open(path, os.O_RDWR)
        self.rows = scanning.scan(self.descriptor, len(self.sound), "s.tar")
        self.places = (self.rows.keys, self.rows.offsets, self.rows.sizes)
        self.hashes = self._hashes(self.sound)

    def _hashes(self, raw: bytes) -> list[bytes]:
        pairs = zip(self.rows.offsets, self.rows.sizes, strict=True)
        return [content_hash(raw[offset : offset + size]) for offset, size in pairs]

    def judge(self, raw: bytes) -> str:
        """What is said of these bytes."""
        os.ftruncate(self.descriptor, len(raw))
        os.pwrite(self.descriptor, raw, 0)
        try:
            found = scanning.scan(self.descriptor, len(raw), "s.tar")
        except DlthError as error:
            return f"refused {error.code}" if "s.tar" in str(error) else "FINDING: the message does not name the shard"
        if digest_of(raw) == digest_of(self.sound):
            return "untouched"
        if (found.keys, found.offsets, found.sizes) != self.places:
            return f"FINDING: {len(found.keys)} samples instead of {len(self.rows.keys)}, or other ones"
        if found.labels != self.rows.labels:
            return "another label: told by the digest"
        if self._hashes(raw) != self.hashes:
            return "another image: told by its content hash"
        return "padding or other fields: every sample whole"


def no_checksums() -> None:
    """A damaged header ends the archive, as Python's tarfile has it."""

    def members(descriptor: int, size: int, *, where: str, start: int = 0):  # type: ignore[no-untyped-def]
        import tarfile

        with tarfile.open(fileobj=io.BytesIO(os.pread(descriptor, size, 0))) as archive:
            yield from (tar.Member(info.name, info.offset_data, info.size) for info in archive if info.isfile())

    scanning.members = members


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuts", type=int, default=1, help="cut at every n-th of the 64-byte steps")
    parser.add_argument("--flips", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weaken", action="store_true")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        shard = Shard(Path(folder))
        if arguments.weaken:
            no_checksums()
        lengths = range(0, len(shard.sound), 64 * arguments.cuts)
        cases = [(f"cut at {length}", shard.sound[:length]) for length in lengths]
        for _ in range(arguments.flips):
            bit = rng.randrange(8 * len(shard.sound))
            cases.append((f"bit {bit}", flipped(shard.sound, bit)))
        for name, raw in cases:
            tally.judge(name, partial(shard.judge, raw))
        os.close(shard.descriptor)
    return tally.tell(cuts=len(lengths), flips=arguments.flips)


if __name__ == "__main__":
    sys.exit(main())
