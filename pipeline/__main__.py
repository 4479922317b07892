"""`python -m pipeline …` is the `pipeline` command; every launcher starts training this way."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
