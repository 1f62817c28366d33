#!/usr/bin/env python3
"""Measures a training step and a forward pass with PyTorch and PEFT.

    pip install peft timm torch transformers
    python step_bench.py --model convnext_tiny --mode lora --rank 2 --batch 8 --size 224 --steps 5 --seed 0
    python step_bench.py --model vit_b16 --rank 8 --batch 8
    python step_bench.py --model minilm --rank 8 --batch 16 --seq 128 --dropout 0.1
    python step_bench.py --model smollm2 --rank 8 --batch 2 --seq 256 --targets all-linear
    python step_bench.py --model mlp --rank 8 --batch 512

The twin of `cargo run --release --example step_bench`: the same work, measured
the same way, and the same line of JSON. The models are those of transformers
and timm, with the attention that transformers chooses.
"""

import argparse
import json
import os
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy, mse_loss


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="convnext_tiny")
    parser.add_argument("--mode", choices=["lora", "full", "base"], default="lora")
    parser.add_argument("--weights", help="safetensors file, or directory of transformers")
    parser.add_argument("--rank", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seq", type=int, default=256)
    parser.add_argument("--variant", choices=["lora", "dora"], default="lora")
    parser.add_argument("--targets", choices=["qv", "all-linear"], default="qv")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.dropout > 0 and args.model not in ["minilm", "vit_b16"]:
        parser.error("--dropout is for minilm and vit_b16")
    if args.weights and args.model == "mlp":
        parser.error("--weights is for models that have a checkpoint")
    return args


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


# Each of the functions below returns the model, what `--targets qv` adapts, the loss, and the output.


def classifier(args, model, targets, run, labels):
    """A model that tells classes apart."""
    return model, targets, lambda model: cross_entropy(run(model), labels), run


def pretrained(args, kind, config):
    """A model of transformers, random or with weights."""
    if args.weights:
        directory = args.weights if os.path.isdir(args.weights) else os.path.dirname(args.weights)
        return kind.from_pretrained(directory, config=config, dtype=torch.float32)
    return kind(config)


def random_images(args):
    return torch.rand(args.batch, 3, args.size, args.size) * 4 - 2, torch.randint(1000, (args.batch,))


def convnext(args):
    import timm

    file = args.weights
    if file and os.path.isdir(file):
        file = os.path.join(file, "model.safetensors")
    model = timm.create_model(args.model, checkpoint_path=file or "")
    images, labels = random_images(args)
    return classifier(args, model, ["mlp.fc1", "mlp.fc2"], lambda model: model(images), labels)


def vit_b16(args):
    from transformers import ViTConfig, ViTForImageClassification

    # ViT-B/16 is the default shape.
    config = ViTConfig(
        image_size=args.size,
        num_labels=1000,
        hidden_dropout_prob=args.dropout,
        attention_probs_dropout_prob=args.dropout,
    )
    model = pretrained(args, ViTForImageClassification, config)
    images, labels = random_images(args)
    # The names of transformers 5, and those before.
    targets = ["q_proj", "v_proj", "query", "value"]
    return classifier(args, model, targets, lambda model: model(pixel_values=images).logits, labels)


def minilm(args):
    from transformers import BertConfig, BertForSequenceClassification

    # The shape of all-MiniLM-L6-v2.
    config = BertConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=12,
        vocab_size=30522,
        max_position_embeddings=512,
        type_vocab_size=2,
        hidden_dropout_prob=args.dropout,
        attention_probs_dropout_prob=args.dropout,
        num_labels=2,
    )
    model = pretrained(args, BertForSequenceClassification, config)
    ids = torch.randint(config.vocab_size, (args.batch, args.seq))
    labels = torch.randint(config.num_labels, (args.batch,))
    return classifier(args, model, ["query", "value"], lambda model: model(input_ids=ids).logits, labels)


def smollm2(args):
    from transformers import LlamaConfig, LlamaForCausalLM

    # The shape of SmolLM2-135M.
    config = LlamaConfig(
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
    model = pretrained(args, LlamaForCausalLM, config)
    ids = torch.randint(config.vocab_size, (args.batch, args.seq))
    # Without a cache, which a training loop of transformers switches off, too.
    model.config.use_cache = False
    return (
        model,
        ["q_proj", "v_proj"],
        lambda model: model(input_ids=ids, labels=ids).loss,
        lambda model: model(input_ids=ids).logits,
    )


def mlp(args):
    from collections import OrderedDict

    fc1, fc2 = torch.nn.Linear(768, 3072), torch.nn.Linear(3072, 768)
    layers = OrderedDict(fc1=fc1, act=torch.nn.GELU(), fc2=fc2)
    inputs, targets = torch.rand(2, args.batch, 768) * 4 - 2
    return (
        torch.nn.Sequential(layers),
        ["fc1", "fc2"],
        lambda model: mse_loss(model(inputs), targets),
        lambda model: model(inputs),
    )


def all_linear(model):
    """PEFT's `all-linear`, which it takes for models of transformers alone."""
    if hasattr(model, "config"):
        return "all-linear"
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def main():
    args = arguments()
    torch.manual_seed(args.seed)
    models = {"minilm": minilm, "mlp": mlp, "smollm2": smollm2, "vit_b16": vit_b16}
    model, targets, loss, output = models.get(args.model, convnext)(args)
    if args.mode == "lora":
        if args.targets == "all-linear":
            targets = all_linear(model)
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
        forward_s = median(args.steps, lambda: output(model).flatten()[0].item())
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
