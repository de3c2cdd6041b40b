"""The one trainer, for every arm.

trainer      the loop                  checkpoint  what is saved, atomically, behind the loop, and read back
parallel     processes and sharding    recompute   activation checkpointing
optim        groups, schedule          watch       a hung or lost process is named
device       where, which precision    metrics     metrics.jsonl and TensorBoard; console: what a person sees
"""
