"""The command `vkllm`: its options, its errors and its exit codes.

It knows the public API and the terminal. Each command imports what it needs when it runs, so that `--help` is quick.
Exit codes: 0 done, 2 an error (one line on standard error), 130 stopped by Ctrl-C, 141 nobody reads the output any
more. Code 1 comes with a traceback: a mistake of vkllm's own.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vkllm.errors import InvalidParameter, VkllmError
from vkllm.faces.cli import measure_commands, models, serve
from vkllm.faces.cli.loading import LoadingFlags
from vkllm.faces.cli.options import Json, ModelName, ModelOption, add_command, chosen, examples
from vkllm.faces.cli.other_commands import Commands
from vkllm.faces.sampling import SamplingFlags, StructureFlags
from vkllm.faces.terminal import INTERRUPTED, complain, ending, print_json, size, write_nowhere
from vkllm.faces.thoughts import Thoughts

if TYPE_CHECKING:
    from vkllm.faces.remote import Server
    from vkllm.gpu.device.probe import DeviceInfo

System = Annotated[
    str | None, typer.Option("-sys", "--system", metavar="TEXT", help="The system message.", show_default=False)
]
SystemFile = Annotated[
    Path | None,
    typer.Option(
        "-sysf", "--system-prompt-file", metavar="FILE", help="A file with the system message.", show_default=False
    ),
]

ServerAddress = Annotated[
    str | None,
    typer.Option(
        "--server", metavar="URL", help="Use a server that runs, as `vkllm serve` does; no model is loaded here."
    ),
]
ServerKey = Annotated[
    str | None, typer.Option("--api-key", metavar="KEY", help="The server's key, if VKLLM_API_KEY does not have it.")
]

MeasuresExchange = Annotated[
    bool, typer.Option("--exchange", help="Measure how fast GPUs hand each other numbers: each pair, then all.")
]
ExchangingDevices = Annotated[
    str | None,
    typer.Option(
        "-dev", "--device", metavar="0,1", help="What --exchange measures, if not all GPUs.", show_default=False
    ),
]

app = typer.Typer(
    cls=Commands,
    help="Large language models on any GPU with a Vulkan driver. Without a command: chat.",
    epilog=examples(
        'vkllm run smollm2 "Why is the sky blue?"', "vkllm list --all", "vkllm pull llama-3.2-1b", "vkllm run --help"
    ),
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Runs the command line; what is wrong with it or fails becomes one line on standard error and exit code 2."""
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # __main__ had another handler during imports
            signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.exit(app(prog_name="vkllm", standalone_mode=False))
    except (KeyboardInterrupt, typer.Abort):  # before a command has begun; a command sees to its own end
        sys.exit(INTERRUPTED)
    except VkllmError as error:
        if os.environ.get("VKLLM_DEBUG"):
            raise
        complain("error", error)
    except OSError as error:  # most likely nothing more can be written
        if os.environ.get("VKLLM_DEBUG"):
            raise
        write_nowhere(sys.stdout)
        complain("error", f"{error.filename or 'standard output'}: {error.strerror}")
    except typer.TyperException as error:  # wrong usage
        command = getattr(getattr(error, "ctx", None), "command_path", "vkllm")
        text = _wrong_usage(error)
        complain("error", f"{text}{' See' if text.endswith('?') else '; see'} `{command} --help`")
    sys.exit(2)


def _wrong_usage(error: typer.TyperException) -> str:
    """What Typer says, with the value that it complains of."""
    text = error.format_message().rstrip(".")
    cause = error.__cause__
    if cause is not None and hasattr(cause, "errors"):  # pydantic's, which knows it
        text = text.partition(", unable to parse")[0].replace("Input", repr(cause.errors()[0]["input"]), 1)
    return text


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from vkllm import __version__

        with ending():
            print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        from vkllm.faces.cli.start_chat import has_screen, start_chat

        with ending():
            if not has_screen():
                raise InvalidParameter(
                    "`vkllm` alone is the chat, which needs a terminal; `vkllm run MODEL PROMPT` answers without one; "
                    "see `vkllm --help`"
                )
            start_chat(sampling={})


