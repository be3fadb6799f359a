"""What vkllm does with the options of llama.cpp: takes them as its own, ignores them, or says what to use instead.

The options are those of llama.cpp 0.5.0's programs and of llama-bench, and earlier ones that are still in scripts. This
file knows names and how many values follow; `arguments.py` knows how a command line is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LlamaOption:
    """An option of llama.cpp that vkllm does not have.

    n_values: how many values follow it. is_switch: the value may be left out, as in -fa and in -fa on.
    refusal: what is missing and what to use instead; None if the option is ignored, because nothing depends on it.
    harmless: values with which it changes nothing, so that it is ignored. takes, pattern: what the value of an ignored
    option is, in words and as an expression: a value of another kind may be the prompt by mistake.
    """

    n_values: int
    is_switch: bool = False
    refusal: str | None = None
    harmless: frozenset[str] = frozenset()
    takes: str = ""
    pattern: str = ".*"

    def is_harmless(self, values: Sequence[str]) -> bool:
        """Whether a value is one that changes nothing; 1.0 is 1."""
        if not self.harmless or len(values) != 1:
            return False
        return values[0] in self.harmless or re.sub(r"(?<=\d)\.0*$", "", values[0]) in self.harmless

    def does_take(self, value: str) -> bool:
        """Whether it can have this value."""
        return re.fullmatch(self.pattern, value.strip().lower()) is not None


OTHER_NAMES = {
    "--webui": "--ui",
    "--no-webui": "--no-ui",
    "--predict": "--n-predict",
    "--gpu-layers": "--n-gpu-layers",
    "--system-prompt": "--system",
    "-r": "--stop",
    "--reverse-prompt": "--stop",
    "-mu": "--model",
    "--model-url": "--model",
    "-bf": "--file",
    "--binary-file": "--file",
    "-spf": "--system-prompt-file",
    "-no-cnv": "--raw",
    "--no-conversation": "--raw",
    "--show-timings": "--stats",
    "--usage": "--help",
}
"""Options of llama.cpp -> what vkllm calls the same."""
HUB_REPO = {"-hf", "-hfr", "--hf-repo"}
HUB_FILE = {"-hff", "--hf-file"}
SWITCH_WORDS = {"on", "off", "auto", "enabled", "disabled", "true", "false", "1", "0", "-1"}
"""Values of options such as -fa, which older versions of llama.cpp have without a value."""

_IGNORED_SWITCHES = """
    -fa --flash-attn -co --color --log-colors -nkvo --no-kv-offload --repack --no-host -nopo --no-op-offload
"""
# What the value is, in words, and the expression that it matches -> options. llama-bench takes lists.
_IGNORED_WITH_VALUE = {
    ("a whole number", r"-?\d+([-,+*]\d+)*"): """
        -t --threads -tb --threads-batch --cpu-strict --prio --poll --cpu-strict-batch --prio-batch --poll-batch -b
        --batch-size -ub --ubatch-size --keep -ctxcp --ctx-checkpoints --swa-checkpoints -cms --checkpoint-min-step
        --cache-reuse --threads-http
        -cram --cache-ram -lv --verbosity --log-verbosity -ptc --print-token-count -gqa --delay --keepalive
        """,
    ("a number", r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?"): """
        -dt --defrag-thold -eps -sps --slot-prompt-similarity
        """,
    ("a hexadecimal mask such as 0xff", r"(0x)?[\da-f]+(,(0x)?[\da-f]+)*"): """
        -C --cpu-mask -Cb --cpu-mask-batch
        """,
    ("a range such as 0-7", r"\d*-\d*"): "-Cr --cpu-range -Crb --cpu-range-batch",
    ("distribute, isolate or numactl", "distribute|isolate|numactl"): "--numa",
    ("on, off or auto", "on|off|auto|none|enabled|disabled|true|false|0|1"): "-fit --fit -lzm --lazy-mode",
    ("none, mmap, mlock, mmap+mlock, dio or auto", r"(none|mmap|mlock|mmap\+mlock|dio|auto)(,[a-z+]+)*"): """
        -lm --load-mode
        """,
    ("a folder", ".+"): "--media-path",  # of images, which requests cannot bring
    ("none, md, csv, json, jsonl or sql", "none|md|csv|json|jsonl|sql"): "-oe --output-err",
}
_SWITCH_PATTERN = "({0})(,({0}))*".format("|".join(sorted(SWITCH_WORDS)))
_IGNORED_FLAGS = """
    --swa-full -kvu --kv-unified -no-kvu --no-kv-unified -kvo --kv-offload -nr --no-repack
    --op-offload -cb --cont-batching -nocb --no-cont-batching
    --mmproj-auto --no-mmproj --no-mmproj-auto --mmproj-offload --no-mmproj-offload --mmap --no-mmap --mlock -dio
    --direct-io -ndio --no-direct-io --check-tensors -bs --backend-sampling --warmup --no-warmup --perf --no-perf
    --no-show-timings --no-context-shift --jinja --no-jinja --simple-io -mli --multiline-input --no-display-prompt
    --display-prompt --verbose-prompt -cnv --conversation -st --single-turn --log-disable --log-enable --log-jsonl
    --no-log-jsonl --log-prefix --no-log-prefix --log-timestamps --no-log-timestamps -v --verbose --log-verbose
    --reasoning-preserve --no-reasoning-preserve --no-skip-chat-parsing --memory-f32 -mmq
    --cache-prompt --no-cache-prompt --cache-idle-slots --no-cache-idle-slots --models-autoload --no-ui-mcp-proxy
    --no-webui-mcp-proxy -no-ag --no-agent
    --mul-mat-q --no-mul-mat-q --penalize-nl --no-penalize-nl --nowordwrap --progress
