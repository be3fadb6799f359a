"""The command `vkllm`: its options, its errors and its exit codes.

It knows the public API and the terminal. Each command imports what it needs when it runs, so that `--help` is quick.
Exit codes: 0 done, 2 an error (one line on standard error), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vkllm.errors import InvalidParameter, VkllmError
from vkllm.faces import models
from vkllm.faces.terminal import complain, interruptible, print_json, size

if TYPE_CHECKING:
    from vkllm.gpu.probe import DeviceInfo

# Options that several commands share: how a model is loaded.
CtxSize = Annotated[
    int | None, typer.Option("-c", "--ctx-size", help="Tokens of prompt and answer; 0: the most that costs no speed.")
]
DeviceName = Annotated[str | None, typer.Option("-dev", "--device", help="Index or name, see `vkllm devices`.")]
TypeK = Annotated[str, typer.Option("-ctk", "--cache-type-k", help="Of cached keys: f16 or q8_0.")]
TypeV = Annotated[str, typer.Option("-ctv", "--cache-type-v", help="Of cached values: f16 or q8_0.")]
GpuLayers = Annotated[
    str | None, typer.Option("-ngl", "--n-gpu-layers", help="Layers in the GPU's own memory, or all.")
]
VramLimit = Annotated[str | None, typer.Option(help="Most of the GPU's own memory, such as 16GiB.")]
RamLimit = Annotated[str | None, typer.Option(help="Most of the system's memory, such as 500MiB.")]
ContextShift = Annotated[
    bool, typer.Option("--context-shift", help="When the context is full, go on without the older half of the chat.")
]

app = typer.Typer(
    help="Large language models on any GPU with a Vulkan driver. Without a command: chat.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
models.add_commands(app)


def main() -> None:
    """Runs the command line; a VkllmError becomes one line on standard error and exit code 2."""
    try:
        app()
    except VkllmError as error:
        if os.environ.get("VKLLM_DEBUG"):
            raise
        complain("error", error)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from vkllm import __version__

        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        from vkllm.faces.chat import has_screen, start_chat

        if not has_screen():
            print(context.get_help())
            raise typer.Exit(2)
        start_chat(sampling={})


@app.command()
def chat(
    model: Annotated[str | None, typer.Argument(help="As for `vkllm run`; without it, the last one.")] = None,
    temp: Annotated[float | None, typer.Option("--temp", help="Temperature; 0 always takes the likeliest.")] = None,
    seed: Annotated[int | None, typer.Option("-s", "--seed", help="The same seed gives the same answer.")] = None,
    system: Annotated[str | None, typer.Option("-sys", "--system", help="The system message.")] = None,
    ctx_size: CtxSize = None,
    device: DeviceName = None,
    cache_type_k: TypeK = "f16",
    cache_type_v: TypeV = "f16",
    gpu_layers: GpuLayers = None,
    vram_limit: VramLimit = None,
    ram_limit: RamLimit = None,
    context_shift: ContextShift = False,
    plain: Annotated[bool, typer.Option("--plain", help="Line by line instead of on the whole screen.")] = False,
) -> None:
    """Chat on the whole terminal; chats are kept. F1 there shows the keys.

    Everything else can be set there too: model, sampling, system message, theme.
    """
    from vkllm.faces.chat import start_chat
    from vkllm.faces.loading import loading

    asked = {"temperature": temp, "seed": seed, "context_shift": context_shift or None}
    sampling = {name: value for name, value in asked.items() if value is not None}
    with interruptible():
        if model is not None:
            models.ensure_here(model)
        is_complete = start_chat(
            model,
            sampling=sampling,
            loading=loading(ctx_size, device, cache_type_k, cache_type_v, gpu_layers, vram_limit, ram_limit),
            system=system,
            is_plain=plain,
        )
    if not is_complete:
        raise typer.Exit(130)


@app.command()
def run(
    model: Annotated[str, typer.Argument(help="A name from `vkllm list`, a .gguf file, or a folder with one.")],
    prompt: Annotated[str | None, typer.Argument(help="What to answer; without it, chat.")] = None,
    n_predict: Annotated[int | None, typer.Option("-n", "--n-predict", help="At most so many tokens.")] = None,
    temp: Annotated[float | None, typer.Option("--temp", help="Temperature; 0 always takes the likeliest.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Choose among the k likeliest; 0 is off.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Choose among the likeliest p; 1 is off.")] = None,
    min_p: Annotated[float | None, typer.Option("--min-p", help="Drop what is this less likely; 0 is off.")] = None,
    repeat_penalty: Annotated[float | None, typer.Option("--repeat-penalty", help="Above 1 against repeats.")] = None,
    presence_penalty: Annotated[float | None, typer.Option("--presence-penalty", help="Likewise, added once.")] = None,
    seed: Annotated[int | None, typer.Option("-s", "--seed", help="The same seed gives the same answer.")] = None,
    system: Annotated[str | None, typer.Option("-sys", "--system", help="The system message.")] = None,
    ctx_size: CtxSize = None,
    device: DeviceName = None,
    cache_type_k: TypeK = "f16",
    cache_type_v: TypeV = "f16",
    gpu_layers: GpuLayers = None,
    vram_limit: VramLimit = None,
    ram_limit: RamLimit = None,
    context_shift: ContextShift = False,
    stats: Annotated[bool, typer.Option("--stats", help="Print counts and speeds to standard error.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is, without a chat template.")] = False,
) -> None:
    """Answer a prompt, or chat.

    Standard input, when it is piped, is appended to the prompt. Ctrl-C stops the answer.
    """
    from vkllm.faces.loading import loading
    from vkllm.faces.run import RunOptions, run_model

    sampling: dict[str, Any] = {
        "max_tokens": None if n_predict == -1 else n_predict,  # -1 is llama.cpp's word for no limit
        "temperature": temp,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repeat_penalty,
        "presence_penalty": presence_penalty,
        "seed": seed,
        "context_shift": context_shift or None,
    }
    sampling = {name: value for name, value in sampling.items() if value is not None}
    try:
        how = loading(ctx_size, device, cache_type_k, cache_type_v, gpu_layers, vram_limit, ram_limit)
        is_complete = run_model(RunOptions(model, prompt, system, how, stats, raw), sampling)
    except KeyboardInterrupt:
        is_complete = False
    if not is_complete:
        raise typer.Exit(130)


@app.command()
def bench(
    model: Annotated[list[str] | None, typer.Option("-m", "--model", help="Names or paths of models.")] = None,
    n_prompt: Annotated[list[str] | None, typer.Option("-p", "--n-prompt", help="Tokens of a prompt [512].")] = None,
    n_gen: Annotated[list[str] | None, typer.Option("-n", "--n-gen", help="Tokens to generate [128].")] = None,
    pairs: Annotated[list[str] | None, typer.Option("-pg", metavar="PP,TG", help="Both, in one test.")] = None,
    n_depth: Annotated[list[str] | None, typer.Option("-d", "--n-depth", help="Tokens before those [0].")] = None,
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", min=1, help="Times to repeat each test.")] = 5,
    output: Annotated[str, typer.Option("-o", "--output", metavar="md|csv|json|jsonl", help="What to print.")] = "md",
    type_k: Annotated[list[str] | None, typer.Option("-ctk", "--cache-type-k", help="f16 (default) or q8_0.")] = None,
    type_v: Annotated[list[str] | None, typer.Option("-ctv", "--cache-type-v", help="f16 (default) or q8_0.")] = None,
    gpu_layers: Annotated[list[str] | None, typer.Option("-ngl", "--n-gpu-layers", help="As for `vkllm run`.")] = None,
    device: Annotated[list[str] | None, typer.Option("-dev", "--device", help="Indices or names of devices.")] = None,
    no_warmup: Annotated[bool, typer.Option("--no-warmup", help="Do not run each test once before it counts.")] = False,
    kernels: Annotated[
        bool,
        typer.Option(
            "--kernels", help="Time each kernel instead: of a step of decoding, and of steps of -p tokens of a prompt."
        ),
    ] = False,
) -> None:
    """Measure speeds, with the options and the output of llama-bench.

    Options that take several values take a list with commas, or are given several times.
    """
    from vkllm.faces.bench import BenchOptions, cases, layer_counts, measure, numbers, setups
    from vkllm.faces.bench_output import FORMATS, markdown

    def values(given: list[str] | None, default: str) -> list[str]:
        return ",".join(given or [default]).split(",")

    if output != "md" and output not in FORMATS:
        raise InvalidParameter(f"-o takes {', '.join(('md', *FORMATS))}, not {output!r}")
    types_k, types_v = values(type_k, "f16"), values(type_v, "f16")
    how = setups(
        values(model, "smollm2"),
        layer_counts(gpu_layers or ["all"]),
        list(values(device, "")) if device else [None],
        types_k,
        types_v,
    )
    prompts, depths = numbers(n_prompt or ["512"], "-p"), numbers(n_depth or ["0"], "-d")
    generated = numbers(n_gen or ["128"], "-n")
    if kernels:
        from vkllm.faces.bench_kernels import KernelOptions, measure_kernels, rows, tables

        if pairs:
            raise InvalidParameter("--kernels times single steps, of -p tokens or of decoding; leave -pg out")
        rows_asked = [n for n in prompts if n] if n_prompt else None
        steps = measure_kernels(KernelOptions(how, rows_asked, any(generated), depths))
        lines = tables(steps) if output == "md" else FORMATS[output](rows(steps))
    else:
        tests = cases(prompts, generated, pairs or [], depths)
        results = measure(BenchOptions(how, tests, repetitions, not no_warmup))
        is_shown = {"type_k": types_k != ["f16"], "type_v": types_v != ["f16"], "dev": bool(device)}
        shown = [title for title, is_asked in is_shown.items() if is_asked]
        lines = markdown(results, shown) if output == "md" else FORMATS[output](results)
    with interruptible():
        for line in lines:
            print(line, flush=True)


@app.command()
def perplexity(
    file: Annotated[Path, typer.Option("-f", "--file", help="The text.")],
    model: Annotated[str, typer.Option("-m", "--model", help="A name or path, as for `vkllm run`.")] = "smollm2",
    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", help="Tokens of a chunk.")] = 512,
    n_chunks: Annotated[int, typer.Option("--chunks", help="At most so many chunks; -1 is all.")] = -1,
    device: Annotated[str | None, typer.Option("-dev", "--device", help="Index or name, see `vkllm devices`.")] = None,
) -> None:
    """Measure how well a model predicts a text, as llama.cpp does: the second half of each chunk counts."""
    from vkllm.faces.perplexity import measure_perplexity

    with interruptible():
        limit = n_chunks if n_chunks > 0 else None
        measure_perplexity(model, file, n_ctx=ctx_size, n_chunks=limit, device=device)


@app.command()
def tune(
    model: Annotated[str, typer.Argument(help="A name or path, as for `vkllm run`.")] = "smollm2",
    device: DeviceName = None,
    budget: Annotated[float, typer.Option("--budget", help="Seconds that it may take, roughly.")] = 30.0,
    show: Annotated[bool, typer.Option("--show", help="Show what was found before, and whether it is used.")] = False,
    reset: Annotated[bool, typer.Option("--reset", help="Forget what was found before.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find by trying how this device runs a model fastest, and keep that for all models of its kind.

    A kind is a weight format and a shape of attention heads. Until then, and after a change of the driver, a table by
    vendor decides. VKLLM_TUNING=off ignores what was found.
    """
    from vkllm.faces.tune import remove_kept, show_kept, tune_model

    if show and reset:
        raise InvalidParameter("--show and --reset are two things to do; give one of them")
    with interruptible():
        if reset:
            remove_kept()
        elif show:
            show_kept(as_json=json)
        else:
            tune_model(model, device=device, budget_s=budget, as_json=json)


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="A name or path, as for `vkllm run`.")],
    ctx_size: CtxSize = None,
    device: DeviceName = None,
    cache_type_k: TypeK = "f16",
    cache_type_v: TypeV = "f16",
    gpu_layers: GpuLayers = None,
    vram_limit: VramLimit = None,
    ram_limit: RamLimit = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show where a model's parts would lie, what stays free, and the speed to expect, without loading it.

    Sizes end in K, M, G or T, also as GiB or GB; a G is 2^30 bytes, as in llama.cpp's tools. Where the GPU has no
    memory of its own, -ngl changes nothing, and each limit is one for all memory.
    """
    from vkllm.faces.loading import loading
    from vkllm.faces.plan import print_plan

    with interruptible():
        models.ensure_here(model)
        print_plan(
            model,
            loading(ctx_size, device, cache_type_k, cache_type_v, gpu_layers, vram_limit, ram_limit),
            as_json=json,
        )


@app.command()
def devices(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the Vulkan devices; the one marked * is the default."""
    from vkllm.gpu.probe import choose_device
    from vkllm.gpu.probe import devices as probe

    found = probe()
    if json:
        from dataclasses import asdict

        print_json([asdict(device) | {"features": sorted(device.features)} for device in found])
        return
    default = choose_device(found, None)
    for device in found:
        print("\n".join(_description(device, is_default=device == default)))


def _description(device: DeviceInfo, *, is_default: bool) -> list[str]:
    """Lines for a person: the device, its driver, heaps, limits and features."""
    heaps = [
        f"{size(heap.size_bytes, 1024)}{' on the device' if heap.is_device_local else ''}"
        + ("" if heap.budget_bytes is None else f" (budget {size(heap.budget_bytes, 1024)})")
        for heap in device.heaps
    ]
    limits = [
        f"binding {size(device.max_binding_bytes, 1024)}",
        f"allocation {size(device.max_allocation_bytes, 1024)}",
        f"workgroup {device.max_workgroup_invocations}",
        f"shared memory {size(device.max_shared_bytes, 1024)}",
        f"subgroup {device.subgroup_size} ({device.min_subgroup_size} to {device.max_subgroup_size})",
    ]
    api = ".".join(map(str, device.api_version))
    return [
        f"{'*' if is_default else ' '} {device.index}  {device.name} ({device.type})",
        f"     driver    {device.driver_name} {device.driver_version}, Vulkan {api}",
        f"     heaps     {', '.join(heaps)}",
        f"     limits    {', '.join(limits)}",
        f"     features  {', '.join(sorted(device.features)) or 'none'}",
    ]
