"""How to train each method, by name: settings, an attack and its losses. The trainer knows none of them."""

from __future__ import annotations

import types

from flss_edge.recipes import adversarial, ccat, flss, pni, smoothing, trades
from flss_edge.recipes.config import Recipe
from flss_runtime.errors import UsageError

RECIPES: types.MappingProxyType[str, Recipe] = types.MappingProxyType(
    {
        recipe.config.recipe: recipe
        for recipe in (
            flss.OFFICIAL,
            flss.PAPER,
            flss.PLUS,
            adversarial.STANDARD,
            adversarial.PGD_AT,
            adversarial.AT_AWP,
            trades.TRADES,
            trades.TRADES_AWP,
            ccat.CCAT,
            smoothing.RS,
            smoothing.RS_TRADES,
            pni.PNI,
        )
    }
)


def recipe_named(name: str) -> Recipe:
    """Return the recipe called `name`.

    Raises:
        UsageError: there is none.
    """
    if name not in RECIPES:
        raise UsageError(f"there is no recipe {name!r}", f"Use one of: {', '.join(RECIPES)}.")
    return RECIPES[name]
