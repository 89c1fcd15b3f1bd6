"""`python -m smoe_cli` is `smoe`."""

from smoe_cli.cli.app import main

if __name__ == "__main__":
    main()
