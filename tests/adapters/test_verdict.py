"""The whole verdict: everything that speaks against an adapter at once, what would make it work, and what it costs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from adapters.errors import AdapterRejected
from adapters.intake import check
from adapters.served import BaseInfo, described
from adapters.verdict import Finding, Rejected, Severity, findings_of
from tests.adapters.corpus import CONFIGS, EMBEDDING, FOLDERS, WEIGHTS, Q, W, add
from tests.adapters.folders import PREFIX, Tensors, numbers, pair, usual, write, write_base
from tests.adapters.test_safetensors import HOSTILE


@pytest.fixture
def base(tmp_path: Path) -> BaseInfo:
    return described("demo-base", str(write_base(tmp_path / "demo-base")))


def _told(folder: Path, base: BaseInfo | None, max_lora_rank: int = 16) -> Rejected:
    taken: list[bytes] = []
    with pytest.raises(Rejected) as caught:
        check(folder, base, max_lora_rank, taken.append)
    return caught.value


def _reasons(findings: tuple[Finding, ...], severity: Severity = Severity.REFUSE) -> list[str]:
    return [each.reason for each in findings if each.severity is severity]


def test_everything_is_told_at_once_and_nothing_is_copied(tmp_path: Path, base: BaseInfo) -> None:
    config = {"use_dora": True, "bias": "all", "r": 32, "rank_pattern": {"^model.layers.0.self_attn.q_proj": 8}}
    tensors = [*usual(32)[2:], *usual()[:2], *pair(f"{PREFIX}0.self_attn.c_attn", 32, 96, 32)]
    folder = add(write(tmp_path / "adapter", config, tensors), "extra.pkl")
    taken: list[bytes] = []
    with pytest.raises(Rejected) as caught:
        check(folder, base, 16, taken.append)
    refused = caught.value
    assert _reasons(refused.findings) == ["pickle_weights", "bias", "dora", "rank_too_large", "unknown_module"]
    assert refused.reason == "pickle_weights"
    assert refused.message.endswith(" 4 more reasons against it: bias, dora, rank_too_large, unknown_module.")
    assert taken == []


def test_many_tensors_with_one_fault_are_one_finding_that_counts_them(tmp_path: Path, base: BaseInfo) -> None:
    tensors = [each for layer in range(2) for each in pair(f"{PREFIX}{layer}.self_attn.q_proj", 48, 32)]
    tensors += pair(f"{PREFIX}1.self_attn.o_proj", 48, 32)
    refused = _told(write(tmp_path / "adapter", tensors=tensors), base)
    (only,) = refused.findings
    assert only.message.endswith("in demo-base it is 32 to 32, and 2 more like it.")
    assert refused.message == only.sentence


def test_a_pattern_that_is_not_run_says_nothing_of_the_ranks(tmp_path: Path, base: BaseInfo) -> None:
    """PEFT takes regular expressions there. That they are not read here does not make the tensors another run's."""
    config = {"rank_pattern": {r".*\.0\..*q_proj": 4}}
    tensors = [*pair(f"{PREFIX}0.self_attn.q_proj", 32, 32, 4), *usual()[4:]]
    refused = _told(write(tmp_path / "adapter", config, tensors), base)
    assert _reasons(refused.findings) == ["pattern"]


def test_an_adapter_with_a_name_of_its_own_is_in_a_folder_of_that_name(tmp_path: Path, base: BaseInfo) -> None:
    """Where PEFT's save_pretrained puts all that are not called default."""
    write(tmp_path / "out" / "reference")
    refused = _told(tmp_path / "out", base)
    assert (refused.reason, "the folder in it" in refused.findings[0].nearest) == ("not_an_adapter", True)


def test_each_key_is_a_finding_of_its_own(tmp_path: Path, base: BaseInfo) -> None:
    refused = _told(write(tmp_path / "adapter", {"lora_alpha": "a", "use_rslora": "b", "x": 1, "y": 2}), base)
    assert sorted(_reasons(refused.findings)) == ["config_type", "config_type", "unknown_key"]
    assert any(each.message.endswith("and 1 more like it.") for each in refused.findings)


def test_warnings_come_with_a_refusal_and_behind_it(tmp_path: Path) -> None:
    refused = _told(write(tmp_path / "adapter", {"bias": "all"}), None)
    assert [(each.severity.value, each.reason) for each in refused.findings] == [
        ("refuse", "bias"),
        ("warn", "base_unknown"),
    ]
    assert "more reason" not in refused.message, "a warning is no reason against it"


