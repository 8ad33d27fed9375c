"""A run again, from its own data and settings, in a fresh folder; and whether the same came out.

On one processor the same ingredients give the same bytes. Where they do not, the first logged step whose figures
differ says where it began. Must not know queues, gateways or how anything is shown.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from adapters.errors import InvalidRequest
from training import baseview, lineage
from training.digests import Digests
from training.errors import TrainingFailed
from training.interpreter import Interpreter
from training.lineage import Difference
from training.types import Problem

COLUMNS = ("loss", "grad_norm", "eval_loss")
QUIET = {"report_to": "none", "plot_loss": False}  # nobody is told twice; the arithmetic is the same
MUST_BE_EQUAL = ("data", "settings", "deepspeed", "base")


@dataclass(frozen=True, slots=True)
class Step:
    """The first step at which the two runs differ, in full digits."""

    step: int
    figure: str
    then: Any
    now: Any


@dataclass(frozen=True, slots=True)
class Verdict:
    """equal: byte for byte. compared: logged steps of both; changed: ingredients that are not what they were."""

    equal: bool
    compared: int
    last: int
    first: Step | None
    changed: tuple[str, ...]
    weights: Mapping[str, str]

    @property
    def sentence(self) -> str:
        if self.equal:
            return f"The weights are byte-equal, and so are the figures of all {self.compared} logged steps."
        if self.first is None:
            if not self.compared:
                where = "The first run left no figures to compare."
            else:
                where = (
                    f"The figures of all {self.compared} logged steps are equal, up to step {self.last}: they part "
                    "behind it, or by less than a loss shows."
                )
        else:
            first = self.first
            where = f"The first step that differs is {first.step}: {first.figure} {first.then} then, {first.now} now."
        because = f" Not as it was: {'; '.join(self.changed[:3])}." if self.changed else ""
        return f"The weights differ. {where}{because}"

    def document(self) -> dict[str, Any]:
        return {**asdict(self), "changed": list(self.changed), "sentence": self.sentence}


def changed(
    manifest: Mapping[str, Any], folder: Path, base: Path, trainer: Mapping[str, Any], digests: Digests
) -> list[Difference]:
    """What is not as it was when `manifest` was written: the data in `folder`, the base, packages, the machine."""
    where = manifest["environment"]
    settled = {"base": manifest["base"]["id"], "device": where["device"], "gpus": where.get("count")}
    recipe = manifest.get("recipe") or {}
    now = lineage.ingredients(folder, recipe, settled, trainer=trainer, digests=digests, base=base)
    return lineage.differences(manifest, now)


def refuse(found: list[Difference]) -> None:
    """InvalidRequest where it would be another training, not the same again."""
    wrong = [each for each in found if each.what.partition(".")[0] in MUST_BE_EQUAL]
    if wrong:
        raise InvalidRequest(
            f"This would not be the same training: {wrong[0].sentence}"
            + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else "")
            + ". Put back what was changed, or add --anyway to train all the same."
        )


def devices(manifest: Mapping[str, Any]) -> str:
    """CUDA_VISIBLE_DEVICES: as many GPUs as then; "" for the processor."""
    then = manifest["environment"]
    return ",".join(map(str, range(max(1, int(then.get("count") or 1))))) if then.get("device") == "gpu" else ""


def check_devices(manifest: Mapping[str, Any], trainer: Mapping[str, Any]) -> None:
    """InvalidRequest where it was trained on GPUs that are not here."""
    wanted = devices(manifest).count(",") + 1 if devices(manifest) else 0
    if wanted > len(trainer.get("gpus") or ()):
        raise InvalidRequest(
            f"It was trained on {wanted} GPU, and the training environment sees {len(trainer.get('gpus') or ())} here. "
            "Run this on a machine like the first one."
        )


def prepare(manifest: Mapping[str, Any], folder: Path, fresh: Path, base: Path) -> Path:
    """Lay the run out in `fresh`, an empty folder of its own, from the manifest's settings; returns its train.yaml.

    InvalidRequest where there is no data any more, or a path that the trainer would split.
    """
    source = folder / "data"
    if not (source / "dataset_info.json").is_file():
        raise InvalidRequest(
            f"The data of {manifest.get('job')} is not on this machine any more ({source} is gone), so it cannot be "
            "trained again. Run this where the job's folder is."
        )
    for path in (fresh, base):
        if any(odd in str(path) for odd in (" ", "${")):
            raise InvalidRequest(f"{path} has a space or ${{ in it, which the trainer splits. Name another folder.")
    fresh.mkdir(parents=True, exist_ok=True)
    (fresh / "data").mkdir()
    for file in source.iterdir():
        if file.is_file():
            shutil.copyfile(file, fresh / "data" / file.name)
    loaded = baseview.lay_out(base, fresh / "base", manifest["settings"])
    settings: dict[str, Any] = {"model_name_or_path": str(loaded), "dataset_dir": str(fresh / "data")}
    settings |= {**manifest["settings"], **QUIET, "output_dir": str(fresh / "out")}
    if manifest.get("deepspeed"):
        named = Path(str(lineage.read_settings(folder).get("deepspeed"))).name
        shutil.copyfile(folder / named, fresh / named)
        settings["deepspeed"] = str(fresh / named)
    target = fresh / "train.yaml"
    target.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return target


def train(python: Interpreter, manifest: Mapping[str, Any], settings: Path, show: Callable[[int, int], None]) -> None:
    """Run it; blocking. ChildFailed, TrainingFailed where it stopped before the first run did."""
    fresh = settings.parent
    runner = _like(python, manifest)
    runner.run([runner.llamafactory, "train", str(settings)], fresh, show, fresh / "out" / "trainer_log.jsonl")
    steps = _steps(fresh / "out")
    if steps is None or steps[0] != steps[1]:
        stopped = manifest["settings"].get("early_stopping_steps")
        if steps is None or not stopped:
            said = "before its first checkpoint" if steps is None else f"at step {steps[0]} of {steps[1]}"
            raise TrainingFailed(Problem("stopped", f"Training stopped {said}. {fresh / 'run.log'} may say why."))


def judge(manifest: Mapping[str, Any], output: Path, found: list[Difference]) -> Verdict:
    """What came out in `output` against what the manifest says. found: ingredients that are not what they were."""
    weights = lineage.trained(output, {"adapter_folder": manifest.get("adapter_folder")})
    then = {row[0]: row for row in (manifest.get("log") or {}).get("losses") or ()}
    now = {row[0]: row for row in lineage.losses(output)}
    compared = sorted(step for step in then if step in now)
    first = next((each for step in compared for each in _parting(then[step], now[step])), None)
    if first is None and set(then) != set(now) and len(then) < lineage.MAX_LOSSES:
        step = min(set(then) ^ set(now))
        first = Step(step, "logged", "yes" if step in then else "no", "yes" if step in now else "no")
    return Verdict(
        equal=bool(weights) and weights == manifest.get("weights"),
        compared=len(compared),
        last=compared[-1] if compared else 0,
        first=first,
        changed=tuple(each.sentence for each in found),
        weights=weights,
    )


def _parting(then: list[Any], now: list[Any]) -> list[Step]:
    return [Step(then[0], name, then[at], now[at]) for at, name in enumerate(COLUMNS, start=1) if then[at] != now[at]]


def _like(python: Interpreter, manifest: Mapping[str, Any]) -> Interpreter:
    """With as many threads: another number sums in another order."""
    then = manifest["environment"]
    more = dict(python.more)
    threads = then.get("threads")
    if threads and python.facts().get("threads") != threads:
        more |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if manifest.get("deepspeed"):
        more["FORCE_TORCHRUN"] = "1"  # LLaMA-Factory wants it even on one GPU
    return replace(python, more=more)


def _steps(output: Path) -> tuple[int, int] | None:
    try:
        state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
        return int(state["global_step"]), int(state["max_steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
