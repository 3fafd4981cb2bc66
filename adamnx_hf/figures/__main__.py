"""`python -m adamnx_hf.figures` draws the documentation's figures."""

from adamnx_hf.figures.draw import main

if __name__ == "__main__":
    main()
