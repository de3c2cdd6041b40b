"""`python -m lvlm`, and `torchrun -m lvlm`."""

from lvlm.cli import main

main()
