"""`vkllm bench`, `perplexity` and `tune`: their options.

It knows Typer; what the commands do is in modules of their own, imported when they run, so that `--help` is quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vkllm.errors import InvalidParameter
from vkllm.faces.cli import completion
from vkllm.faces.cli.loading import PlacementFlags, devices_named, shares
from vkllm.faces.cli.models import ensure_here
from vkllm.faces.cli.options import Json, ModelName, ModelOption, add_command, chosen
from vkllm.faces.terminal import say

if TYPE_CHECKING:
    from vkllm.faces.cli.bench import Setup


def add_commands(app: typer.Typer) -> None:
    """Adds the commands of this module to the command line."""
    add_command(
        app,
        bench,
        "vkllm bench smollm2",
        "vkllm bench -m smollm2 -p 64,128 -n 16 -d 0,32 -r 2 -o json",
        "vkllm bench smollm2 -np 1,4 -p 16 -n 16 -r 1",
        "vkllm bench smollm2 --kernels",
        panel="Measure",
    )
    add_command(
        app,
        perplexity,
        "vkllm perplexity smollm2 -f notes.txt -c 128",
        "vkllm perplexity -m smollm2 -f notes.txt -c 128 --chunks 2",
        panel="Measure",
    )
    add_command(
        app,
        tune,
        "vkllm tune smollm2 --budget 10",
        "vkllm tune --show",
        "vkllm tune --reset",
        panel="Measure",
    )


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Names or paths of models.",
            show_default=False,
            autocompletion=completion.models,
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("-m", "--model", metavar="MODEL", help="Models, as options.", autocompletion=completion.models),
    ] = None,
    n_prompt: Annotated[
        list[str] | None, typer.Option("-p", "--n-prompt", metavar="N", help="Length of the prompt in tokens [512].")
    ] = None,
    n_gen: Annotated[
        list[str] | None, typer.Option("-n", "--n-gen", metavar="N", help="How many tokens to generate [128].")
    ] = None,
    pairs: Annotated[
        list[str] | None, typer.Option("-pg", metavar="PP,TG", help="A prompt and generated tokens in one test.")
    ] = None,
    n_depth: Annotated[
        list[str] | None,
        typer.Option("-d", "--n-depth", metavar="N", help="Tokens that are in the context before the test [0]."),
    ] = None,
    n_parallel: Annotated[
        list[str] | None,
        typer.Option("-np", "--parallel", metavar="N", help="How many requests run at once, with tests of their own."),
    ] = None,
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", min=1, help="How often to repeat each test.")] = 5,
    output: Annotated[str, typer.Option("-o", "--output", metavar="md|csv|json|jsonl", help="Output format.")] = "md",
    type_k: Annotated[
        list[str] | None, typer.Option("-ctk", "--cache-type-k", metavar="TYPE", help="f16 (default) or q8_0.")
    ] = None,
    type_v: Annotated[
        list[str] | None, typer.Option("-ctv", "--cache-type-v", metavar="TYPE", help="f16 (default) or q8_0.")
    ] = None,
    gpu_layers: Annotated[
        list[str] | None, typer.Option("-ngl", "--n-gpu-layers", metavar="N|all", help="As for `vkllm run`.")
    ] = None,
    override_tensor: Annotated[
        list[str] | None,
        typer.Option(
            "-ot",
            "--override-tensor",
            metavar="EXPR=CPU;...",
            help="As for `vkllm run`, but with semicolons: commas stand between tests.",
        ),
    ] = None,
    n_cpu_moe: Annotated[
        list[str] | None, typer.Option("-ncmoe", "--n-cpu-moe", metavar="N", help="As for `vkllm run`.")
    ] = None,
    spec: Annotated[
        str,
        typer.Option(
            "--spec",
            metavar="off|auto|ngram|mtp",
            help="As for `vkllm run`; off by default, because llama-bench times plain steps.",
        ),
    ] = "off",
    device: Annotated[
        list[str] | None,
        typer.Option("-dev", "--device", metavar="DEVICE", help="Indices or names; 0/1 is one test on two devices."),
    ] = None,
    split_mode: Annotated[
        str | None, typer.Option("-sm", "--split-mode", metavar="none|layer|tensor", help="As for `vkllm run`.")
    ] = None,
    tensor_split: Annotated[
        str | None, typer.Option("-ts", "--tensor-split", metavar="3/1", help="As for `vkllm run`.")
    ] = None,
    main_gpu: Annotated[int, typer.Option("-mg", "--main-gpu", metavar="N", min=0, help="As for `vkllm run`.")] = 0,
    num_shards: Annotated[
        int | None, typer.Option("--num-shards", metavar="N", min=1, help="As for `vkllm run`.")
    ] = None,
    no_warmup: Annotated[bool, typer.Option("--no-warmup", help="Skip the warm-up run before each test.")] = False,
    kernels: Annotated[
        bool,
        typer.Option(
            "--kernels", help="Time each kernel instead, for one step of decoding and for prompts of -p tokens."
        ),
    ] = False,
) -> None:
    """Measure speeds, with the options and the output of llama-bench.

    Options that take several values take a list with commas, or are given several times.
    """
    from vkllm.faces.cli.bench import BenchOptions, Split, measure
    from vkllm.faces.cli.bench_options import cases, layer_counts, numbers, placements, setups
    from vkllm.faces.cli.bench_output import FORMATS, markdown

    def values(given: list[str] | None, default: str) -> list[str]:
        return ",".join(given or [default]).split(",")

    if output != "md" and output not in FORMATS:
        raise InvalidParameter(f"-o takes {', '.join(('md', *FORMATS))}, not {output!r}")
    types_k, types_v = values(type_k, "f16"), values(type_v, "f16")
    names = values([*(models or []), *(model or [])], "smollm2")
    how = setups(
        names,
        layer_counts(gpu_layers or ["all"]),
        [devices_named(text.replace("/", ",")) for text in values(device, "")] if device else [None],
        types_k,
        types_v,
        placements(n_cpu_moe or ["0"], override_tensor or [""]),
        spec,
        Split(split_mode, shares(tensor_split), main_gpu, num_shards),
    )
    prompts, depths = numbers(n_prompt or ["512"], "-p"), numbers(n_depth or ["0"], "-d")
    generated = numbers(n_gen or ["128"], "-n")
    if kernels:
        from vkllm.faces.cli.bench_kernels import KernelOptions, measure_kernels, rows, tables

        if pairs:
            raise InvalidParameter("--kernels times single steps, of -p tokens or of decoding; leave -pg out")
        rows_asked = [n for n in prompts if n] if n_prompt else None
        steps_asked = KernelOptions(how, rows_asked, any(generated), depths)
        steps = measure_kernels(replace(steps_asked, setups=_all_here(how)))
        lines = tables(steps) if output == "md" else FORMATS[output](rows(steps))
    elif n_parallel:
        from vkllm.faces.cli.bench_batches import (
            DEFAULT_GENERATED,
            DEFAULT_PROMPT,
            BatchOptions,
            batch_cases,
            batch_table,
            measure_batches,
        )

        if pairs or depths != [0]:
            raise InvalidParameter("-np runs prompts of -p tokens and answers of -n; leave -pg and -d out")
        users = numbers(n_parallel, "-np")
        batches = batch_cases(
            users, prompts if n_prompt else [DEFAULT_PROMPT], generated if n_gen else [DEFAULT_GENERATED]
        )
        how = [replace(setup, n_parallel=max(users)) for setup in _all_here(how)]
        found = measure_batches(BatchOptions(how, batches, repetitions, not no_warmup))
        lines = batch_table(found) if output == "md" else FORMATS[output](found)
    else:
        tests = cases(prompts, generated, pairs or [], depths)
        results = measure(BenchOptions(_all_here(how), tests, repetitions, not no_warmup))
        is_shown = {"type_k": types_k != ["f16"], "type_v": types_v != ["f16"], "dev": bool(device)}
        is_shown |= {"n_cpu_moe": bool(n_cpu_moe), "ot": bool(override_tensor), "accepted": spec != "off"}
        shown = [title for title, is_asked in is_shown.items() if is_asked]
        lines = markdown(results, shown) if output == "md" else FORMATS[output](results)
    for line in lines:  # each when it is measured
        say(line)


def _all_here(setups: Sequence[Setup]) -> list[Setup]:
    """The setups with the models that their names stand for; those that are not here may be fetched."""
    found = {name: ensure_here(name) for name in dict.fromkeys(setup.model for setup in setups)}
    return [replace(setup, model=found[setup.model]) for setup in setups]


def perplexity(
    file: Annotated[Path, typer.Option("-f", "--file", help="The file with the text.")],
    placement: PlacementFlags,
    model: ModelName = None,
    model_option: ModelOption = None,
    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", min=4, help="Length of a chunk in tokens.")] = 512,
    n_chunks: Annotated[int, typer.Option("--chunks", help="Limit the number of chunks; -1 is all.")] = -1,
) -> None:
    """Measure how well a model predicts a text, as llama.cpp does: the second half of each chunk counts."""
    from vkllm.faces.cli.perplexity import measure_perplexity

    name = chosen(model, model_option, "smollm2")
    limit = n_chunks if n_chunks > 0 else None
    measure_perplexity(name, file, n_ctx=ctx_size, n_chunks=limit, loading=placement.arguments())


def tune(
    placement: PlacementFlags,
    model: ModelName = None,
    model_option: ModelOption = None,
    budget: Annotated[float, typer.Option("--budget", min=1, max=3600, help="About how many seconds to spend.")] = 30.0,
    show: Annotated[bool, typer.Option("--show", help="Show earlier results, and whether they are used.")] = False,
    reset: Annotated[bool, typer.Option("--reset", help="Delete earlier results.")] = False,
    json: Json = False,
) -> None:
    """Find the settings with which this device runs a model fastest, and keep them for all models of its kind.

    Models are of one kind if they have the same weight format and the same attention heads. Before tuning, and after an
    update of the driver, each vendor's devices have default settings. VKLLM_TUNING=off ignores the results.
    """
    from vkllm.faces.cli.tune import remove_kept, show_kept, tune_model

    if show and reset:
        raise InvalidParameter("--show and --reset are two things to do; give one of them")
    if reset:
        remove_kept()
    elif show:
        show_kept(as_json=json)
    else:
        how = placement.arguments()
        found = ensure_here(chosen(model, model_option, "smollm2"))
        tune_model(found, how, budget_s=budget, as_json=json)
