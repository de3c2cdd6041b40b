"""Training steps (forward, backward, AdamW) at the shape that peers were measured at: width 256, 6 layers,
4 heads, sequence 256, batch 8, vocabulary 256. The baseline through our trainer's own step; a plain loop of the
same shape; x-transformers' decoder and FREE where that package is installed.
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

from lvlm.recipe import read_recipe
from lvlm.training.trainer import Trainer
from tests.benchmarks.measure import in_turn, median_ratio

WIDTH, LAYERS, HEADS, TOKENS, ROWS, VOCAB, HIDDEN = 256, 6, 4, 256, 8, 256, 704
SHAPE = (
    f"model.backbone.width={WIDTH}", f"model.backbone.layers={LAYERS}", f"model.backbone.heads={HEADS}",
    f"model.backbone.hidden={HIDDEN}", f"model.backbone.context={TOKENS}", f"data.window={TOKENS}",
    f"train.rows={ROWS}", "train.device=cpu", "train.precision=fp32", "train.steps=100000",
)  # fmt: skip


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
        trainer._train_step()
        trainer.step += 1

    return step


def loop(model: nn.Module, logits: Callable[[Tensor], Tensor]) -> Callable[[], object]:
    """The plain training loop around a model."""
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    generator = torch.Generator().manual_seed(0)

    def step() -> float:
        rows = torch.randint(VOCAB, (ROWS, TOKENS + 1), generator=generator)
        loss = F.cross_entropy(logits(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
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
        sides["plain loop"] = loop(plain, plain)
        for bits, group in ((8, 8), (16, 1), (16, 8), (16, 16)):
            sides[f"ours, FREE, H = {bits}, bits_per_group {group}"] = ours(
                Path(folder),
                "free",
                f"model.quantizer.bits={bits}",
                f"model.quantizer.bits_per_group={group}",
            )
        sides["ours, GPT-VAE"] = ours(Path(folder), "gptvae")
        sides |= x_transformers()
        seconds = in_turn(sides, rounds)
    first = next(iter(seconds))
    print(f"{'side':42s} {'tokens/s':>9s}   step time over ours, baseline (median of {rounds})")
    for name, measured in seconds.items():
        speed = ROWS * TOKENS / statistics.median(measured)
        print(f"{name:42s} {speed:9,.0f}   {median_ratio(measured, seconds[first]):.3f}")


def x_transformers() -> dict[str, Callable[[], object]]:
    """The peer's plain decoder and its FreeTransformer at H = 8, or nothing where it isn't installed."""
    if importlib.util.find_spec("x_transformers") is None:
        print("(x-transformers is not installed: pip install 'lvlm[bench]')")
        return {}
    from x_transformers import Decoder, TransformerWrapper

    decoder = Decoder(
        dim=WIDTH, depth=LAYERS, heads=HEADS, attn_dim_head=WIDTH // HEADS, rotary_pos_emb=True, use_rmsnorm=True,
        ff_glu=True, ff_swish=True, ff_mult=HIDDEN / WIDTH, ff_no_bias=True, attn_flash=True,
    )  # fmt: skip
    model = TransformerWrapper(num_tokens=VOCAB, max_seq_len=TOKENS, attn_layers=decoder)
    return {"x-transformers, plain decoder": loop(model, model)}
