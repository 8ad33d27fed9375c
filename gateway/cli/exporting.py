"""What `export` does: versions brought here, merged or quantised in the training environment, written for others.

Must not show anything but progress, on stderr. Imported when something is exported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gateway.cli import trainer, versions
from gateway.cli.client import Refused
from gateway.cli.session import Session
from gateway.local import hardware
from training import lineage, modelcard
from training.digests import Digests
from training.export import bundle, merge, quantise, serving
from training.export.merge import Merged
from training.places import Places

NO_LINEAGE = "Nobody said how this version was made: the model card says so, and the manifest holds its digest only."


def adapter(
    gateway: Session, name: str, target: Path, base_model: str | None, license_id: str | None
) -> dict[str, Any]:
    """The bundle's document."""
    final = bundle.free(target)
    chosen = versions.choose(gateway, name)
    with versions.brought(gateway, chosen) as folder:
        manifest = _manifest(chosen.lineage, chosen.name, folder, chosen.created_at)
        bundle.write(folder, manifest, final, base_model=base_model, license_id=license_id)
    size = sum(file.stat().st_size for file in ([final] if final.is_file() else final.iterdir()))
    return {
        "object": "export",
        "kind": "adapter",
        "name": chosen.name,
        "version": chosen.version,
        "path": str(final),
        "bytes": size,
        "lineage": chosen.lineage is not None,
        "sentence": f"{chosen.label}, with its model card and manifest.",
        "notes": [] if chosen.lineage is not None else [NO_LINEAGE],
    }


def merged(
    gateway: Session,
    name: str,
    base: Path | None,
    target: Path,
    *,
    base_model: str | None = None,
    license_id: str | None = None,
    anyway: bool = False,
) -> dict[str, Any]:
    """The merged model's document."""
    final = bundle.free(target)
    with _adapter(gateway, name) as (folder, manifest):
        into = base.absolute() if base is not None else _served(gateway)
        merge.check_base(into, folder)
        notes = _same_base(manifest, into, trainer.here(gateway.data_dir), anyway)
        python = trainer.interpreter(trainer.here(gateway.data_dir))

        def papers(made: Merged) -> Mapping[str, str]:
            card = modelcard.card(manifest, base_model=base_model, license_id=license_id, merged=made.document())
            document = {**manifest, "served": "model", "merged": {**made.document(), "folder": final.name}}
            return {modelcard.FILE: card, lineage.FILE: lineage.dumped(document)}

        with trainer.steps("Merging") as show:
            verdict = merge.merge(python, into, folder, final, papers=papers, show=show)
    return {
        "object": "export",
        "kind": "merged",
        "name": manifest["name"],
        "version": manifest.get("version"),
        "path": str(final),
        "verification": verdict.document(),
        "sentence": verdict.sentence,
        "notes": [*notes, f"Serve it: {serving.serving(final).command}"],
    }


def gptq(gateway: Session, name: str, data: Path, bits: int, base: Path | None, target: Path) -> dict[str, Any]:
    """The quantised model's document; a name or an adapter's folder is merged first."""
    final = bundle.free(target)
    gpus = len(hardware.look(os.environ).gpus)
    quantise.check(gpus, dict.fromkeys(quantise.NEEDS, "?"))  # before anything is made for it
    python = trainer.interpreter(trainer.here(gateway.data_dir), ",".join(map(str, range(gpus))))
    quantise.check(gpus, python.facts()["packages"])
    given = versions.as_folder(name)
    with TemporaryDirectory(prefix=".loragate-gptq-", dir=_made(final.parent)) as scratch:
        if given is not None and (given / "config.json").is_file():
            model = given
        else:
            model = Path(scratch) / "merged"
            merged(gateway, name, base, model)
        with trainer.steps("Quantising") as show:
            quantise.gptq(python, model, data.absolute(), final, bits=bits, show=show)
        for file in (lineage.FILE, modelcard.FILE):
            if (model / file).is_file():
                (final / file).write_bytes((model / file).read_bytes())
    return {
        "object": "export",
        "kind": "gptq",
        "path": str(final),
        "bits": bits,
        "sentence": f"Quantised with GPTQ to {bits} bits. Evaluate it before you serve it: answers differ a little.",
        "notes": [f"Serve it: {serving.serving(final).command}"],
    }


def serve(gateway: Session, name: str, base: str | None, model: str | None) -> dict[str, Any]:
    """How vLLM serves it."""
    folder = versions.as_folder(name)
    if folder is not None:
        return serving.serving(folder, base, model).document()
    chosen = versions.choose(gateway, name)
    known = chosen.lineage or {}
    manifest = known if lineage.is_manifest(known) else {}
    rank = {"r": manifest.get("rank")} if manifest.get("rank") else _config(gateway, chosen)
    named = base or (manifest.get("base") or {}).get("id") or gateway.call("GET", "/admin/v1/status").get("base")
    target = f"./{chosen.name.replace(':', '-')}"
    made = serving.adapter(target, rank, manifest, named, model or chosen.name)
    first = f"First: loragate export adapter {chosen.label} --to {target}"
    return {**made.document(), "notes": [first, *made.notes]}


@contextmanager
def _adapter(gateway: Session, name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The two files of a version or of a folder, and what is known of them."""
    folder = versions.as_folder(name)
    if folder is not None:
        yield folder, _manifest(lineage.read(folder), folder.name, folder, 0)
        return
    chosen = versions.choose(gateway, name)
    with versions.brought(gateway, chosen) as brought:
        yield brought, _manifest(chosen.lineage, chosen.name, brought, chosen.created_at)


def _manifest(known: dict[str, Any] | None, name: str, folder: Path, created: int) -> dict[str, Any]:
    """What is known, with what the files themselves say."""
    plain = bundle.unknown(name, folder, created)
    if known is None:
        return plain
    if not lineage.is_manifest(known):
        return {**plain, "told": known}
    return {**plain, **known, "name": known.get("name") or name, "version": plain["version"], "digest": plain["digest"]}


def _served(gateway: Session) -> Path:
    """The folder of the base that the gateway's engine serves."""
    root = gateway.call("GET", "/admin/v1/status").get("base_root")
    if not isinstance(root, str) or not Path(root).is_dir():
        raise Refused("The base that is served is not a folder that is known here. Name its folder with --base.")
    return Path(root)


def _same_base(manifest: Mapping[str, Any], base: Path, data: Path, anyway: bool) -> list[str]:
    """Notes; Refused where the weights are not those that it was trained on."""
    recorded = (manifest.get("base") or {}).get("files") or {}
    weights = {name: sha256 for name, sha256 in recorded.items() if name.endswith(".safetensors")}
    if not weights:
        return ["It is not known on which weights it was trained: only the sizes of the base were compared."]
    digests = Digests(Places(data).root / "digests.json")
    now = {name: sha for name, sha in lineage.base_files(base, digests).items() if name.endswith(".safetensors")}
    if now == weights:
        return []
    what = f"The weights in {base} are not those that it was trained on ({(manifest['base'] or {}).get('id')})."
    if not anyway:
        raise Refused(f"{what} Name the folder of that base, or add --anyway if they are the same model otherwise.")
    return [what]


def _config(gateway: Session, chosen: versions.Chosen) -> dict[str, Any]:
    import json

    with versions.brought(gateway, chosen) as folder:
        found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return found


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
