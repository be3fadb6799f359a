"""top_logits and sample against the numpy sampler: the very same token, whatever the logits and parameters."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from kernel_case import filled, poisoned, step_buffer, words

from vkllm.engine.params import SamplingParams
from vkllm.engine.sampler import Sampler, pick, slope
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.program.kernels import KERNELS, TOP_K, TOP_LOGITS
from vkllm.gpu.program.step import KEEP_ALL, Draw, Part, Result, StepSlots

pytestmark = pytest.mark.gpu

Floats = npt.NDArray[np.float32]
Drawn = Callable[[Floats, Draw], int]
VOCABULARIES = [1, 5, 257, 49152, 128256, 262144]


@pytest.fixture
def drawn(device: Device, n_vocab: int) -> Drawn:
    """Draws a token with both kernels. Every buffer is used again, as a program does.

    The largest logits stay where they are for further draws from the same array.
    """
    return drawer(device, n_vocab, 128)


def drawer(device: Device, n_vocab: int, local_size: int) -> Drawn:
    n_lists = -(-n_vocab // TOP_LOGITS)
    logits, largest = poisoned(device, n_vocab), poisoned(device, 2 * TOP_K * n_lists)
    next_token, chosen = poisoned(device, 4), poisoned(device, 4)
    slots = StepSlots(device, 1, 1)
    constants = (local_size, n_vocab, 0)
    step = slots.buffer
    top_logits = device.dispatch(
        KERNELS["top_logits"], (logits, largest, step), constants=constants, groups=(n_lists, 1)
    )
    sample = device.dispatch(KERNELS["sample"], (largest, next_token, chosen, step), constants=constants)
    recording, another = device.record([top_logits, sample]), device.record([sample])
    last: Floats | None = None

    def draw_one(values: Floats, draw: Draw) -> int:
        nonlocal last
        assert logits.words is not None and largest.words is not None
        assert next_token.words is not None and chosen.words is not None
        is_new, last = values is not last, values
        if is_new:
            logits.words[:n_vocab] = values.view(np.uint32)
            largest.words[:] = 0x7FC00000
        next_token.words[:] = chosen.words[:] = 0x7FC00000
        slots.write(0, [Part(1, [0], 0, [0], results=[Result(draw)])])
        device.wait(device.submit(recording if is_new else another))
        got = words(chosen, (4,))
        assert got[0] == words(next_token, (2,))[1] and list(got[1:]) == [0x7FC00000] * 3
        return int(got[0])

    return draw_one


def random_draw(rng: np.random.Generator) -> Draw:
    """Parameters from the whole of their ranges, their ends more often."""
    params = SamplingParams(
        temperature=float(rng.choice([1e-30, 0.01, 0.3, 0.8, 1.0, 1.7, 10.0, 100.0])),
        top_k=int(rng.choice([1, 2, 40, TOP_K, rng.integers(1, TOP_K + 1)])),
        top_p=float(rng.choice([0.0, 0.1, 0.5, 0.95, 1.0 - 1e-16, 1.0, rng.random()])),
        min_p=float(rng.choice([0.0, 1e-12, 0.05, 0.5, 1.0, rng.random()])),
        seed=int(rng.integers(0, 2**63)),
    )
    return Sampler(params, ()).draw(0)


@pytest.mark.parametrize("n_vocab", VOCABULARIES)
def test_random_draws_are_those_of_the_numpy_sampler(drawn: Drawn, n_vocab: int) -> None:
    rng = np.random.default_rng(n_vocab)
    n_draws = 60 if n_vocab < 10_000 else 15
    tokens = []
    for spread in (0.1, 1.0, 3.0, 20.0):
        for _ in range(4):
            logits = rng.normal(rng.normal(0, 20), spread, n_vocab).astype(np.float32)
            for _ in range(n_draws):
                draw = random_draw(rng)
                tokens.append(drawn(logits, draw))
                assert tokens[-1] == pick(logits, draw), (spread, draw)
    assert len(set(tokens)) >= min(n_vocab, 50), "the draws are not all of the likeliest token"


@pytest.mark.parametrize("n_vocab", VOCABULARIES)
def test_ties_and_extreme_logits(drawn: Drawn, n_vocab: int) -> None:
    rng = np.random.default_rng(1)
    half = rng.random(n_vocab) < 0.5
    normal = rng.normal(0, 3, n_vocab).astype(np.float32)
    cases = {
        "all equal": np.full(n_vocab, -3.0),
        "rounded": np.round(normal),
        "few values": np.where(half, 1.0, 0.5),
        "signed zeros": np.where(half, 0.0, -0.0),
        "tiny": normal * 1e-42,
        "huge": normal * 1e37,
        "one above minus infinity": np.where(np.arange(n_vocab) == n_vocab // 2, 1.0, -np.inf),
        "half minus infinity": np.where(half, -np.inf, normal),
        "very negative": np.where(half, -1e30, normal),
        "falling": -np.arange(n_vocab) / 7,
        "rising": np.arange(n_vocab) / 7,
    }
    for name, logits in cases.items():
        logits[n_vocab // 2] = max(logits[n_vocab // 2], -1e30)
        logits = logits.astype(np.float32)
        for _ in range(25 if n_vocab < 10_000 else 8):
            draw = random_draw(rng)
            assert drawn(logits, draw) == pick(logits, draw), (name, draw)


@pytest.mark.parametrize("n_vocab", [3000])
@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_the_very_number_at_which_the_token_changes_is_the_same(drawn: Drawn, n_vocab: int, temperature: float) -> None:
    """So all weights agree to the last bit."""
    logits = np.random.default_rng(2).normal(0, 2, n_vocab).astype(np.float32)
    largest = logits[np.argsort(-logits)[:TOP_K]]

    def plain(number: int) -> Draw:
        return Draw(TOP_K, KEEP_ALL, 0, slope(temperature), number)

    changes = []
    for least in largest[:-1]:
        low, high = 0, 2**32
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if logits[pick(logits, plain(middle))] >= least else (low, middle)
        changes.append(high)
    assert len(set(changes)) > 30
    for number in (0, *(change - 1 for change in changes), *(c for c in changes if c < 2**32), 2**32 - 1):
        assert drawn(logits, plain(number)) == pick(logits, plain(number)), number


@pytest.mark.parametrize("n_vocab", [301])
def test_draws_follow_the_distribution(drawn: Drawn, n_vocab: int) -> None:
    logits = np.full(n_vocab, -9.0, np.float32)
    logits[[7, 100, 300]] = np.log(np.array([0.5, 0.3, 0.2]), dtype=np.float32)
    sampler = Sampler(SamplingParams(temperature=1.0, top_k=3, top_p=1.0, min_p=0.0, seed=1), ())
    tokens = [drawn(logits, sampler.draw(n)) for n in range(2000)]
    # four standard deviations of 2000 draws are at most 0.045
    assert np.allclose([tokens.count(t) / 2000 for t in (7, 100, 300)], [0.5, 0.3, 0.2], atol=0.045)


def test_workgroups_of_any_size_draw_the_same(device: Device) -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 3, 5000).astype(np.float32)
    draws = [random_draw(rng) for _ in range(20)]
    for local_size in (64, 256):
        drawn = drawer(device, len(logits), local_size)
        assert [drawn(logits, draw) for draw in draws] == [pick(logits, draw) for draw in draws]


@pytest.mark.parametrize("n_vocab", [4100])
def test_top_logits_are_sorted_and_exact(device: Device, n_vocab: int) -> None:
    logits = np.round(np.random.default_rng(5).normal(0, 3, n_vocab), 1).astype(np.float32)
    largest = poisoned(device, 2 * TOP_K * 3)
    buffers = (filled(device, logits), largest, step_buffer(device, [0], [0]))
    device.run([device.dispatch(KERNELS["top_logits"], buffers, constants=(64, n_vocab, 0), groups=(3, 1))])
    got = words(largest, (3, TOP_K, 2))[:, :, 1]
    for i, start in enumerate(range(0, n_vocab, TOP_LOGITS)):
        wanted = start + np.argsort(-logits[start : start + TOP_LOGITS], kind="stable")[:TOP_K]
        assert list(got[i, : len(wanted)]) == list(wanted) and np.all(got[i, len(wanted) :] >= n_vocab)
