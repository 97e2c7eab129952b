"""Metrics in numpy: predictions and references in, `dict[str, Figure]` out; no module here knows a model or a file.

Read `statistics` first (Figure, bootstrap, jackknife). Then by kind of output: `classification`, `calibration`,
`label_shift`; `tagging` (entities), `qa` (answer spans); `generation` (BLEU, chrF, ROUGE), `diversity`, `mauve`; `embedding`;
`agreement` (human judges).
"""
