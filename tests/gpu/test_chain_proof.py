"""scripts/chain_proof.py, with a few steps of a smaller model: it finds equal bits equal, and one other bit."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vkllm.gpu.program import decode as decode_module

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import chain_proof

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = replace(chain_proof.SPEC.layers[0], d_ff=256, n_heads=4)
    spec = replace(chain_proof.SPEC, layers=(layer,), d_model=256, n_vocab=64)
    for name, value in (("SPEC", spec), ("BATCH", 8), ("N_CTX", 32)):
        monkeypatch.setattr(chain_proof, name, value)
    monkeypatch.setattr(chain_proof.program_module, "N_SLOTS", 3)  # put back at the end


def test_both_ways_give_the_same_bits(capsys: pytest.CaptureFixture[str]) -> None:
    assert chain_proof.main(["--steps", "40", "--alone", "--same-modules"]) == 0
    assert "THE SAME: all 64 logits of 40 steps" in capsys.readouterr().out


def test_both_ways_give_the_same_bits_beside_another_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert chain_proof.main(["--steps", "20"]) == 0
    *_, result, other = capsys.readouterr().out.splitlines()
    assert result.startswith("THE SAME: all 64 logits of 24 steps, chained and behind barriers, bit for bit (")
    assert other.startswith("the other process read ")


def test_one_other_bit_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    read = chain_proof.Decoder.read

    def wrong(self: chain_proof.Decoder, batch: int) -> chain_proof.Floats:
        logits = read(self, batch).copy()
        if self.is_chained and batch == 5:
            logits.view("uint32")[3, 7] ^= 1
        return logits

    monkeypatch.setattr(chain_proof.Decoder, "read", wrong)
    assert chain_proof.main(["--steps", "100", "--alone"]) == 1
    # batches are counted from 0, and 32 positions are a context
    assert "NOT THE SAME: step 43, position 11: 1 of 64 logits differ" in capsys.readouterr().out


def test_a_wait_in_vain_and_a_device_that_chains_nothing_are_no_proof(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VKLLM_CHAINS", "off")
    assert chain_proof.main(["--steps", "8", "--alone"]) == 2
    assert "nothing is chained" in capsys.readouterr().out
    monkeypatch.delenv("VKLLM_CHAINS")
    chained = decode_module.chained
    monkeypatch.setattr(
        decode_module,
        "chained",
        lambda links: chained([replace(link, n_groups=link.n_groups + link.has_chain) for link in links]),
    )
    assert chain_proof.main(["--steps", "8", "--alone"]) == 2
    assert "DeviceTimeout: " in capsys.readouterr().out
