"""Runs small models through prefill, decode, grammars, scores, bandwidth: python validated_engine.py [unordered].

`test_validation.py` starts it under the validation layer. "unordered" leaves out every barrier that may be left
out, to prove that the layer would notice.
"""

import itertools
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from model_specs import HYBRID_SPEC, KINDS_OF_LAYERS, TINY_SPEC
from quick_choices import use_quick_choices
from random_model import engine_config, write_random_model

from vkllm.engine.engine import Engine
from vkllm.engine.events import Finished, Scores
from vkllm.engine.params import SamplingParams
from vkllm.engine.requests import Request, TokenTexts
from vkllm.gpu.device.kompute import Device


def main(is_unordered: bool) -> None:
    use_quick_choices()  # their kernels are those of tests in other files
    if is_unordered:
        record = Device.record
        Device.record = lambda self, dispatches: record(self, [replace(d, is_independent=True) for d in dispatches])
    with tempfile.TemporaryDirectory() as folder:
        formats = {"attn_q": "Q4_0", "attn_k": "Q4_1", "attn_v": "F16", "attn_output": "IQ4_NL"}
        formats |= {"ffn_gate": "Q8_0", "ffn_up": "Q8_0"}
        path = write_random_model(Path(folder) / "model.gguf", TINY_SPEC, formats)
        token_bytes = (*(bytes((byte,)) for byte in range(255)), *[b""] * (TINY_SPEC.n_vocab - 256), b"\xff<end>")
        end_ids = frozenset({TINY_SPEC.n_vocab - 1})
        engine = Engine(engine_config(path, TINY_SPEC))
        engine.learn(TokenTexts(token_bytes, end_ids))
        choices = ({"temperature": 0.0}, {"temperature": 1.0, "seed": 1}, {"temperature": 1.0, "logprobs": 2})
        for options, grammar in itertools.product(choices, (None, "start: /[a-z]{5}/")):
            params = SamplingParams(max_tokens=5, **options)
            engine.submit(Request(1, tuple(range(40)), params, frozenset(), grammar=grammar))
            events = []
            while engine.has_work:
                events += engine.step()
            assert isinstance(events[-1], Finished) and events[-1].stats.n_generated == 5
        engine.submit(Request(2, tuple(range(50)), SamplingParams(), frozenset(), score_from=20))
        while engine.has_work:
            events += engine.step()
        assert sum(len(event.logprobs) for event in events if isinstance(event, Scores)) == 30
        assert engine.measure_device().read_bytes_per_s > 0
        engine.close()
        others = (
            *(KINDS_OF_LAYERS[name] for name in ("gemma", "command-r", "hunyuan", "gemma4", "deepseek2")),
            HYBRID_SPEC,
        )
        for spec in () if is_unordered else others:
            path = write_random_model(Path(folder) / "other.gguf", spec, dict.fromkeys(formats, "Q4_0"))
            engine = Engine(engine_config(path, spec))
            engine.submit(Request(1, tuple(range(40)), SamplingParams(max_tokens=2), frozenset()))
            while engine.has_work:
                events = engine.step()
            assert isinstance(events[-1], Finished)
            engine.close()
    print("done")


if __name__ == "__main__":
    main("unordered" in sys.argv)
