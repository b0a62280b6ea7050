"""How long a frame takes, without a limit: the figures go into the result of `gpu_checks.py`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from gpu_case import Case

from flss_runtime.noise import SeededNoise


def measure_latency(case: Case) -> str:
    """No limit, only figures: one frame with 100 samples as one graph, as two, and the encoder alone."""

    def median_us(run: Callable[[], Any], rounds: int = 300) -> float:
        times = []
        for _ in range(rounds + 50):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        return float(np.median(times[50:])) * 1e6

    with case.opened() as classifier:
        pair, images = classifier.sampler.pair, case.images(1)
        assert pair is not None
        noise = SeededNoise(1).take(1, 100, case.bundle.latent_dim)
        figures = {
            "pair, N=100": median_us(lambda: pair.sample(images, classifier.noise, 100, 2.0)),
            "pair, N=1": median_us(lambda: pair.sample(images, classifier.noise, 1, 2.0)),
            "two graphs, N=100": median_us(lambda: case.graph_by_graph(classifier, images, noise, 2.0)),
            "encoder alone": median_us(lambda: classifier.sampler.encoder.run({"images": images})),
            "classify": median_us(lambda: classifier.classify(images[0])),
        }
    return ", ".join(f"{name} {value:.0f} us" for name, value in figures.items())