CASES = {
    **{f"folder: {case}": case for case in FOLDERS},
    **{f"config: {case}": case for case in CONFIGS},
    **{f"weights: {case}": case for case in WEIGHTS},
}


@pytest.mark.parametrize("name", CASES)
def test_every_refusal_says_what_is_wrong_and_what_would_make_it_work(
    tmp_path: Path, base: BaseInfo, name: str
) -> None:
    kind, case = name.partition(": ")[0], CASES[name]
    if kind == "folder":
        folder = write(tmp_path / "adapter")
        FOLDERS[case][0](folder)
    elif kind == "config":
        folder = write(tmp_path / "adapter", CONFIGS[case][0])
    else:
        folder = write(tmp_path / "adapter", tensors=WEIGHTS[case][0])
    findings = _told(folder, base).findings
    assert findings[0].severity is Severity.REFUSE
    for each in findings:
        assert each.message.endswith("."), each
        assert each.severity is Severity.WARN or each.nearest.endswith("."), each
        assert each.sentence.isprintable(), ascii(each)
        assert len(each.sentence) < 1000, each


def test_a_refusal_from_elsewhere_is_a_finding_too() -> None:
    (found,) = findings_of(AdapterRejected("An archive is damaged. Pack it again.", reason="archive_damaged"))
    assert (found.reason, found.nearest, found.sentence) == (
        *("archive_damaged", ""),
        "An archive is damaged. Pack it again.",
    )


# --- what is known of the base ---


def test_the_flag_and_the_setting_for_a_larger_rank_are_named(tmp_path: Path, base: BaseInfo) -> None:
    """vLLM 0.32's config/lora.py: max_lora_rank is one of 1, 8, 16, 32, 64, 128, 256, 320, 512."""
    told = _told(write(tmp_path / "a", {"r": 17}, usual(17)), base)
    assert "--max-lora-rank 32" in told.message
    assert "adapters.max_lora_rank: 32" in told.message


def test_a_rank_that_no_module_has_does_not_count(tmp_path: Path, base: BaseInfo) -> None:
    """PEFTHelper.validate_legal compares `r` as well: what we write for the engine names a rank that is used."""
    found = check(write(tmp_path / "a", {"r": 64, "rank_pattern": {"q_proj": 8, "v_proj": 8}}), base, 16)
    assert (found.rank, found.config["r"], found.config["rank_pattern"]) == (8, 8, {})


@pytest.mark.parametrize(
    "trained_on",
    [
        *("unsloth/demo-base-bnb-4bit", "demo-base-GPTQ-Int4", "x/Demo-Base-AWQ", "demo-base-unsloth-bnb-4bit"),
        *("x/demo-base-FP8-dynamic", "x/demo-base-quantized.w4a16", "x/Demo-Base-NVFP4", "x/demo-base-W8A8"),
    ],
)
def test_qlora_is_fine(tmp_path: Path, trained_on: str) -> None:
    folder = write(tmp_path / "a", {"base_model_name_or_path": trained_on})
    found = check(folder, BaseInfo("demo-base"), 16)
    assert [each.reason for each in found.findings] == ["shapes_unchecked", "base_quantised"]
    assert check(folder, BaseInfo("org/demo-base-fp8"), 16).version == found.version


def test_rslora_and_plain_starts_are_fine(tmp_path: Path, base: BaseInfo) -> None:
    """PEFTHelper._init_is_supported: these only choose where training begins."""
    for at, start in enumerate([True, False, None, "gaussian", "eva", "Orthogonal", "mica"]):
        config = {"init_lora_weights": start, "use_rslora": True}
        assert check(write(tmp_path / str(at), config), base, 16).findings == ()


def test_an_embedding_that_is_carried_along_is_a_warning(tmp_path: Path) -> None:
    """vLLM's is_base_embedding_weights leaves it out; PEFT writes it where LoRA is on the embedding."""
    llama = described("demo-base", str(write_base(tmp_path / "demo-base", model_type="llama")))
    whole = ("base_model.model.model.embed_tokens.base_layer.weight", "BF16", [100, 32], numbers(3200))
    found = check(write(tmp_path / "a", tensors=[*usual(), *EMBEDDING, whole]), llama, 16)
    assert [each.reason for each in found.findings] == ["embedding_unused"]
    assert "6400 bytes" in found.findings[0].message


