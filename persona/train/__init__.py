"""One training run, from pairs to adapter: settings, checks, estimate, queue, trainer, checkpoints, snapshots.

`python -m persona.train RUN` trains a run folder; the page and the command line start that process through the queue
and read the folder. The only user of TRL.
A new setting is a field of `RunConfig` (config.py), its check goes into `validate.py`; `run_folder.py` says what a run
folder holds.
"""
