"""The contracts between the core and its parts. Read this file to write a plugin.

One picture: every latent-variable language model here is a decoder cut at a seam, or at several.

    tokens ─ embed ─ blocks[:seam] ─┬───────────────────────────► blocks[seam:] ─ head ─ logits
                                    │ hidden at the seam                ▲
                                    ▼                                   │ Conditioning (kv, prefix, …)
                 tokens ───► Encoder ─ readout ─ Quantizer ─ embedding ─ Injection
                                (posterior numbers)  ▲ prior numbers
                                  Prior: zeros, or made of the hidden and of the codes before

Shape legend, used as suffixes everywhere:
    B batch rows            T tokens               S slots (latent variables of a row)
    D model width           E encoder width        K posterior numbers per slot
    J prior numbers         C embedding width      d parts that the KL of a slot splits into
    P prefix length         V vocabulary           Z numbers of one continuous code
    M rows of a memory
    U tokens of another text, where the encoder reads that in place of the row
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lvlm.interfaces.data import Batch, Conditioning, Latent, Output, Slots, Terms

if TYPE_CHECKING:
    from lvlm.interfaces.cache import LayerCache


KLForm = Literal["closed", "sampled"]
"""How a KL is known: in closed form, or as log q - log p of the draw, which may be negative and whose mean is
the KL.
"""


# ------------------------------------------------------------------------------------------------- parts


class Block(Protocol):
    """One layer of a backbone, called by the core loop."""

    def __call__(
        self,
        x_BTD: Tensor,
        where: Any,
        *,
        source_BUD: Tensor | None = None,
        source_where: Any = None,
        shift_BUD: Tensor | None = None,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
        **ports: Any,
    ) -> Tensor:
        """x_BTD -> x_BTD.

        Keys and values are made from norm(source) + shift, at the places `source_where`; the source is x at
        `where` unless given. With a source, x may be [1, 1, D]: one query for all rows and places. `mask` is
        bool, True where a query may look, broadcast to [B, heads, T, keys]; without a mask a causal block
        looks at its own place and before, and at all that is in the cache.

        `ports` are those that a backbone names beyond `prefix`, `kv` and `add`, and only where a code uses
        them. 'scale_shift': `scale_BTD` and `offset_BTD`, norm(x) becomes norm(x) * (1 + scale) + offset.
        'memory': `memory_BMD`, `memory_key_MD` and `memory_keep_B` as in `lvlm.interfaces.Conditioning`;
        zero rows leave x as it is.
        """
        ...


class Backbone(nn.Module, abc.ABC):
    """Embedding, blocks and head of a causal decoder. The core drives it; it knows no latent.

    A subclass sets `width`, `vocab`, `context` (the longest sequence, in tokens) and `blocks`.
    """

    width: int
    vocab: int
    context: int
    blocks: nn.ModuleList

    @abc.abstractmethod
    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Token ids [B, T] -> hidden [B, T, D]."""

    @abc.abstractmethod
    def locate(self, positions_T: Tensor) -> Any:
        """What blocks need to know of positions (rotary tables, say), made once per forward.

        Positions may be negative: a prefix stands at -P..-1. Shape [T], or [B, T] when rows differ.
        """

    @abc.abstractmethod
    def head(self, x_BTD: Tensor) -> Tensor:
        """Hidden [B, T, D] -> logits [B, T, V]."""

    def head_with(self, x_BTD: Tensor, logits_BTD: Tensor) -> Tensor:
        """As `head`, with `logits_BTD` added after the last norm: the port 'logits'."""
        raise NotImplementedError(f"{type(self).__name__} doesn't read the port 'logits'")

    def open_memory(self, block: int) -> None:
        """Give a block the layer with which it attends to a memory: the port 'memory'. Called once for a
        block, after all else is built.
        """
        raise NotImplementedError(f"{type(self).__name__} doesn't read the port 'memory'")

    @abc.abstractmethod
    def make_block(self, *, causal: bool) -> nn.Module:
        """One more block of this backbone's shape, for encoders; see `Block`."""

    @abc.abstractmethod
    def make_cache(self, rows: int, capacity: int) -> LayerCache:
        """An empty key/value cache of one block for `rows` rows and `capacity` positions."""


class Encoder(nn.Module, abc.ABC):
    """Looks at a whole row, both ways, and says something about each slot. Must not see padding.

    A subclass sets `width` (E) and `slots`.
    """

    width: int
    slots: Slots

    @abc.abstractmethod
    def forward(self, tokens_BT: Tensor, hidden_BTD: Tensor, keep_BT: Tensor) -> Tensor:
        """Tokens, the hidden at the seam and the padding mask -> features [B, S, E].

        They are those of the row, or of another text where the data have one; then T is its length.
        """


