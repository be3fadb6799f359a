"""What layers cache of a token: keys and values, latent vectors only, or nothing."""

from dataclasses import replace

from model_specs import LAYER, of_layers

from vkllm.model.memory.needs import Needs, cache_bytes
from vkllm.model.memory.sequences import Room
from vkllm.model.mixers import LatentAttention, ShortConvolution
from vkllm.model.spec import LayerSpec

LATENT = replace(LAYER, n_heads=4, n_kv_heads=1, head_dim=48, mixer=LatentAttention(0, 32, 16, 16, 32))
CONVOLUTION = replace(LAYER, mixer=ShortConvolution(3, 96))
SHARED = replace(LAYER, cache_layer=0)


def bytes_of(*layers: LayerSpec) -> int:
    spec = of_layers(*layers)
    return Needs(spec, {}, 8, 8, "f16", "q8_0").layer_cache_bytes(Room(64, 1, 2, 0, 0), layers[-1])


def test_keys_and_values_have_formats_of_their_own() -> None:
    assert LAYER.cached_widths == (64, 64)
    assert bytes_of(LAYER) == 64 * (2 * 64 + 2 * 36)


def test_a_latent_vector_is_cached_as_a_key_without_a_value() -> None:
    assert LATENT.cached_widths == (48,)
    assert bytes_of(LATENT) == 64 * 2 * 48


def test_layers_that_read_anothers_cache_or_keep_a_state_cache_nothing() -> None:
    assert SHARED.cached_widths == CONVOLUTION.cached_widths == ()
    assert bytes_of(LAYER, SHARED) == bytes_of(CONVOLUTION) == 0
    assert cache_bytes(of_layers(LAYER, SHARED, CONVOLUTION, LATENT), 10) == 10 * (2 * 2 * 64 + 2 * 48)
