"""The one small interface through which every model is evaluated: a label, a score, and a threshold."""
