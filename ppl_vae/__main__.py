"""`python -m ppl_vae` is `ppl-vae`."""

from .cli import main

if __name__ == "__main__":
    main()
