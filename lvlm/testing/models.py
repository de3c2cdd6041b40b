"""What holds for every model that can be assembled, whatever its parts."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from lvlm.errors import UserError
from lvlm.generation.decoding import Decoding, PromptCodes, RowCodes
from lvlm.generation.generate import generate
from lvlm.interfaces import Latent
from lvlm.model.latent_lm import LatentLM
from lvlm.model.ports import Ports
from lvlm.testing.cases import TOKENS, VOCAB, assert_learns, batch_of, generator_of, token_rows


def check_model(model: LatentLM) -> None:
    """Everything that holds for any model of the zoo; its parameters should be random (`randomise`)."""
    model = model.eval()
    for check in (
        check_causal,
        check_cache,
        check_padding,
        check_other_text,
        check_generation,
        check_gradients,
    ):
        check(model)


def _codes(model: LatentLM, tokens_BT: Tensor) -> Any:
    """Codes of each latent from the prior for fixed rows, by name; none for a baseline."""
    with torch.no_grad():
        drawn = model(tokens_BT, z="prior", generator=generator_of()).latents
    return {name: one.latent.codes for name, one in drawn.items()}


def check_causal(model: LatentLM) -> None:
    """Check that with codes held a token changes no logit before it; a code changes none before its slot."""
    tokens_BT = token_rows()
    codes = _codes(model, tokens_BT)
    before = model(tokens_BT, z=codes).logits_BTV
    for place in (0, 3, TOKENS - 1):
        other_BT = tokens_BT.clone()
        other_BT[:, place] = (other_BT[:, place] + 1) % VOCAB
        after = model(other_BT, z=codes).logits_BTV
        assert torch.allclose(before[:, :place], after[:, :place], atol=1e-10), (
            f"token {place} is seen before it"
        )
        assert not torch.allclose(before[:, place], after[:, place], atol=1e-10), (
            f"token {place} has no effect"
        )
    for name, path in model.paths.items():
        for slot in range(path.slots.count(TOKENS)):
            other = codes[name].clone()
            other[:, slot] = 1 - other[:, slot] if other.is_floating_point() else (other[:, slot] == 0).long()
            after = model(tokens_BT, z=codes | {name: other}).logits_BTV
            first = int(path.slots.first_positions(TOKENS)[slot])
            assert torch.allclose(before[:, :first], after[:, :first], atol=1e-10), (
                f"code {slot} is seen before its slot"
            )
            assert not torch.allclose(before[:, first:], after[:, first:], atol=1e-10), (
                f"code {slot} has no effect"
            )


def check_cache(model: LatentLM) -> None:
    """Decoding with a cache equals one forward with the codes that were drawn, for prompts of unequal
    lengths, too; past codes stay.
    """
    tokens_BT = token_rows(3)
    sources: tuple[PromptCodes, ...] = ("posterior", "prior")
    for prompt_codes, lengths in itertools.product(sources, ([3, 3, 3], [2, 3, 1])):
        codes = {
            name: RowCodes(path, path.slots.count(TOKENS), [4, 5, 6], [0, 1, 2], None, number)
            for number, (name, path) in enumerate(model.paths.items())
        }
        decoding = Decoding(model, 3, TOKENS, codes, prompt_codes=prompt_codes)
        keep_BT = torch.arange(3) < torch.tensor(lengths)[:, None]
        rows_B, places_B = torch.arange(3), torch.tensor(lengths)
        steps, past = [decoding.begin(tokens_BT[:, :3], keep_BT)], []
        for number in range(4):
            past.append([decoding.used(row, lengths[row] + number) for row in range(3)])
            steps.append(decoding.step(tokens_BT[rows_B, places_B + number]))
        for row, length in enumerate(lengths):
            used = decoding.used(row, length + 4)
            for before in past:
                for name, earlier in before[row].items():
                    assert torch.equal(earlier, used[name][: len(earlier)]), "codes of the past changed"
            z = {name: of_one[None] for name, of_one in used.items()}
            whole = model(tokens_BT[row : row + 1, : length + 4], z=z).logits_BTV[0, length - 1 :]
            difference = (torch.stack(steps)[:, row] - whole).abs().max()
            assert difference < 1e-9, f"cached and uncached logits differ by {difference:.1e}"


def check_padding(model: LatentLM) -> None:
    """What stands in the padding, and how much of it there is, changes no logit and no KL of a real token."""
    tokens_BT = token_rows(3)
    keep_BT = torch.arange(TOKENS)[None, :] < torch.tensor([TOKENS, 4, 1])[:, None]
    junk_BT = torch.where(keep_BT, tokens_BT, (tokens_BT + 5) % VOCAB)
    one, two = (model(rows, keep_BT, generator=generator_of()) for rows in (tokens_BT, junk_BT))
    assert torch.allclose(one.logits_BTV[keep_BT], two.logits_BTV[keep_BT], atol=1e-9), (
        "padding shows in the logits"
    )
    real = {}
    for name, drawn in one.latents.items():
        keep_BS, kl_BSd, other_BSd = drawn.keep_BS, drawn.latent.kl_BSd, two.latents[name].latent.kl_BSd
        assert keep_BS is not None
        assert kl_BSd is not None
        assert other_BSd is not None
        assert torch.allclose(kl_BSd[keep_BS], other_BSd[keep_BS]), "padding shows in the KL"
        real[name] = keep_BS[1]
    codes = {name: drawn.latent.codes[1:2, real[name]] for name, drawn in one.latents.items()}
    for name, alone_1Sd in _kls_of(model, tokens_BT[1:2, :4], codes).items():
        padded = one.latents[name].latent.kl_BSd
        assert padded is not None
        assert torch.allclose(alone_1Sd[0], padded[1, real[name]]), (
            "a padded row's KL differs from the row's alone"
        )


def _kls_of(model: LatentLM, tokens_BT: Tensor, codes: dict[str, Tensor]) -> dict[str, Tensor]:
    """KL of each latent of rows without padding whose posteriors drew these codes."""
    place, ports, found = model.place(torch.arange(tokens_BT.shape[1])), Ports(), {}
    x_BTD, keep_BT = model.below(tokens_BT, place), torch.ones_like(tokens_BT, dtype=torch.bool)
    for stage in model.stages[1:]:
        hidden_BTD = ports.of_tokens(x_BTD)
        for name in stage.latents:
            path = model.paths[name]
            drawn = path.quantizer.given(codes[name])
            drawn.posterior_BSK = path.posterior(tokens_BT, hidden_BTD, keep_BT)
            first_BSD = hidden_BTD[:, path.slots.first_positions(tokens_BT.shape[1])]
            found[name] = path.kl(drawn, path.prior(first_BSD, drawn.embedding_BSC))
            path.enter(ports, drawn.embedding_BSC, place.positions_T)
        x_BTD = model.through(stage, x_BTD, place, ports)
    return found


def check_other_text(model: LatentLM) -> None:
    """Another text is read by the encoder alone, and the row by all else; padding of either shows nowhere. An
    encoder whose slots follow the length of what it reads refuses it.
    """
    tokens_BT, other_BU = token_rows(3), token_rows(3, 5, seed=1)
    keep_BU = torch.arange(5)[None, :] < torch.tensor([5, 3, 1])[:, None]
    if len(model.names) > 1:
        return
    if model.latent is None:
        plain, given = model(tokens_BT), model(tokens_BT, latent_tokens_BU=other_BU)
        assert torch.equal(plain.logits_BTV, given.logits_BTV), "a model without a latent reads another text"
        return
    if model.latent.slots.tokens is not None:
        try:
            model(tokens_BT, latent_tokens_BU=other_BU)
        except UserError:
            return
        raise AssertionError("slots that follow the length of another text don't fit the row")

    def read(rows_BT: Tensor, other: Tensor, keep: Tensor = keep_BU) -> Latent:
        output = model(rows_BT, latent_tokens_BU=other, latent_keep_BU=keep, generator=generator_of())
        found: Latent | None = output.latent
        assert found is not None
        return found

    latent = read(tokens_BT, other_BU)
    moved_BU, moved_BT = (torch.cat(((x[:, :1] + 1) % VOCAB, x[:, 1:]), 1) for x in (other_BU, tokens_BT))
    numbers = (
        latent.posterior_BSK,
        read(moved_BT, other_BU).posterior_BSK,
        read(tokens_BT, moved_BU).posterior_BSK,
    )
    if numbers[0] is not None and numbers[1] is not None and numbers[2] is not None:
        assert torch.equal(numbers[0], numbers[1]), "the encoder reads the row beside another text"
        assert not torch.allclose(numbers[0], numbers[2]), "the encoder doesn't read another text"
    given = [model(tokens_BT, z=latent.codes, latent_tokens_BU=x).logits_BTV for x in (None, moved_BU)]
    assert torch.equal(*given), "the decoder reads another text"
    junk = read(tokens_BT, torch.where(keep_BU, other_BU, (other_BU + 5) % VOCAB))
    own = read(tokens_BT, tokens_BT, torch.ones_like(tokens_BT, dtype=torch.bool))
    row = model(tokens_BT, generator=generator_of()).latent
    for found, wanted, says in (
        (junk, latent, "padding of another text shows in the KL"),
        (own, row, "a row as its own other text has another KL"),
    ):
        assert found.kl_BSd is not None and wanted.kl_BSd is not None
        assert torch.allclose(found.kl_BSd, wanted.kl_BSd, atol=1e-9), says


def check_generation(model: LatentLM) -> None:
    """Log-probabilities recorded while generating equal teacher-forced rescoring with the recorded codes; a
    row doesn't depend on the rows beside it; given codes are the ones that are used.
    """
    prompts = [row[:length].tolist() for row, length in zip(token_rows(3, 4), (4, 1, 2), strict=True)]
    sources: tuple[PromptCodes, ...] = ("posterior", "prior")
    for prompt_codes in sources:
        together = generate(model, prompts, 5, prompt_codes=prompt_codes, seed=3)
        for number, sample in enumerate(together):
            alone = generate(model, sample.prompt, 5, prompt_codes=prompt_codes, seed=3 + number)[0]
            assert alone.tokens == sample.tokens, "a row depends on the rows beside it"
            longer = generate(model, sample.prompt, 7, prompt_codes=prompt_codes, seed=3 + number)[0]
            assert longer.tokens[:5] == sample.tokens, "a row depends on how many tokens are asked for"
            z = {name: codes[None] for name, codes in sample.latents.items()}
            fed = torch.tensor([sample.prompt + sample.tokens[:-1]])
            logits = model(fed, z=z).logits_BTV[0, len(sample.prompt) - 1 :]
            scores = logits.log_softmax(-1).gather(-1, torch.tensor(sample.tokens)[:, None])[:, 0]
            assert torch.allclose(scores, sample.log_prob_N, atol=1e-9), "generation and rescoring disagree"
            if sample.latents:
                steered = generate(model, sample.prompt, 5, codes=sample.latents, seed=9, temperature=0)[0]
                for name, codes in sample.latents.items():
                    assert torch.equal(steered.latents[name], codes), (
                        "given codes are not those that were used"
                    )


def check_gradients(model: LatentLM) -> None:
    """The reconstruction alone reaches every parameter, but those of the prior, which the KL reaches, and
    what a quantizer learns by its penalty.
    """
    batch = batch_of(token_rows(4, TOKENS + 1))
    output = model(batch.inputs_BT, batch.keep_BT, generator=generator_of())
    objective = output.logits_BTV.log_softmax(-1).gather(-1, batch.targets_BT[..., None]).sum()
    by_others: set[int] = set()
    for name, path in model.paths.items():
        latent = output.latents[name].latent
        if latent.kl_BSd is not None:
            by_others |= {id(p) for p in path.prior_head.parameters()}
            assert_learns(path.prior_head, latent.kl_BSd.sum())
        if latent.penalty_BS is not None:
            by_others |= {id(p) for p in path.quantizer.parameters()}
            assert_learns(path.quantizer, objective - latent.penalty_BS.sum())
    assert_learns(model, objective, except_for=by_others)
