"""Exploits in shards, their lists and their images."""

import gzip
import io
import json
import os
import pickle
import socket
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import torch
import webdataset
from hostile.exploit_tools import END, Action, Exploit, Payload, header, raw, tar, ticket, use_shards, use_tickets
from makers.pictures import make_image, make_picture
from makers.tampering import edit
from PIL import Image


def t02(canary: Path, secret: Path) -> list[Exploit]:
    """Code by a shard's address."""
    touch = f"touch {canary}"
    specs = {
        "pipe": f"pipe:{touch}",
        "pipe in braces": f"{{a,pipe:{touch}}}.tar",
        "chained": f"a.tar::pipe:{touch}",
        "exec": f"exec:{touch}",
        "upper case": f"PIPE:{touch}",
        "file and pipe": f"file:pipe:{touch}",
        "backquotes": f"`{touch}`.tar",
        "dollar": f"$({touch}).tar",
        "semicolon": f"a.tar; {touch}",
        "pipe sign": f"|{touch}",
        "filecache": f"filecache::pipe:{touch}",
        "ssh": "ssh://localhost/a.tar",
        "python": "python:os.abort()",
        "github": "github://a:b@main/a.tar",
        "newline": f"a.tar\n{touch}",
        "dynamic": f"abstract://{touch}",
    }

    def gopen(spec: str) -> Action:
        return lambda folder: webdataset.gopen(spec).read()

    exploits = [
        Exploit(f"T02 {name}", lambda folder: None, use_shards(spec), gopen(spec) if name == "pipe" else None)
        for name, spec in specs.items()
    ]
    one = [("a.jpg", make_image(make_picture(1))), ("a.cls", b"0")]

    def rewritten(folder: Path) -> None:
        os.chdir(folder)
        webdataset.gopen("plain.tar").read()

    info = json.dumps({"splits": {"train": {"filenames": [f"pipe:{touch}"]}}}).encode()
    wids = json.dumps({"shardlist": [{"url": f"pipe:{touch}", "nsamples": 1}]}).encode()
    exploits += [
        Exploit("T02 GOPEN_REWRITE", tar("plain.tar", one), use_shards("plain.tar"), rewritten, harmless=True),
        Exploit("T02 in _info.json", raw("_info.json", info), use_shards("_info.json")),
        Exploit("T02 in a wids index", raw("index.json", wids), use_shards("index.json")),
    ]
    return exploits


def t03(canary: Path, secret: Path) -> list[Exploit]:
    """Code by a member's suffix."""
    content = pickle.dumps(Payload(canary))
    saved = io.BytesIO()
    torch.save(Payload(canary), saved)
    picture = make_image(make_picture(1))
    members = {
        "pkl": content,
        "pyd": content,
        "pickle": content,
        "pth": saved.getvalue(),
        "pyd.gz": gzip.compress(content),
    }

    def naive(folder: Path) -> None:
        list(webdataset.WebDataset(str(folder / "a.tar"), shardshuffle=False).decode())

    exploits = [
        Exploit(
            f"T03 .{suffix}",
            tar("a.tar", [("a.jpg", picture), ("a.cls", b"0"), (f"a.{suffix}", member)]),
            use_shards("a.tar"),
            naive,
            harmless=True,
        )
        for suffix, member in members.items()
    ]
    label = [("a.jpg", picture), ("a.cls", b"__import__('os').system('x')")]
    as_image = [("a.jpg", content), ("a.cls", b"0")]
    return [
        *exploits,
        Exploit("T03 label of code", tar("a.tar", label), use_shards("a.tar")),
        Exploit("T03 pickle as image", tar("a.tar", as_image), use_shards("a.tar")),
    ]


def t04(canary: Path, secret: Path) -> list[Exploit]:
    """A program run by an image."""
    eps = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
        b"%%BeginProlog\n%%EndProlog\nshowpage\n%%EOF\n"
    )
    svg = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>'
    contents = {"EPS": eps, "PDF": b"%PDF-1.4\n", "SVG": svg, "MVG": b"push graphic-context\nfill 'url(|touch x)'"}

    def naive(folder: Path) -> None:
        Image.open(folder / "a.jpg").load()

    def make(content: bytes) -> Action:
        def files(folder: Path) -> None:
            raw("a.jpg", content)(folder)
            tar("a.tar", [("a.jpg", content), ("a.cls", b"0")])(folder)

        return files

    return [
        Exploit(f"T04 {name} as jpg", make(content), use_shards("a.tar"), naive if name == "EPS" else None)
        for name, content in contents.items()
    ]


def t05(canary: Path, secret: Path) -> list[Exploit]:
    """Images that claim to be huge."""
    jpeg = bytearray(make_image(make_picture(1)))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(2**20))), (b"IEND", b""))
    )
    scans = bytearray(make_image(make_picture(1), progressive=True))
    start = scans.rindex(b"\xff\xda")
    many = bytes(scans[:start]) + bytes(scans[start:-2]) * 5_000 + b"\xff\xd9"

    def naive(folder: Path) -> None:
        from torchvision.io import decode_image

        images_of = webdataset.WebDataset(str(folder / "a.tar"), shardshuffle=False)
        for sample in images_of:
            decode_image(torch.frombuffer(bytearray(sample["jpg"]), dtype=torch.uint8))

    return [
        Exploit(
            f"T05 {name}",
            tar("a.tar", [("a.jpg", content), ("a.cls", b"0")]),
            use_shards("a.tar"),
            naive if name != "scans" else None,
        )
        for name, content in {"jpeg bomb": bytes(jpeg), "png bomb": png, "scans": many}.items()
    ]


