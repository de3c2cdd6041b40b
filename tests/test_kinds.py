"""Every registered kind and every legal cross, through the same public checks that a stranger's plugin
uses.
"""

from lvlm.testing import conformance

test_everything_that_is_registered = conformance()