def chat(
    sampling: SamplingFlags,
    loading: LoadingFlags,
    model: ModelName = None,
    model_option: ModelOption = None,
    system: System = None,
    system_file: SystemFile = None,
    plain: Annotated[bool, typer.Option("--plain", help="Chat line by line instead of on the whole screen.")] = False,
    server: ServerAddress = None,
    api_key: ServerKey = None,
) -> None:
    """Chat on the whole terminal; chats are kept. F1 there shows the keys.

    Without a model it is the last one. Everything else can be set there too: model, sampling, system message, theme.
    """
    from vkllm.faces.cli.start_chat import start_chat
    from vkllm.faces.prompt import system_message

    name = chosen(model, model_option, "") or None
    values, how, at = sampling.arguments(), loading.arguments(), _server(server, api_key, loading)
    found = models.ensure_here(name) if name is not None and at is None else name
    message = system_message(system, system_file)
    if not start_chat(found, sampling=values, loading=how, system=message, is_plain=plain, server=at):
        raise typer.Exit(INTERRUPTED)


def run(
    sampling: SamplingFlags,
    structure: StructureFlags,
    loading: LoadingFlags,
    model: ModelName = None,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="The prompt to answer; without one, a chat begins.", show_default=False),
    ] = None,
    model_option: ModelOption = None,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", metavar="TEXT", help="The prompt, as an option.")
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option(
            "-f", "--file", metavar="FILE", help="Append the text of this file to the prompt.", show_default=False
        ),
    ] = None,
    system: System = None,
    system_file: SystemFile = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as it is, without a chat template.")] = False,
    stats: Annotated[
        bool, typer.Option("--stats", "--verbose", help="Print counts and speeds to standard error.")
    ] = False,
    hide_thinking: Annotated[
        bool, typer.Option("--hidethinking", help="Never show what the model thinks; else a terminal does.")
    ] = False,
    skip_parsing: Annotated[
        bool, typer.Option("--skip-chat-parsing", help="Print all that the model writes, thoughts in <think> tags.")
    ] = False,
    server: ServerAddress = None,
    api_key: ServerKey = None,
) -> None:
    """Answer a prompt, or chat line by line.

    Files (-f) and standard input, when it is piped, are appended to the prompt. Only the answer goes to standard
    output. Ctrl-C stops it.

    Exit codes: 0 answered, 2 an error (one line on standard error), 130 stopped by Ctrl-C.
    """
    from vkllm.faces.cli.opening import RunOptions
    from vkllm.faces.cli.run import run_model
    from vkllm.faces.prompt import joined, system_message, unescaped

    words = words or []
    if model is not None and model_option:  # then all that has a place is the prompt
        words = [model, *words]
        model = None
    name = chosen(model, model_option, None if server is None else "")
    at = _server(server, api_key, loading)
    if prompt is not None and words:
        raise InvalidParameter("the prompt is given twice, as an argument and with -p; give it once")
    if prompt is not None:
        prompt = sampling.unescaped(prompt)
    elif (prompt := joined(words)) is not None and sampling.escapes:  # such a prompt is read as it is otherwise
        prompt = unescaped(prompt)
    message = system_message(system, system_file)
    if hide_thinking and skip_parsing:
        raise InvalidParameter("--hidethinking and --skip-chat-parsing contradict each other; give one of them")
    thoughts: Thoughts = "hidden" if hide_thinking else "printed" if skip_parsing else "on a terminal"
    options = RunOptions(name, prompt, files or [], message, loading.arguments(), stats, raw, thoughts)
    how = sampling.arguments() | structure.arguments()
    if at is not None:
        from vkllm.faces.cli.remote import run_on_server

        is_complete = run_on_server(at, options, how)
    else:
        is_complete = run_model(options, how)
    if not is_complete:
        raise typer.Exit(INTERRUPTED)


def _server(address: str | None, key: str | None, loading: LoadingFlags) -> Server | None:
    """Where --server says that the model runs. Raises InvalidParameter."""
    from vkllm.faces.remote import Server

    if address is None:
        if key is not None:
            raise InvalidParameter("--api-key is for a server; give --server too, or leave it out")
        return None
    if loading != LoadingFlags():
        raise InvalidParameter("--server asks a server, which has loaded its model; leave the options of loading out")
    return Server(address, key)


