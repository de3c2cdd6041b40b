"""Generation: rows that don't depend on each other, options, streams and stops, and codes of every origin.

That recorded log-probabilities equal rescoring, and rows of unequal lengths those alone, is checked on every
cross by the conformance tests (`lvlm.testing.models.check_generation`).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lvlm
from lvlm.data.codecs import ByteCodec
from lvlm.errors import NotFinite, OutOfDistribution, UserError
from lvlm.generation import codes as turn
from lvlm.generation.encode import encode, encode_in_windows
from lvlm.generation.generate import Sample, generate, stream
from lvlm.generation.interpolate import interpolate, texts_between
from lvlm.generation.row_text import RowText
from lvlm.generation.sampling import Sampling
from lvlm.model.latent_lm import LatentLM
from lvlm.testing.cases import randomise

ARMS = ("baseline", "free", "gptvae")
SMALL = (
    "model.backbone.layers=2",
    "model.backbone.width=16",
    "model.backbone.heads=2",
    "model.backbone.context=24",
    "data.window=12",
)
CODES = {"baseline": (), "free": ("model.quantizer.bits=4",), "gptvae": ("model.quantizer.dim=2",)}


@pytest.fixture(scope="module")
def models() -> dict[str, LatentLM]:
    """One of each arm, and FREE with a learned prior, with random weights."""
    built = {arm: randomise(lvlm.build(arm, *SMALL, *CODES[arm]).double()) for arm in ARMS}
    built["learned"] = randomise(lvlm.build("free", *SMALL, *CODES["free"], "model.prior=learned").double())
    return built


def codes_of(samples: list[Sample]) -> torch.Tensor:
    found = [sample.codes for sample in samples if sample.codes is not None]
    return torch.nn.utils.rnn.pad_sequence(found, batch_first=True)


def texts(samples: list[Sample]) -> list[str | None]:
    return [sample.text for sample in samples]


# -------------------------------------------------------------------------------------------------------
# sampling


def test_tokens_come_as_often_as_their_probabilities() -> None:
    logits_BV = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]]).expand(20_000, -1)
    u_B = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(Sampling(temperature=0.5).choose(logits_BV, u_B), minlength=4) / len(u_B)
    wanted = (logits_BV[0] / 0.5).softmax(-1)
    assert torch.allclose(shares, wanted, atol=4 * 0.5 / math.sqrt(20_000))
    assert shares[3] == 0


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"top_k": 2}, {3, 2}),
        ({"top_p": 0.5}, {3}),
        ({"top_p": 0.65}, {3, 2}),
        ({"top_p": 1e-9}, {3}),
        ({"min_p": 0.3}, {3, 2}),
        ({"min_p": 1.0}, {3}),
        ({"top_k": 3, "top_p": 0.95, "min_p": 0.2}, {3, 2, 1}),
        ({"temperature": 0.0}, {3}),
        ({}, {3, 2, 1, 0}),
    ],
)
def test_what_is_cut_never_comes_and_the_rest_does(options: dict[str, Any], allowed: set[int]) -> None:
    logits_BV = torch.tensor([0.08, 0.12, 0.22, 0.58]).log().expand(2000, -1)
    u_B = torch.linspace(0, 1 - 1e-9, 2000, dtype=torch.float64)
    assert set(Sampling(**options).choose(logits_BV, u_B).tolist()) == allowed


def test_a_repetition_penalty_lowers_what_the_row_has_whatever_its_sign() -> None:
    logits_BV, seen_BV = torch.tensor([[2.0, 1.9, -1.0, -1.1]]), torch.tensor([[True, False, True, False]])
    choose = Sampling(temperature=0, repetition_penalty=1.5).choose
    assert choose(logits_BV, torch.zeros(1), seen_BV).tolist() == [1]
    assert choose(logits_BV[:, 2:], torch.zeros(1), seen_BV[:, 2:]).tolist() == [1]


def test_a_penalty_counts_the_prompt_and_not_its_padding(models: dict[str, LatentLM]) -> None:
    strong = {"temperature": 0.0, "repetition_penalty": 1e6}
    together = generate(models["baseline"], [[7, 3, 3, 9], [5]], 12, **strong)
    for sample in together:
        assert not set(sample.prompt) & set(sample.tokens)
        assert len(set(sample.tokens)) == 12
        assert generate(models["baseline"], sample.prompt, 12, **strong)[0].tokens == sample.tokens


# ----------------------------------------------------------------------------------------------- streams and
# stops


@given(st.text(max_size=12), st.lists(st.text("ab\né", min_size=1, max_size=3), max_size=3))
def test_pieces_make_up_the_text_until_the_first_stop(text: str, stops: list[str]) -> None:
    ids = ByteCodec().encode(text.encode(errors="replace").decode())
    text = ByteCodec().decode(ids)
    row, pieces = RowText(ByteCodec(), stops), []
    for number, token in enumerate(ids):
        pieces.append(row.push(token, last=number == len(ids) - 1))
        if row.ended_by is not None:
            break
    # The first stop to be complete ends the row; of those complete at once, the one that began first.
    whole = next((n for n in range(len(text) + 1) if any(text[:n].endswith(stop) for stop in stops)), None)
    if whole is None:
        assert "".join(pieces) == text
        assert row.ended_by in ("length", None if text else row.ended_by)
    else:
        begun = min(whole - len(stop) for stop in stops if text[:whole].endswith(stop))
        assert "".join(pieces) == row.text == text[:begun]
        assert row.ended_by in stops


@given(st.binary(max_size=12))
def test_bytes_that_are_no_text_stream_as_they_decode(content: bytes) -> None:
    row = RowText(ByteCodec(), ())
    pieces = [row.push(byte, last=number == len(content) - 1) for number, byte in enumerate(content)]
    assert "".join(pieces) == ByteCodec().decode(content)


@pytest.mark.parametrize("arm", [*ARMS, "learned"])
def test_streaming_equals_not_streaming(models: dict[str, LatentLM], arm: str) -> None:
    options: dict[str, Any] = {"seed": 5, "samples": 2, "top_p": 0.9, "stop": "e"}
    whole = generate(models[arm], ["ab", "x"], 14, **options)
    pieces: list[list[str]] = [[] for _ in whole]
    steps = stream(models[arm], ["ab", "x"], 14, **options)
    while True:
        try:
            piece = next(steps)
        except StopIteration as end:
            again: list[Sample] = end.value
            break
        pieces[piece.row].append(piece.text)
    assert ["".join(of_row) for of_row in pieces] == texts(whole) == texts(again)
    unstopped = generate(models[arm], ["ab", "x"], 14, **{**options, "stop": ()})
    for sample, longer in zip(whole, unstopped, strict=True):
        assert sample.tokens == longer.tokens[: len(sample.tokens)]
        assert torch.equal(sample.log_prob_N, longer.log_prob_N[: len(sample.tokens)])
        assert (sample.ended_by == "e") == ("e" in (longer.text or ""))


def test_a_mistake_is_told_when_a_stream_is_asked_for(models: dict[str, LatentLM]) -> None:
    with pytest.raises(UserError, match="context is 24"):
        stream(models["free"], "ab", 100)


# -------------------------------------------------------------------------------------------------------
# prompts


@pytest.mark.parametrize("arm", [*ARMS, "learned"])
def test_prompts_of_one_token_and_of_the_whole_context(models: dict[str, LatentLM], arm: str) -> None:
    assert len(generate(models[arm], [65], 24)[0].tokens) == 24
    assert len(generate(models[arm], [65] * 24, 1)[0].tokens) == 1
    with pytest.raises(UserError, match="24 tokens and 2 more: the model's context is 24.*at most 1 tokens"):
        generate(models[arm], [65] * 24, 2)
    with pytest.raises(UserError, match="shorten it to 24 tokens or fewer"):
        generate(models[arm], [65] * 25, 1)
    for empty in ("", [], [[]], torch.zeros(1, 0, dtype=torch.long)):
        with pytest.raises(UserError, match="is empty|no prompt"):
            generate(models[arm], empty, 1)


def test_prompts_are_texts_bytes_ids_or_a_tensor(models: dict[str, LatentLM]) -> None:
    model = models["free"]
    wanted = generate(model, "ab", 5)[0].tokens
    for prompt in (b"ab", [97, 98], ["ab"], [[97, 98]], torch.tensor([97, 98]), torch.tensor([[97, 98]])):
        assert generate(model, prompt, 5)[0].tokens == wanted
    assert generate(model, b"\xff\xfe", 5)[0].prompt == [255, 254]  # bytes need be no text
    for wrong in (None, 5, [1.5, 2], [[1], None]):
        with pytest.raises(UserError, match="it is a text, or a list of token ids"):
            generate(model, wrong, 5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="prompt 1 is empty"):
        generate(model, ["a", ""], 5)
    model.codec, codec = None, model.codec
    try:
        assert generate(model, [97, 98], 5)[0].text is None
        with pytest.raises(UserError, match="no codec"):
            generate(model, "ab", 5)
        with pytest.raises(UserError, match="stop texts need a codec"):
            generate(model, [97], 5, stop="a")
    finally:
        model.codec = codec


def test_a_row_is_its_seeds_alone(models: dict[str, LatentLM]) -> None:
    for arm in (*ARMS, "learned"):
        rows = generate(models[arm], ["ab", "c"], 8, samples=2, seed=[4, 9, 4, 2])
        assert [sample.seed for sample in rows] == [4, 9, 4, 2]
        assert generate(models[arm], "c", 8, seed=2)[0].tokens == rows[3].tokens
        assert rows[0].tokens != rows[1].tokens
    state = torch.get_rng_state()
    generate(models["free"], "a", 4)
    assert torch.equal(state, torch.get_rng_state())
    for wrong in ([1, 2, 3], -1, 2**63):
        with pytest.raises(UserError, match="seed"):
            generate(models["free"], ["a", "b"], 2, seed=wrong)


def test_weights_that_diverged_are_told() -> None:
    model = randomise(lvlm.build("baseline", *SMALL))
    with torch.no_grad():
        model.backbone.blocks[0].mlp.down.weight.fill_(torch.nan)
    with pytest.raises(NotFinite, match="NaN or infinity"):
        generate(model, "a", 3)


# ---------------------------------------------------------------------------------------------------------
# codes


def test_codes_of_the_prior_are_uniform(models: dict[str, LatentLM]) -> None:
    rows = generate(models["free"], [65], 24, samples=200, prompt_codes="prior")
    counts = torch.bincount(codes_of(rows).flatten(), minlength=16).double()
    expected = counts.sum() / 16
    assert ((counts - expected).square() / expected).sum() < 37.7  # chi-square of 15, one in a thousand
    vectors = codes_of(generate(models["gptvae"], [65], 2, samples=500, prompt_codes="prior"))
    assert vectors.mean().abs() < 4 / math.sqrt(1000)
    assert (vectors.var() - 1).abs() < 4 * math.sqrt(2 / 1000)


@pytest.mark.parametrize("arm", ["free", "gptvae", "learned"])
def test_samples_may_share_their_codes(models: dict[str, LatentLM], arm: str) -> None:
    shared = generate(models[arm], ["ab", "xyz"], 9, samples=3, share_codes=True)
    for group in (shared[:3], shared[3:]):
        for sample in group:
            assert sample.codes is not None
            assert group[0].codes is not None
            assert torch.equal(sample.codes, group[0].codes)
            alone = generate(models[arm], sample.prompt, 9, seed=sample.seed, codes=sample.codes)[0]
            assert alone.tokens == sample.tokens
        assert group[0].tokens != group[1].tokens
    own = generate(models[arm], ["ab", "xyz"], 9, samples=3)
    assert not torch.equal(codes_of(own)[0], codes_of(own)[1])
    assert own[0].tokens == shared[0].tokens
    if arm != "learned":  # a learned prior's codes follow the text
        one, other = generate(models[arm], "ab", 9, samples=2, code_seed=3)
        assert one.codes is not None
        assert other.codes is not None
        assert torch.equal(one.codes, other.codes)
        assert one.tokens != other.tokens


@pytest.mark.parametrize("arm", ["free", "learned"])
def test_some_slots_are_held_and_the_others_drawn(models: dict[str, LatentLM], arm: str) -> None:
    drawn = generate(models[arm], "ab", 9, seed=1)[0].codes
    given = torch.arange(10) % 16
    held = generate(models[arm], "ab", 9, seed=1, codes=given, hold=[0, 4, 9])[0].codes
    assert drawn is not None
    assert held is not None
    assert held[[0, 4, 9]].tolist() == [0, 4, 9]
    if arm == "free":
        rest = [1, 2, 3, 5, 6, 7, 8]
        assert torch.equal(held[rest], drawn[rest])
    fewer = generate(models[arm], "ab", 9, seed=1, codes=given[:3])[0].codes
    assert fewer is not None
    assert fewer[:3].tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="slot 10, but codes are given for slots 0 to 9"):
        generate(models[arm], "ab", 9, codes=given, hold=[10])
    with pytest.raises(UserError, match="no codes are given"):
        generate(models[arm], "ab", 9, hold=[1])


def test_one_code_for_all_slots_is_out_of_distribution_but_for_one_slot(models: dict[str, LatentLM]) -> None:
    with pytest.warns(OutOfDistribution, match="one code for all 10 slots"):
        codes = generate(models["free"], "ab", 9, codes=turn.code_of(models["free"], bits="0110"))[0].codes
    assert codes is not None
    assert codes.tolist() == [6] * 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = torch.get_rng_state()
        vector = turn.code_of(models["gptvae"], vector=[0.5, -1])
        assert torch.equal(state, torch.get_rng_state())
        codes = generate(models["gptvae"], "ab", 9, codes=vector)[0].codes
    assert codes is not None
    assert codes.tolist() == [[0.5, -1.0]]


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "out of range": ("free", {"codes": torch.full((1, 9), 16)}, "index from 0 to 15"),
    "NaN": ("gptvae", {"codes": torch.full((1, 1, 2), math.nan)}, "NaN or infinity"),
    "floats for indices": ("free", {"codes": torch.zeros(1, 9)}, "integer"),
    "other dimensions": ("gptvae", {"codes": torch.zeros(1, 1, 3)}, "floats of shape"),
    "other rows": ("free", {"codes": torch.zeros(3, 9, dtype=torch.long)}, "given for 1 rows"),
    "no latent": ("baseline", {"codes": 3}, "no latent"),
    "an unknown option": ("free", {"temprature": 1}, "did you mean 'temperature'"),
    "top_p": ("free", {"top_p": 0.0}, "top_p is 0.0"),
    "min_p": ("free", {"min_p": 2.0}, "min_p is 2.0"),
    "a penalty of 0": ("free", {"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
    "an infinite temperature": ("free", {"temperature": math.inf}, "temperature is inf"),
    "no samples": ("free", {"samples": 0}, "samples is 0"),
    "prompt codes": ("free", {"prompt_codes": "prio"}, "did you mean 'prior'"),
    "a temperature in words": ("free", {"temperature": "x"}, "temperature is 'x'; it is a number"),
    "half a token": ("free", {"top_k": 2.5}, "top_k is 2.5; it is a whole number"),
    "a seed in words": ("free", {"seed": "x"}, "seed"),
    "one slot": ("free", {"codes": 3, "hold": 2}, "hold is 2"),
    "codes in words": ("free", {"codes": "0110"}, "codes is '0110'"),
    "too many rows": ("free", {"samples": 10**9}, "at most 65536"),
    "no temperature": ("free", {"temperature": None}, "temperature is None; it is a number"),
    "no number of samples": ("free", {"samples": None}, "samples is None; it is a whole number"),
    "true for a number": ("free", {"top_k": True}, "top_k is True; it is a whole number"),
    "a stop in numbers": ("free", {"stop": [1]}, r"stop is \[1\]; it is a text, or several"),
    "codes of no slot": (
        "free",
        {"codes": [torch.tensor(3)]},
        r"a list of 1 for 1 row; give one tensor \[slots\] per row",
    ),
    "an empty stop": ("free", {"stop": ["a", ""]}, "stop text is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_told(models: dict[str, LatentLM], case: str) -> None:
    arm, options, told = BAD[case]
    with pytest.raises(UserError, match=told):
        generate(models[arm], "ab", 8, **options)


@settings(max_examples=1000)
@given(
    arm=st.sampled_from([*ARMS, "learned"]),
    prompts=st.lists(st.lists(st.integers(0, 255), max_size=5), min_size=1, max_size=3),
    tokens=st.integers(0, 5),
    options=st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.sampled_from([0.0, 1e-9, 0.3, 1.0, 50.0, -1.0, math.nan]),
            "top_k": st.sampled_from([None, 0, 1, 3, 1000]),
            "top_p": st.sampled_from([None, 0.0, 1e-6, 0.5, 1.0, 1.5]),
            "min_p": st.sampled_from([None, 0.0, 0.5, 1.0, -1.0]),
            "repetition_penalty": st.sampled_from([1.0, 0.5, 2.0, 0.0]),
            "seed": st.sampled_from([0, 7, 2**62, -1]),
            "samples": st.integers(0, 2),
            "share_codes": st.booleans(),
            "code_seed": st.sampled_from([None, 3]),
            "prompt_codes": st.sampled_from(["posterior", "prior"]),
            "stop": st.sampled_from([(), "a", ["b", "cd"], ""]),
            "codes": st.sampled_from([None, 1, 15, 16, -1]),
            "hold": st.sampled_from([None, [0], [0, 1], [99], []]),
        },
    ),
)
def test_no_options_crash(
    models: dict[str, LatentLM], arm: str, prompts: list[list[int]], tokens: int, options: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutOfDistribution)
        try:
            found = generate(models[arm], prompts, tokens, **options)
        except UserError:
            return
    assert len(found) == len(prompts) * options.get("samples", 1)
    for sample in found:
        assert sample.log_prob_N.isfinite().all()
        assert len(sample.tokens) == tokens or sample.ended_by in options["stop"]


def test_codes_of_rows_that_stopped_are_kept_as_far_as_they_go(models: dict[str, LatentLM]) -> None:
    options: dict[str, Any] = {"samples": 2, "seed": 3}
    whole = generate(models["free"], ["abcd", "x"], 12, **options)
    stopped = [sample.codes[:5] for sample in whole if sample.codes is not None]
    stopped[1] = stopped[1][:2]
    again = generate(models["free"], ["abcd", "x"], 12, codes=stopped, **options)
    assert [sample.tokens for sample in again] == [
        sample.tokens for sample in whole
    ]  # the rest is drawn as it was
    with pytest.raises(UserError, match=r"a list of 1 for 4 rows; give one tensor \[slots\] per row"):
        generate(models["free"], ["abcd", "x"], 12, codes=stopped[:1], **options)


# ------------------------------------------------------------------------------------------------ turned
# codes


def test_a_long_text_is_encoded_in_windows_and_characters_stay_whole(models: dict[str, LatentLM]) -> None:
    text = "naïve Zähler, 日本 " * 30
    found = encode_in_windows(models["free"], text, 16, seed=4)
    assert all(len(one.tokens) == 16 for one in found[:-1])
    assert [i for one in found for i in one.tokens] == list(text.encode())
    assert (
        "".join(piece for one in encode(models["free"], "naïve 日本") for piece in one.texts or [])
        == "naïve 日本"
    )
    alone = encode(models["free"], found[20].tokens, seed=24)[0]
    assert torch.equal(alone.codes, found[20].codes)


def test_encoding_gives_the_codes_that_generation_gives_a_prompt(models: dict[str, LatentLM]) -> None:
    for arm in ("free", "gptvae", "learned"):
        encoded = encode(models[arm], ["abc", "x"], seed=4)
        samples = generate(models[arm], ["abc", "x"], 5, seed=4)
        for one, sample in zip(encoded, samples, strict=True):
            assert sample.codes is not None
            assert torch.equal(one.codes, sample.codes[: len(one.codes)])
            assert torch.isclose(one.kl_T.sum(), one.kl_Sd.sum())
            assert len(one.kl_T) == len(one.tokens) == len(one.texts or [])
    with pytest.raises(UserError, match="no latent"):
        encode(models["baseline"], "abc")


def test_bits_and_indices_are_the_same_codes(models: dict[str, LatentLM]) -> None:
    codes = torch.arange(16)
    assert torch.equal(turn.from_bits(turn.to_bits(codes, 4)), codes)
    flipped = turn.flip(models["free"], codes, 2)
    assert torch.equal(turn.flip(models["free"], flipped, 2), codes)
    assert ((flipped ^ codes) == 4).all()
    assert turn.flip(models["free"], codes, 0, slots=[3]).tolist() == [0, 1, 2, 2, *range(4, 16)]
    for wrong in (-1, 4):
        with pytest.raises(UserError, match="bits 0 to 3"):
            turn.flip(models["free"], codes, wrong)
    with pytest.raises(UserError, match="no slot 16"):
        turn.flip(models["free"], codes, 0, slots=[16])
    with pytest.raises(UserError, match="continuous"):
        turn.flip(models["gptvae"], torch.zeros(1, 2), 0)
    with pytest.raises(UserError, match="a code has 2 numbers; the vector has 3"):
        turn.code_of(models["gptvae"], vector=[0.0, 1.0, 2.0])
    for how in (
        {},
        {"index": 1, "bits": "0000"},
        {"bits": "01"},
        {"bits": "012x"},
        {"vector": [1.0]},
        {"index": 10**30},
        {"index": [3, 16]},
        {"bits": ["01", "1", "0", "1"]},
    ):
        with pytest.raises(UserError):
            turn.code_of(models["free"], **how)


@pytest.mark.parametrize("levels", [[4, 2], [5, 3]], ids=["8 codes", "15 codes"])
def test_indices_without_bits_say_so_and_change_slot_by_slot(levels: list[int]) -> None:
    """A grid of 8 points has no bits either: the index counts levels."""
    quantizer = f"model.quantizer={{kind: fsq, levels: {levels}}}"
    model = lvlm.build("free", "model.backbone.width=32", quantizer)
    last = math.prod(levels) - 1
    words = rf"the codes of FSQ are indices without bits: give an index from 0 to {last} \(--code\)"
    one, other = torch.tensor([0, 1, 2, 3]), torch.tensor([7, 1, 5, 0])
    for wrong in (lambda: turn.flip(model, one, 0), lambda: turn.code_of(model, bits="011")):
        with pytest.raises(UserError, match=words):
            wrong()
    with pytest.raises(UserError, match=f"an index from 0 to {last}, not a vector"):
        turn.code_of(model, vector=[0.0, 1.0])
    assert turn.code_of(model, index=last).item() == last
    way = interpolate(model, one, other, 4)
    assert [int((now != one).sum()) for now in way] == [0, 1, 2, 3]
    assert all(((now == one) | (now == other)).all() for now in way)


@given(st.integers(2, 9), st.integers(0, 99))
def test_a_way_by_hamming_changes_ever_more_bits(models: dict[str, LatentLM], steps: int, seed: int) -> None:
    one, other = torch.tensor([0, 5, 15, 3, 8]), torch.tensor([15, 5, 0, 1])
    way = interpolate(models["free"], one, other, steps, seed=seed)
    assert torch.equal(way[0], one[:4])
    assert torch.equal(way[-1], other)
    distances = [int(turn.to_bits(now ^ other, 4).sum()) for now in way]
    assert distances == sorted(distances, reverse=True)
    travelled = [int(turn.to_bits(now ^ one[:4], 4).sum()) for now in way]
    assert all(sum(pair) == distances[0] for pair in zip(distances, travelled, strict=True))


def test_gaussian_codes_go_straight_or_round(models: dict[str, LatentLM]) -> None:
    model, one, other = models["gptvae"], torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    straight = interpolate(model, one, other, 3, how="linear")
    assert torch.allclose(straight[1], torch.tensor([[1.5, 0.5]]))
    round_ = interpolate(model, one, other, 3, how="spherical")
    assert torch.allclose(round_[1], torch.tensor([[2.0, 2.0]]) / math.sqrt(2))
    for way in (straight, round_):
        assert torch.allclose(way[0], one)
        assert torch.allclose(way[2], other)
    assert torch.allclose(interpolate(model, one, one, 3, how="spherical")[1], one)
    for how, codes in (("hamming", one), ("speherical", one)):
        with pytest.raises(UserError, match="no way"):
            interpolate(model, codes, codes, 3, how=how)
    with pytest.raises(UserError, match="two ends"):
        interpolate(model, one, other, 1)
    with pytest.raises(UserError, match="a code has 2 numbers; the vector has 3"):
        turn.code_of(model, vector=[1, 2, 3])


@pytest.mark.parametrize("arm", ["free", "gptvae"])
def test_texts_between_begin_and_end_with_the_texts_own_codes(models: dict[str, LatentLM], arm: str) -> None:
    found = texts_between(models[arm], "abcde", "abxyz", 3, seed=2)
    ends = encode(models[arm], ["abcde", "abxyz"], seed=2)
    assert [sample.prompt for sample in found] == [[97, 98]] * 3
    for sample, end in ((found[0], ends[0]), (found[2], ends[1])):
        assert sample.codes is not None
        shared = min(len(sample.codes), len(end.codes))
        assert torch.allclose(sample.codes[:shared].double(), end.codes[:shared].double())
    assert {sample.seed for sample in found} == {2}
