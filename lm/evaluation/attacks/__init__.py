"""Robustness: inputs that change while their label should not.

Read `robustness` (clean, perturbed and delta; invariance), then `perturbations` (random noise) and `adversarial` (greedy
search for the worst substitution of words).
"""
