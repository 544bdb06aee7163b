"""The subcommands of `deepseek-resilient`, one module each: `add` describes it to argparse, `run` does it."""
