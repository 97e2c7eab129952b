"""Evaluation of trained runs and published models.

Read in this order: `subject` (the evaluated model, and the protocol of a task), `registry` (every task by name), then a task:
`perplexity` is the plainest. All tasks return `dict[str, Figure]` of `metrics.statistics`: values with standard errors.

- held-out splits: `held_out` (the loss, in training too), `validation` (the task), `in_training` (tasks between steps)
- tasks on files: `perplexity`, `in_context`, `probes`, `texts`, `embeddings`, `classifier`; `files` reads them,
  `pseudo_likelihood` and `vectors` score and embed
- labelled runs: `predictions` (forms of answers), `downstream` (a run's files), `replies` (generated answers), `again`
- baselines and other evaluators: `kneser_ney`, `harness`
- rooms: `metrics/` (numpy), `attacks/` (noise and adversaries), `report/` (pages, pictures, human judges)
"""
