"""``attention``: where a run's best model looks, per class, next to randomised weights."""

from __future__ import annotations

import argparse
import copy
import io
from collections.abc import Iterator

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from trainer.attention.figures import VIEWS, attention_figure
from trainer.attention.file import MAPS, METHODS, RANDOMIZED, AttentionMaps, write_maps
from trainer.attention.maps import attention_rollout, class_attention, fold, token_centres
from trainer.data.dataset_folder import DatasetFolder, open_dataset
from trainer.data.loader import SequenceLoader
from trainer.distributed import Process
from trainer.errors import UsageError
from trainer.evaluation.command import SPLITS, evaluation_loader
from trainer.model import Temporal3DViT
from trainer.plurals import plural
from trainer.run_folder import open_run, write_atomically
from trainer.trained_model import TrainedModel, load_trained_model, read_run_config
from trainer.training.schedule import derive_seed

#: Attention weights of all blocks that are held at a time.
ATTENTION_BYTES = 1 << 30
FIGURE_INCHES = 9.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``attention``."""
    parser.add_argument("run", metavar="RUN", help="run folder, or gs:// URL")
    parser.add_argument(
        "--split", choices=SPLITS, default="test", help="what to look at (default: %(default)s)"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="the dataset, if it is no longer where the run found it"
    )
    parser.add_argument(
        "--max_sequences",
        type=int,
        default=256,
        metavar="N",
        help="sequences to look at, spread evenly over sessions; at least one of each "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the choice of sequences and of the randomised weights (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write a run's attention maps as the command line asks.

    Raises
    ------
    UsageError
        If a flag has a value that it cannot have.
    TrainerError
        If the run has no best checkpoint, or belongs to another dataset.
    """
    if arguments.max_sequences < 1:
        raise UsageError(f"--max_sequences is {arguments.max_sequences}: it must be at least 1")
    if arguments.seed < 0:
        raise UsageError(f"--seed is {arguments.seed}: it must be at least 0")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with open_run(arguments.run, only_best=True) as folder:
        config, data = read_run_config(folder.path)
        trained = load_trained_model(folder.path)
        dataset = open_dataset(arguments.data or data)
        trained.check_dataset(dataset)
        loader = evaluation_loader(
            dataset, arguments.split, trained.config, config, Process(0, 1, device)
        )
        chosen = choose_sequences(loader.sequences.session, arguments.max_sequences, arguments.seed)
        model = trained.model.to(device)
        means = session_maps(model, randomized(model, arguments.seed), loader, chosen)
        maps = _with_axes(means, trained, dataset, loader, chosen)
        write_maps(folder.path / f"attention/{arguments.split}.npz", maps)
        names = []
        for method in METHODS:
            for view in VIEWS:
                names.append(f"{arguments.split}-{method}-{view}.png")
                write_atomically(folder.path / "attention" / names[-1], _png(maps, method, view))
    sessions = plural(len(maps.sessions), f"{arguments.split} session")
    print(
        f"Attention of {len(chosen):,} of {plural(len(loader.sequences), 'sequence')} from "
        f"{sessions} is in {arguments.run}/attention: "
        f"{arguments.split}.npz and {len(names)} pictures, first {names[0]}"
    )