def t11(canary: Path, secret: Path) -> list[Exploit]:
    """Tars that unpack, loop or point elsewhere."""
    picture = make_image(make_picture(1))
    sound = header("a.jpg", len(picture)) + picture.ljust(-(-len(picture) // 512) * 512, b"\0")
    pax = b"22 GNU.sparse.major=1\n30 GNU.sparse.realsize=10000000\n"
    endless = bytearray(header("a.bin"))
    endless[124:136] = b"\x80" + (2**60).to_bytes(11, "big")
    endless[148:156] = b"%06o\0 " % (sum(endless) - sum(endless[148:156]) + 256)
    contents = {
        "symbolic link": header("a.jpg", kind=b"2") + END,
        "hard link": header("a.jpg", kind=b"1") + END,
        "device": header("a.jpg", kind=b"3") + END,
        "FIFO": header("a.jpg", kind=b"6") + END,
        "sparse": header("a.jpg", kind=b"S") + END,
        "pax sparse": header("p", len(pax), b"x") + pax.ljust(512, b"\0") + sound + END,
        "size of 2**60": bytes(endless),
        "gzip": gzip.compress(sound + END),
        "names upwards": header("../../a.jpg", len(picture)) + sound[512:] + END,
        "absolute name": header("/etc/a.jpg", len(picture)) + sound[512:] + END,
        "cut": sound,
        "joined": sound + END + sound.replace(b"a.jpg", b"b.jpg") + END,
        "empty": b"",
    }

    def naive(folder: Path) -> str:
        with tarfile.open(folder / "a.tar") as archive:
            return f"wrong: tarfile read {len(archive.getmembers())} members without a word"

    exploits = [
        Exploit(
            f"T11 {name}",
            raw("a.tar", content),
            use_shards("a.tar"),
            naive if name in ("joined", "symbolic link") else None,
        )
        for name, content in contents.items()
    ]
    endless_range = "a-{0..9999999999}.tar"
    fifo = Exploit(
        "T11 the shard is a FIFO",
        lambda folder: os.mkfifo(folder / "a.tar"),
        use_shards("a.tar"),
        lambda folder: (folder / "a.tar").read_bytes(),
    )
    return [*exploits, fifo, Exploit("T11 brace bomb", lambda folder: None, use_shards(endless_range))]


def t12(canary: Path, secret: Path) -> list[Exploit]:
    """Connections and local files by an address inside a file."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    url = f"http://127.0.0.1:{server.getsockname()[1]}/latest/meta-data"
    texts = ("attributes", "dlth_tickets")

    def shard_name(name: str) -> Action:
        return ticket(edit("manifest/c.0", "shards", 0, "name", value=name))

    def index(content: Any, name: str = "index.json") -> Action:
        return raw(name, json.dumps(content).encode())

    def naive(folder: Path) -> str:
        import urllib.request

        address = json.loads((folder / "index.json").read_text())["shardlist"][0]["url"]
        urllib.request.urlopen(address, timeout=1)
        return "wrong: connected"

    def wids(address: str) -> Any:
        return {"shardlist": [{"url": address, "nsamples": 1}]}

    def info(name: str) -> Any:
        return {"splits": {"train": {"filenames": [name]}}}

    return [
        Exploit("T12 shard name is a URL", shard_name(url), use_tickets, harmless=True),
        Exploit("T12 shard name is a path", shard_name(str(secret)), use_tickets, harmless=True),
        Exploit(
            "T12 creator is a URL", ticket(edit("zarr.json", *texts, "creator", value=url)), use_tickets, harmless=True
        ),
        Exploit("T12 wids http", index(wids(url)), use_shards("index.json"), naive),
        Exploit("T12 wids file", index(wids(f"file://{secret}")), use_shards("index.json")),
        Exploit("T12 wids upwards", index(wids("../secret.txt")), use_shards("index.json")),
        Exploit("T12 wids absolute", index(wids(str(secret))), use_shards("index.json")),
        Exploit("T12 reference", index(wids(f"reference::file://{secret}")), use_shards("index.json")),
        Exploit("T12 _info upwards", index(info("../../secret.tar"), "_info.json"), use_shards("_info.json")),
        Exploit("T12 _info URL", index(info(url), "_info.json"), use_shards("_info.json")),
    ]


def t17(canary: Path, secret: Path) -> list[Exploit]:
    """YAML is read nowhere."""
    bomb = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (name + 1, name + 1, b",".join([b"*%c" % name] * 9)) for name in range(97, 105)
    )
    code = f"!!python/object/apply:os.system ['touch {canary}']".encode()
    make = raw("_info.json", bomb)

    def naive(folder: Path) -> None:
        import yaml

        yaml.unsafe_load((folder / "shards.yaml").read_text())

    return [
        Exploit("T17 anchors as _info.json", make, use_shards("_info.json")),
        Exploit("T17 code as _info.json", raw("_info.json", code), use_shards("_info.json")),
        Exploit("T17 a YAML list", raw("shards.yaml", code), use_shards("shards.yaml"), naive),
        Exploit("T17 as header", ticket(lambda tree: tree | {"zarr.json": code}), use_tickets),
    ]


def exploits(canary: Path, secret: Path) -> list[Exploit]:
    """All of this file; commands leave `canary`, and `secret` must not be read."""
    return [exploit for make in (t02, t03, t04, t05, t11, t12, t17) for exploit in make(canary, secret)]
