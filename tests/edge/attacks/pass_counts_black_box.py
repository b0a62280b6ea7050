"""Forward and backward passes an image, as in `pass_counts`, of the attacks that see more or less than the logits.

Steps are queries for Square. Every image is right at first and, for Square, searched to its last query.
"""

from __future__ import annotations

from .pass_counts import Passes

PASSES_BLACK_BOX = {
    # the clean image; a pass for all boundaries and one for the answer a step, nine boundaries backward; the final
    # search looks at both ends and three points between them
    "fab": Passes((2, 1 + 5), (9, 0)),
    # the clean image again for its targets; nine runs of one boundary each
    "fab_targeted": Passes((9 * 2, 1 + 1 + 5), (9, 0)),
    # the clean image, then only queries
    "square": Passes((1, 1), (0, 0)),
    # the guide, then a gradient a step
    "feature_attack": Passes((1, 1), (1, 0)),
    # ten random starts and the image: value and gradient at each start and after every step; eleven ends compared
    "confidence_wrong": Passes((11, 11 + 11), (11, 11)),
    # fifty random starts and the image
    "confidence_ce": Passes((51, 51 + 51), (51, 51)),
}
