"""Opens the devices of a model and loads it: on one as a program, on several as a group of programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from vkllm.engine.load_times import LoadTimes
from vkllm.engine.requests import EngineConfig
from vkllm.errors import DeviceLost, DeviceTimeout, VkllmError
from vkllm.formats.tensor_bytes import SharedReads
from vkllm.gpu.device.kompute import Device
from vkllm.gpu.device.probe import DeviceInfo, devices
from vkllm.gpu.device.several import chosen_devices, joined_names, members
from vkllm.gpu.measure.speeds import measured_exchange, measured_speeds
from vkllm.gpu.program.buffers import HEAD_ROWS
from vkllm.gpu.program.exchange import Exchange, Share, VocabularyPart
from vkllm.gpu.program.group import ProgramGroup, Runner
from vkllm.gpu.program.kernels import MAX_ROWS
from vkllm.gpu.program.lockstep import Lockstep
from vkllm.gpu.program.pipeline import Pipeline
from vkllm.gpu.program.program import Program
from vkllm.gpu.program.self_check import check_kernels
from vkllm.gpu.program.whole_texts import WholeTexts
from vkllm.gpu.tuning.cache import kept_choice
from vkllm.gpu.tuning.space import model_kind
from vkllm.model.memory.exchange_memory import Exchanged
from vkllm.model.memory.options import PlanOptions
from vkllm.model.memory.ranks import Division, Rank, divide
from vkllm.model.memory.split_plan import n_exchanges_of


@dataclass(frozen=True)
class Opened:
    """Open devices and the model on them. slow_paths: what any of the devices computes wrongly, so that slower kernels
    do it."""

    devices: tuple[Device, ...]
    program: Program | ProgramGroup
    slow_paths: tuple[str, ...]

    @property
    def name(self) -> str:
        """The names of the devices, for people."""
        return joined_names([device.info.name for device in self.devices])

    @property
    def has_cpu_device(self) -> bool:
        """Whether one of the devices is a Vulkan driver on the CPU."""
        return any(device.info.type == "cpu" for device in self.devices)

    def close(self) -> None:
        """Releases the devices. Safe to call twice."""
        if isinstance(self.program, ProgramGroup):
            self.program.close()
        for device in self.devices:
            device.close()

    def save_pipelines(self) -> None:
        """Writes the pipeline caches to disk, if they grew."""
        for device in self.devices:
            device.save_pipelines()


def told(error: VkllmError, name: str, doing: str) -> VkllmError:
    """The same error, with the devices and what they were doing."""
    return type(error)(f"{name}, {doing}: {error}")


@contextmanager
def telling(name: str, doing: str) -> Iterator[None]:
    """Around what devices do: if one is lost or hangs, the error says what they were doing."""
    try:
        yield
    except (DeviceLost, DeviceTimeout) as error:
        raise told(error, name, doing) from error


def opened(config: EngineConfig, on_bytes: Callable[[int], None], times: LoadTimes) -> Opened:
    """Opens the devices and loads the model. on_bytes: called with bytes loaded since the last call, by any thread.

    Raises any VkllmError.
    """
    options = config.options
    if config.device is not None:
        options = replace(options, devices=(config.device,))
    chosen = chosen_devices(devices(), options)
    infos, division = chosen.infos, None
    if len(infos) > 1:
        division = divided(config, infos, chosen.options)
        infos = tuple(infos[rank.member] for rank in division.ranks)
    with ExitStack() as undo, telling(joined_names([info.name for info in infos]), f"loading {config.path.name}"):
        opened_devices: list[Device] = []
        for info in infos:
            opened_devices.append(Device(str(info.index)))
            undo.callback(opened_devices[-1].close)
        slow_paths = tuple(dict.fromkeys(kind for device in opened_devices for kind in check_kernels(device)))
        times.ended("device")
        program: Program | ProgramGroup
        if division is None or len(division.ranks) == 1:
            program = _program(opened_devices[0], config, chosen.options, on_bytes)
        else:
            program = _group(opened_devices, config, chosen.options, on_bytes, division)
        times.ended("weights")
        undo.pop_all()
    return Opened(tuple(opened_devices), program, slow_paths)


def divided(config: EngineConfig, infos: Sequence[DeviceInfo], options: PlanOptions) -> Division:
    """The model on several devices, as `plan_model` plans it: by measured speeds, where the division depends on them;
    the first time with these devices, that takes seconds. Raises OutOfDeviceMemory, UnsupportedDevice,
    InvalidParameter."""
    depends_on_speeds = options.split_mode is None or not options.tensor_split
    each = {info.index: info for info in infos}
    speeds = {index: measured_speeds(info) if depends_on_speeds else None for index, info in each.items()}
    speed = measured_exchange(infos) if options.split_mode is None else None
    sizes = config.n_ctx, MAX_ROWS, HEAD_ROWS
    return divide(config.spec, config.tensors, members(infos, speeds), *sizes, options, speed)


def _program(
    device: Device,
    config: EngineConfig,
    options: PlanOptions,
    on_bytes: Callable[[int], None],
    rank: Rank | None = None,
    share: Share | None = None,
) -> Program:
    """The model, or a rank's part of it, on a device."""
    spec, tensors = (config.spec, config.tensors) if rank is None else (rank.spec, rank.tensors)
    choice = kept_choice(device.info, model_kind(config.spec, config.tensors))
    planned = None if rank is None else rank.plan
    kind = Program if rank is not None or spec.is_causal else WholeTexts
    return kind(device, spec, config.path, tensors, config.n_ctx, on_bytes, options, choice, planned, share)