def choose_sequences(
    session: NDArray[np.int32], max_sequences: int, seed: int
) -> NDArray[np.int64]:
    """Choose sequences at random, evenly over sessions, so that long sessions do not rule.

    Parameters
    ----------
    session : int32 array of shape (n_sequences,)
        Session of each sequence.
    max_sequences : int
        Each session gives its share of this number, rounded down, but at least one.
    seed : int

    Returns
    -------
    int64 array
        Ascending indices of sequences.
    """
    rng = np.random.default_rng(derive_seed(seed, "attention"))
    present = np.unique(session)
    share = max(1, max_sequences // max(1, len(present)))
    members = (rng.permutation(np.flatnonzero(session == index)) for index in present)
    return np.sort(np.concatenate([np.zeros(0, np.int64), *(rows[:share] for rows in members)]))


def randomized(model: Temporal3DViT, seed: int) -> Temporal3DViT:
    """Return a copy of a model whose parameters are each shuffled among their own values.

    Fresh weights would give flat maps, since they are small: any training would look like an
    insight. Shuffled ones keep the distribution of the values, so that what they lack is what was
    learned (a stricter form of the test of Adebayo et al. 2018, Sanity checks for saliency maps).
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "randomized"))
    shuffled = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in shuffled.parameters():
            order = torch.randperm(parameter.numel(), generator=generator)
            values = parameter.flatten()[order.to(parameter.device)]
            parameter.copy_(values.view_as(parameter))
    return shuffled.eval()


def session_maps(
    model: Temporal3DViT, control: Temporal3DViT, loader: SequenceLoader, chosen: NDArray[np.int64]
) -> dict[str, NDArray[np.float32]]:
    """Return the mean maps of each session that has chosen sequences, ascending.

    Parameters
    ----------
    model, control : Temporal3DViT
        In evaluation mode, on the loader's device; the control gives the ``_randomized`` maps.
    loader : SequenceLoader
    chosen : int64 array
        Sequences to look at.

    Returns
    -------
    dict
        {name of `MAPS`: float32 array of shape (n_sessions, t, f, w)}.
    """
    present, counts = np.unique(loader.sequences.session[chosen], return_counts=True)
    sums = {name: np.zeros((len(present), *model.grid_size)) for name in MAPS}
    for x, index in _chosen_batches(model, loader, chosen):
        place = np.searchsorted(present, loader.sequences.session[index])
        for suffix, looked_at in (("", model), (RANDOMIZED, control)):
            for method, maps in sequence_maps(looked_at, x).items():
                np.add.at(sums[method + suffix], place, maps.double().cpu().numpy())
    means = counts[:, None, None, None]
    return {name: (total / means).astype(np.float32) for name, total in sums.items()}


@torch.no_grad()
def sequence_maps(model: Temporal3DViT, x: Tensor) -> dict[str, Tensor]:
    """Return the map of each sequence by each method of `METHODS`, (B, t, f, w).

    Parameters
    ----------
    model : Temporal3DViT
        In evaluation mode.
    x : float32 tensor of shape (B, n_trials, n_freqs, n_times)
    """
    _, attentions = model.forward_with_attention(x)
    found = {
        "rollout": attention_rollout(attentions, model.num_prefix_tokens),
        "class_attention": class_attention(attentions[-1], model.num_prefix_tokens),
    }
    return {method: fold(tokens, model.grid_size) for method, tokens in found.items()}


def _chosen_batches(
    model: Temporal3DViT, loader: SequenceLoader, chosen: NDArray[np.int64]
) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    """Yield (x, index) of the chosen sequences, few enough at a time for their attention."""
    n_tokens = model.patch_embed.num_patches + model.num_prefix_tokens
    n_heads = sum(block.attn.num_heads for block in model.blocks)
    size = max(1, ATTENTION_BYTES // (4 * n_heads * n_tokens**2))
    batches = track(
        loader.batches(0),
        description="Looking",
        total=loader.steps_per_epoch,
        console=Console(stderr=True),
        transient=True,
    )
    for batch in batches:
        index = batch.index.cpu().numpy()
        rows = np.flatnonzero(np.isin(index, chosen))
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            yield batch.x[torch.from_numpy(part).to(batch.x.device)].float(), index[part]


def _with_axes(
    means: dict[str, NDArray[np.float32]],
    trained: TrainedModel,
    dataset: DatasetFolder,
    loader: SequenceLoader,
    chosen: NDArray[np.int64],
) -> AttentionMaps:
    config = trained.config
    present, counts = np.unique(loader.sequences.session[chosen], return_counts=True)
    positions = np.arange(1, config.sequence.n_trials + 1)
    return AttentionMaps(
        step=trained.entry.step,
        classes=dataset.classes,
        sessions=tuple(loader.trials.sessions[index] for index in present),
        labels=loader.trials.labels[present],
        n_sequences=counts.astype(np.int64),
        trials=token_centres(positions, config.model.patch_trial),
        freqs=token_centres(dataset.freqs, config.model.patch_freq),
        times=token_centres(dataset.times, config.model.patch_time),
        maps=means,
    )


def _png(maps: AttentionMaps, method: str, view: str) -> bytes:
    buffer = io.BytesIO()
    # Names from the table must not be read as formulas.
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = attention_figure(maps, method, view, FIGURE_INCHES)
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
