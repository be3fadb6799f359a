"""What files say of layers that keep a state in place of keys and values."""

from __future__ import annotations

from dataclasses import replace

from vkllm.errors import ModelFileError
from vkllm.model.architectures.header import Header
from vkllm.model.mixers import DeltaNet, Mamba2, Mixer
from vkllm.model.spec import LayerSpec


def with_mixer(layer: LayerSpec, mixer: Mixer | None) -> LayerSpec:
    """The layer with this in place of attention; None: with nothing."""
    return replace(
        layer, n_heads=0, n_kv_heads=0, head_dim=0, rope=None, attention_scale=1.0, has_fused_qkv=False, mixer=mixer
    )


def read_mamba2(header: Header) -> Mamba2:
    """The state space of Granite 4 H and Nemotron H. Raises ModelFileError for widths that no heads divide."""
    n_heads, d_inner = header.integer("ssm.time_step_rank"), header.integer("ssm.inner_size")
    return Mamba2(
        n_heads=n_heads,
        head_dim=_share(header, "ssm.inner_size", d_inner, n_heads),
        d_state=header.integer("ssm.state_size"),
        n_groups=header.integer("ssm.group_count"),
        n_kernel=header.integer("ssm.conv_kernel"),
    )


def read_delta_net(header: Header, *, is_qwen3_next: bool = False) -> DeltaNet:
    """The gated delta net of Qwen 3.5 or Qwen 3 Next. Raises ModelFileError for sizes that contradict each other."""
    head_dim, n_v_heads = header.integer("ssm.state_size"), header.integer("ssm.time_step_rank")
    if _share(header, "ssm.inner_size", header.integer("ssm.inner_size"), n_v_heads) != head_dim:
        raise ModelFileError(
            f"{header.metadata.path}: {n_v_heads} value heads of {head_dim} do not make an ssm.inner_size of "
            f"{header.integer('ssm.inner_size')}; the file is damaged"
        )
    return DeltaNet(
        n_k_heads=header.integer("ssm.group_count"),
        n_v_heads=n_v_heads,
        head_dim=head_dim,
        n_kernel=header.integer("ssm.conv_kernel"),
        are_heads_grouped=is_qwen3_next,
        has_fused_beta_alpha=is_qwen3_next,
    )


def _share(header: Header, key: str, width: int, n_heads: int) -> int:
    if n_heads < 1 or width % n_heads:
        raise ModelFileError(
            f"{header.metadata.path}: {n_heads} heads cannot share an {key} of {width}; the file is damaged"
        )
    return width // n_heads