def _group(
    opened_devices: Sequence[Device],
    config: EngineConfig,
    options: PlanOptions,
    on_bytes: Callable[[int], None],
    division: Division,
) -> ProgramGroup:
    """All ranks, loaded side by side."""
    ranks, n = division.ranks, len(division.ranks)
    reads = SharedReads()
    exchange, shares = _shares(opened_devices, division, reads) if division.mode == "tensor" else (None, [None] * n)
    with ThreadPoolExecutor(len(opened_devices), "vkllm-load") as pool:
        loading = [
            pool.submit(_program, device, config, options, on_bytes, rank, share)
            for device, rank, share in zip(opened_devices, ranks, shares, strict=True)
        ]
        programs = [each.result() for each in loading]
    reads.forget()
    names = [f"{device.info.name} (device {i} of {n})" for i, device in enumerate(opened_devices, 1)]
    heads = programs[-1:]
    runner: Runner
    if exchange is None:
        runner = Pipeline(programs, names)
    else:
        heads = programs if len(ranks[0].vocabulary) < config.spec.n_vocab else programs[:1]
        runner = Lockstep(programs, heads, names, exchange)
    return ProgramGroup(programs, config.spec, config.tensors, division.plan, runner, heads)


def _shares(
    opened_devices: Sequence[Device], division: Division, reads: SharedReads
) -> tuple[Exchange, list[Share | None]]:
    """What ranks that compute every step together need for that, and to read the file once for all of them.

    Raises UnsupportedDevice, OutOfDeviceMemory.
    """
    owned, d_model = [rank.vocabulary for rank in division.ranks], division.ranks[0].spec.d_model
    n_vocab, most = max(part.stop for part in owned), max(map(len, owned))
    parts = [None if most == n_vocab else VocabularyPart(n_vocab, part.start, len(part), most) for part in owned]
    most_lists = 0 if parts[0] is None else parts[0].most_lists
    exchange = Exchange(opened_devices, Exchanged.of(d_model, most_lists, n_exchanges_of(division.ranks[0].spec)))
    owners = zip(exchange.ranks, parts, division.ranks, strict=True)
    return exchange, [Share(one, part, rank.cached, reads) for one, part, rank in owners]