def test_half_a_pair_of_zeros_everywhere_is_an_adapter_without_effect(tmp_path: Path, base: BaseInfo) -> None:
    def zeroed(half: str, modules: str) -> Tensors:
        return [
            (name, dtype, shape, bytes(len(data)) if half in name and modules in name else data)
            for name, dtype, shape, data in usual()
        ]

    found = [
        check(write(tmp_path / f"{half}{modules}", tensors=zeroed(half, modules)), base, 16).findings
        for half, modules in (("lora_A", ""), ("lora_B", ""), ("lora_B", "q_proj"))
    ]
    assert [[each.reason for each in findings] for findings in found] == [["untrained"], ["untrained"], []]


# --- what it costs ---


def test_the_memory_of_a_slot_is_vllms_to_the_byte(tmp_path: Path) -> None:
    """Counted in vLLM 0.32's CPU engine: the bytes of all lora_a_stacked and lora_b_stacked, by --max-loras."""
    demo = Path(__file__).resolve().parents[2] / "configs" / "demo" / "base"
    sizes = {"hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 3, "intermediate_size": 256}
    llama = write_base(tmp_path / "llama", model_type="llama", vocab_size=2048, **sizes)
    counted = {demo: 434_176, llama: 327_680}
    for folder, slot in counted.items():
        base = described("demo-base", str(folder))
        assert base.shape is not None
        assert base.shape.slot_bytes(16) == slot
        assert base.shape.slot_bytes(64) == 4 * slot


def test_what_an_adapter_needs_of_it(tmp_path: Path, base: BaseInfo) -> None:
    found = check(write(tmp_path / "a", tensors=pair(Q, 32, 32)), base, 16).memory
    assert (found.adapter_bytes, found.max_lora_rank) == (2 * 8 * (32 + 32), 16)
    assert found.slot_bytes is not None
    assert found.slot_bytes > found.adapter_bytes
    assert check(tmp_path / "a", BaseInfo("demo-base"), 16).memory.slot_bytes is None


ODD_BASES: dict[str, str] = {
    "not there": "",
    "not JSON": "{",
    "a list": "[]",
    "nested deep": "[" * 100_000,
    "another family": '{"model_type": "mamba"}',
    "a family of lists": '{"model_type": ["llama"]}',
    "no sizes": '{"model_type": "llama"}',
    "a text for a size": '{"model_type": "llama", "num_attention_heads": "four", "hidden_size": 32}',
    "no heads": '{"model_type": "llama", "num_attention_heads": 0, "hidden_size": 32}',
    "an endless size": '{"model_type": "llama", "num_attention_heads": 1e999, "hidden_size": 32}',
}


@pytest.mark.parametrize("case", ODD_BASES)
def test_a_base_that_cannot_be_read_is_unknown_not_an_error(tmp_path: Path, case: str) -> None:
    (tmp_path / "base").mkdir()
    if ODD_BASES[case]:
        (tmp_path / "base" / "config.json").write_text(ODD_BASES[case])
    found = described("b", str(tmp_path / "base"))
    assert (found.shape, found.config_sha256 is None) == (None, case == "not there")
    assert described("b", "/x\0y").shape is None
    assert described("b", "org/hub-id").config_sha256 is None


def test_the_file_stays_as_it_is(tmp_path: Path, base: BaseInfo) -> None:
    folder = write(tmp_path / "a")
    before = (folder / W).read_bytes()
    check(folder, base, 16)
    assert (folder / W).read_bytes() == before


# --- the page that explains it ---

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "adapters-check.md").read_text()


def test_every_reason_is_on_the_page() -> None:
    """Those that the corpora meet, and those that the code names beside them."""
    met = {reason for corpus in (FOLDERS, CONFIGS, WEIGHTS, HOSTILE) for _, reason in corpus.values()}
    for name in ("folder", "intake", "modules", "peft_config", "safetensors"):
        code = (ROOT / "adapters" / f"{name}.py").read_text()
        met |= set(re.findall(r'(?:refuse|warn|_rejected)\(\s*(?:findings,\s*)?"([a-z_]+)"', code))
        met |= set(re.findall(r'reason="([a-z_]+)"', code))
    assert len(met) > 55
    assert [reason for reason in sorted(met) if f"`{reason}`" not in PAGE] == []


def test_the_tests_that_the_page_names_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 20
    assert [name for file, name in named if f"def {name}(" not in (ROOT / file).read_text()] == []
