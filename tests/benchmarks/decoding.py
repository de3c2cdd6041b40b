"""Decoding: tokens a second of every arm beside its baseline and the peers' packages, and where a step's time
goes.

The shape of the training benchmark: width 256, 6 layers, 4 heads, SwiGLU 704, vocabulary 256, prompts of 16
tokens, fp32.
"""

from __future__ import annotations

import functools
import importlib.util
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

import lvlm
from lvlm.generation.decoding import RowCodes
from lvlm.generation.generate import generate
from lvlm.model.latent_lm import LatentLM
from tests.benchmarks.measure import in_turn, median_ratio
from tests.benchmarks.training import HEADS, HIDDEN, LAYERS, VOCAB, WIDTH

PROMPT, NEW, CONTEXT, BITS = 16, 128, 2048, 16
LENGTHS = (128, 512, 1024, 1920)
OURS = {
    "baseline": ("baseline",),
    f"FREE, H = {BITS}": ("free", f"model.quantizer.bits={BITS}"),
    "GPT-VAE": ("gptvae",),
}


def run(rounds: int) -> None:
    """Print tokens a second, the price of a code, of a long context, and a profile."""
    for rows in (1, 8):
        speed(rows, rounds)
    draw_codes(rounds)
    long_contexts(rounds)
    profile()


def ours(arm: str) -> LatentLM:
    """An arm at the benchmark's shape, with codes that are read."""
    recipe, *more = OURS[arm]
    shape = {"layers": LAYERS, "width": WIDTH, "heads": HEADS, "hidden": HIDDEN, "context": CONTEXT}
    return lvlm.build(
        recipe, *(f"model.backbone.{name}={value}" for name, value in shape.items()), *more
    ).eval()


def speed(rows: int, rounds: int) -> None:
    """Every side writes NEW tokens behind PROMPT."""
    prompt_BT = torch.randint(VOCAB, (rows, PROMPT), generator=torch.Generator().manual_seed(0))
    sides: dict[str, Callable[[], object]] = {}
    for arm in OURS:
        sides[f"ours, {arm}"] = functools.partial(generate, ours(arm), prompt_BT, NEW)
    first, free = "ours, baseline", f"ours, FREE, H = {BITS}"
    compiled = ours(f"FREE, H = {BITS}")
    sides[f"{free}, compiled"] = functools.partial(generate, compiled, prompt_BT, NEW, compile=True)
    sides["the products of one, and nothing else"] = functools.partial(products, compiled, rows)
    sides |= peers(prompt_BT)
    seconds = in_turn(sides, rounds, warmup=1)
    print(f"{f'batch {rows}':44s} {'tokens/s':>9s}   over ours, baseline   of ours, FREE")
    for name, measured in seconds.items():
        tokens_per_second = rows * NEW / statistics.median(measured)
        by_baseline = median_ratio(seconds[first], measured)
        by_free = median_ratio(measured, seconds[free])
        print(f"{name:44s} {tokens_per_second:9,.0f}   {by_baseline:19.3f}   x{by_free:.2f}")


@torch.no_grad()
def products(model: LatentLM, rows: int) -> None:
    """The matrix products of so many steps of any of the sides: what none that is made of torch's can go
    below.
    """
    weights = [module.weight for module in model.backbone.modules() if isinstance(module, nn.Linear)]
    inputs = {width: torch.randn(rows, 1, width) for width in {weight.shape[1] for weight in weights}}
    for _ in range(NEW):
        for weight in weights:
            F.linear(inputs[weight.shape[1]], weight)


