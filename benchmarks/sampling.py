"""Compare the samplings on real images: have they the same distribution, and how exact are the fixed points?

usage: python benchmarks/sampling.py --checkpoint c10.pt --data cifar10.npz -o sampling.json

The checkpoint's head must be linear. Shares of votes are compared with those of a million draws, which are made with
eigenvectors of the covariance and NumPy's own normals: nothing in common with what is judged. Nothing is timed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from command_line import add_result_options, require_at_least, run_timing
from sampling_plot import plot_sampling
from scipy import special, stats

from flss_edge.augment import to_float
from flss_edge.checkpoint import load_checkpoint
from flss_edge.classifiers.deterministic import logit_gaussian
from flss_edge.classifiers.latent_sampling import head_logits
from flss_edge.data import load_images
from flss_runtime.atomic import refuse_existing
from flss_runtime.environment import describe_environment
from flss_runtime.errors import CheckFailed, UsageError
from flss_runtime.logit_sampling import LogitSampling
from flss_runtime.point_set import PointSetSampling, leading_first, normal_points
from flss_runtime.validity import Flag, flag

Array = npt.NDArray[Any]
Draw = Callable[[int], Array]
"""Number of votes N -> choices (B, N)."""

SIZES = (10, 30, 100, 300, 1000)
POINTS = "point set"
RANDOM = "random votes"
LEAST_P = 1e-3  # times the number of tests: below it the votes are not alike


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for and return the exit code."""
    return run_timing("sampling.py", arguments, parse=_parse, measure=measure, plot=plot_sampling, summary=_summary)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Compare everything; return the result's JSON values without the command."""
    checkpoint = load_checkpoint(options.checkpoint)
    network = checkpoint.flss().eval()
    data = load_images(options.data, options.split)
    chosen = np.linspace(0, len(data) - 1, options.images).astype(int)
    pixels = to_float(torch.from_numpy(data.images[chosen]).permute(0, 3, 1, 2))
    with torch.no_grad():
        mean, logvar = network.encoder(pixels)
        std = torch.exp(0.5 * logvar)
        gaussian = tuple(part.float().numpy() for part in logit_gaussian(network, pixels))
    print("the same distribution?", file=sys.stderr, flush=True)
    alike = _alike(network, mean, std, gaussian, options)
    print("the truth", file=sys.stderr, flush=True)
    truth = _true_shares(*gaussian, options)
    arms = _arms(*gaussian, options)
    flags = unlike(alike)
    rows = [_row(name, count, draw(count), truth, options) for count in SIZES for name, draw in arms.items()]
    return {
        "artifact": {"checkpoint": options.checkpoint.name, "sha256": checkpoint.sha256},
        "environment": describe_environment(),
        "config": {
            "data": {"source": data.source, "sha256": data.sha256},
            "images": options.images,
            "classes": network.config.num_classes,
            "latent_dim": network.config.features,
            "noise_scale": options.noise_scale,
            "draws": options.draws,
            "votes_compared": options.votes,
            "mean_winner_share": float(truth.max(axis=1).mean()),
        },
        "results": {"alike": alike, "point_sets": rows},
        "validity": {"valid": not flags, "flags": flags},
    }


def unlike(alike: Mapping[str, Any]) -> list[Flag]:
    """Return what says that the samplings have not the same distribution."""
    tests = {"votes": alike["least_p_times_images"]}
    tests |= {f"pairs of {name} sampling": found["least_p_times_pairs"] for name, found in alike["pairs"].items()}
    return [
        flag("not_alike", f"{name}: the smallest p-value times the tests is {p:.2g}")
        for name, p in tests.items()
        if p < LEAST_P
    ]


