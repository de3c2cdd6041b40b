"""Wrong calls from Python: each is a mistake, in a folder with a run, a study and a text."""

from __future__ import annotations

CALLS = """
lvlm.load('nowhere')
lvlm.load('run', device='privateuseone')
lvlm.load('run', device='meta')
lvlm.load('run', step=10**30)
lvlm.load('run', plugin_files=[3])
lvlm.evaluate('run', k=[])
lvlm.evaluate('run', chunk=0)
lvlm.evaluate('run', resample_below=float('nan'))
lvlm.sample('run', '')
lvlm.sample('run', ['a', 3])
lvlm.sample('run', 'a', 3, temperature=-1.0)
lvlm.sample('run', 'a', 3, hold=[99])
lvlm.sample('run', 'a', 3, stop=3)
lvlm.plan('free', mfu=0.0)
lvlm.build(b'free')
lvlm.check('free', '=')
lvlm.train(None, 'nowhere')
lvlm.prepare_data([], 'new')
""".strip().splitlines()
"""Each is an expression that ends in a UserError."""
