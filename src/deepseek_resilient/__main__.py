"""`python -m deepseek_resilient`: the command `deepseek-resilient`."""

from deepseek_resilient.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
