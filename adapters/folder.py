"""Opens a user's adapter folder without trusting it: from one directory descriptor, no links, regular files only.

Nothing but the two files is ever opened. Must not know what is inside them.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO, NoReturn

from adapters.errors import AdapterRejected
from adapters.verdict import Rejected

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1024 * 1024
MAX_WEIGHTS_BYTES = 8 * 1024**3
MAX_ENTRIES = 1000
HEADS = ("value_head.safetensors", "value_head.bin")  # LLaMA-Factory puts them beside the adapter of a reward model

# What PEFT and LLaMA-Factory leave beside an adapter: tokenizer, chat template, logs, curves, optimizer state and
# checkpoints. All of it is ignored, never opened and never copied; the base's tokenizer and template are used.
_IGNORED = re.compile(
    r".*\.(md|txt|json|jsonl|jinja|ya?ml|log|png|csv|model)|LICENSE.*|\.git.*|\.cache|\.DS_Store"
    r"|training_args\.bin|optimizer\.(pt|bin)|scheduler\.(pt|bin)|scaler\.pt|rng_state.*\.pth|checkpoint-.*|global_step.*"
    r"|latest|runs|events\.out\.tfevents.*|pissa_(backup|converted)|swanlab|wandb"
    # DeepSpeed's checkpoints, which have its script beside them, FSDP's and accelerate's.
    r"|zero_to_fp32\.py|optimizer_\d+|pytorch_model_fsdp(_\d+|\.bin)|sampler\.bin|random_states_\d+\.pkl"
)
_PICKLES = re.compile(r".*\.(bin|pt|pth|pkl|pickle|ckpt)")
_WHOLE_MODEL = re.compile(r"model.*\.safetensors|pytorch_model.*")

_BELOW = re.compile(r"checkpoint-[0-9]+|pissa_converted", re.ASCII)

_ONLY_TWO = f"Register a folder with {CONFIG} and {WEIGHTS} only."
_WHERE = "The path is one on the gateway's machine, for its user to read; --upload sends what is on yours."
_OUTPUT = "Register the output_dir of a LoRA training run, or the folder in it that has the adapter's name."
_PISSA = "Register the folder pissa_converted beside it (pissa_convert: true in LLaMA-Factory)."
_SAFETENSORS = "Save the adapter as safetensors (save_safetensors: true) and register that folder."
_SFT = "Register an adapter of stage sft, dpo or kto; if it is from ppo, move value_head.* out of the folder."


@dataclass(frozen=True, slots=True)
class Folder:
    """The two open files of an adapter."""

    config: bytes
    weights: BinaryIO
    weights_bytes: int
    refused: AdapterRejected | None = None  # for what lies beside them; the two can still be judged


@contextmanager
def opened(path: Path) -> Iterator[Folder]:
    """Open the adapter in `path` (absolute); AdapterRejected where it is not one. Closes on the way out."""
    if not path.is_absolute():
        _refuse("not_found", f"{path} is not an absolute path", "Give the folder's whole path.")
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError:
        what = "Name the folder of an adapter, or an archive of it (.tar.gz, .tgz, .tar, .zip)."
        _refuse("not_found", f"{path} is not a folder", what)
    except OSError as exc:
        _refuse("not_found", f"{path} is not a folder that can be read ({exc.strerror})", _WHERE)
    try:
        refused = _judged(path, _names(directory))
        with _file(directory, CONFIG, MAX_CONFIG_BYTES) as config, _file(directory, WEIGHTS, MAX_WEIGHTS_BYTES) as file:
            text = config.read(MAX_CONFIG_BYTES + 1)  # it may have grown since fstat
            yield Folder(text[:MAX_CONFIG_BYTES], file, os.fstat(file.fileno()).st_size, refused)
    finally:
        os.close(directory)


def _names(directory: int) -> list[str]:
    names: list[str] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            names.append(entry.name)
            if len(names) > MAX_ENTRIES:
                _refuse("unexpected_file", f"the folder has more than {MAX_ENTRIES} entries", _ONLY_TWO)
    return names


def _judged(path: PurePath, names: Collection[str]) -> AdapterRejected | None:
    try:
        check_names(path, names)
    except AdapterRejected as error:
        if not {CONFIG, WEIGHTS} <= {*names}:
            raise
        return error
    return None


def check_names(path: PurePath, names: Collection[str]) -> None:
    """Judge a folder (or an archive, which `path` then is) by what it holds; AdapterRejected."""
    here = set(names)
    _check_start(path)
    pickled = sorted(here & {"adapter_model.bin", "adapter_model.pt", "adapter_model.pth"})
    if pickled:
        _refuse("pickle_weights", f"{pickled[0]} is a pickle, which can run code when it is loaded", _SAFETENSORS)
    _check_head(here)
    if not {CONFIG, WEIGHTS} <= here:
        _refuse_incomplete(path, here)
    for name in sorted(here - {CONFIG, WEIGHTS}):
        if not _IGNORED.fullmatch(name):
            reason = "pickle_weights" if _PICKLES.fullmatch(name) else "unexpected_file"
            _refuse(reason, f"the folder also holds {name[:80]!r}, which is no part of an adapter", _ONLY_TWO)


def check_kind(path: PurePath, names: Collection[str]) -> None:
    """Whether the two files are what they seem, where what else is there is never fetched; AdapterRejected."""
    _check_start(path)
    _check_head(names)


def _check_start(path: PurePath) -> None:
    if path.name.partition(".")[0] == "pissa_backup":  # also as an archive
        _refuse("pissa_backup", "pissa_backup holds the start of the training, not its result", _PISSA)


def _check_head(names: Collection[str]) -> None:
    if any(name.startswith("value_head.") for name in names):
        _refuse("reward_model", "it is a reward model (stage rm): it scores answers, it does not write them", _SFT)


def _refuse_incomplete(path: PurePath, here: set[str]) -> NoReturn:
    if any(_WHOLE_MODEL.fullmatch(name) for name in here):
        _refuse("not_an_adapter", "it holds a whole model (freeze or full training)", "Serve it with --model instead.")
    if WEIGHTS not in here and any(_PICKLES.fullmatch(name) for name in here):
        _refuse("pickle_weights", "its only weights are pickles, which can run code when loaded", _SAFETENSORS)
    missing = " and ".join(name for name in (CONFIG, WEIGHTS) if name not in here)
    below = sorted((name for name in here if _BELOW.fullmatch(name)), key=lambda name: (name[0], len(name), name))
    nearest = f"Try {path / below[-1]}." if below else _OUTPUT
    _refuse("not_an_adapter", f"{path} has no {missing}", nearest)


@contextmanager
def _file(directory: int, name: str, limit: int) -> Iterator[BinaryIO]:
    try:
        before = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISLNK(before.st_mode):
            _refuse("symlink", f"{name} is a symbolic link", "Copy the folder with `cp -rL` and register the copy.")
        if not stat.S_ISREG(before.st_mode):  # not even opened: opening a device can do something
            _refuse("not_a_file", f"{name} is not an ordinary file", _ONLY_TWO)
        # O_NONBLOCK: a FIFO swapped in meanwhile must not hang us; fstat below then refuses it.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.fdopen(os.open(name, flags, dir_fd=directory), "rb", buffering=0)
    except OSError as exc:
        _refuse("not_a_file", f"{name} cannot be read ({exc.strerror})", "Check its owner and mode.")
    with file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            _refuse("not_a_file", f"{name} is not an ordinary file", _ONLY_TWO)
        if found.st_size > limit:
            _refuse("too_large", f"{name} has {found.st_size} bytes, more than {limit}", "Check that it is a LoRA.")
        yield file


def _refuse(reason: str, what: str, nearest: str) -> NoReturn:
    raise Rejected(f"This folder cannot be served: {what}.", nearest, reason=reason)
