#!/usr/bin/env python3
"""Measures a training step and a forward pass with PyTorch and PEFT.

    pip install peft timm torch transformers
    python step_bench.py --model convnext_tiny --mode lora --rank 2 --batch 8 --size 224 --steps 5 --seed 0
    python step_bench.py --model smollm2 --rank 8 --batch 2 --seq 256 --targets all-linear

The twin of `cargo run --release --example step_bench`: the same work, measured
the same way, and the same line of JSON.
"""

import argparse
import json
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model

# SmolLM2-135M's shape.
SMOLLM2 = dict(
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    vocab_size=49152,
    max_position_embeddings=8192,
    rope_theta=100000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="convnext_tiny")
    parser.add_argument("--mode", choices=["lora", "full", "base"], default="lora")
    parser.add_argument("--rank", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seq", type=int, default=256)
    parser.add_argument("--variant", choices=["lora", "dora"], default="lora")
    parser.add_argument("--targets", choices=["qv", "all-linear"], default="qv")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def memory(key):
    """A line of Linux's account of this process, in MB."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith(key):
                    return round(int(line.split()[1]) / 1024, 1)
    except OSError:
        pass
    return None


def median(count, run):
    """The median time of `count` runs, after one that is not counted."""
    run()
    times = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times) if times else None


def images(args):
    """ConvNeXt on random images: the model, its targets, the loss and the output."""
    import timm

    model = timm.create_model(args.model)
    images = torch.rand(args.batch, 3, args.size, args.size) * 4 - 2
    labels = torch.randint(1000, (args.batch,))

    def loss(model):
        return torch.nn.functional.cross_entropy(model(images), labels)

    return model, ["mlp.fc1", "mlp.fc2"], loss, lambda model: model(images)[0, 0].item()


def language(args):
    """A language model on random tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**SMOLLM2))
    ids = torch.randint(model.config.vocab_size, (args.batch, args.seq))
    targets = "all-linear" if args.targets == "all-linear" else ["q_proj", "v_proj"]
    # Without a cache, which a training loop of transformers switches off, too.
    model.config.use_cache = False
    return (
        model,
        targets,
        lambda model: model(input_ids=ids, labels=ids).loss,
        lambda model: model(input_ids=ids).logits[0, 0, 0].item(),
    )


def main():
    args = arguments()
    torch.manual_seed(args.seed)
    model, targets, loss, output = (language if args.model == "smollm2" else images)(args)
    if args.mode == "lora":
        config = LoraConfig(
            r=args.rank, lora_alpha=args.rank, target_modules=targets, use_dora=args.variant == "dora"
        )
        model = get_peft_model(model, config)
    elif args.mode == "base":
        model.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]

    before = memory("VmRSS:")
    step_s = None
    if args.mode != "base":
        model.train()
        optimizer = torch.optim.AdamW(trained, lr=1e-3)

        def step():
            value = loss(model)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

        step_s = median(args.steps, step)
    peak = memory("VmHWM:")
    model.eval()
    with torch.no_grad():
        forward_s = median(args.steps, lambda: output(model))
    if args.mode == "base":
        peak = memory("VmHWM:")

    line = {
        "model": args.model,
        "mode": args.mode,
        "rank": args.rank if args.mode == "lora" else None,
        "batch": args.batch,
        "size": args.size,
        "seq": args.seq,
        "step_s": step_s,
        "forward_s": forward_s,
        "rss_before_mb": before,
        "peak_rss_mb": peak,
        "trainable": sum(p.numel() for p in trained),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
