from lvlm.testing import conformance

test_laplace = conformance(plugin="laplace")
