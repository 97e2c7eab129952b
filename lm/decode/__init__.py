"""Decoding: from prompts to texts, by any strategy and any architecture.

Read in this order:
steps, recurrent        the interface of an architecture: prefill, step, logits; key-value caches, memories, LSTM states
prefill                 the steps of an objective, padded batches of prompts
processors, sampling    penalties and bans on scores; temperature, truncation, the draw
loop, writer            one compiled while-loop for all new tokens; the host's side of it, in stretches
search/, grammar/       beam, contrastive and speculative decoding, masked models; text that follows an automaton
options, strategies, infilling    a strategy is one frozen dataclass, its fields are flags, and one line of `STRATEGIES`
generate, results       prompts in batches of similar length, one key a row; decoded texts
modes, request          jobs of `lm.generate`, from its flags to the screen
files, show, chat       files of prompts that resume; text as it grows; chat templates in a process of their own (templates)
score, samples, speed   log-probabilities of given texts; samples of a run in training; tokens a second
"""
