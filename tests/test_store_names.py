"""Names that stand for nothing are told what they are; paths and folders lead to the one model that is meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGUFWriter
from tiny_gguf import write_tiny_gguf

from vkllm.errors import ModelNotFound, UnsupportedModel
from vkllm.model.architectures import FAMILIES
from vkllm.resources import cache_dir
from vkllm.store import _choose, find_model, looks_like_path, source_of
from vkllm.store.catalog import catalog
from vkllm.store.families import family_of


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of vkllm's."""
    monkeypatch.setenv("VKLLM_CACHE", str(tmp_path_factory.mktemp("cache")))


# --- Names of others -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("llama3.2:3b-instruct-q4_K_M", "llama-3.2-3b"),
        ("Llama-3.2-1B-Instruct", "llama-3.2-1b"),
        ("Meta-Llama-3.1-8B-Instruct-Q8_0", "llama-3.1-8b"),
        ("qwen2.5:7b-instruct-q8_0", "qwen2.5-7b"),
        ("gemma3:1b-it-q8_0", "gemma-3-1b"),
        ("tinyllama:1.1b-chat", "tinyllama"),
        ("qwen3.5:9b-q8_0", "qwen3.5-9b"),
        ("gemma-4-E4B-it", "gemma-4-e4b"),
        ("LFM2-8B-A1B-Q4_0", "lfm2-8b-a1b"),
    ],
)
def test_another_name_of_a_model_of_the_catalogue_is_told_ours(name: str, ours: str) -> None:
    with pytest.raises(ModelNotFound, match=f"vkllm's name for it is {ours}: `vkllm pull {ours}` fetches it"):
        find_model(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("codellama:70b", "of 70b; of this family vkllm has the names codellama-7b"),
        ("qwen3:5b", "of 5b; of this family vkllm has the names qwen3-0.6b, "),
        ("gemma3:3b", "of this family vkllm has the names gemma-3-270m, gemma-3-1b, "),
        ("qwen3.7:9b", "of the family Qwen 3.5 to 3.8 run"),
        ("Qwen3.5-122B-A10B", "of the family Qwen 3.5 to 3.8, mixtures of experts run"),
        (
            "Qwen3-Coder-480B-A35B",
            "models of the family Qwen 3, mixtures of experts run: give a GGUF of one as hf",
        ),
        ("qwen3-coder:480b", "of 480b; of this family vkllm has the names qwen3-coder-30b"),
        (
            "qwen1.5-moe:a2.7b",
            "Qwen 1.5 and 2, mixtures of experts run: give ollama:qwen1.5-moe:a2.7b of ollama's regi",
        ),
        ("gemma4-coder:12b", "of the family Gemma 4 run"),
        ("gemma3n:e4b", "of the family Gemma 3n, which vkllm does not run yet; it runs cohere2, command-r, "),
        ("gpt-oss-safeguard:20b", "of the family gpt-oss run"),
        ("glm-4.6", "of the family GLM 4.5 to 4.7 run"),
        ("glm-4.7-flash-reap", "of the family GLM 4.7 Flash run"),
        ("glm-5", "other architectures, which"),
        ("granite4:3b-h", "of the family Granite 4 with Mamba layers run"),
        ("lfm2.5-thinking:1.2b", "of the family LFM run"),
        ("LFM2.5-8B-A1B", "of the family LFM, mixtures of experts run"),
        ("nemotron-3-super:120b", "of the family Nemotron 3 run"),
        ("dolphin-mixtral", "of the family Mixtral run"),
        ("llama4:maverick", "of the family Llama 4 run"),
        ("minimax-m2.5", "of the family MiniMax M2 run"),
        ("minimax-m1", "other architectures, which"),
        ("llama3.2-vision:11b", "models that see pictures"),
        ("qwen3-vl:8b", "models that see pictures"),
        ("nomic-embed-text", "embedding models"),
        ("deepseek-v3", "DeepSeek 2 and 3 run"),
        ("deepseek-v4", "DeepSeek 4, which"),
        ("falcon:7b", "other architectures, which vkllm does not run yet"),
        ("mathstral", "models of the family Mistral run: give a GGUF of one as hf.co/OWNER/REPO:Q4_K_M, or its path"),
        ("llama2-uncensored:7b", "models of the family Llama run: give ollama:llama2-uncensored:7b of ollama's regis"),
        ("medgemma:4b", "models of the family Gemma 3 run: give ollama:medgemma:4b of ollama's registry"),
        ("exaone-deep:7b", "of the family EXAONE 3, which"),
        ("somebodys:7b", "if it is one of ollama's registry, write ollama:somebodys:7b"),
    ],
)
def test_a_family_and_a_name_of_ollama_are_told_what_they_are(name: str, words: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        find_model(name)
    assert words in str(caught.value) and repr(name) in str(caught.value)
    assert "known names are" not in str(caught.value), "a list of other names is no answer"


def test_the_families_that_run_are_those_of_the_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "gemma3n", FAMILIES["gemma3"])
    with pytest.raises(ModelNotFound, match="models of the family Gemma 3n run"):
        find_model("gemma3n:e4b")
    for entry in catalog():
        family = family_of(entry.name)
        assert family is not None and family.architecture in FAMILIES, entry.name
        if "distilled" not in entry.description and "Hermes" not in entry.description:
            assert family.architecture == entry.architecture, entry.name