"""

_SPECULATION = "vkllm drafts from earlier text and by heads in the file, with no other model; see --spec"
_SERVER = "the server of vkllm has no such option; see `vkllm serve --help`"
_SAMPLER = "the samplers of vkllm are penalties, top-k, top-p, min-p and temperature, in this order"
_ONE_MACHINE = "vkllm runs a model on the GPUs of one machine; choose them with -dev"
_PLACES = "vkllm places the parts of a model itself; set the limits with -ngl, -ot, --vram-limit and --ram-limit"
_TEXT_ONLY = "vkllm reads and writes text only"
_FROM_FILE = "vkllm takes this from the model's file"
_EMBEDDINGS = "embeddings come from `vkllm serve`, and from `llm.embed(...)` in Python"
_RANKS = "documents are ranked by `vkllm serve`, by their embeddings"
_TRAINING = "vkllm trains and converts no models; use the tools of llama.cpp"
_TASKS = "vkllm measures perplexity only; use llama-perplexity for other scores"
_REASONING = "the model thinks as it was trained; --hidethinking or --skip-chat-parsing choose what is shown of that"
_TEMPLATE = "vkllm uses the chat template of the model's file; --raw leaves it out"
_PRESET = "vkllm has no such presets; name a model, as in -hf OWNER/REPO; `vkllm list --all` shows some"
_ADAPTERS = "vkllm cannot apply adapters yet; merge it into the model with llama-export-lora first"
_VECTORS = "vkllm has no control vectors"
_INTERACTIVE = "leave the prompt out to chat line by line"
_BATCHED = "`vkllm bench -np` runs many requests at once, with -p and -n"

# What to do instead -> options that are followed by values, and flags.
_REFUSED: dict[str, tuple[str, str]] = {
    _SPECULATION: (
        """
        --spec-draft-hf -hfd -hfrd --hf-repo-draft --spec-draft-threads -td --threads-draft --spec-draft-threads-batch
        -tbd --threads-batch-draft --spec-draft-cpu-mask -Cd --cpu-mask-draft --spec-draft-cpu-range -Crd
        --cpu-range-draft --spec-draft-cpu-strict --cpu-strict-draft --spec-draft-prio --prio-draft --spec-draft-poll
        --poll-draft --spec-draft-cpu-mask-batch -Cbd --cpu-mask-batch-draft --spec-draft-cpu-range-batch -Crbd
        --cpu-range-batch-draft --spec-draft-cpu-strict-batch --cpu-strict-batch-draft --spec-draft-prio-batch
        --prio-batch-draft --spec-draft-poll-batch --poll-batch-draft --spec-draft-type-k -ctkd --cache-type-k-draft
        --spec-draft-type-v -ctvd --cache-type-v-draft --spec-draft-override-tensor -otd --override-tensor-draft
        --spec-draft-n-cpu-moe --spec-draft-ncmoe -ncmoed --n-cpu-moe-draft --spec-draft-n-max --spec-draft-n-min
        --spec-synth-len --spec-synth-rates --spec-draft-p-split --draft-p-split --spec-draft-p-min --draft-p-min
        --spec-draft-device -devd --device-draft --spec-draft-ngl -ngld --gpu-layers-draft --n-gpu-layers-draft
        --spec-draft-model -md --model-draft --spec-type --spec-ngram-mod-n-min --spec-ngram-mod-n-max
        --spec-ngram-mod-n-match --spec-ngram-simple-size-n --spec-ngram-simple-size-m --spec-ngram-simple-min-hits
        --spec-ngram-map-k-size-n --spec-ngram-map-k-size-m --spec-ngram-map-k-min-hits --spec-ngram-map-k4v-size-n
        --spec-ngram-map-k4v-size-m --spec-ngram-map-k4v-min-hits --draft --draft-n --draft-max --draft-min
        --draft-n-min --spec-ngram-size-n --spec-ngram-size-m --spec-ngram-min-hits -cd --ctx-size-draft -lcs
        --lookup-cache-static -lcd --lookup-cache-dynamic
        """,
        "--spec-draft-cpu-moe -cmoed --cpu-moe-draft --spec-draft-backend-sampling --no-spec-draft-backend-sampling "
        "--spec-default --mtp --dflash --eagle3",
    ),
    _SERVER: (
        """
        --server-base --kv-unified-per-slot --path --ui-config --webui-config --ui-config-file --webui-config-file
        --tools --tools-runtime --mcp-servers-config --mcp-servers-json --slot-save-path
        --models-preset --log-prompts-dir --api-prefix --tags
        """,
        """
        --spm-infill --reuse-port --props --no-models-autoload
        --ui-mcp-proxy --webui-mcp-proxy -ag --agent --lora-init-without-apply
        """,
    ),
    _SAMPLER: (
        "--samplers --sampler-seq --sampling-seq --top-nsigma --top-n-sigma --xtc-probability --xtc-threshold "
        "--typical --typical-p --tfs --dry-multiplier --dry-base --dry-allowed-length --dry-penalty-last-n "
        "--dry-sequence-breaker --adaptive-target --adaptive-decay --dynatemp-range --dynatemp-exp --mirostat "
        "--mirostat-lr --mirostat-ent -l --logit-bias --cfg-scale --cfg-negative-prompt",
        "",
    ),
    _ONE_MACHINE: ("--rpc -rpc", ""),
    _PLACES: (
        "-ncffn --n-cpu-ffn -fitp --fit-print -fitt --fit-target -fitc --fit-ctx",
        "",
    ),
    _TEXT_ONLY: (
        "-mm --mmproj -mmu --mmproj-url --image --audio --video --image-min-tokens --image-max-tokens "
        "--mtmd-batch-max-tokens --video-fps --video-timestamp-interval --video-ffmpeg-dir --tts-lang "
        "--tts-speaker-file -mv --model-vocoder -hfrv --hf-repo-v -hffv --hf-file-v -hfv",
        "",
    ),
    _FROM_FILE: (
        "--rope-scaling --rope-scale --rope-freq-base --rope-freq-scale --yarn-orig-ctx --yarn-ext-factor "
        "--yarn-attn-factor --yarn-beta-slow --yarn-beta-fast -gan --grp-attn-n -gaw --grp-attn-w --override-kv",
        "",
    ),
    _EMBEDDINGS: (
        "--pooling --attention --embd-normalize --embd-output-format --embd-separator --context-file --chunk-size "
        "--chunk-separator",
        "--embedding --embeddings -embd",
    ),
    _RANKS: ("--cls-separator", "--rerank --reranking"),
    _TRAINING: (
        "--in-file -ofreq --output-frequency --output-format --save-frequency --chunk --from-chunk --positive-file "
        "--negative-file --pca-batch --pca-iter --method -lr --learning-rate -lr-min --learning-rate-min "
        "-decay-epochs --learning-rate-decay-epochs -wd --weight-decay -val-split --val-split -epochs --epochs -opt "
        "--optimizer --logits-output-dir --tensor-filter --diffusion-steps --diffusion-eps --diffusion-algorithm "
        "--diffusion-alg-temp --diffusion-block-length --diffusion-cfg-scale --diffusion-add-gumbel-noise",
        "--process-output --ppl --no-ppl --show-statistics --parse-special --check --save-logits --diffusion-visual "
        "--ids --stdin --no-bos --no-parse-special --show-count",
    ),
    _TASKS: (
        "--hellaswag-tasks --winogrande-tasks --multiple-choice-tasks --save-all-logits --kl-divergence-base "
        "--ppl-stride --ppl-output-type",
        "--hellaswag --winogrande --multiple-choice --kl-divergence",
    ),
    _REASONING: (
        "--reasoning-format -rea --reasoning --reasoning-effort --reasoning-budget --reasoning-budget-message --think",
        "",
    ),
    _TEMPLATE: (
        "--chat-template --chat-template-file --chat-template-kwargs --in-prefix --in-suffix",
        "--in-prefix-bos -ins --instruct -cml --chatml --infill",
    ),
    _PRESET: (
        "",
        "--embd-gemma-default --fim-qwen-1.5b-default --fim-qwen-3b-default --fim-qwen-7b-default --fim-qwen-7b-spec "
        "--fim-qwen-14b-spec --fim-qwen-30b-default --gpt-oss-20b-default --gpt-oss-120b-default "
        "--vision-gemma-4b-default --vision-gemma-12b-default",
    ),
    _ADAPTERS: ("--lora --lora-scaled --lora-base", ""),
    _VECTORS: ("--control-vector --control-vector-scaled", ""),
    _INTERACTIVE: ("", "-i --interactive -if --interactive-first"),
    _BATCHED: ("-ns --sequences -npp -ntg -npl --junk --pos", "-pps -tgs"),
    "`vkllm devices` lists the GPUs": ("", "--list-devices"),
    "`vkllm list` lists the models on this machine": ("", "-cl --cache-list"),
    "`vkllm --install-completion` sets completion up": ("", "--completion-bash"),
    "in Python `llm.save_state(...)` keeps what was computed": (
        "--prompt-cache",
        "--prompt-cache-all --prompt-cache-ro",
    ),
    "set the environment variable HF_TOKEN, or run `hf auth login` once": ("-hft --hf-token", ""),
    "set the environment variable HF_HUB_OFFLINE=1": ("", "--offline"),
    "name a repository of Hugging Face with -hf, or a file": ("-dr --docker-repo", ""),
    "errors go to standard error, so write 2> FILE": ("--log-file -ld --logdir", ""),
    "answers have no special tokens; `llm.detokenize(..., skip_special=False)` shows them in Python": (
        "",
        "-sp --special",
    ),
    "write the answer to a file with > FILE": ("-o --output --output-file", ""),
}
# Values that switch an option off.
_OFF = {
    "--mirostat": "0",
    "--typical": "1",
    "--typical-p": "1",
    "--tfs": "1",
    "--top-nsigma": "-1",
    "--top-n-sigma": "-1",
    "--xtc-probability": "0",
    "--dry-multiplier": "0",
    "--dynatemp-range": "0",
    "--cfg-scale": "1",
    "-rea": "auto",
    "--reasoning": "auto",
    "--reasoning-format": "auto deepseek",
    "--reasoning-budget": "-1",
}


def _table() -> dict[str, LlamaOption]:
    options = {
        name: LlamaOption(1, is_switch=True, takes="on, off or auto", pattern=_SWITCH_PATTERN)
        for name in _IGNORED_SWITCHES.split()
    }
    for (takes, pattern), names in _IGNORED_WITH_VALUE.items():
        options |= {name: LlamaOption(1, takes=takes, pattern=pattern) for name in names.split()}
    options |= {name: LlamaOption(0) for name in _IGNORED_FLAGS.split()}
    for refusal, (with_value, flags) in _REFUSED.items():
        for name in with_value.split():
            options[name] = LlamaOption(1, refusal=refusal, harmless=frozenset(_OFF.get(name, "").split()))
        options |= {name: LlamaOption(0, refusal=refusal) for name in flags.split()}
    options["--control-vector-layer-range"] = LlamaOption(2, refusal=_VECTORS)
    return options


LLAMA_OPTIONS = _table()
"""Name -> what is done with it. Options that vkllm has, under any name, are not in here."""
