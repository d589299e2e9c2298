"""The commands: how their arguments are parsed and checked, and what they run."""

import gc

# Python looks for garbage after every 700 new objects. Importing Hydra, torch and MLflow creates a
# million objects, none of which is garbage: the search takes a quarter of that time.
gc.set_threshold(100_000)
