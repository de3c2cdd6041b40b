"""Sections of a recipe: model, train, evaluate, steer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lvlm.interfaces import (
    BackboneParams,
    EncoderParams,
    InjectionParams,
    LossParams,
    PriorParams,
    QuantizerParams,
    Ramp,
    Schedule,
    Section,
)
from lvlm.likelihood.names import LOWEST, MOST_REPEATS, Resampling
from lvlm.model.latent_lm import ONLY
from lvlm.model.prior import FixedPriorParams

Select = Literal["last", "headline", "bound"]
"""Rules by which a run's checkpoint is chosen; see `TrainParams.select`."""


Seam = Literal["middle"] | Annotated[int, Field(ge=0)]

PartName = Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,31}$")]
"""A name that a recipe gives: of a latent, or of an added loss."""


class LatentParams(Section):
    """One latent of several: where it reads, what it draws, and where its code goes."""

    seam: Seam = "middle"
    """The block before which the stack is cut for it; 'middle' is half of the layers."""
    encoder: EncoderParams
    """The encoder, which sees the whole row."""
    quantizer: QuantizerParams
    """The family of the latent."""
    injection: InjectionParams
    """The way its code enters the stack."""
    prior: PriorParams = FixedPriorParams()
    """The prior of its codes, as `model.prior`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """The share of rows for which it is dropped in training."""


class ModelParams(Section):
    """The stack, where it is cut, and what stands at the cut."""

    backbone: BackboneParams
    """The causal decoder."""
    vocab: int | None = Field(default=None, ge=1)
    """Rows of the embedding and the head; the data's vocabulary unless given. A larger number pads it to a
    size that suits a GPU, or stands in for a tokenizer, so that a plan needs none."""
    seam: Seam = "middle"
    """The block before which the stack is cut; 'middle' is half of the layers."""
    encoder: EncoderParams | None = None
    """The encoder, which sees the whole row; null for a model without a latent."""
    quantizer: QuantizerParams | None = None
    """The family of the latent; null for a model without a latent."""
    injection: InjectionParams | None = None
    """The way a code enters the stack; null for a model without a latent."""
    prior: PriorParams = FixedPriorParams()
    """The prior of codes. A kind's name alone stands for the kind with its defaults: 'fixed', which is
    all-zero numbers, 'autoregressive' and so on; 'learned' is another name for 'linear'.
    """
    latent_dropout: float = Field(default=0.0, ge=0, lt=1)
    """The share of rows whose whole latent is dropped in training."""
    token_dropout: float = Field(default=0.0, ge=0, lt=1)
    """The share of input tokens that the decoder doesn't see in training."""
    latents: dict[PartName, LatentParams] = Field(default={})
    """Several latents by name, each with its seam, encoder, quantizer, injection, prior and dropout, which
    are then not said above. Codes of a lower seam are drawn first, and at one seam those named first."""

    @property
    def seam_index(self) -> int:
        """`seam` as a number of blocks."""
        return self.seam_of(self)

    def seam_of(self, latent: LatentParams | ModelParams) -> int:
        """The seam of a latent as a number of blocks."""
        return self.backbone.layers // 2 if latent.seam == "middle" else latent.seam

    @property
    def each_latent(self) -> dict[str, LatentParams]:
        """The latents by name; the one that the section itself describes is called 'latent'."""
        if self.latents or self.encoder is None or self.quantizer is None or self.injection is None:
            return dict(self.latents)
        return {
            ONLY: LatentParams.model_construct(
                seam=self.seam,
                encoder=self.encoder,
                quantizer=self.quantizer,
                injection=self.injection,
                prior=self.prior,
                dropout=self.latent_dropout,
            )
        }

    @property
    def has_latent(self) -> bool:
        """Whether the model has a latent."""
        return bool(self.each_latent)


class AddedLoss(Section):
    """One loss that is added to the recipe's."""

    loss: LossParams
    """Its kind, one that may be added, such as mtp."""
    weight: Schedule = 1.0
    """Its weight, in nats of cross-entropy per nat: a number, or {start, end, steps, after, cycle_steps}."""


