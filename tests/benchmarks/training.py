"""Training steps (forward, backward, AdamW) at the shape that peers were measured at: width 256, 6 layers,
4 heads, sequence 256, batch 8, vocabulary 256. The baseline through our trainer's own step; a plain loop of
the same shape; x-transformers' decoder and FREE where that package is installed.
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lvlm.recipe.read import read_recipe
from lvlm.training.trainer import Trainer
from tests.benchmarks.measure import in_turn, median_ratio

WIDTH, LAYERS, HEADS, TOKENS, ROWS, VOCAB, HIDDEN = 256, 6, 4, 256, 8, 256, 704
SHAPE = (
    f"model.backbone.width={WIDTH}",
    f"model.backbone.layers={LAYERS}",
    f"model.backbone.heads={HEADS}",
    f"model.backbone.hidden={HIDDEN}",
    f"model.backbone.context={TOKENS}",
    f"data.window={TOKENS}",
    f"train.rows={ROWS}",
    "train.device=cpu",
    "train.precision=fp32",
    "train.steps=100000",
)


FREE = ((8, 8, "exact"), (16, 1, "exact"), (16, 8, "exact"), (16, 16, "exact"), (16, 16, "bitwise"))


def free(bits: int, group: int, estimator: str) -> list[str]:
    """FREE's overrides."""
    values = {"bits": bits, "bits_per_group": group, "estimator": estimator}
    return [f"model.quantizer.{name}={value}" for name, value in values.items()]


class PlainBlock(nn.Module):
    """What a one-file training script would write: the same layer, nothing configurable."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate_up = nn.Linear(WIDTH, 2 * HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (
            part.view(b, t, HEADS, WIDTH // HEADS).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, WIDTH))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Plain(nn.Module):
    """The same decoder as our baseline, as a script would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(PlainBlock() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        half = WIDTH // HEADS // 2
        angles = torch.arange(TOKENS)[:, None] * 10_000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))


def ours(folder: Path, recipe: str, *overrides: str) -> Callable[[], object]:
    """A whole step of our trainer, data and logging of numbers included."""
    trainer = Trainer(read_recipe(recipe, [*SHAPE, *overrides]), folder)
    trainer.model.train()

    def step() -> None:
        trainer._train_step([])
        trainer.step += 1

    return step


def loop(
    model: nn.Module, loss_of: Callable[[Tensor], Tensor] | None = None, *, fused: bool | None = True
) -> Callable[[], object]:
    """The plain training loop around a model that returns logits, or has a loss of its own of TOKENS + 1."""
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=fused
    )
    generator = torch.Generator().manual_seed(0)

    def step() -> float:
        rows = torch.randint(VOCAB, (ROWS, TOKENS + 1), generator=generator)
        if loss_of is None:
            loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        else:
            loss = loss_of(rows)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.item()

    return step


def run(rounds: int) -> None:
    """Print tokens/s and ratios."""
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, Callable[[], object]] = {"ours, baseline": ours(Path(folder), "baseline")}
        sides["ours, baseline, train.compile"] = ours(Path(folder), "baseline", "train.compile=true")
        plain = Plain()
        sides["plain loop"] = loop(plain)
        for bits, group, estimator in FREE:
            name = f"ours, FREE, H = {bits}, groups of {group}, {estimator}"
            sides[name] = ours(Path(folder), "free", *free(bits, group, estimator))
        compiled = [*free(8, 8, "exact"), "train.compile=true"]
        sides["ours, FREE, H = 8, train.compile"] = ours(Path(folder), "free", *compiled)
        sides["ours, GPT-VAE"] = ours(Path(folder), "gptvae")
        sides |= x_transformers()
        report(sides, rounds)


def run_bf16(rounds: int) -> None:
    """The same for bf16 autocast, which a CPU without matrix units for it does very slowly."""
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            name: ours(Path(folder), recipe, "train.precision=bf16", *overrides)
            for name, recipe, overrides in (
                ("ours, baseline, bf16", "baseline", ()),
                ("ours, FREE, H = 16, groups of 16, bf16", "free", free(16, 16, "exact")),
            )
        }
        report(sides, rounds)


PORTS = (
    "{kind: add}",
    "{kind: kv}",
    "{kind: prefix}",
    "{kind: logits}",
    "{kind: film}",
    "{kind: cross_attention}",
    "{kind: add, layers: all}",
    "{kind: kv, layers: all}",
    "{kind: film, layers: all}",
    "{kind: film, layers: all, shared: false}",
    "{kind: cross_attention, layers: all}",
)


def run_ports(rounds: int) -> None:
    """One Gaussian of the row through every port, and two latents: the price of each over the plainest."""
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            f"GPT-VAE, {port}": ours(Path(folder), "gptvae", f"model.injection={port}") for port in PORTS
        }
        sides["hierarchy: plan and tokens"] = ours(Path(folder), "hierarchy")
        sides["FREE: tokens alone"] = ours(Path(folder), "free")
        report(sides, rounds)


def report(sides: dict[str, Callable[[], object]], rounds: int) -> None:
    """Measure and print."""
    seconds = in_turn(sides, rounds)
    first = next(iter(seconds))
    print(f"{'side':50s} {'tokens/s':>9s}   step time over {first} (median of {rounds})")
    for name, measured in seconds.items():
        speed = ROWS * TOKENS / statistics.median(measured)
        print(f"{name:50s} {speed:9,.0f}   {median_ratio(measured, seconds[first]):.3f}")


def x_transformers() -> dict[str, Callable[[], object]]:
    """The peer's plain decoder and its FreeTransformer, with its best options, or nothing where it isn't
    installed.
    """
    if importlib.util.find_spec("x_transformers") is None:
        print("(x-transformers is not installed: it comes with the extra bench)")
        return {}
    sides = {"x-transformers, plain decoder": loop(peer_decoder())}
    for bits in (8, 16):
        sides[f"x-transformers, FreeTransformer, H = {bits}"] = peer_free(bits)
    sides["x-transformers, FreeTransformer, H = 8, defaults"] = peer_free(8, tuned=False)
    return sides


PEER_BLOCK = {
    "ff_glu": True,
    "ff_swish": True,
    "ff_mult": HIDDEN / WIDTH,
    "ff_no_bias": True,
    "attn_flash": True,
}


def peer_decoder() -> nn.Module:
    """x-transformers' decoder of our baseline's shape."""
    from x_transformers import Decoder, TransformerWrapper

    decoder = Decoder(
        dim=WIDTH,
        depth=LAYERS,
        heads=HEADS,
        attn_dim_head=WIDTH // HEADS,
        rotary_pos_emb=True,
        use_rmsnorm=True,
        **PEER_BLOCK,
    )
    return TransformerWrapper(num_tokens=VOCAB, max_seq_len=TOKENS, attn_layers=decoder)


def peer_free(bits: int, *, tuned: bool = True) -> Callable[[], object]:
    """A step of x-transformers' FreeTransformer, its map being joint.

    Args:
        bits: H.
        tuned: with flash attention and a fused optimiser; else with what both packages do unless told.
    """
    from x_transformers.free_transformer import FreeTransformer

    half = LAYERS // 2
    model = FreeTransformer(
        num_tokens=VOCAB,
        dim=WIDTH,
        dec_head_depth=half,
        dec_tail_depth=half,
        max_seq_len=TOKENS,
        heads=HEADS,
        attn_dim_head=WIDTH // HEADS,
        latent_bits=bits,
        **(PEER_BLOCK | {"attn_flash": tuned}),
    )
    return loop(model, model, fused=tuned or None)
