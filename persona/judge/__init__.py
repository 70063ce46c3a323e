"""Did it learn? Held-out loss, probes, memorised rows, drift, stops; one verdict and one report.

`evaluate.evaluate_adapter` measures, `verdict.py` holds every threshold, `report_html.py` shows it.
Knows adapters, runs and generation (through `compare`), but nothing of the page.
A new measurement goes into `measurements.py`, its figures into `report_model.py`, what they mean into `verdict.py`.
"""
