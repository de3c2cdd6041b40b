"""Sections of a recipe: model, train, evaluate, steer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lvlm.interfaces import BackboneParams, EncoderParams, InjectionParams, QuantizerParams, Ramp, Section
from lvlm.likelihood.names import Resampling


class ModelParams(Section):
    """The stack, where it is cut, and the latent at the cut."""

    backbone: BackboneParams
    """The causal decoder."""
    vocab: int | None = Field(default=None, ge=1)
    """Rows of the embedding and the head; the data's vocabulary unless given. More of them round it up to
    what a GPU likes, or stand in for a tokenizer that a plan then doesn't need."""
    seam: Literal["middle"] | Annotated[int, Field(ge=0)] = "middle"
    """The block before which the stack is cut; 'middle' is half of the layers."""
    encoder: EncoderParams | None = None
    """What looks at the whole row; null for a model without a latent."""
    quantizer: QuantizerParams | None = None
    """The family of the latent; null for a model without a latent."""
    injection: InjectionParams | None = None
    """How a code enters the stack; null for a model without a latent."""
    prior: Literal["fixed", "learned"] = "fixed"
    """'fixed' is all-zero numbers; 'learned' is a linear map of the causal hidden at the seam."""
    latent_dropout: float = Field(default=0.0, ge=0, lt=1)
    """The share of rows whose whole latent is dropped in training."""
    token_dropout: float = Field(default=0.0, ge=0, lt=1)
    """The share of input tokens that the decoder doesn't see in training."""

    @property
    def seam_index(self) -> int:
        """`seam` as a number of blocks."""
        return self.backbone.layers // 2 if self.seam == "middle" else self.seam

    @property
    def has_latent(self) -> bool:
        """Whether there is a latent: encoder, quantizer and injection come all three or none."""
        return self.quantizer is not None


class TrainParams(Section):
    """The optimisation, and what is written down on the way."""

    steps: int = Field(default=300, ge=1, le=10**12)
    """Optimiser steps."""
    rows: int = Field(default=16, ge=1)
    """Sequences per optimiser step, over all micro-batches and ranks."""
    micro_rows: int | None = Field(default=None, ge=1)
    """Sequences per forward; null for all at once."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """The highest learning rate, reached after the warm-up."""
    final_learning_rate: float = Field(default=3e-4, ge=0)
    """Where the cosine ends."""
    codes: Literal["posterior", "prior", "shuffled"] = "posterior"
    """What the decoder trains on. 'prior' (noise) and 'shuffled' (the posterior of another row) are controls:
    codes that tell nothing of the row."""
    encoder_learning_rate_factor: float = Field(default=1.0, ge=0)
    """The learning rate of encoder and readout over that of all else."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(default=0.1, ge=0)
    """AdamW's weight decay of matrices."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay of the mean gradient."""
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's decay of the mean squared gradient."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """The largest norm of the whole gradient; null for no clipping."""
    on_spike: Literal["stop", "skip", "rewind"] = "stop"
    """What follows a step whose loss or gradient is not finite, or spikes: 'stop', 'skip' its update, or
    'rewind' to the newest checkpoint and go on with the batches after it. The log counts them as `spikes`;
    ten in a row stop the run."""
    spike_factor: float | None = Field(default=None, gt=1)
    """A gradient norm above so many times the median of the last 100 steps is a spike; null for none but NaN
    and infinity.
    """
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """The autocast type; 'auto' is bf16 where the device computes in it. fp16 scales its loss."""
    tf32: bool = False
    """Let an NVIDIA GPU round the factors of float32 products to 10 bits."""
    device: str = Field(default="auto", min_length=1)
    """'auto', 'cpu', 'cuda', 'cuda:1', …; with several processes each has its own GPU."""
    shard_over: int | None = Field(default=None, ge=1)
    """How many processes divide a copy of the model: all of them unless given, 1 for plain data parallelism,
    a node's GPUs for hybrid sharding. Without effect in one process."""
    reshard_after_forward: bool = True
    """Whether a process lets go of what it gathered of a block after the forward pass, and gathers it again
    for the backward one. Without, less is sent and copied, and a process holds all blocks
    between the two passes."""
    timeout_seconds: float = Field(default=600, gt=0)
    """How long several processes wait for one of them before they give up and say which."""
    recompute: Literal["none", "full", "selective"] | Annotated[int, Field(ge=1)] = "none"
    """Which blocks keep no activations and run again in the backward pass (activation checkpointing): none,
    all, every n-th, or of all blocks the cheap operations alone ('selective': products and
    attention are kept)."""
    logits_chunk: int | None = Field(default=None, ge=1)
    """Tokens whose logits the loss makes at a time, and once more in the backward pass; null for all at
    once.
    """
    compile: bool = False
    """torch.compile every block of the backbone; on a CPU this needs a C++ compiler."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; null for torch's own choice."""
    peak_tflops: float | None = Field(default=None, gt=0)
    """What one device computes at best in the autocast type, 10^12 operations a second, for the MFU in the
    log; null for what is known of the GPU at hand."""
    length: Annotated[float, Field(ge=1)] | Ramp | None = None
    """Tokens of a row in training, short to long: what is right of it is cut off. A number or a ramp over
    steps; null for whole rows."""
    workers: int = Field(default=0, ge=0)
    """Processes that read ahead for each process that trains; the rows are the same."""
    trackers: list[str] = Field(default=[])
    """Where the log goes beside metrics.jsonl and TensorBoard: wandb (Weights & Biases) and trackio, which
    need the extras of these names, or a plugin's tracker."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two lines of the log."""
    evaluate_every: int = Field(default=100, ge=1)
    """Steps between two evaluations."""
    evaluate_windows: int = Field(default=16, ge=1)
    """Windows of the evaluations during training."""
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps between two checkpoints beside those at every evaluation; null for no others."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many of the newest checkpoints are kept; the best by ELBO is kept always."""


