"""Train, attack, evaluate and calibrate classifiers that may answer "I don't know".

Nothing is imported here: the command line must start without torch on a robot. Import from the modules:
`flss_edge.model`, `flss_edge.checkpoint`, `flss_edge.recipes`, `flss_edge.trainer`, `flss_edge.evaluation`.
"""

__version__ = "0.1.0"
