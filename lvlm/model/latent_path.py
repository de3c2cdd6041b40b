"""One latent of a model: from the hidden at its seam to codes, and from codes to what they do to the stack.

The shape legend is that of `lvlm.interfaces.parts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvlm.errors import NotFinite, UserError, one_of
from lvlm.interfaces import Encoder, Injection, Latent, Prior, Quantizer, Slots
from lvlm.model.ports import Ports
from lvlm.model.prior import FixedPrior, PriorMemory

CodeSource = Literal["posterior", "prior", "shuffled"] | Tensor


class Read(NamedTuple):
    """What the encoder reads in place of the row: tokens of another text, their hidden at the seam, and which
    of them are real.
    """

    tokens_BU: Tensor
    hidden_BUD: Tensor
    keep_BU: Tensor


class LatentPath(nn.Module):
    """One latent: the way from the hidden at its seam to what its codes do to the stack.

    tokens, hidden ─ encoder ─ norm ─ readout ─► posterior numbers ─┐
    hidden at each slot's first position, ─ prior ─► prior numbers ─ quantizer ─► Latent ─ injection ─►
    embeddings of the codes before it

    All-zero numbers are the prior: a fixed prior is a zero tensor, any other starts from it.

    Args:
        encoder: says something about each slot.
        quantizer: the family of the codes, whose embeddings suit the injection (`embedding_width`).
        injection: what codes do to the blocks that they enter.
        prior: what is expected of codes; zeros unless given.
        seam: number of the block in front of which the encoder reads and the code enters.
        blocks: numbers of the blocks that the code enters; that at the seam unless given.
        shared: whether these blocks get the same embedding of a code, or each a part of its own.
        dropout: share of the rows whose latent is hidden during training.
    """

    def __init__(
        self,
        encoder: Encoder,
        quantizer: Quantizer,
        injection: Injection,
        prior: Prior | None = None,
        *,
        seam: int = 0,
        blocks: Sequence[int] | None = None,
        shared: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder, self.quantizer, self.slots = encoder, quantizer, encoder.slots
        self.seam, self.blocks = seam, tuple(blocks or (seam,))
        self.shared, self.dropout = shared, dropout
        self.norm = nn.RMSNorm(encoder.width)
        self.readout = nn.Linear(encoder.width, quantizer.posterior_dim)
        nn.init.normal_(self.readout.weight, std=0.02)
        nn.init.zeros_(self.readout.bias)
        self.prior_head = FixedPrior(quantizer.prior_dim) if prior is None else prior
        if self.kl_is_sampled and quantizer.num_codes is not None:
            raise UserError(
                f"the KL of {type(self.prior_head).__name__} and {type(quantizer).__name__} is sampled, and "
                f"no gradient flows through draws of indices; take a quantizer whose codes are vectors"
            )
        self.injection = injection

    @property
    def kl_is_sampled(self) -> bool:
        """Whether a KL is log q - log p of the draw, [B, S, 1], which may be negative."""
        return "sampled" in (self.quantizer.kl, self.prior_head.kl)

    @property
    def kl_follows_draws(self) -> bool:
        """Whether a KL depends on the codes that were drawn: it is sampled, or the prior sees codes."""
        return self.kl_is_sampled or self.prior_head.sees_codes

    @property
    def kl_dim(self) -> int:
        """Parts d that the KL of a slot splits into."""
        return 1 if self.kl_is_sampled else self.quantizer.kl_dim

    @staticmethod
    def embedding_width(injection: Injection, blocks: Sequence[int], *, shared: bool) -> int:
        """C, the width of an embedding that serves all of these blocks."""
        return injection.embedding_dim * (1 if shared else len(blocks))

    def enter(
        self, ports: Ports, embedding_BSC: Tensor, positions_T: Tensor, keep_B: Tensor | None = None
    ) -> None:
        """Let codes act on the blocks that they reach.

        Args:
            ports: takes the conditionings.
            embedding_BSC: embeddings of all slots up to these positions', or of more.
            positions_T: where the tokens stand, [T] or [B, T].
            keep_B: rows that get their code; all unless given.
        """
        pieces = (embedding_BSC,) if self.shared else embedding_BSC.chunk(len(self.blocks), dim=-1)
        made = [self.injection(piece, positions_T, keep_B) for piece in pieces]
        for number, block in enumerate(self.blocks):
            ports.enter(block, made[0 if self.shared else number])

    def inference_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that make the posterior: encoder, norm and readout."""
        for module in (self.encoder, self.norm, self.readout):
            yield from module.parameters()

    def forward(
        self,
        tokens_BT: Tensor,
        hidden_BTD: Tensor,
        keep_BT: Tensor,
        z: CodeSource,
        generator: torch.Generator | None = None,
        other: Read | None = None,
        *,
        log_ratios: bool = False,
    ) -> Latent:
        """Latent of whole rows: codes, their embedding, and KL in nats where they come from the posterior.
        The prior looks at the row; so does the encoder, unless there is another text for it. With
        `log_ratios` also log p - log q of these, as `Latent` describes it.

        Raises:
            UserError: given codes don't fit, or a word for them that isn't known.
            NotFinite: the encoder yields NaN or infinity, outside of training.
        """
        rows, tokens = tokens_BT.shape
        if isinstance(z, Tensor):
            wanted, slots = self.slots.count(tokens), z.shape[1] if z.ndim > 1 else 0
            if z.ndim < 2 or z.shape[0] != rows or slots < wanted:
                raise UserError(
                    f"codes of shape {list(z.shape)} given; {rows} rows of {tokens} tokens "
                    f"need [{rows}, {wanted}, …], a code per slot"
                )
            return self.quantizer.given(z[:, :wanted])
        check_codes(z)
        first_BSD = hidden_BTD[:, self.slots.first_positions(tokens, hidden_BTD.device)]
        if z == "prior":
            return self.from_prior(first_BSD, generator)
        numbers_BSK = self.posterior(*(other or (tokens_BT, hidden_BTD, keep_BT)))
        if log_ratios and z == "posterior":
            return self._weighed(numbers_BSK, first_BSD, generator)
        if not self.training:
            return self._shuffled(self.from_posterior(numbers_BSK, first_BSD, generator), z)
        return self._shuffled(self._drawn(numbers_BSK, first_BSD, generator), z)

    def _drawn(self, numbers_BSK: Tensor, first_BSD: Tensor, generator: torch.Generator | None) -> Latent:
        # In training NaN must not become a code. It must not raise in one process either, as the others would
        # wait: it goes around the quantizer into the loss, which all of them see.
        latent = self.from_posterior(numbers_BSK.nan_to_num(0.0, 0.0, 0.0), first_BSD, generator)
        broken = ~numbers_BSK.isfinite().all()
        latent.embedding_BSC = latent.embedding_BSC.masked_fill(broken, torch.nan)
        return latent

    def _weighed(self, numbers_BSK: Tensor, first_BSD: Tensor, generator: torch.Generator | None) -> Latent:
        """A latent with the log-ratio of its draw."""
        latent = self._drawn(numbers_BSK, first_BSD, generator)
        assert latent.prior_BSJ is not None
        latent.kl_BSd = self.kl(latent, latent.prior_BSJ.detach())  # the prior learns by the log-ratio alone
        numbers_BSK, log_prob = numbers_BSK.nan_to_num(0.0, 0.0, 0.0), self.quantizer.log_prob
        held_BS = log_prob(latent.codes.detach(), numbers_BSK)
        drawn_BS = log_prob(latent.codes, numbers_BSK) if latent.codes.requires_grad else held_BS
        through_codes_BS = drawn_BS - (held_BS - held_BS.detach())
        latent.log_posterior_BS = held_BS
        latent.log_ratio_BS = self.log_prior(latent.codes, latent.prior_BSJ) - through_codes_BS
        return latent

    def _shuffled(self, latent: Latent, z: CodeSource) -> Latent:
        if z == "shuffled":  # by row, so that the gradient goes where the code came from
            latent.codes, latent.embedding_BSC = exchanged(latent.codes), exchanged(latent.embedding_BSC)
        return latent

    def from_posterior(
        self, posterior_BSK: Tensor, hidden_BSD: Tensor, generator: torch.Generator | None = None
    ) -> Latent:
        """Codes drawn from posterior numbers, charged under a prior that sees the hidden at each slot's first
        position, and the codes before as they are drawn.
        """
        if not (self.prior_head.sees_codes or self.prior_head.kl == "sampled"):
            latent: Latent = self.quantizer(posterior_BSK, self.prior(hidden_BSD), generator)
            return latent
        latent = self.quantizer(posterior_BSK, self.zeros(hidden_BSD), generator)
        latent.prior_BSJ = self.prior(hidden_BSD, latent.embedding_BSC)
        latent.kl_BSd = self.kl(latent, latent.prior_BSJ)
        return latent

    def from_prior(self, hidden_BSD: Tensor, generator: torch.Generator | None = None) -> Latent:
        """Codes drawn from the prior, slot after slot if it sees the codes before."""
        prior = self.prior_head
        if not prior.sees_codes:
            return prior.sample(self.quantizer, self.prior(hidden_BSD), generator)
        memory, drawn, numbers = self.memory(hidden_BSD), [], []
        for hidden_B1D in torch.split(hidden_BSD, 1, dim=1):
            numbers.append(memory.numbers(hidden_B1D))
            drawn.append(prior.sample(self.quantizer, numbers[-1], generator))
            memory.take_in(drawn[-1].embedding_BSC)
        codes, embedding_BSC = (
            torch.cat(x, 1) for x in ([one.codes for one in drawn], [one.embedding_BSC for one in drawn])
        )
        return Latent(codes, embedding_BSC, prior_BSJ=torch.cat(numbers, 1))

    def prior(self, hidden_BSD: Tensor, embedding_BSC: Tensor | None = None) -> Tensor:
        """Prior numbers [B, S, J] of all slots at once.

        Args:
            hidden_BSD: the hidden at the seam, at each slot's first position.
            embedding_BSC: of the codes of these slots, for a prior that sees codes: each slot gets the
                embedding of the one before.
        """
        before_BSC = None
        if self.prior_head.sees_codes:
            assert embedding_BSC is not None, "this prior sees codes: give their embeddings"
            before_BSC = F.pad(embedding_BSC[:, :-1], (0, 0, 1, 0))
        numbers_BSJ: Tensor = self.prior_head(hidden_BSD, before_BSC)
        return numbers_BSJ

    def zeros(self, hidden_BSD: Tensor) -> Tensor:
        """All-zero prior numbers of the family, [B, S, J]."""
        return hidden_BSD.new_zeros(()).expand(*hidden_BSD.shape[:2], self.quantizer.prior_dim)

    def memory(self, hidden_BSD: Tensor) -> PriorMemory:
        """What the prior remembers of as many rows, in front of their first slot."""
        return PriorMemory(self.prior_head, hidden_BSD, self.quantizer.embedding_dim)

    def log_prior(self, codes: Tensor, prior_BSJ: Tensor) -> Tensor:
        """Log p(z) of codes under the numbers that `prior` gives for them, slot by slot, [B, S], nats."""
        return self.prior_head.log_prob(self.quantizer, codes, prior_BSJ)

    def kl(self, latent: Latent, prior_BSJ: Tensor) -> Tensor:
        """KL [B, S, d] of the posterior behind a latent to the prior of these numbers, nats; log q - log p of
        its codes where that is sampled, with the path derivative (see `Quantizer.divergence`).
        """
        if self.prior_head.kl == "closed":
            return self.quantizer.divergence(latent, prior_BSJ)
        assert latent.posterior_BSK is not None
        log_q_BS = self.quantizer.log_prob(latent.codes, latent.posterior_BSK.detach())
        return (log_q_BS - self.log_prior(latent.codes, prior_BSJ))[..., None]

    def posterior(self, tokens_BT: Tensor, hidden_BTD: Tensor, keep_BT: Tensor) -> Tensor:
        """Posterior numbers [B, S, K] of whole rows.

        Raises:
            NotFinite: they hold NaN or infinity, outside of training.
        """
        numbers_BSK: Tensor = self.readout(self.norm(self.encoder(tokens_BT, hidden_BTD, keep_BT)))
        # A NaN would become a code like any other.
        if not self.training and not bool(numbers_BSK.isfinite().all()):
            raise NotFinite(
                "the numbers of the posterior hold NaN or infinity: the weights or the encoder diverged"
            )
        return numbers_BSK