class EvaluateParams(Section):
    """The final evaluation."""

    windows: int = Field(default=64, ge=1)
    """Fixed windows of the evaluation data, the same for every arm."""
    rows: int = Field(default=16, ge=1)
    """Sequences per forward."""
    estimators: list[str] = Field(
        default=["elbo", "prior", "iwae", "smc", "smc_prior", "smc_mixture"], min_length=1
    )
    """What is estimated of a model with a latent: exact, elbo, prior, iwae, smc, smc_deferred, and iwae and
    smc with codes of the prior (smc_prior) or of either (smc_mixture)."""
    k: int = Field(default=16, ge=1)
    """Codes drawn per slot, and particles of a filter."""
    chunk: int = Field(default=4, ge=1)
    """Tokens between two looks at the weights of a particle filter."""
    resampling: Resampling = "systematic"
    """How a particle filter draws ancestors."""
    resample_below: float = Field(default=0.5, ge=0, le=1)
    """The share of K under which the effective sample size must fall for that; 0 never, 1 at every chunk."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """The noise of the estimators."""
    headline: str = "smc_mixture"
    """The estimator named beforehand as the arm's figure; a baseline's is always its exact likelihood."""


class SteerParams(Section):
    """What codes steer, measured on texts from the model."""

    groups: int = Field(default=64, ge=2)
    """Prompts, from the test windows; samples of one share its codes."""
    samples: int = Field(default=8, ge=2)
    """Samples of each prompt."""
    sources: int = Field(default=256, ge=2)
    """Test windows whose codes are carried over to another prompt."""
    prompt_tokens: int | None = Field(default=None, ge=1)
    """Tokens of a window that are given; those before its first target unless given."""
    rows: int = Field(default=64, ge=1)
    """Sequences per forward."""
    entropy_nats_per_token: float | None = Field(default=None, gt=0)
    """The mean token entropy at which diversity is measured, so that arms compare; that of temperature 1
    unless given.
    """
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of all noise: of codes and of tokens."""
