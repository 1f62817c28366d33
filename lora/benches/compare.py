#!/usr/bin/env python3
"""Compares a training step of this crate with PEFT's, in turn, and prints a table in Markdown.

    cargo build --release --example step_bench
    pip install peft timm torch transformers
    python lora/benches/compare.py
    python lora/benches/compare.py --batch 2 --ours "" --ours "--written user"
    python lora/benches/compare.py --model smollm2 --rank 8 --batch 2 --seq 256 --targets all-linear
    python lora/benches/compare.py --model minilm --rank 8 --batch 16 --seq 128 --dropout 0.1
    python lora/benches/compare.py --model vit_b16 --rank 8 --batch 8
    (cd lora/benches/burn && cargo build --release)
    python lora/benches/compare.py --model mlp --rank 8 --batch 512 --burn

Each round runs every program once, so that a change of the machine's speed meets all of them. It
still wants an idle machine: threads of PyTorch's that wait for each other spin, and lose most where
others run. The line above the table says how busy it was before.

The table holds the medians over the rounds, and in brackets their share of PEFT's. Memory is the
peak of the resident set above what it was before the first step.
"""

import argparse
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent.parent / "target"))

# What both programs understand.
SHARED = [
    *["model", "mode", "weights", "rank", "batch", "size", "seq"],
    *["variant", "targets", "dropout", "steps", "seed"],
]

# What burn's program, which has one model, understands of these.
OF_BURN = ["model", "mode", "rank", "batch", "steps", "seed"]

# glibc's malloc keeps what is freed, in place of giving it back and faulting it in again.
MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),
}


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Options that are not given are those of step_bench.",
    )
    for name in SHARED:
        parser.add_argument(f"--{name}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="threads of each program")
    parser.add_argument(
        "--step-bench",
        type=pathlib.Path,
        default=TARGET / "release/examples/step_bench",
        help="the program to measure",
    )
    parser.add_argument(
        "--ours",
        action="append",
        metavar="OPTIONS",
        help="more options for step_bench; given several times, each is measured",
    )
    parser.add_argument("--python", default=sys.executable, help="the Python that has PEFT")
    parser.add_argument(
        "--tuned", action="store_true", help="measure PEFT with a tuned malloc (glibc) as well"
    )
    parser.add_argument(
        "--burn",
        type=pathlib.Path,
        nargs="?",
        const=HERE / "burn/target/release/burn-step-bench",
        metavar="PROGRAM",
        help="measure burn's LoRA as well, of --model mlp",
    )
    args = parser.parse_args()
    if args.burn and args.model != "mlp":
        parser.error("--burn needs --model mlp: burn's program has no other")
    if args.burn and (args.variant or "lora") != "lora":
        parser.error("--burn has no --variant but lora")
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    return args


def programs(args):
    """The programs by name: command and environment."""

    def options(names):
        given = {name: getattr(args, name) for name in names}
        return [part for name, value in given.items() if value for part in (f"--{name}", value)]

    shared = options(SHARED)
    threads = {}
    if args.threads:
        threads = {name: str(args.threads) for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS")}
    peft = [args.python, str(HERE / "step_bench.py"), *shared]
    found = {"PEFT": (peft, threads)}
    if args.tuned:
        found["PEFT, tuned malloc"] = (peft, threads | MALLOC)
    if args.burn:
        found["burn"] = ([str(args.burn), *options(OF_BURN)], threads)
    for more in args.ours or [""]:
        command = [str(args.step_bench), *shared, *shlex.split(more)]
        found[f"lora {more}".strip()] = (command, threads)
    return found


def measure(command, environment):
    """The line that a program prints."""
    run = subprocess.run(
        command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True
    )
    line = json.loads(run.stdout)
    before, peak = line["rss_before_mb"], line["peak_rss_mb"]
    line["memory_mb"] = None if before is None or peak is None else peak - before
    return line


def table(lines):
    """The medians of all programs, and their share of the first one's."""
    columns = [
        ("step_s", "training step", "{:.3f} s"),
        ("forward_s", "forward pass", "{:.3f} s"),
        ("memory_mb", "memory above start", "{:.0f} MB"),
    ]
    rows = [["", *(title for _, title, _ in columns)], ["---"] + ["---:"] * len(columns)]
    reference = {}
    for name, runs in lines.items():
        row = [name]
        for key, _, form in columns:
            values = [run[key] for run in runs]
            if None in values:
                row.append("–")
                continue
            median = statistics.median(values)
            share = median / reference.setdefault(key, median)
            row.append(form.format(median) + ("" if name == "PEFT" else f" ({share:.2f})"))
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main():
    args = arguments()
    found = programs(args)
    load = os.getloadavg()[0]
    lines = {name: [] for name in found}
    for index in range(args.rounds):
        for name, (command, environment) in found.items():
            line = measure(command, environment)
            lines[name].append(line)
            print(f"round {index + 1}, {name}: {json.dumps(line)}", file=sys.stderr)
    first = lines["PEFT"][0]
    print(
        f"{first['model']}, {first['mode']}, rank {first['rank']}, batch {first['batch']}, "
        f"{' '.join(sys.argv[1:])}, {first['threads']} threads, "
        f"medians of {args.rounds} rounds, load average before them {load:.1f}\n"
    )
    print(table(lines))


if __name__ == "__main__":
    main()
