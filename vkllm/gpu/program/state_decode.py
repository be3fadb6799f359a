"""Layers with a state in steps of one token: a delta net with its convolution and its norm is one link.

Knows what delta_net_fused needs. Other operations with a state run as in steps of several rows.
"""

from __future__ import annotations

from vkllm.gpu.device.kernel import float_bits
from vkllm.gpu.device.kompute import Buffer, Device
from vkllm.gpu.program.buffers import ModelBuffers
from vkllm.gpu.program.fitting import most_invocations
from vkllm.gpu.program.kernels import KERNELS
from vkllm.gpu.program.links import Link
from vkllm.gpu.program.state_operations import lanes_of_state
from vkllm.model.memory.states import slot_words
from vkllm.model.mixers import DeltaNet
from vkllm.model.state_ops import Convolution, DeltaNetStep, GatedNorm

MOST_INVOCATIONS = 512
"""Of a workgroup of delta_net_fused."""


class StateDecode:
    """Makes the links. step: the step buffer on the device. chain, failure: see Decode. most_polls: of a wait, 0 if
    nothing is chained."""

    def __init__(
        self, device: Device, buffers: ModelBuffers, step: Buffer, chain: Buffer, failure: Buffer, most_polls: int
    ) -> None:
        self._device = device
        self._buffers = buffers
        self._step = step
        self._chain = chain
        self._failure = failure
        self._most_polls = most_polls

    def can_fuse(self, convolution: Convolution, op: DeltaNetStep, norm: GatedNorm) -> bool:
        """Whether delta_net_fused can compute the three: they follow each other and read the same row."""
        is_simple = convolution.function == "silu" and not convolution.is_gated and convolution.bias is None
        is_own_norm = norm.group == op.net.head_dim and not norm.is_gated_first and not norm.has_weight_per_group
        follow = (convolution.output, op.output) == (op.input, norm.input)
        is_one_row = convolution.input == op.gates == norm.gates and convolution.column == 0
        return is_simple and is_own_norm and follow and is_one_row

    def delta_net(self, convolution: Convolution, op: DeltaNetStep, norm: GatedNorm) -> Link:
        """The three in one dispatch, a workgroup for each value head."""
        buffers, net, is_chained = self._buffers, op.net, self._most_polls > 0
        size, lanes = self.sizes(net)
        state_word, n_words = slot_words(buffers.spec.layers[op.layer])
        dispatch = self._device.dispatch(
            KERNELS["delta_net_fused"],
            (
                *(buffers.activations[op.gates].values, buffers.vectors[convolution.weight], buffers.states[op.layer]),
                *(buffers.vectors[op.dt], buffers.vectors[op.a], buffers.vectors[norm.weight]),
                *(buffers.activations[norm.output].values, self._step, self._chain, self._failure),
            ),
            constants=(
                *(size, lanes, net.n_k_heads, net.n_v_heads, net.head_dim, net.n_kernel, int(net.are_heads_grouped)),
                *(norm.column, op.beta_column, op.alpha_column, int(net.has_fused_beta_alpha)),
                *(float_bits(op.eps), float_bits(norm.eps), n_words, state_word, self._most_polls),
            ),
            groups=(net.n_v_heads, 1),
            push=(0, 0),
            is_chained=is_chained,
        )
        return Link((dispatch,), net.n_v_heads if is_chained else 0)

    def sizes(self, net: DeltaNet) -> tuple[int, int]:
        """Invocations of a workgroup, and lanes of a team."""
        info = self._device.info
        lanes = lanes_of_state(net.head_dim, info.subgroup_size)
        wanted = -(-net.head_dim * lanes // info.subgroup_size) * info.subgroup_size
        return min(wanted, MOST_INVOCATIONS, most_invocations(info)), lanes