def _alike(network: Any, mean: Any, std: Any, gaussian: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Compare logit with latent sampling, and both with the closed form, image by image."""
    mean_logits, covariance = gaussian
    count, classes = mean_logits.shape
    rng = np.random.default_rng(1)
    generator = torch.Generator().manual_seed(1)
    sampling = LogitSampling(options.votes, classes)
    levels, deviations = [], {"latent": [], "logit": []}
    for row in range(count):
        noise = torch.randn(1, options.votes, mean.shape[1], generator=generator)
        with torch.no_grad():
            spread = options.noise_scale * std[row : row + 1]
            latent = head_logits(network.head, mean[row : row + 1], spread, noise)[0].numpy()
        points = rng.standard_normal((1, options.votes, classes), np.float32)
        one = slice(row, row + 1)
        logit = sampling.draw(mean_logits[one], covariance[one], options.noise_scale, points)[0][0]
        votes = np.stack([np.bincount(each.argmax(axis=1), minlength=classes) for each in (latent, logit)])
        votes = votes[:, votes.sum(axis=0) >= 20]
        if votes.shape[1] > 1:
            levels.append(float(stats.chi2_contingency(votes).pvalue))
        for name, logits in (("latent", latent), ("logit", logit)):
            deviations[name].append(_pair_deviations(logits, mean_logits[row], covariance[row], options.noise_scale))
    if not levels or not all(map(np.size, map(np.concatenate, deviations.values()))):
        raise CheckFailed("no image's votes are divided, so nothing is compared", "raise --noise-scale or --images")
    uniform = stats.kstest(levels, "uniform")
    return {
        "p_values": levels,
        "least_p_times_images": min(1.0, min(levels) * len(levels)),
        "below_0.05": float(np.mean(np.array(levels) < 0.05)),
        "uniform_p": float(uniform.pvalue),
        "pairs": {name: _pairs(np.concatenate(found)) for name, found in deviations.items()},
    }


def _pair_deviations(logits: Array, mean_logits: Array, covariance: Array, noise_scale: float) -> Array:
    """Return each pair's wins minus those of the closed form, in binomial standard deviations."""
    j, k = np.triu_indices(len(mean_logits), 1)
    variance = covariance[j, j] + covariance[k, k] - 2 * covariance[j, k]
    chance = special.ndtr((mean_logits[j] - mean_logits[k]) / (noise_scale * np.sqrt(variance)))
    mixed = (chance > 0.01) & (chance < 0.99)  # elsewhere a binomial is not nearly normal
    wins = (logits[:, j[mixed]] > logits[:, k[mixed]]).mean(axis=0)
    deviation: Array = (wins - chance[mixed]) / np.sqrt(chance[mixed] * (1 - chance[mixed]) / len(logits))
    return deviation


def _pairs(deviations: Array) -> dict[str, float]:
    limit = float(stats.norm.isf(0.025 / len(deviations)))
    return {
        "pairs": len(deviations),
        "mean_square": float(np.square(deviations).mean()),
        "largest": float(np.abs(deviations).max()),
        "largest_expected_95": limit,
        "least_p_times_pairs": min(1.0, 2 * float(stats.norm.sf(np.abs(deviations).max())) * len(deviations)),
    }


def _true_shares(mean_logits: Array, covariance: Array, options: argparse.Namespace) -> Array:
    """Return shares (B, K) of many random votes."""
    values, vectors = np.linalg.eigh(covariance.astype(np.float64))
    roots = (options.noise_scale * vectors * np.sqrt(np.maximum(values, 0))[:, None]).astype(np.float32)
    rng = np.random.default_rng(2)
    shares = np.zeros(mean_logits.shape)
    part = 100_000
    for _ in range(options.draws // part):
        noise = rng.standard_normal((part, mean_logits.shape[1]), np.float32)
        for row, (mean, root) in enumerate(zip(mean_logits, roots, strict=True)):
            shares[row] += np.bincount((noise @ root.T + mean).argmax(axis=1), minlength=len(mean))
    found: Array = shares / shares.sum(axis=1, keepdims=True)
    return found


def _arms(mean_logits: Array, covariance: Array, options: argparse.Namespace) -> Mapping[str, Draw]:
    """Return ways to place N votes, the runtime's first."""
    classes, scale = mean_logits.shape[1], options.noise_scale
    order = leading_first(mean_logits)

    def at(points: Array, ordered: bool = True) -> Array:
        sampling = LogitSampling(len(points), classes)
        return sampling.draw(mean_logits, covariance, scale, points[None], order if ordered else None)[1]

    def sobol(count: int) -> Array:
        engine: Any = torch.quasirandom.SobolEngine
        uniform = engine(classes, scramble=True, seed=0).draw(count, dtype=torch.float64).numpy()
        return special.ndtri(uniform.clip(2.0**-33, 1 - 2.0**-33)).astype(np.float32)

    def halton(count: int) -> Array:
        half = stats.qmc.Halton(classes, scramble=False).random(count // 2 + 1)[1:]
        return np.concatenate([special.ndtri(half), -special.ndtri(half)]).astype(np.float32)

    def random(count: int) -> Array:
        shape = (len(mean_logits), count, classes)
        noise = np.random.default_rng(3).standard_normal(shape, np.float32)
        return LogitSampling(count, classes).draw(mean_logits, covariance, scale, noise)[1]

    return {
        POINTS: lambda count: PointSetSampling(count, classes).draw(mean_logits, covariance, scale)[1],
        "point set, classes as numbered": lambda count: at(normal_points(count, classes), ordered=False),
        "not mirrored": lambda count: at(normal_points(2 * count, classes)[:count]),
        "no digits permuted": lambda count: at(halton(count)),
        "Sobol, scrambled": lambda count: at(sobol(count)),
        RANDOM: random,
    }


def _row(name: str, count: int, choices: Array, truth: Array, options: argparse.Namespace) -> dict[str, Any]:
    """Return how far the winners' vote shares are from the truth, with 95 % bootstrap intervals over the images."""
    images = np.arange(len(truth))
    winner = truth.argmax(axis=1)
    shares = np.stack([(choices == index).mean(axis=1) for index in range(truth.shape[1])], axis=1)
    errors = shares[images, winner] - truth[images, winner]
    chance = truth[images, winner] * (1 - truth[images, winner]) / count
    resampled = np.random.default_rng(0).integers(0, len(images), (2000, len(images)))
    spread = np.sqrt(np.square(errors)[resampled].mean(axis=1))
    rms = float(np.sqrt(np.square(errors).mean()))
    return {
        "name": name,
        "num_samples": count,
        "rms_error": rms,
        "interval": np.quantile(spread, (0.025, 0.975)).tolist(),
        "largest": float(np.abs(errors).max()),
        "bias": float(errors.mean()),
        "random_rms": float(np.sqrt(chance.mean())),
        "worth_random_votes": float(count * chance.mean() / rms**2),
        "winners_missed": float((shares.argmax(axis=1) != winner).mean()),
    }


def _summary(result: Mapping[str, Any]) -> str:
    alike = result["results"]["alike"]
    least, uniform = alike["least_p_times_images"], alike["uniform_p"]
    lines = [f"votes alike: smallest p-value times images {least:.3g}, uniform {uniform:.2g}"]
    for row in result["results"]["point_sets"]:
        low, high = row["interval"]
        lines.append(
            f"N = {row['num_samples']:4} {row['name']:31} {row['rms_error']:.4f} [{low:.4f}, {high:.4f}] "
            f"worth {row['worth_random_votes']:.0f}, largest {row['largest']:.3f}, missed {row['winners_missed']:.1%}"
        )
    return "\n".join(lines)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="with a linear head")
    parser.add_argument("--data", type=Path, required=True, help="labelled images, as flss-edge evaluate takes them")
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, default=300, help="so many, evenly spaced")
    parser.add_argument("--votes", type=int, default=10_000, help="of each sampling, whose distributions are compared")
    parser.add_argument("--draws", type=int, default=1_000_000, help="that the true shares are counted on")
    parser.add_argument("--noise-scale", type=float, default=2.0)
    add_result_options(parser)
    options = parser.parse_args(arguments)
    require_at_least(options, images=2, votes=1000, draws=100_000)
    if not 0 < options.noise_scale < math.inf:
        raise UsageError(
            f"--noise-scale is {options.noise_scale}", "Give a number above 0: without noise all vote alike."
        )
    refuse_existing(options.output, options.overwrite)
    return options


if __name__ == "__main__":
    sys.exit(main())
