"""Packs images into WebDataset shards: the same bytes for any number of workers, interrupted or not.

The order is a seeded shuffle of all images sorted by key, cut into shards whose lengths differ by one at most. A
shard's bytes follow from its samples alone (fixed times, owners and modes), so workers can write shards in any order,
and a run that was killed goes on: each shard is written under a temporary name, synced, renamed and then recorded with
its digest; recorded shards are checked and kept. Image bytes are copied exactly.

Threads and not processes: the work is reading, writing and hashing, all of which let go of Python's lock. A shuffle
over an archive reads it at random: quick on a solid-state disk, about a seek an image on a turning one. Rejected: a
shuffle within a window of the archive; ImageNet's is sorted by class, so it would leave shards of few classes, and
every later shuffle buffer with them.
"""

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dlth.data.cores import check_workers
from dlth.data.packing.archives import RESERVE, discard_spools
from dlth.data.packing.cifar import cifar_contents, find_cifar
from dlth.data.packing.imagenet import validation_labels
from dlth.data.packing.pack_state import finished_shards, has_records, record_shard, work_folder
from dlth.data.packing.samples import Contents, Sample, list_samples, source_files, source_paths
from dlth.data.shards.split_info import (
    CLASSES,
    INFO,
    Json,
    ShardRecord,
    class_order,
    merged_classes,
    merged_info,
    split_entry,
)
from dlth.data.shards.tar import pread
from dlth.data.shards.tar_header import BLOCK
from dlth.tickets.callbacks import Progress
from dlth.tickets.errors import DamageError, InputError, SpaceError, shown
from dlth.tickets.seeding import generator
from dlth.tickets.store.disk import published, reading, space_errors, user_path, write_files

_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class PackReport:
    """What `pack` did.

    kept: how many shards an earlier run had finished; ignored: files that are no images; renamed: (file, key) where the
    key is not the base name, because a dot would end it.
    """

    out: Path
    split: str
    shards: tuple[ShardRecord, ...]
    classes: tuple[str, ...]
    kept: int
    ignored: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]

    @property
    def num_samples(self) -> int:
        """Images in all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards)


def pack(
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    split: str = "train",
    samples_per_shard: int = 1000,
    seed: int = 0,
    workers: int | None = None,
    classes: Sequence[str] | None = None,
    labels: str | Path | None = None,
    progress: Progress | None = None,
    resume: bool = True,
) -> PackReport:
    """Pack a folder of class folders, or archives, into ``out/SPLIT-000000.tar`` …, `_info.json` and `classes.json`.

    source: a folder (class/…/file), ILSVRC2012_img_train.tar or _val.tar (or a folder of what is in them), archives as
        the Hugging Face Hub has them (several: a sequence, or a glob; gzip is decompressed below `out` meanwhile), or
        cifar-10-python.tar.gz or cifar-100-python.tar.gz (or the folder of what is in it)
    split: its name; of CIFAR also which images: train, or val or test
    samples_per_shard: at most; seed: of the shuffle; workers: threads, by default one a core and at most 8
    classes: names in label order; by default the source's, those of the splits already in `out`, or all found, sorted
    labels: of ImageNet's validation images, see `dlth.data.packing.imagenet`
    resume: False writes the split anew, replacing what an earlier `pack` wrote of it
    Raises `MismatchError` where `out` holds the split from other settings, `LockedError` while another run writes to
    `out`, `SpaceError`, and what `list_samples` and `validation_labels` raise.
    """
    settings = _Settings(split, samples_per_shard, seed, classes)
    if workers is not None:
        if workers < 1:
            raise InputError(f"{workers} workers write no shard: give at least 1, or none for one a core")
        check_workers(workers)
    user_path(out)
    paths = source_paths(source)
    known = None if labels is None else validation_labels(user_path(labels))
    with work_folder(Path(out), split) as work:
        try:
            contents = _contents(paths, known, split, work)
            return _pack(contents, Path(out), work, settings, workers, progress, resume)
        finally:
            if not has_records(work):  # a source that was refused leaves nothing; one that was begun is gone on with
                discard_spools(work)


def _contents(paths: Sequence[Path], labels: Mapping[str, str] | None, split: str, work: Path) -> Contents:
    """What the sources hold: images as files, or CIFAR's batches."""
    files = source_files(paths, work)
    cifar = find_cifar(files)
    if cifar is None:
        return list_samples(files, paths, labels)
    if labels is not None:
        raise InputError(f"{shown(paths[0])}: CIFAR's batches say their labels: leave --labels out")
    return cifar_contents(cifar, files, split, work)


def pack_samples(
    samples: Sequence[Sample], out: str | Path, *, split: str, samples_per_shard: int = 1000, seed: int = 0
) -> PackReport:
    """Pack samples that the caller made, each with a key of its own; for the rest see `pack`."""
    settings = _Settings(split, samples_per_shard, seed, None)
    with work_folder(Path(out), split) as work:
        return _pack(Contents(sorted(samples), (), ()), Path(out), work, settings, None, None, True)


@dataclass(frozen=True)
class _Settings:
    """What the caller chose and the bytes depend on."""

    split: str
    samples_per_shard: int
    seed: int
    classes: Sequence[str] | None

    def __post_init__(self) -> None:
        if not _SPLIT_NAME.fullmatch(self.split):
            raise InputError(f"split {shown(self.split)!r}: letters, digits, - and _ make a split's name")
        if self.samples_per_shard < 1:
            raise InputError(f"samples_per_shard is {self.samples_per_shard}; at least 1 is needed")

    def recorded(self, samples: Sequence[Sample], labels: dict[str, int]) -> Json:
        """These settings and a digest of all keys, labels and sizes: equal means the same shards come out."""
        content = hashlib.sha256()
        for sample in samples:
            line = f"{sample.key}.{sample.suffix}\t{labels[sample.class_name]}\t{sample.size}\n"
            content.update(line.encode())
        return {
            "version": 1,
            "samples_per_shard": self.samples_per_shard,
            "seed": self.seed,
            "num_samples": len(samples),
            "num_classes": len(labels),
            "content": content.hexdigest(),
        }


