"""Training: one trainer for every model.

train      the verb: from a recipe to a run folder      trainer    the loop
spikes     which steps diverged                         signals    Ctrl-C and SIGTERM, between two steps
optim      parameter groups and learning rate           recompute  activation checkpointing
parallel   sharding over processes                      watch      names a process that hangs or is lost
metrics    metrics.jsonl                                trackers   TensorBoard and other views of the log
plan       memory and time before a training begins     flops      operations of a token
"""
