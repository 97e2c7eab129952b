"""The parts of a training step and of a run's folder, below configs and objectives. The loop is `lm.train`.

In the order of reading:

    settings    the dataclasses Optimizer, Schedule, Mesh, Every, Keep; Groups (parameters), Private (dp_budget) and EarlyStop
                (stopping) stand beside the code that reads them
    state       TrainState: its shapes, its shardings, its initialisation
    optimizer   Optimizer -> optax chain, at unit learning rate; schedules: the factor on the peak rate at each step
    parameters  parameter groups by path: trained or frozen, factors on the rate, gradual unfreezing; matching of networks
    checkpoint  asynchronous saves and verified restores; integrity: checksums of arrays under any sharding
    metrics     sums and weights, divided once; writers: metrics.jsonl, samples, W&B; tensorboard: event files
    stopping    the figure that ranks checkpoints, and patience
    dp_*        DP-SGD: clipped gradients with noise, and the (epsilon, delta) guarantee
"""
