"""Sampling: each sampler's effect, the seed, and the draws' distribution."""

import numpy as np
import pytest

from vkllm.engine.params import SamplingParams
from vkllm.engine.sampler import Sampler, logprobs, pick, random_word, slope
from vkllm.errors import InvalidParameter
from vkllm.gpu.program.step import KEEP_ALL, Draw

LOGITS = np.log(np.array([0.05, 0.5, 0.25, 0.15, 0.05], np.float32))
NO_CUTS = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


def drawn(n: int = 2000, prompt: tuple[int, ...] = (), **options: float) -> list[float]:
    """Shares of the five tokens among n first draws of n seeds."""
    counts = np.zeros(5)
    for seed in range(n):
        counts[Sampler(SamplingParams(seed=seed, **options), prompt).choose(LOGITS)] += 1
    return list(counts / n)


def test_draws_follow_the_distribution() -> None:
    assert np.allclose(drawn(8000, temperature=1.0, **NO_CUTS), np.exp(LOGITS), atol=0.02)


def test_temperature_sharpens_and_flattens() -> None:
    assert drawn(temperature=0.1, **NO_CUTS)[1] > 0.99
    assert np.allclose(drawn(8000, temperature=100, **NO_CUTS), 0.2, atol=0.03)


def test_greedy_takes_the_largest() -> None:
    assert Sampler(SamplingParams(temperature=0), ()).choose(LOGITS) == 1


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2, "top_p": 1.0, "min_p": 0.0}, {1, 2}),
        ({"top_k": 1, "top_p": 1.0, "min_p": 0.0}, {1}),
        ({"top_k": 0, "top_p": 0.7, "min_p": 0.0}, {1, 2}),
        ({"top_k": 0, "top_p": 0.0, "min_p": 0.0}, {1}),
        ({"top_k": 0, "top_p": 1.0, "min_p": 0.4}, {1, 2}),
        ({"top_k": 0, "top_p": 1.0, "min_p": 0.0}, {0, 1, 2, 3, 4}),
    ],
)
def test_truncation_keeps_just_these(options: dict[str, float], kept: set[int]) -> None:
    shares = drawn(1500, temperature=1.0, **options)
    assert {token for token, share in enumerate(shares) if share} == kept


@pytest.mark.parametrize("temperature", [0.25, 1.0, 7.0])
def test_every_token_has_its_exact_share_of_the_numbers(temperature: float) -> None:
    """Where the choice goes from one token to the next tells the probabilities to many digits."""
    scores = np.array([3.0, 1.25, -0.5, -4.0], np.float32)
    wanted = np.cumsum(np.exp((scores - 3.0) / temperature, dtype=np.float64))
    for i in range(3):
        low, high = 0, 2**32
        while high - low > 1:
            number = (low + high) // 2
            low, high = (number, high) if pick(scores, _plain(temperature, number)) <= i else (low, number)
        # weights are integers of 2^25, exponents float32: 2^-23 for up to 40 halvings
        assert high / 2**32 == pytest.approx(wanted[i] / wanted[-1], abs=2e-6)


def _plain(temperature: float, number: int) -> Draw:
    return Draw(top_k=0, top_p=KEEP_ALL, min_p=0, slope=slope(temperature), number=number)


def test_of_equal_scores_the_first_are_kept() -> None:
    scores = np.array([0, 5, 2, 5, 2, 2, 5, 0], np.float32)
    options = {"temperature": 100.0, "top_k": 4, "top_p": 1.0, "min_p": 0.0}
    drawn = {Sampler(SamplingParams(seed=seed, **options), ()).choose(scores) for seed in range(100)}
    assert drawn == {1, 3, 6, 2}


def test_a_minus_infinite_score_is_never_drawn() -> None:
    scores = np.array([-np.inf, 0.0, -np.inf, 1.0], np.float32)
    options = {"temperature": 100.0} | NO_CUTS
    assert {Sampler(SamplingParams(seed=seed, **options), ()).choose(scores) for seed in range(50)} == {1, 3}