class Quantizer(nn.Module, abc.ABC):
    """A distribution family with its sampling, its KL and the embedding of its codes.

    The name covers the Gaussian too. All-zero prior numbers are the fixed prior; all-zero posterior numbers
    are it too, unless `can_be_prior` is False. KL and log-probabilities are computed in float32 or wider
    whatever the input, with autocast off.

    A subclass sets `posterior_dim` (K), `prior_dim` (J), `kl_dim` (d) and `embedding_dim` (C), and says what
    a code is: `num_codes` for indices, `code_dim` for vectors, and `units` where a code can be changed in
    parts. It draws by `uniform`, `normal` and `exponential` of `lvlm.interfaces`, which it hands the
    generator, so that the codes of a row don't depend on the rows beside it.
    """

    can_be_prior: bool = True
    """False where no posterior is the fixed prior, and the KL to it has a floor: a point mass, a fixed
    variance.
    """
    num_codes: int | None = None
    """How many codes a slot can hold, the indices 0 to num_codes - 1; None for continuous codes."""
    code_dim: int | None = None
    """Z, the numbers of one continuous code; None for indices."""
    units: tuple[str, ...] = ()
    """Names of what can be changed one by one. The units of a continuous code are its coordinates. Those of
    an index are its bits: unit h has the value 2^h, and there are 2^len(units) codes. Empty where a code is
    all or nothing: an index of a codebook or of a grid, a categorical.
    """
    kl: KLForm = "closed"
    """'sampled' where the KL has no closed form: `kl_BSd` is then that of the draw, [B, S, 1], which
    `divergence` makes. Such codes are vectors, whose gradient flows through the draw.
    """
    prior_words: str = "as its `sample` does"
    """How codes are drawn from prior numbers, for those who do it outside of PyTorch: exports say it."""

    posterior_dim: int
    prior_dim: int
    kl_dim: int
    embedding_dim: int

    @abc.abstractmethod
    def forward(
        self, posterior_BSK: Tensor, prior_BSJ: Tensor, generator: torch.Generator | None = None
    ) -> Latent:
        """A differentiable sample of the posterior and its KL to the prior."""

    @abc.abstractmethod
    def sample(self, prior_BSJ: Tensor, generator: torch.Generator | None = None) -> Latent:
        """A sample of the prior, without KL."""

    @abc.abstractmethod
    def given(self, codes: Tensor) -> Latent:
        """Codes that somebody chose, without KL.

        Raises:
            UserError: when a code is out of range, not finite, or of the wrong shape or type.
        """

    def embed(self, codes: Tensor) -> Tensor:
        """The embedding [B, S, C] that `given` makes of codes which are known to be right. Exported graphs
        call it: a `given` that looks at the values of codes can't become one, so override this beside it.
        """
        return self.given(codes).embedding_BSC

    @abc.abstractmethod
    def log_prob(self, codes: Tensor, numbers: Tensor) -> Tensor:
        """log-probability of codes under numbers, [B, S], nats; `numbers` is [B, S, K] or [B, S, J]."""

    def divergence(self, latent: Latent, prior_BSJ: Tensor) -> Tensor:
        """KL [B, S, d], nats, of the posterior behind a latent to other prior numbers than it was drawn with.

        A sampled KL has the path derivative (Roeder et al. 2017, arXiv 1703.09194): the numbers of log q are
        held, and the gradient reaches them through the draw alone. A closed form is read off `forward`, and
        what that draws is thrown away; override this where drawing is dear or changes something.
        """
        assert latent.posterior_BSK is not None
        if self.kl == "sampled":
            log_q_BS = self.log_prob(latent.codes, latent.posterior_BSK.detach())
            return (log_q_BS - self.log_prob(latent.codes, prior_BSJ))[..., None]
        again: Latent = self(latent.posterior_BSK, prior_BSJ, torch.Generator(prior_BSJ.device))
        assert again.kl_BSd is not None
        return again.kl_BSd

    def with_unit_changed(self, codes: Tensor, unit: int) -> Tensor:
        """Codes with unit number `unit` changed in every slot and all other units as they were. Changed
        twice, codes are what they were.

        An index has the bit flipped. A vector has the coordinate mirrored at 0; override this where the mean
        of the fixed prior is another point.
        """
        assert 0 <= unit < len(self.units), f"unit {unit} of {len(self.units)}"
        if self.code_dim is None:
            return codes ^ (1 << unit)
        mirrored = codes.clone()
        mirrored[..., unit].neg_()
        return mirrored

    def table_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters that hold a row per code, listed by themselves in every parameter count."""
        return ()

    def at_step(self, step: int) -> None:
        """Called before every training step with the number of steps done, for what follows a schedule (a
        temperature). It must depend on nothing else, so that a resumed run is the same run.
        """


class Prior(nn.Module, abc.ABC):
    """What codes are to be expected: numbers for each slot, and the distribution that they are of.

        hidden at each slot's first position ─┐
        embeddings of the codes before it ────┴─► numbers [B, S, J] ─ sample, log_prob

    At the start the numbers are zero, whatever is seen: step 0 is then the same under every prior. They are
    numbers of the quantizer's family, J its `prior_dim`, unless `kl` is 'sampled'. Such a prior has a
    distribution and a J of its own, over codes that are vectors, and overrides `sample` and `log_prob`.
    """

    sees_hidden: bool = True
    """False where the numbers are the same whatever the text is: codes can then be drawn before it."""
    sees_codes: bool = False
    """True where the numbers of a slot depend on the codes of the slots before it: they then differ by
    particle, and codes are drawn one after another. Such a prior overrides `start` and `step`.
    """
    kl: KLForm = "closed"
    """'sampled' where the distribution isn't the family's own, so that the KL has no closed form."""

    @abc.abstractmethod
    def forward(self, hidden_BSD: Tensor, before_BSC: Tensor | None = None) -> Tensor:
        """Numbers [B, S, J] of all slots at once.

        Args:
            hidden_BSD: the causal hidden at the seam, at each slot's first position.
            before_BSC: for a prior that sees codes, the embedding of the code of the slot before; zeros in
                front of the first slot. What a slot may know is its own and all earlier ones.
        """

    def start(self, hidden_BSD: Tensor) -> Tensor:
        """What is remembered in front of the first slot: [B, …], of one size however many slots follow, with
        rows, device and type of the hidden. Rows are picked and put in another order by their index.
        """
        return hidden_BSD.new_zeros(len(hidden_BSD), 0)

    def step(self, hidden_B1D: Tensor, before_B1C: Tensor, state_B: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers [B, 1, J] of the next slot as `forward` gives them, and what is remembered after it."""
        numbers_B1J: Tensor = self(hidden_B1D)
        return numbers_B1J, state_B

    def sample(
        self, quantizer: Quantizer, numbers_BSJ: Tensor, generator: torch.Generator | None = None
    ) -> Latent:
        """A sample of the prior, without KL."""
        return quantizer.sample(numbers_BSJ, generator)

    def log_prob(self, quantizer: Quantizer, codes: Tensor, numbers_BSJ: Tensor) -> Tensor:
        """log-probability of codes, slot by slot, [B, S], nats."""
        return quantizer.log_prob(codes, numbers_BSJ)


