#!/usr/bin/env python3
"""Times PyTorch's ops under the names of `cargo bench -p lora-candle --bench ops`.

    pip install torch
    cargo bench -p lora-candle --bench ops
    python lora/benches/ops.py
    python lora/benches/ops.py layer_norm

Prints one table in Markdown: PyTorch's medians beside those that the last run of cargo bench has
left in target/criterion, in milliseconds, and PyTorch's time as a multiple of lora's. Without such
a run, or without PyTorch, the columns stay empty.
"""

import argparse
import json
import os
import pathlib
import statistics
import time

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None

HERE = pathlib.Path(__file__).resolve().parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent.parent / "target"))


def rotate_halves(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def rotate_pairs(x, cos, sin):
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


def cases():
    """Name, inputs that get a gradient, and the op. Weights are frozen."""
    normal = torch.randn
    convnext, language = normal(8, 14, 14, 384), normal(2, 256, 896)

    hidden = normal(8, 14, 14, 1536)
    yield "gelu/convnext", [hidden], lambda x: F.gelu(x, approximate="tanh")
    yield "gelu_erf/convnext", [hidden], F.gelu
    yield "relu/convnext", [hidden], F.relu
    yield "silu/language", [normal(2, 256, 4864)], F.silu

    for shape, x, outputs in [("convnext", convnext, 1536), ("language", language, 4864)]:
        w, b = normal(outputs, x.shape[-1]), normal(outputs)
        yield f"linear/{shape}", [x], lambda x, w=w, b=b: F.linear(x, w, b)
        down = normal(8, x.shape[-1], requires_grad=True)
        up = normal(outputs, 8, requires_grad=True)
        yield (
            f"lora_linear/{shape}",
            [x],
            lambda x, w=w, b=b, down=down, up=up: F.linear(x, w, b) + F.linear(F.linear(x, down), up),
        )

    bias = normal(384)
    first = normal(8, 384, 14, 14)
    depthwise, patches, pointwise = normal(384, 1, 7, 7), normal(384, 192, 2, 2), normal(384, 384, 1, 1)
    yield "conv2d_depthwise/convnext", [first], lambda x: F.conv2d(x, depthwise, bias, padding=3, groups=384)
    yield (
        "conv2d_depthwise_nhwc/convnext",
        [convnext],
        lambda x: F.conv2d(x.permute(0, 3, 1, 2), depthwise, bias, padding=3, groups=384),
    )
    yield "conv2d_patches/convnext", [normal(8, 192, 28, 28)], lambda x: F.conv2d(x, patches, bias, stride=2)
    yield "conv2d_pointwise/convnext", [first], lambda x: F.conv2d(x, pointwise, bias)
    kernel = normal(384, 384, 3)
    yield "conv1d/language", [normal(2, 384, 256)], lambda x: F.conv1d(x, kernel, bias, padding=1)

    for shape, x in [("convnext", convnext), ("language", language)]:
        size = x.shape[-1]
        w, b = normal(size), normal(size)
        yield f"layer_norm/{shape}", [x], lambda x, s=size, w=w, b=b: F.layer_norm(x, (s,), w, b, 1e-6)
        yield f"rms_norm/{shape}", [x], lambda x, s=size, w=w: F.rms_norm(x, (s,), w, 1e-6)
    w, b = normal(384), normal(384)
    yield "group_norm/convnext", [first], lambda x: F.group_norm(x, 32, w, b, 1e-6)

    other = normal(8, 14, 14, 384)
    yield "affine/convnext", [convnext], lambda x: x * w + b
    yield "residual/convnext", [convnext, other], lambda x, y: x + w * y
    yield "add/convnext", [convnext, other], torch.add
    yield "contiguous/convnext", [convnext], lambda x: x.permute(0, 3, 1, 2).contiguous()

    scores = normal(2, 14, 256, 256)
    yield "softmax_last_dim/language", [scores], lambda x: torch.softmax(x, -1)
    yield "softmax/language", [scores], lambda x: torch.softmax(x, 1)
    heads = [normal(2, 14, 256, 64) for _ in range(3)]
    yield (
        "sdpa/language",
        heads,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    )

    angles = normal(256, 32)
    cos, sin = angles.cos(), angles.sin()
    yield "rope/language", [heads[0]], lambda x: rotate_halves(x, cos, sin)
    yield "rope_i/language", [heads[0]], lambda x: rotate_pairs(x, cos, sin)
    time_first = normal(2, 256, 14, 64)
    yield "rope_thd/language", [time_first], lambda x: rotate_halves(x, cos[:, None], sin[:, None])
    ids = torch.arange(512).mul(2654435761).remainder(2**32).remainder(8192).reshape(2, 256)
    yield "embedding/language", [normal(8192, 896)], lambda x: F.embedding(ids, x)

    words, head = torch.arange(512) * 96, normal(49152, 576)
    yield "cross_entropy/language", [normal(512, 49152)], lambda x: F.cross_entropy(x, words)
    yield (
        "linear_cross_entropy/language",
        [normal(512, 576)],
        lambda x: F.cross_entropy(x @ head.t(), words),
    )


def milliseconds(run, budget=0.6):
    """The median time of a run, over about `budget` seconds."""
    run()
    times, end = [], time.perf_counter() + budget
    while len(times) < 10 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def of_torch(names):
    """PyTorch's times by name."""
    found = {}
    if torch is None:
        return found
    for name, inputs, op in cases():
        if not any(part in name for part in names):
            continue

        def forward():
            with torch.no_grad():
                op(*inputs)

        tracked = [x.clone().requires_grad_() for x in inputs]

        def both():
            for x in tracked:
                x.grad = None
            y = op(*tracked)
            y.backward(torch.ones_like(y))

        found[f"{name}/forward"] = milliseconds(forward)
        found[f"{name}/forward+backward"] = milliseconds(both)
    return found


def of_criterion(names):
    """The times that cargo bench has measured, by name and by whose they are."""
    found = {}
    for path in sorted(TARGET.glob("criterion/*/*/new/benchmark.json")):
        benchmark = json.loads(path.read_text())
        name, whose = benchmark["group_id"], benchmark["function_id"]
        if any(part in name for part in names):
            estimates = json.loads((path.parent / "estimates.json").read_text())
            median = estimates["median"]["point_estimate"] / 1e6
            found.setdefault(name, {})[whose] = median
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[""], help="parts of the names to measure")
    parser.add_argument("--threads", type=int, help="PyTorch's threads")
    args = parser.parse_args()
    if args.threads and torch:
        torch.set_num_threads(args.threads)
    ours, theirs = of_criterion(args.names), of_torch(args.names)
    print("| ms | lora | candle | PyTorch | PyTorch / lora |\n| --- | ---: | ---: | ---: | ---: |")
    for name in [*theirs, *(name for name in ours if name not in theirs)]:
        lora, candle = (ours.get(name, {}).get(whose) for whose in ("lora", "candle"))
        pytorch = theirs.get(name)
        ratio = f"{pytorch / lora:.2f}" if lora and pytorch else ""
        cells = ["" if value is None else f"{value:.3f}" for value in (lora, candle, pytorch)]
        print(f"| {name} | {' | '.join(cells)} | {ratio} |")


if __name__ == "__main__":
    main()