def test_a_file_with_the_name_of_a_model_in_other_letters_is_that_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen3-4B").mkdir()
    (tmp_path / "Qwen3-4B" / "a.gguf").touch()
    assert find_model("Qwen3-4B").name == "a.gguf"
    assert source_of("qwen3-4b") is not None


def test_another_unknown_name_lists_known_ones_like_it() -> None:
    with pytest.raises(ModelNotFound, match=r"no model 'gtp'; known names are smollm2, .*path of a \.gguf"):
        find_model("gtp")
    with pytest.raises(ModelNotFound, match=r"no model 'smolm2'; known names are smollm2"):
        find_model("smolm2")


def test_the_catalogue_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert source_of("smollm2") is not None
    monkeypatch.setattr("tomllib.loads", lambda _text: pytest.fail("it was read again"))
    assert source_of("smollm2") is not None and len(catalog()) > 20


@pytest.mark.parametrize(
    "name",
    [
        "hf:a/..",
        "hf:../../x",
        "hf.co/./x",
        "hf:o/r/../../../x.gguf",
        "hf:o/r/a//x.gguf",
        "hf.co/o/.gguf",
        "hf.co/-x/y",
        "hf.co/o",
        "hf:o/r/a\\x.gguf",
    ],
)
def test_a_name_that_leads_out_of_its_repository_stands_for_nothing(name: str) -> None:
    assert source_of(name) is None
    with pytest.raises(ModelNotFound, match=r"this is no name of a repository; write hf\.co/OWNER/REPO"):
        find_model(name)


# --- Quantizations ---------------------------------------------------------------------------------------------------

FILES = ["T-Q4_0.gguf", "T-UD-Q4_K_XL.gguf", "T-Q4_K_XL.gguf", "T-UD-Q8_K_XL.gguf", "T-bf16.gguf", "T.i1-Q5_K_M.gguf"]


@pytest.mark.parametrize(
    ("wish", "file"),
    [
        ("UD-Q4_K_XL", "T-UD-Q4_K_XL.gguf"),
        ("ud-q4_k_xl", "T-UD-Q4_K_XL.gguf"),
        ("Q4_K_XL", "T-Q4_K_XL.gguf"),
        ("Q8_K_XL", "T-UD-Q8_K_XL.gguf"),
        ("q4_0", "T-Q4_0.gguf"),
        ("BF16", "T-bf16.gguf"),
        ("i1-Q5_K_M", "T.i1-Q5_K_M.gguf"),
        ("Q5_K_M", "T.i1-Q5_K_M.gguf"),
        ("T-Q4_0.gguf", "T-Q4_0.gguf"),
    ],
)
def test_quantizations_are_named_as_their_files_and_pages_name_them(wish: str, file: str) -> None:
    assert _choose(f"hf.co/o/r:{wish}", FILES, wish) == file


@pytest.mark.parametrize(
    ("wish", "file"),
    [
        ("Q4_K_L", "T-Q4_K_L.gguf"),
        ("UD-Q5_K_XL", "UD-Q5_K_XL/T-UD-Q5_K_XL-00001-of-00002.gguf"),
        ("Q5_K_XL", "UD-Q5_K_XL/T-UD-Q5_K_XL-00001-of-00002.gguf"),
        ("F16", "F16/T-00001-of-00002.gguf"),
        ("fp16", "F16/T-00001-of-00002.gguf"),
    ],
)
def test_split_models_in_folders_are_named_by_either(wish: str, file: str) -> None:
    files = ["T-Q4_K_L.gguf", *(f"UD-Q5_K_XL/T-UD-Q5_K_XL-0000{n}-of-00002.gguf" for n in (1, 2))]
    files += [*(f"F16/T-0000{n}-of-00002.gguf" for n in (1, 2)), "F16/mmproj-T-F16.gguf"]
    assert _choose(f"hf.co/o/r:{wish}", files, wish) == file


@pytest.mark.parametrize("wish", ["IQ4_KS", "UD-IQ2_KS", "Q1_0", "Q4_0_4_4", "Q4_K_R4"])
def test_a_quantization_without_kernels_is_refused_before_anything_is_fetched(wish: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"vkllm does not run {wish}; take one of"):
        _choose(f"hf.co/o/r:{wish}", [f"T-{wish}.gguf", "T-Q4_0.gguf"], wish)


@pytest.mark.parametrize("wish", ["IQ2_M", "IQ3_XS", "Q2_K_S", "Q3_K_L", "TQ1_0", "MXFP4_MOE", "UD-IQ1_S", "NVFP4"])
def test_mixes_of_formats_are_read(wish: str) -> None:
    assert _choose(f"hf.co/o/r:{wish}", [f"T-{wish}.gguf", "T-Q4_0.gguf"], wish) == f"T-{wish}.gguf"