def peers(prompt_BT: torch.Tensor) -> dict[str, Callable[[], object]]:
    """x-transformers' and udapy's Free Transformers, where they are installed."""
    sides: dict[str, Callable[[], object]] = {}
    total = PROMPT + NEW
    if importlib.util.find_spec("x_transformers") is not None:
        from x_transformers import AutoregressiveWrapper
        from x_transformers.free_transformer import FreeTransformer

        from tests.benchmarks.training import peer_decoder

        half = LAYERS // 2
        free = FreeTransformer(
            num_tokens=VOCAB,
            dim=WIDTH,
            dec_head_depth=half,
            dec_tail_depth=half,
            max_seq_len=total,
            heads=HEADS,
            attn_dim_head=WIDTH // HEADS,
            latent_bits=BITS,
        ).eval()
        plain = AutoregressiveWrapper(peer_decoder()).eval()
        sides["x-transformers, plain decoder"] = lambda: plain.generate(prompt_BT, NEW)
        sides[f"x-transformers, FreeTransformer, H = {BITS}"] = torch.no_grad()(
            lambda: free.generate(prompt_BT, total)
        )
    if importlib.util.find_spec("free_transformer") is not None:
        import free_transformer as udapy

        config = udapy.ModelConfig(
            vocab_size=VOCAB,
            hidden_dim=WIDTH,
            num_layers=LAYERS,
            num_heads=HEADS,
            num_kv_heads=HEADS,
            ffn_hidden_dim=HIDDEN,
            max_seq_len=total,
            latent_dim=BITS,
        )
        other: nn.Module = udapy.FreeTransformer(config).eval()
        sides[f"free-transformer (udapy), H = {BITS}"] = torch.no_grad()(
            lambda: other.generate(prompt_BT, NEW)
        )
    return sides


def draw_codes(rounds: int) -> None:
    """All codes of rows and their embeddings, over the steps that use them."""
    model = ours(f"FREE, H = {BITS}")
    print()
    for rows in (1, 8):
        prompt_BT, own = torch.zeros(rows, PROMPT, dtype=torch.long), list(range(rows))
        sides = {
            "codes": torch.no_grad()(functools.partial(RowCodes, model.latent, PROMPT + NEW, own, own, None)),
            "text": functools.partial(generate, model, prompt_BT, NEW),
        }
        seconds = in_turn(sides, rounds)
        share = median_ratio(seconds["codes"], seconds["text"])
        print(f"batch {rows}: drawing and embedding all codes is {share:.2%} of writing the texts")


def long_contexts(rounds: int) -> None:
    """A token's cost behind ever longer prompts."""
    model = ours(f"FREE, H = {BITS}")
    sides: dict[str, Callable[[], object]] = {}
    for length in LENGTHS:
        prompt_BT = torch.randint(VOCAB, (1, length), generator=torch.Generator().manual_seed(0))
        for new in (1, NEW // 2):
            sides[f"{length} {new}"] = functools.partial(generate, model, prompt_BT, new)
    seconds = in_turn(sides, rounds, warmup=1)
    print("\nFREE, batch 1, ms a token behind a prompt of so many tokens (its own forward taken off)")
    for length in LENGTHS:
        whole, prefill = seconds[f"{length} {NEW // 2}"], seconds[f"{length} 1"]
        step = statistics.median((a - b) / (NEW // 2 - 1) for a, b in zip(whole, prefill, strict=True))
        print(f"{length:6d} {step * 1e3:8.2f}")


def profile() -> None:
    """Where a step's time goes, by operation."""
    model, prompt_BT = ours(f"FREE, H = {BITS}"), torch.zeros(1, PROMPT, dtype=torch.long)
    generate(model, prompt_BT, NEW)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        generate(model, prompt_BT, NEW)
    found = profiled.key_averages()
    whole = sum(one.self_cpu_time_total for one in found)
    groups = {
        "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
        "attention": ("aten::_scaled_dot_product_flash_attention_for_cpu",),
        "norms": ("aten::rms_norm", "aten::_fused_rms_norm", "aten::pow", "aten::mean", "aten::rsqrt"),
    }
    print("\nFREE, batch 1: of the time inside of torch's operations")
    rest = 1.0
    for name, operations in groups.items():
        share = sum(one.self_cpu_time_total for one in found if one.key in operations) / whole
        rest -= share
        print(f"{name:44s} {share:.0%}")
    calls = sum(one.count for one in found) / NEW
    print(f"{'the rest':44s} {rest:.0%}   of {calls:.0f} calls a token in all")