def plan(loading: LoadingFlags, model: ModelName = None, model_option: ModelOption = None, json: Json = False) -> None:
    """Show where the parts of a model would be placed, how much memory stays free and what speed to expect, without
    loading it.

    Of a model that is not on this machine only its header is fetched, some megabytes, and not kept.

    Sizes end in K, M, G or T, also as GiB or GB; a G is 2^30 bytes, as in llama.cpp's tools. Where the GPU has no
    memory of its own, -ngl changes nothing, and each limit is one for all memory.
    """
    from vkllm.faces.cli.plan import print_plan

    name, how = chosen(model, model_option), loading.arguments()
    print_plan(name, how, as_json=json)


def devices(json: Json = False, exchange: MeasuresExchange = False, device: ExchangingDevices = None) -> None:
    """List the Vulkan devices; the one marked * is the default."""
    from vkllm.faces.cli.device_exchange import advice, print_exchanges
    from vkllm.gpu.device.probe import choose_device
    from vkllm.gpu.device.probe import devices as probe

    found = probe()
    if device is not None and not exchange:
        raise InvalidParameter("-dev chooses what --exchange measures; give both, or neither")
    if json and exchange:
        print_exchanges(found, device, as_json=True)
        return
    if json:
        from dataclasses import asdict

        sets = ("features", "subgroup_operations")
        print_json(
            [
                asdict(device) | {name: sorted(getattr(device, name)) for name in sets} | {"uuid": device.uuid.hex()}
                for device in found
            ]
        )
        return
    default = choose_device(found, None)
    for info in found:
        print("\n".join(_description(info, is_default=info == default)))
    if exchange:
        print_exchanges(found, device, as_json=False)
    else:
        print("".join(f"{line}\n" for line in advice(found)), end="")


def _description(device: DeviceInfo, *, is_default: bool) -> list[str]:
    """Lines for a person: the device, its driver, heaps, limits, features and subgroups."""
    from vkllm.gpu.device.requirements import required_subgroup_size

    heaps = [
        f"{size(heap.size_bytes)}{' on the device' if heap.is_device_local else ''}"
        + ("" if heap.budget_bytes is None else f" (budget {size(heap.budget_bytes)})")
        for heap in device.heaps
    ]
    limits = [
        f"binding {size(device.max_binding_bytes)}",
        f"allocation {size(device.max_allocation_bytes)}",
        f"workgroup {device.max_workgroup_invocations}",
        f"workgroups {device.max_groups[0]}",
        f"shared memory {size(device.max_shared_bytes)}",
        f"subgroup {device.subgroup_size} ({device.min_subgroup_size} to {device.max_subgroup_size})",
    ]
    api = ".".join(map(str, device.api_version))
    asked = required_subgroup_size(device)
    kernels = f"ask for {asked} lanes" if asked else "use none, and are slower"
    return [
        f"{'*' if is_default else ' '} {device.index}  {device.name} ({device.type})",
        f"     driver    {device.driver_name} {device.driver_version}, Vulkan {api}",
        f"     heaps     {', '.join(heaps)}",
        f"     limits    {', '.join(limits)}",
        f"     features  {', '.join(sorted(device.features)) or 'none'}",
        f"     subgroups {', '.join(sorted(device.subgroup_operations)) or 'none'}; kernels {kernels}",
    ]


add_command(
    app,
    run,
    'vkllm run smollm2 "Why is the sky blue?"',
    'git diff | vkllm run smollm2 "Summarize these changes." --stats',
    "vkllm run -m smollm2 -f notes.txt -p 'Sum up:' -n 128 --temp 0",
    """vkllm run smollm2 "Name a colour." --json-schema '{"enum": ["red", "blue"]}'""",
)
add_command(
    app,
    chat,
    "vkllm chat",
    "vkllm chat smollm2 -sys 'Be short.'",
    "vkllm chat smollm2 --plain -c 2048",
)
serve.add_commands(app)
models.add_commands(app)
add_command(app, plan, "vkllm plan smollm2", "vkllm plan smollm2 -c 8192 -ctk q8_0 -ctv q8_0", panel="Devices")
add_command(app, devices, "vkllm devices", "vkllm devices --json", panel="Devices")
measure_commands.add_commands(app)
