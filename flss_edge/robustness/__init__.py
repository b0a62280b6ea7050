"""Evaluation under attack: campaigns of attacks, the metrics, the checks and the reports."""
