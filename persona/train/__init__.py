"""One training run, from pairs to adapter: settings, checks, estimate, queue, trainer, checkpoints, snapshots.

`python -m persona.train RUN` trains a run folder. Page and command line call `launcher.create_run` and
`launcher.start_run`, which start that process, and then read the folder only. No other package uses TRL.
A new setting is a field of `RunConfig` (config.py), its names in other libraries go into `aliases.py`, its check into
`validate.py`; `run_folder.py` lists what a run folder holds.
"""
