"""Plans a model on a device without loading it: what `vkllm plan` and model pickers show.

It joins what other files know: where models are, what they hold, what a device has room for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, Unpack

from vkllm.api.loading import PlacingOptions, plan_options, read_text
from vkllm.errors import InvalidParameter, OutOfDeviceMemory
from vkllm.formats.gguf import ModelFile, TensorInfo
from vkllm.gpu.device.limits import device_limits
from vkllm.gpu.device.probe import DeviceInfo, devices
from vkllm.gpu.device.several import chosen_devices, joined_names, members
from vkllm.gpu.measure.speeds import measured_exchange, measured_speeds
from vkllm.gpu.program.buffers import HEAD_ROWS
from vkllm.gpu.program.kernels import MAX_ROWS
from vkllm.model.architectures import model_spec
from vkllm.model.memory.limits import DeviceLimits
from vkllm.model.memory.options import MOST_DEVICES
from vkllm.model.memory.plan import MemoryPlan, PlanOptions, chosen_context, plan
from vkllm.model.memory.ranks import Division, divide
from vkllm.model.memory.split_plan import Member, SplitPlans, plan_splits
from vkllm.model.memory.step_time import ExchangeSpeed
from vkllm.model.spec import ModelSpec
from vkllm.parameters import checks_names
from vkllm.store import find_model, headers_of, look_up
from vkllm.store.catalog import WheelSource
from vkllm.store.downloads.headers import FetchedHeaders
from vkllm.text.chat import ChatTemplate
from vkllm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ModelPlan:
    """The plan of a model on a device, with the limits and options that it was made from.

    missing_bytes: of the model's files where they are not on this machine; then path is only their name. division: how
    it is spread over devices, where several were asked for; limits is then of the first, plan is of all. others: how it
    could be spread over other_devices, all GPUs of the best kind, where there are several and none was asked for.

    >>> made = plan_model("smollm2", n_ctx=1024, measures=False)
    >>> made.path.name, made.plan.n_ctx
    ('SmolLM2-135M-Instruct.Q4_1.gguf', 1024)
    """

    path: Path
    spec: ModelSpec
    device_name: str
    limits: DeviceLimits
    options: PlanOptions
    plan: MemoryPlan
    missing_bytes: int = 0
    division: Division | None = None
    others: SplitPlans | None = None
    other_devices: tuple[str, ...] = ()


@checks_names(PlacingOptions)
def plan_model(
    model: str | Path,
    *,
    measures: bool = True,
    **placing: Unpack[PlacingOptions],
) -> ModelPlan:
    """Says where each part of a model would lie and how fast it would be, without loading it.

    Of a model of the hub or of an address that is not on this machine only the header is fetched, and not kept.

    >>> made = plan_model("smollm2", n_ctx=1024, measures=False)
    >>> print(f"It takes {made.plan.total_bytes / 2**20:.0f} MiB, {made.plan.tokens_per_s:.0f} tokens/s are expected.")
    It takes ... MiB, ... tokens/s are expected.

    n_ctx: tokens of context; 0 takes the longest that costs no speed; the default is what the model was trained
    for, at most 4096. device: index or part of the name. type_k, type_v: of the cache. n_gpu_layers: layers,
    counted from the last, whose weights may lie in a card's own memory. vram_limit, ram_limit: bytes.
    override_tensor, n_parallel, spec, several devices: see `LLM`. measures: times the device's memory, which takes
    seconds first; otherwise a typical speed of its kind is assumed.

    Raises ModelNotFound, ModelFileError, UnsupportedModel, NoDevice, InvalidParameter, and OutOfDeviceMemory with what
    would fit.
    """
    if not isinstance(model, str | Path):
        raise InvalidParameter(f"model must be a name or a path, not {model!r}")
    options = plan_options(placing)  # wrong ones fail first
    found = _to_plan(str(model), placing.get("n_ctx"))
    known = devices()
    chosen = chosen_devices(known, options)
    infos, options = chosen.infos, chosen.options
    speeds = {info.index: measured_speeds(info) if measures else None for info in infos}
    if len(infos) == 1:
        limits = device_limits(infos[0], speeds[infos[0].index])
        others, other_devices = _others(found, known, options, measures=measures)
        try:
            made = found.plan(limits, options)
        except OutOfDeviceMemory as error:
            if others is None or others.chosen == "none":
                raise
            named = ",".join(other_devices)
            raise OutOfDeviceMemory(f"{error}; or -dev {named}, which splits the model ({others.chosen})") from error
        missing = found.missing_bytes
        return ModelPlan(
            found.path, found.spec, infos[0].name, limits, options, made, missing, None, others, other_devices
        )
    speed = measured_exchange(infos) if measures else None
    division = found.divide(members(infos, speeds), options, speed)
    used = [infos[rank.member] for rank in division.ranks]
    limits = division.splits.members[division.ranks[0].member].limits
    name, made = joined_names([info.name for info in used]), division.plan
    return ModelPlan(found.path, found.spec, name, limits, options, made, found.missing_bytes, division)


def _others(
    found: ModelToPlan, known: Sequence[DeviceInfo], options: PlanOptions, *, measures: bool
) -> tuple[SplitPlans | None, tuple[str, ...]]:
    """How a model could be split over all discrete GPUs, if nothing is asked for and there are several; their names."""
    is_asked = options.devices or options.num_shards or options.split_mode or options.tensor_split
    cards = [info for info in known if info.type == "discrete"][:MOST_DEVICES]
    if is_asked or len(cards) < 2:
        return None, ()
    speeds = {info.index: measured_speeds(info) if measures else None for info in cards}
    try:
        splits = found.splits(members(cards, speeds), options, measured_exchange(cards) if measures else None)
    except OutOfDeviceMemory:
        return None, ()
    return splits, tuple(str(info.index) for info in cards)


def _to_plan(name: str, n_ctx: int | None) -> ModelToPlan:
    """Opens a model, or the headers of one that would have to be fetched from the hub or from an address.

    What the file says of text is checked too: a model that cannot be loaded for it is not planned.
    """
    model = look_up(name)
    if model.path is not None or (model.entry is not None and isinstance(model.entry.source, WheelSource)):
        found = ModelToPlan.open(model.path or find_model(model), n_ctx)
        found.read_text()
        return found
    with headers_of(model) as headers:
        found = ModelToPlan.of_headers(headers, n_ctx)
        found.read_text()
        return found


@dataclass(frozen=True)
class ModelToPlan:
    """What a model's file holds and the context asked for, which may then be planned on any device."""

    path: Path
    file: ModelFile
    spec: ModelSpec
    n_ctx: int
    missing_bytes: int = 0

    @classmethod
    def open(cls, path: Path, n_ctx: int | None) -> Self:
        """Reads a file's header. Raises ModelFileError, UnsupportedModel, InvalidParameter."""
        file = ModelFile.open(path)
        spec = model_spec(file.metadata, file.tensors)
        return cls(path, file, spec, chosen_context(n_ctx, spec.n_ctx_train))

    @classmethod
    def of_headers(cls, headers: FetchedHeaders, n_ctx: int | None) -> Self:
        """The same of headers whose files are elsewhere."""
        file = ModelFile.open(headers.path, headers.whole_bytes)
        spec = model_spec(file.metadata, file.tensors)
        n_ctx = chosen_context(n_ctx, spec.n_ctx_train)
        return cls(Path(headers.path.name), file, spec, n_ctx, headers.n_bytes)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors by name."""
        return self.file.tensors

    def read_text(self) -> tuple[Tokenizer, ChatTemplate]:
        """What the file says of text. Raises ModelFileError, UnsupportedModel."""
        return read_text(self.path, self.file.metadata, self.spec)

    def plan(self, limits: DeviceLimits, options: PlanOptions) -> MemoryPlan:
        """Where its parts lie within limits that are known. Raises OutOfDeviceMemory, InvalidParameter."""
        return plan(self.spec, self.tensors, limits, self.n_ctx, MAX_ROWS, HEAD_ROWS, options)

    def splits(self, members: Sequence[Member], options: PlanOptions, speed: ExchangeSpeed | None = None) -> SplitPlans:
        """All ways of splitting it between members. Raises OutOfDeviceMemory where none fits."""
        return plan_splits(self.spec, self.tensors, members, self.n_ctx, MAX_ROWS, HEAD_ROWS, options, speed=speed)

    def divide(self, devices: Sequence[Member], options: PlanOptions, speed: ExchangeSpeed | None = None) -> Division:
        """The same on several devices, or on the best of them. Raises UnsupportedDevice too."""
        return divide(self.spec, self.tensors, devices, self.n_ctx, MAX_ROWS, HEAD_ROWS, options, speed)