def check_codes(z: CodeSource) -> None:
    """Check where codes come from.

    Raises:
        UserError: neither a known word nor a tensor.
    """
    if not isinstance(z, Tensor):
        one_of(z, CodeSource, "z", or_="a tensor of codes")


def check_slots(slots: Slots) -> None:
    """Check that an encoder's slots don't follow the length of what it reads.

    Raises:
        UserError: they do, so that it can't read another text than the row.
    """
    if slots.tokens is not None:
        per = "token" if slots.tokens == 1 else f"chunk of {slots.tokens} tokens"
        raise UserError(
            f"the encoder can't read another text: it yields a code per {per} of what it reads, and the row "
            "needs its own number of them; encoder.per: sequence yields one of any text"
        )


def exchanged(rows_B: Tensor) -> Tensor:
    """Rows that have changed places: first and second, third and fourth, and so on.

    So whole pairs exchange within a micro-batch as they would within the whole batch. Of an odd number the
    last three rows go around; one row by itself stays.
    """
    pairs = len(rows_B) // 2 - len(rows_B) % 2
    if pairs < 0:
        return rows_B
    paired_B, last_B = rows_B[: 2 * pairs], rows_B[2 * pairs :]
    return torch.cat((paired_B.view(pairs, 2, *rows_B.shape[1:]).flip(1).flatten(0, 1), last_B.roll(1, 0)))