class TrainParams(Section):
    """The optimisation, its log and its checkpoints."""

    steps: int = Field(default=300, ge=1, le=10**12)
    """Optimiser steps."""
    rows: int = Field(default=16, ge=1)
    """Sequences per optimiser step, over all micro-batches and ranks."""
    micro_rows: int | None = Field(default=None, ge=1)
    """Sequences per forward; null for all at once."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """The highest learning rate, reached after the warm-up."""
    final_learning_rate: float = Field(default=3e-4, ge=0)
    """The learning rate at the end of the cosine."""
    codes: Literal["posterior", "prior", "shuffled"] = "posterior"
    """The codes that the decoder trains on. 'prior' (noise) and 'shuffled' (the posterior of another row) are
    controls, whose codes carry no information on the row.
    """
    draws: int = Field(default=1, ge=1, le=10_000)
    """Codes drawn for each row, for a loss that weighs them, such as `iwae`. A step takes as many times the
    work and the memory of activations."""
    encoder_learning_rate_factor: float = Field(default=1.0, ge=0)
    """The learning rate of encoder and readout, as a multiple of that of all other weights."""
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
    """Response to a step whose loss or gradient is not finite, or spikes: 'stop', 'skip' its update, or
    'rewind' to the newest checkpoint and go on with the batches after it. The log counts them as `spikes`;
    ten in a row stop the run."""
    spike_factor: float | None = Field(default=None, gt=1)
    """Multiple of the median gradient norm of the last 100 steps above which a norm is a spike; null for none
    but NaN and infinity.
    """
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """The autocast type; 'auto' is bf16 where the device supports it. fp16 scales its loss."""
    tf32: bool = False
    """Let an NVIDIA GPU round the factors of float32 products to 10 bits."""
    device: str = Field(default="auto", min_length=1)
    """'auto', 'cpu', 'cuda', 'cuda:1', …; with several processes each has its own GPU."""
    shard_over: int | None = Field(default=None, ge=1)
    """Number of processes that share one copy of the model: all unless given, 1 for plain data parallelism,
    a node's GPUs for hybrid sharding. Without effect in one process."""
    reshard_after_forward: bool = True
    """Whether a process frees the gathered weights of a block after the forward pass, and gathers them again
    for the backward pass. If false, less is sent and copied, but a process holds all blocks between the two
    passes.
    """
    timeout_seconds: float = Field(default=600, gt=0)
    """Seconds that several processes wait for one of them before they stop with an error that names it."""
    recompute: Literal["none", "full", "selective"] | Annotated[int, Field(ge=1)] = "none"
    """Blocks that keep no activations and run again in the backward pass (activation checkpointing): 'none',
    all ('full'), every n-th (a number n), or only the cheap operations of all blocks ('selective': products
    and attention are kept).
    """
    logits_chunk: int | None = Field(default=None, ge=1)
    """Tokens whose logits the loss computes at a time, and again in the backward pass; null for all."""
    compile: bool = False
    """torch.compile every block of the backbone; on a CPU this needs a C++ compiler."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; null for torch's own choice."""
    peak_tflops: float | None = Field(default=None, gt=0)
    """Peak throughput of one device in the autocast type, 10^12 operations a second, for the MFU in the log;
    null for the known figure of the GPU in use.
    """
    length: Annotated[float, Field(ge=1)] | Ramp | None = None
    """Tokens of a row in training; those to the right are cut off. A number, or a ramp over steps from short
    to long; null for whole rows.
    """
    workers: int = Field(default=0, ge=0)
    """Processes that read ahead for each training process; any number gives the same rows."""
    trackers: list[str] = Field(default=[])
    """Trackers that get the log beside metrics.jsonl and TensorBoard: wandb (Weights & Biases) and trackio,
    which need the extras of these names, or a plugin's tracker.
    """
    log_every: int = Field(default=10, ge=1)
    """Steps between two lines of the log."""
    evaluate_every: int = Field(default=100, ge=1)
    """Steps between two evaluations."""
    evaluate_windows: int = Field(default=16, ge=1)
    """Windows of the evaluations during training."""
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps between further checkpoints, beside those at every evaluation; null for none."""
    select: Select = "last"
    """Which checkpoint is scored, loaded and exported: the 'last' one, or the best on the validation windows,
    by the arm's own 'headline' (`evaluate.headline`, the likelihood of a model without a latent) or by the
    lower 'bound' of elbo and ce_prior, which is cheaper. One rule for all arms of a study."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Number of newest checkpoints to keep; the one that `select` chooses is always kept."""


class EvaluateParams(Section):
    """The final evaluation."""

    windows: int = Field(default=64, ge=1)
    """Fixed windows of the evaluation data, the same for every arm."""
    rows: int = Field(default=16, ge=1)
    """Sequences per forward."""
    estimators: list[str] = Field(
        default=["elbo", "prior", "iwae", "smc", "smc_prior", "smc_mixture"], min_length=1
    )
    """Likelihood estimators for a model with a latent: exact, elbo, prior, iwae, smc, smc_deferred, and iwae
    and smc with codes from the prior (smc_prior) or from posterior or prior at even odds (smc_mixture).
    """
    k: int = Field(default=16, ge=1)
    """Codes drawn per slot, and particles of the particle filter."""
    chunk: int = Field(default=4, ge=1)
    """Tokens between resampling checks of the particle filter."""
    resampling: Resampling = "systematic"
    """The rule by which the particle filter draws ancestors."""
    resample_below: float = Field(default=0.5, ge=0, le=1)
    """The share of K below which the effective sample size triggers resampling; 0 for never, 1 for every
    chunk.
    """
    repeats: int = Field(default=1, ge=1, le=MOST_REPEATS)
    """How often each estimate is drawn anew. The figure is the mean, and the spread gives its Monte Carlo
    error; drawn once, a weighted bound has no such error."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the estimators' noise."""
    headline: str = LOWEST
    """The estimator named beforehand as the arm's figure, or 'lowest': of the estimators, the bound that is
    lowest on validation windows. A baseline's is always its exact likelihood."""


class SteerParams(Section):
    """Measurement of what codes steer, on texts from the model."""

    groups: int = Field(default=64, ge=2)
    """Prompts, taken from the test windows; the samples of a prompt share its codes."""
    samples: int = Field(default=8, ge=2)
    """Samples of each prompt."""
    sources: int = Field(default=256, ge=2)
    """Test windows whose codes are carried over to another prompt."""
    prompt_tokens: int | None = Field(default=None, ge=1)
    """Tokens of a window that form the prompt; those before its first target unless given."""
    rows: int = Field(default=64, ge=1)
    """Sequences per forward."""
    entropy_nats_per_token: float | None = Field(default=None, gt=0)
    """The mean token entropy at which diversity is measured, so that arms can be compared; that of
    temperature 1 unless given.
    """
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of all noise: codes and tokens."""