class Injection(nn.Module, abc.ABC):
    """Turns embeddings of codes into a conditioning. It has no layers of the stack and knows none.

    A subclass sets `embedding_dim`, the width that it wants from the quantizer, `prefix_rows` when it makes
    a prefix (P; the key/value cache grows by as many), and `memory_rows` when it makes a memory (M).
    """

    embedding_dim: int
    prefix_rows: int = 0
    memory_rows: int = 0

    @abc.abstractmethod
    def forward(
        self, embedding_BSC: Tensor, positions_T: Tensor, keep_B: Tensor | None = None
    ) -> Conditioning:
        """The conditioning of the given positions, which start anywhere: it must slice,
        f(e, positions[a:b]) == f(e, positions)[a:b]. They are [T], or [B, T] where rows differ. Where
        `keep_B` is False, the row's latent was dropped and must leave no trace.
        """


class Loss(nn.Module, abc.ABC):
    """One objective: sums over the batch in nats, divided by the step's global number of target tokens."""

    weighs_draws: bool = False
    """True where it weighs draws of codes, so that the outputs need their log-ratios (`Latent.log_ratio_BS`).
    """

    @abc.abstractmethod
    def forward(self, output: Output, batch: Batch, *, num_tokens: int, step: int) -> Terms:
        """The terms of this batch; `num_tokens` counts targets over all micro-batches and ranks, of each row
        once however many draws it has.
        """

    def after_step(self) -> None:
        """Called once after every optimiser step, for what follows the KL of the whole step (a controller).
        State belongs in buffers or the extra state: they are saved with the trainer. What was seen is this
        process's: reduce it over ranks.
        """

    def for_latents(self, names: Sequence[str]) -> None:
        """Called once, before training, with the names of the model's latents, for what is kept of each."""

    def budget_nats(self, units: int, latent: str = "") -> float | None:
        """KL per slot, of so many units, that costs nothing in the end; None where there is no budget.

        Args:
            units: parts that the KL of a slot splits into.
            latent: name of the latent, where there are several.
        """
        return None
