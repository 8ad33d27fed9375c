"""Recipes: the shipped ones, and for every wrong key the name of it and what would be right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.errors import NotServable, RecipeInvalid
from training.recipe import load, parse

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "recipes"
LEAST: dict[str, Any] = {"name": "cs", "data": {"train": "rows.jsonl"}}


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_shipped_recipes_are_recipes_of_files_that_are_there(file: Path) -> None:
    recipe = load(file)
    assert Path(recipe.data.train[0].file).is_file()
    assert recipe.name == file.stem.replace("_", "-")
    assert parse(json.loads(json.dumps(recipe.document()))) == recipe


def test_the_least_recipe_leaves_everything_to_the_plan() -> None:
    recipe = parse(LEAST)
    assert (recipe.then, recipe.base, recipe.method.stage, recipe.method.tuning) == ("register", None, "sft", "lora")
    assert {recipe.training.epochs, recipe.training.learning_rate, recipe.method.rank} == {"auto"}


WRONG = [
    ({"training": {"epoch": 3}}, "training.epoch", "Did you mean `training.epochs`?"),
    ({"trainig": {}}, "trainig", "Did you mean `training`?"),
    ({"zzz": 1}, "zzz", "There are name, base"),
    ({"training": {"epochs": 0}}, "training.epochs", "is 0: give auto, or a number above 0"),
    ({"training": {"epochs": True}}, "training.epochs", "is true: give auto"),
    ({"training": {"epochs": "many"}}, "training.epochs", "auto, or a number"),
    ({"training": {"epochs": float("nan")}}, "training.epochs", "auto, or a number"),
    ({"training": {"batch_size": 2.5}}, "training.batch_size", "a whole number"),
    ({"training": {"seed": -1}}, "training.seed", "from 0 to"),
    ({"training": {"packing": 1}}, "training.packing", "one of true, false"),
    ({"training": 3}, "training", "give a section with epochs"),
    ({"training": {"scheduler": "cosin"}}, "training.scheduler", "one of auto, cosine"),
    ({"method": {"tuning": "lora2"}}, "method.tuning", "one of lora, rslora"),
    ({"method": {"stage": "sfr"}}, "method.stage", "one of sft, dpo"),
    ({"method": {"rank": 513}}, "method.rank", "from 1 to 512"),
    ({"method": {"target": 3}}, "method.target", "all, or a list of modules"),
    ({"data": {}}, "data.train", "is missing"),
    ({"data": {"train": []}}, "data.train", "a path, a file's id, or a list"),
    ({"data": {"train": [{"file": "a", "wight": 2}]}}, "data.train.wight", "Did you mean `data.train.weight`?"),
    ({"data": {"train": "a", "validation": 0.9}}, "data.validation", "at most 0.5"),
    ({"data": {"train": "a", "columns": {"a": 1}}}, "data.columns.a", "string"),
    ({"name": "a b"}, "name", "a public name such as"),
    ({"name": "x@y"}, "name", "a public name such as"),
    ({"then": {"canary": 0}}, "then.canary", "a percentage above 0"),
    ({"then": "deploy"}, "then", "register, promote, keep"),
    ({"gate": {"judge": {"url": "https://h/v1"}}}, "gate.judge.model", "is missing"),
    ({"report_to": ["wandb", "excel"]}, "report_to", "a list of none, tensorboard"),
    ({"deepspeed": "zero9"}, "deepspeed", "one of null, zero2, zero3"),
    ({"name": "${oc.env:HOME}"}, "name", "reads as a reference"),
    ({"data": {"train": "a", "system": "I am ${name}"}}, "data.system", "Write the value out"),
]


@pytest.mark.parametrize(("change", "key", "right"), WRONG, ids=[f"{key} {at}" for at, (_, key, _) in enumerate(WRONG)])
def test_a_wrong_setting_is_named_with_what_would_be_right(change: dict[str, Any], key: str, right: str) -> None:
    with pytest.raises(RecipeInvalid) as refused:
        parse({**LEAST, **change})
    assert refused.value.param == key
    assert f"`{key}`" in refused.value.message
    assert right in refused.value.message


UNSERVABLE = [
    ("tuning", "adalora", "LLaMA-Factory 0.9.5 has no AdaLoRA", "rslora or lora+"),
    ("tuning", "DoRA", "does not serve DoRA", "lora"),
    ("tuning", "oft", "serves LoRA only", "lora"),
    ("tuning", "loftq", "fits no base that is served", "qlora"),
    ("stage", "rm", "value head be ignored", "dpo"),
    ("stage", "ppo", "reward model", "dpo"),
    ("modules_to_save", ["embed_tokens"], "vLLM refuses", "tuning: full and then: keep"),
    ("additional_target", "lm_head", "vLLM refuses", "Leave it out"),
    ("use_dora", True, "does not serve DoRA", "lora"),
    ("pissa_convert", False, "vLLM refuses what is not converted", "always converts"),
]


@pytest.mark.parametrize(("key", "value", "why", "instead"), UNSERVABLE, ids=lambda each: str(each)[:20])
def test_what_no_engine_could_serve_gets_the_true_answer(key: str, value: Any, why: str, instead: str) -> None:
    with pytest.raises(NotServable) as refused:
        parse({**LEAST, "method": {key: value}})
    assert refused.value.param == f"method.{key}"
    assert why in refused.value.message
    assert instead in refused.value.message


def test_numbers_may_be_written_as_people_write_them() -> None:
    recipe = parse({**LEAST, "training": {"learning_rate": "1e-4", "epochs": "3"}})
    assert (recipe.training.learning_rate, recipe.training.epochs) == (1e-4, 3.0)


def write(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_paths_count_from_the_recipe_and_ids_stay(tmp_path: Path) -> None:
    text = "name: cs\ndata:\n  train: [rows.jsonl, {file: file-abcdefgh12345678, cap: 5}]\n  validation: ../valid.csv\n"
    recipe = load(write(tmp_path, text + "gate: {no_regression_on: old.jsonl}\n"))
    assert [each.file for each in recipe.data.train] == [str(tmp_path / "rows.jsonl"), "file-abcdefgh12345678"]
    assert recipe.data.validation == str(tmp_path.parent / "valid.csv")
    assert recipe.gate is not None
    assert recipe.gate.no_regression_on == str(tmp_path / "old.jsonl")


def test_changes_come_last(tmp_path: Path) -> None:
    file = write(tmp_path, "name: cs\ndata: {train: a}\ntraining: {epochs: 3}\n")
    changed = load(file, ["training.epochs=7", "then={canary: 10}", "method.tuning=rslora"])
    assert (changed.training.epochs, changed.wants_canary, changed.method.tuning) == (7, 10, "rslora")
    for change, named in (("training.epochs", "is no change"), ("name.x=1", "not a section"), ("a.b=1", "`a`")):
        with pytest.raises(RecipeInvalid, match=named):
            load(file, [change])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no settings"),
        ("- 1", "holds no settings"),
        ("name: a\nname: b\n", "line 2 has the key name again"),
        ("name: [", "is not a recipe: line"),
        ("{a: !!python/object:os.system x}", "is not a recipe"),
        ("instruction,output\na: b: c\n", "is not a recipe"),
    ],
)
def test_a_file_that_is_no_recipe_is_said_to_be_none(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeInvalid) as refused:
        load(write(tmp_path, text))
    assert said in refused.value.message
    with pytest.raises(RecipeInvalid, match="cannot be read"):
        load(tmp_path / "nowhere.yaml")
