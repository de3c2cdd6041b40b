"""Every registered kind and every legal cross, through the same public checks that a stranger's plugin
uses.
"""

import pytest

from lvlm.testing import conformance

test_everything_that_is_registered = conformance(pairs=True)
test_every_cross_of_what_is_registered = pytest.mark.slow(conformance())