def test_penalties_lower_what_was_there() -> None:
    plain = drawn(temperature=1.0, **NO_CUTS)[1]
    assert drawn(prompt=(1,), temperature=1.0, presence_penalty=2.0, **NO_CUTS)[1] < plain - 0.2
    assert drawn(prompt=(1,), temperature=1.0, repetition_penalty=3.0, **NO_CUTS)[1] < plain - 0.2
    once = drawn(prompt=(1,), temperature=1.0, frequency_penalty=0.5, **NO_CUTS)[1]
    assert drawn(prompt=(1, 1, 1), temperature=1.0, frequency_penalty=0.5, **NO_CUTS)[1] < once < plain
    outside = drawn(prompt=(1, 2, 2), temperature=1.0, presence_penalty=2.0, penalty_window=2, **NO_CUTS)[1]
    assert outside > plain, "token 1 is outside the window, and token 2 was lowered"


def test_generated_tokens_count_for_the_penalties() -> None:
    sampler = Sampler(SamplingParams(temperature=0, presence_penalty=2.0), ())
    assert [sampler.choose(LOGITS) for _ in range(3)] == [1, 2, 3]


def test_the_same_seed_gives_the_same_tokens() -> None:
    rng = np.random.default_rng(0)
    steps = rng.normal(0, 2, (50, 1000)).astype(np.float32)

    def tokens(seed: int) -> list[int]:
        sampler = Sampler(SamplingParams(seed=seed, temperature=1.5), ())
        return [sampler.choose(logits) for logits in steps]

    assert tokens(7) == tokens(7) != tokens(8)


def test_without_a_seed_answers_differ() -> None:
    assert len({Sampler(SamplingParams(), ()).seed for _ in range(5)}) == 5


def test_uniform_numbers_are_even_and_independent() -> None:
    numbers = np.array([[random_word(seed, n) for n in range(40)] for seed in range(200)]) / 2**32
    assert numbers.min() >= 0 and numbers.max() < 1
    assert np.allclose(np.histogram(numbers, 10, (0, 1))[0] / numbers.size, 0.1, atol=0.015)
    assert abs(np.corrcoef(numbers[:, 0], numbers[:, 1])[0, 1]) < 0.2


def test_philox_vectors() -> None:
    # Random123's known answers for philox2x32-10: (counter, key) -> first word
    assert random_word(0, 0) == 0xFF1DAE59
    assert random_word(0xFFFFFFFF_FFFFFFFF, 0xFFFFFFFF) == 0x2C3F628B
    assert random_word(0x85A308D3_13198A2E, 0x243F6A88) == 0xDD7CE038


def test_logprobs() -> None:
    chosen, top = logprobs(LOGITS + 3, 2, 3)
    assert chosen == pytest.approx(np.log(0.25), abs=1e-6)
    assert [(entry.token_id, round(np.exp(entry.logprob), 3)) for entry in top] == [(1, 0.5), (2, 0.25), (3, 0.15)]
    assert logprobs(LOGITS, 0, 0)[1] == ()


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1}, {"top_p": 1.1}, {"min_p": float("nan")}, {"max_tokens": 0}, {"seed": -2}, {"stop": ("",)},
     {"logprobs": 10**6}, {"temperature": "hot"}, {"top_k": -2}],
)  # fmt: skip
def test_values_out_of_range_are_named(options: dict[str, object]) -> None:
    with pytest.raises(InvalidParameter, match=next(iter(options))):
        SamplingParams(**options)


def test_biases_are_added_before_penalties_and_the_cpu_chooses() -> None:
    greedy = SamplingParams(temperature=0, logit_bias={3: 100, 1: -100})
    sampler = Sampler(greedy, ())
    assert not sampler.suits_gpu and Sampler(SamplingParams(temperature=0), ()).suits_gpu
    assert sampler.choose(LOGITS) == 3
    assert drawn(200, logit_bias={1: -100}, **NO_CUTS)[1] == 0  # type: ignore[arg-type]
    # the penalty divides what the bias has made of a logit
    both = SamplingParams(temperature=0, logit_bias={0: 10}, repetition_penalty=100)
    assert Sampler(both, (0,)).choose(np.float32([0, 1, 0])) == 1
    assert Sampler(both, ()).choose(np.float32([0, 1, 0])) == 0


def test_a_seed_of_minus_one_is_drawn() -> None:
    assert len({Sampler(SamplingParams(seed=-1), ()).seed for _ in range(3)}) == 3
    assert Sampler(SamplingParams(seed=0), ()).seed == 0
