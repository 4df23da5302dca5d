"""Adapters that outlive their run: one orbax checkpoint per wave, and a way back to one input's.

They are kept as arrays of the host, whatever devices they were made on. Orbax gives the directory its name when all of
it is on the disk. Where a run was killed, what it had not finished is written again; a checkpoint that is there is
whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from ttsi_jax.checkpoints.peft import save_peft
from ttsi_jax.errors import InputError
from ttsi_jax.model.config import DecoderConfig, Rope
from ttsi_jax.model.lora import Adapter, LoraConfig, LowRank

ADAPTERS = "adapters"  # the folder in a run's directory
_TREE, _ABOUT = "tree", "about"


def save_adapters(
    run: Path, ids: Sequence[str], adapters: Adapter, lora: LoraConfig, config: DecoderConfig, base: str
) -> None:
    """Keeps the adapters of a wave, before its records say that its inputs are done.

    Args:
        run: the run's directory.
        ids: of the inputs, in the rows' order; rows beyond them are dummies.
        adapters: factors [E, in, rank] and [E, rank, out], wherever they lie.
        lora: their shape and scale.
        config: the decoder they belong to.
        base: the base model's name.

    Raises:
        OSError: they cannot be written, as on a full disk.
    """
    adapters = jax.device_get(adapters)
    name = hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]
    tree = {str(layer): {key: factors._asdict() for key, factors in own.items()} for layer, own in adapters.items()}
    about = {"ids": list(ids), "lora": asdict(lora), "decoder": asdict(config), "base": base}
    items = {_TREE: ocp.args.StandardSave(tree), _ABOUT: ocp.args.JsonSave(about)}
    with _checkpointer() as checkpointer:
        try:
            checkpointer.save((run / ADAPTERS / name).resolve(), ocp.args.Composite(**items), force=True)
        except ValueError as error:
            if "os_error_code" not in str(error):
                raise
            # As orbax's writer says that a disk is full, or that it may not write there.
            raise OSError(None, str(error).partition("\n")[0], str(run / ADAPTERS)) from None


def saved_ids(run: Path) -> list[str]:
    """The inputs whose adapters a run has kept."""
    return [id for _, about in _checkpoints(run) for id in about["ids"]]


def load_adapter(run: str | Path, id: str) -> tuple[Adapter, LoraConfig]:
    """One input's adapter, float32 factors a [in, rank] and b [rank, out], from a run with `--adapt.save`.

    Raises:
        InputError: the run has not kept it.
    """
    path, about = _find(Path(run), id)
    row = about["ids"].index(id)
    wave = _restore(path, **{_TREE: ocp.args.StandardRestore()})[_TREE]
    tree = jax.tree.map(lambda x: x[row], wave)
    adapter = {int(layer): {name: LowRank(**own) for name, own in names.items()} for layer, names in tree.items()}
    lora: Any = about["lora"]
    lora |= {name: tuple(lora[name]) for name in ("targets", "layers")}
    return adapter, LoraConfig(**lora)


def export_adapter(run: str | Path, id: str, out: str | Path) -> None:
    """Writes one input's adapter as a directory that PEFT loads.

    Raises:
        InputError: the run has not kept it, or `out` is there and not empty.
    """
    if Path(out).is_dir() and any(Path(out).iterdir()):
        raise InputError(f"{out}: is not empty; choose another directory")
    about = _find(Path(run), id)[1]
    adapter, lora = load_adapter(run, id)
    alpha = lora.scale * lora.rank  # what PEFT divides by the rank
    save_peft(out, adapter, _decoder(about["decoder"]), rank=lora.rank, alpha=alpha, base=about["base"])


def _checkpoints(run: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The finished checkpoints of a run, with what is known of each."""
    for path in sorted((run / ADAPTERS).resolve().glob("*")):
        if ocp.utils.is_checkpoint_finalized(path):
            yield path, _restore(path, **{_ABOUT: ocp.args.JsonRestore()})[_ABOUT]


def _checkpointer() -> ocp.Checkpointer:
    """Of several processes the one that asks for it uses it alone, and orbax must not wait for the others."""
    alone = {"active_processes": {jax.process_index()}, "barrier_sync_key_prefix": ADAPTERS}
    options = ocp.options.MultiprocessingOptions(**alone if jax.process_count() > 1 else {})
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=options))
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _restore(path: Path, **items: Any) -> Any:
    try:
        with _checkpointer() as checkpointer:
            return checkpointer.restore(path, ocp.args.Composite(**items))
    except (ValueError, KeyError, OSError) as error:  # as orbax and its readers say it
        why = str(error).partition("\n")[0]
        raise InputError(
            f"{path}: these adapters cannot be read ({type(error).__name__}: {why}); if the folder is damaged, delete "
            "it to use the others"
        ) from None


def _find(run: Path, id: str) -> tuple[Path, dict[str, Any]]:
    for path, about in _checkpoints(run):
        if id in about["ids"]:
            return path, about
    kept = saved_ids(run)
    hint = f"kept are {', '.join(sorted(kept)[:5])}{' and more' if len(kept) > 5 else ''}" if kept else "none is kept"
    raise InputError(f"{run}: keeps no adapter of input '{id}'; {hint} (a run keeps them with --adapt.save)")


def _decoder(values: dict[str, Any]) -> DecoderConfig:
    """The decoder's shape, from its JSON values."""
    fields: dict[str, Any] = values | {"local_layers": tuple(values["local_layers"])}
    for name in ("rope", "local_rope"):
        if fields[name] is not None:
            fields[name] = Rope(fields[name]["theta"], tuple(fields[name]["divisors"]))
    return DecoderConfig(**fields)
