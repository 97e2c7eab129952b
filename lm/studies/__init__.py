"""Ablation studies: arms that differ in one thing, paired seeds, and a report that says how sure the answer is.

Read in this order: `study` (the value), `plan` (its runs and their cost), `engine` (run what is missing), `results` (read what
is there), `statistics`, `resampling` and `scaling` (compare), `report/` (say).
"""