def _pack(
    contents: Contents,
    out: Path,
    work: Path,
    settings: _Settings,
    workers: int | None,
    progress: Progress | None,
    resume: bool,
) -> PackReport:
    """Decide labels and shards, write the shards that are not there, then the two files beside them."""
    samples, split = contents.samples, settings.split
    names = class_order(out, split, {sample.class_name for sample in samples}, settings.classes or contents.classes)
    labels = {name: label for label, name in enumerate(names)}
    recorded = settings.recorded(samples, labels)
    finished = finished_shards(out, work, split, recorded, resume)
    shards = dict(_planned(samples, settings))
    _check_space(out, [sample for name, rows in shards.items() if name not in finished for sample in rows])

    def make(name: str) -> tuple[ShardRecord, bool]:
        before = finished.get(name)
        if before and _intact(out / name, before):
            return before, True
        record = _write_shard(out / name, work / f"{name}.partial", shards[name], labels)
        record_shard(work, record)
        return record, False

    made = _in_threads(make, shards, workers, progress)
    records = tuple(made[name][0] for name in shards)
    counts = Counter(sample.class_name for sample in samples)
    beside = {
        CLASSES: merged_classes(out, split, names, [counts[name] for name in names]),
        INFO: merged_info(out, split_entry(split, records, recorded, len(contents.ignored))),
    }
    texts = {out / name: json.dumps(content, indent=1).encode() for name, content in beside.items()}
    write_files(texts, work / "beside.partial")  # the split counts as packed once `_info.json`, the last, names it
    shutil.rmtree(work)
    kept = sum(was_there for _, was_there in made.values())
    return PackReport(out, split, records, names, kept, contents.ignored, contents.renamed)


def _planned(samples: Sequence[Sample], settings: _Settings) -> Iterator[tuple[str, list[Sample]]]:
    """Name and samples of every shard: a seeded shuffle, cut evenly."""
    order = generator("pack", settings.split, settings.seed).permutation(len(samples))
    num_shards = -(-len(samples) // settings.samples_per_shard)
    for shard, rows in enumerate(np.array_split(order, num_shards)):
        yield f"{settings.split}-{shard:06d}.tar", [samples[row] for row in rows]


def _in_threads(
    make: Callable[[str], tuple[ShardRecord, bool]],
    shards: dict[str, list[Sample]],
    workers: int | None,
    progress: Progress | None,
) -> dict[str, tuple[ShardRecord, bool]]:
    """`make` for every shard; the first error stops the rest once the shards in flight are done."""
    made, done, total = dict[str, tuple[ShardRecord, bool]](), 0, sum(map(len, shards.values()))
    pool = ThreadPoolExecutor(workers if workers is not None else min(8, os.cpu_count() or 1))
    try:
        pending = {pool.submit(make, name): name for name in shards}
        for future in as_completed(pending):
            name = pending[future]
            made[name] = future.result()
            done += len(shards[name])
            if progress:
                progress(done, total)
    finally:
        pool.shutdown(cancel_futures=True)
    return made


class _Digesting:
    """A file that is hashed and counted while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self.file.write(data)


def _write_shard(path: Path, temporary: Path, samples: Sequence[Sample], labels: dict[str, int]) -> ShardRecord:
    """Write one shard whole or not at all."""
    from webdataset import TarWriter  # which imports torch: a source that is refused should not wait for it

    with space_errors(path.parent, sum(map(_stored_size, samples))), published(path, temporary) as file:
        digesting = _Digesting(file)
        # nothing of the machine, the user or the hour goes into the headers
        with TarWriter(digesting, user="", group="", mode=0o644, mtime=0, encoder=False) as tar:
            for sample in samples:
                label = str(labels[sample.class_name]).encode()
                tar.write({"__key__": sample.key, sample.suffix: _encoded(sample), "cls": label})
    return ShardRecord(path.name, len(samples), digesting.size, digesting.sha256.hexdigest())


def _encoded(sample: Sample) -> bytes:
    """The sample's encoded bytes, from wherever they lie."""
    with reading(sample.file):
        descriptor = os.open(sample.file, os.O_RDONLY)
    try:
        encoded = pread(descriptor, sample.offset, sample.size)
    finally:
        os.close(descriptor)
    if len(encoded) != sample.size:
        raise DamageError(
            f"{shown(sample.place)}: {sample.size} bytes were listed, {len(encoded)} could be read: it changed while "
            "it was packed. Run the same command again."
        )
    return encoded


def _intact(path: Path, record: ShardRecord) -> bool:
    """Whether the shard is what was recorded."""
    if not path.is_file() or path.stat().st_size != record.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == record.sha256


def _check_space(out: Path, samples: Sequence[Sample]) -> None:
    """Refuse before the first byte what cannot fit."""
    needed, free = sum(map(_stored_size, samples)), shutil.disk_usage(out).free - RESERVE
    if samples and needed > free:
        raise SpaceError(
            f"{shown(out)}: {needed} bytes are needed, {max(free, 0)} are free: free some, or go elsewhere"
        )


def _stored_size(sample: Sample) -> int:
    """Bytes a sample takes in a shard: two headers, the label's block, the image in whole blocks."""
    return 3 * BLOCK + -(-sample.size // BLOCK) * BLOCK
