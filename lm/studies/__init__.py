"""Ablation studies: arms that differ in one thing, paired seeds, and a report that says how sure the answer is.

Read in this order: `study` (the value), `plan` (its runs and their cost), `engine` and `slurm` (start the missing runs),
`results` (read the finished ones), `statistics`, `resampling` and `scaling` (compare), `report/` (tables, plots, pages).
"""
