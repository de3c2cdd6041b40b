"""The one trainer, for every arm.

trainer      the loop            checkpoint  what is saved, atomically, and read back
optim        groups, schedule    metrics     metrics.jsonl, TensorBoard, the console
device       where and in which precision (sharding over processes will have its place here)
"""