def test_a_quantization_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(ModelNotFound, match=r"no UD-Q4_K_XL among T-Q4_K_M\.gguf; name one, as in hf\.co/o/r:Q4_K_M"):
        _choose("hf.co/o/r:UD-Q4_K_XL", ["T-Q4_K_M.gguf"], "UD-Q4_K_XL")


BESIDE = [
    "mmproj-model-f16.gguf",
    "mmproj-T-Q8_0.gguf",
    "T-mmproj-BF16.gguf",
    "T.mmproj-Q8_0.gguf",
    "imatrix.gguf",
    "T.imatrix.gguf",
    "imatrix_unsloth.gguf",
    "ggml-vocab-llama-bpe.gguf",
    "vocab.gguf",
    "T-vocab-only.gguf",
    "mtp-T-Q8_0.gguf",
    "T-MTP-Q8_0.gguf",
    "T-assistant-Q8_0.gguf",
    "T-lora-Q8_0.gguf",
    "T-adapter-f16.gguf",
    "T-draft-Q8_0.gguf",
    "T-eagle3-Q8_0.gguf",
]


@pytest.mark.parametrize("beside", BESIDE)
def test_files_beside_a_model_do_not_count(beside: str, tmp_path: Path) -> None:
    files = [beside, "T-Q8_0.gguf"]
    assert _choose("hf.co/o/r", files, None) == _choose("hf.co/o/r:Q8_0", files, "Q8_0") == "T-Q8_0.gguf"
    for file in files:
        (tmp_path / file).touch()
    assert find_model(str(tmp_path)) == tmp_path / "T-Q8_0.gguf"
    assert find_model(str(tmp_path / beside)) == tmp_path / beside, "who names it, means it"


def test_a_model_whose_name_has_such_a_word_is_one() -> None:
    for name in ("Qwen3.6-27B-MTP-Q4_K_M.gguf", "open-assistant-llama-Q4_K_M.gguf"):
        assert _choose("hf.co/o/r", [name, name.replace("Q4_K_M", "Q8_0"), "mmproj-f16.gguf"], None) == name


# --- Paths -----------------------------------------------------------------------------------------------------------


def test_a_path_or_a_folder_with_one_model_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "README.md").touch()
    with pytest.raises(ModelNotFound, match=r"folder: there is no \.gguf file"):
        find_model(str(folder))
    (folder / "b.gguf").touch()
    assert find_model(str(folder)) == folder / "b.gguf"
    assert find_model(str(folder / "b.gguf")) == folder / "b.gguf"
    (folder / "a.gguf").touch()
    with pytest.raises(ModelNotFound, match=r"2 models in this folder; choose one of a\.gguf, b\.gguf"):
        find_model(str(folder))
    assert not (cache_dir() / "used").exists()


def test_any_part_or_the_folder_of_a_split_model_is_its_first_part(tmp_path: Path) -> None:
    paths = [tmp_path / f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for path in paths:
        path.touch()
    for name in (*paths, tmp_path):
        assert find_model(str(name)) == paths[0]
    paths[0].unlink()  # ModelFile tells which part is missing.
    assert find_model(str(tmp_path)) == find_model(str(paths[1])) == paths[1]


def test_files_in_a_folder_that_say_they_are_no_models_do_not_count(tmp_path: Path) -> None:
    for name, kind in (("a.gguf", "model"), ("b.gguf", "adapter"), ("c.gguf", "mmproj"), ("d.gguf", "imatrix")):
        writer = GGUFWriter(tmp_path / name, "llama")
        writer.add_type(kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
    (tmp_path / "e.gguf").write_bytes(b"no model")
    with pytest.raises(ModelNotFound, match=r"2 models in this folder; choose one of a\.gguf, e\.gguf"):
        find_model(str(tmp_path))
    (tmp_path / "e.gguf").unlink()
    assert find_model(str(tmp_path)) == tmp_path / "a.gguf"


@pytest.mark.parametrize("name", ["x.gguf", "my models/x.GGUF", "/my models/x", "~/x y", "./x y", "../x", "models/x"])
def test_what_is_meant_as_a_path(name: str) -> None:
    assert looks_like_path(name)


@pytest.mark.parametrize("name", ["Why is the sky blue?", "Is 3/4 more than 1/2?", "smollm2", "llama3:8b", ""])
def test_what_is_not_meant_as_a_path(name: str) -> None:
    assert not looks_like_path(name)


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_not_the_folder_that_the_program_runs_in(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_gguf(tmp_path / "a.gguf")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound, match="is empty"):
        find_model(name)


@pytest.mark.parametrize("name", ["x\0y", "x" * 5000, "/" + "y" * 300 + "/z.gguf"])
def test_a_path_that_cannot_be_is_told(name: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        find_model(name)
    assert len(str(caught.value)) < 600
